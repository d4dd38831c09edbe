"""The section Results: how an explanation is shown, measured, compared and saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from XAICLIPLib.errors import InputError
from XAICLIPModule.dicom import database
from XAICLIPModule.display import chosen, saliency_display, surfaces, tables
from XAICLIPModule.display.layouts import SideBySide, showTable
from XAICLIPModule.display.saliency_display import SALIENCY_ATTRIBUTE
from XAICLIPModule.display.slice_views import SliceViews
from XAICLIPModule.live.nodes import isInScene
from XAICLIPModule.logic import XAICLIPLogic
from XAICLIPModule.panel.foreign_text import shown
from XAICLIPModule.scene import results, saving
from XAICLIPModule.scene.results import SURFACE_ROLE, ExplanationNodes
from XAICLIPModule.widgets import structures_bars

FOLLOW_SETTING = "XAICLIP/MoveViewsToMap"
ROW_HEIGHT = 22
"""Of the tables, in pixels: Qt's own leaves room for an editor that these do not have."""


class ResultsPanel(VTKObservationMixin):
    """Shows the explanation that is selected, and lets its looks be changed.

    Parameters
    ----------
    ui
        The widgets by their names.
    logic
        For its slice views.
    """

    def __init__(self, ui: Any, logic: XAICLIPLogic) -> None:
        super().__init__()
        self.ui, self.logic = ui, logic
        self.sideBySide = SideBySide()
        self._node: Any = None
        self._compared: Any = None
        self._figures: dict[str, Path] = {}
        self._updating = False
        for selector in (ui.resultSelector, ui.compareSelector):
            selector.addAttribute("vtkMRMLScalarVolumeNode", SALIENCY_ATTRIBUTE, "1")
        ui.measurementsTable.setHorizontalHeaderLabels([_("Measurement"), _("Value")])
        ui.measurementsTable.horizontalHeader().setStretchLastSection(True)
        ui.measurementsTable.verticalHeader().setVisible(False)
        ui.structuresTable.setHorizontalHeaderLabels([_("Structure that was removed"), _("Score lost")])
        ui.structuresTable.horizontalHeader().setStretchLastSection(True)
        ui.structuresTable.verticalHeader().setVisible(False)
        for table in (ui.measurementsTable, ui.structuresTable):
            table.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        self._connect()
        self._show()

    def _connect(self) -> None:
        ui = self.ui
        ui.overlayCheckBox.connect("toggled(bool)", self._onOverlay)
        ui.legendCheckBox.connect("toggled(bool)", self._onLegend)
        ui.show3DCheckBox.connect("toggled(bool)", self._onShow3D)
        ui.opacitySlider.connect("valueChanged(double)", self._onOpacity)
        ui.saliencyThresholdSlider.connect("valueChanged(double)", self._onThreshold)
        ui.windowSpinBox.connect("valueChanged(double)", self._onWindow)
        ui.coloursSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onColours)
        ui.jumpButton.connect("clicked(bool)", self._onJump)
        ui.tableButton.connect("clicked(bool)", self._onTable)
        ui.compareButton.connect("toggled(bool)", self._onCompare)
        follow = qt.QSettings().value(FOLLOW_SETTING)
        ui.followCheckBox.setChecked(follow is None or slicer.util.toBool(follow))
        ui.followCheckBox.connect("toggled(bool)", lambda on: qt.QSettings().setValue(FOLLOW_SETTING, on))
        ui.checksButton.connect("toggled(bool)", self._showRows)
        ui.resultsCollapsibleButton.connect("contentsCollapsed(bool)", self._showRows)
        ui.saveButton.connect("clicked(bool)", self._onSave)
        ui.reportButton.connect("clicked(bool)", self._onReport)
        ui.dicomButton.connect("clicked(bool)", self._onDicom)

    def close(self) -> None:
        """Let go of the scene."""
        self.removeObservers()

    # --- what is shown ---

    def setNodes(self, saliencyNode: Any, comparedNode: Any, overlay: bool = True) -> None:
        """Show an explanation, and know the one to compare it with; either may be None.

        Without ``overlay`` the slice views stay as they are, for example after a run that brought none.
        """
        if saliencyNode is not self._node:
            if self.sideBySide.isShown:
                self.sideBySide.giveBack()
            self.removeObservers()
            self._node = saliencyNode
            if saliencyNode is not None and saliencyNode.GetDisplayNode() is not None:
                self.addObserver(saliencyNode.GetDisplayNode(), vtk.vtkCommand.ModifiedEvent, self._onDisplayModified)
                chosen.showOnly(saliencyNode)
                if overlay and not SliceViews.isShown(saliencyNode):
                    self._overlay(True)
            self.ui.resultsCollapsibleButton.collapsed = saliencyNode is None
        self._compared = comparedNode
        self._show()

    def showDeveloping(self, saliencyNode: Any) -> None:
        """Follow a map that is still being computed: nothing to measure yet, but looks can be changed."""
        if saliencyNode is not self._node:
            self.setNodes(saliencyNode, self._compared)
        else:
            self._show()

    def follow(self, saliencyNode: Any) -> None:
        """Move the slice views to a map that appeared, where none of them shows it and the user wants that."""
        if self.ui.followCheckBox.checked and not surfaces.isInSight(saliencyNode):
            self._jumpTo(saliencyNode)

    def noteFigure(self, nodes: ExplanationNodes) -> None:
        """Remember the worker's picture of a run, which is no part of the scene."""
        if nodes.figure is not None:
            self._figures[nodes.saliency.GetID()] = nodes.figure

    def explanation(self) -> ExplanationNodes | None:
        """The explanation that is shown."""
        nodes = results.explanationOf(self._node)
        if nodes is None:
            return None
        return ExplanationNodes(**{**nodes.__dict__, "figure": self._figures.get(self._node.GetID())})

    def _onDisplayModified(self, *_event: Any) -> None:
        self._show()

    def _show(self) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            self._showLooks()
            self._showMeasurements()
            self._showButtons()
        finally:
            self._updating = False

    def _showLooks(self) -> None:
        ui, node = self.ui, self._node
        there = node is not None and node.GetDisplayNode() is not None
        why = "" if there else _("There is no result yet: click Apply.")
        for widget in (
            ui.overlayCheckBox,
            ui.legendCheckBox,
            ui.opacitySlider,
            ui.saliencyThresholdSlider,
            ui.windowSpinBox,
            ui.coloursSelector,
            ui.jumpButton,
        ):
            _enable(widget, there, why)
        if not there:
            return
        opacity = SliceViews.opacity(node)
        ui.overlayCheckBox.setChecked(opacity is not None)
        if opacity is not None:
            ui.opacitySlider.value = opacity
        legend = saliency_display.legend(node)
        ui.legendCheckBox.setChecked(legend is not None and bool(legend.GetVisibility()))
        ui.saliencyThresholdSlider.value = saliency_display.threshold(node)
        ui.windowSpinBox.setValue(saliency_display.window(node))
        ui.coloursSelector.setCurrentNode(saliency_display.colours(node))

    def _showMeasurements(self) -> None:
        ui, nodes = self.ui, results.explanationOf(self._node)
        record = nodes.record if nodes is not None else {}
        rows = tables.rows(record) if record else []
        table = ui.measurementsTable
        table.setRowCount(len(rows))
        for row, values in enumerate(rows):
            for column, text in enumerate(values):
                table.setItem(row, column, qt.QTableWidgetItem(text))
        table.resizeColumnsToContents()
        if record:
            ui.structuresTable.setHorizontalHeaderLabels(tables.structureHeader(record))
        structures_bars.show(ui.structuresTable, tables.structureRows(record) if record else [])
        passed = passedChecks(record)
        developing = _("This map is still being computed, and will change.") if self._node is not None else ""
        ui.resultSummaryLabel.setText(summary(record) if record else developing)
        ui.resultWarningsLabel.setText("\n".join(warnings(record)))
        ui.checksLabel.setText("\n".join(passed))
        ui.checksButton.setText(
            _("1 check passed") if len(passed) == 1 else _("{count} checks passed").format(count=len(passed))
        )
        self._showRows()

    def _showRows(self, *_changed: Any) -> None:
        """Show the rows that have something to say; a section that is opened shows all of them."""
        ui = self.ui
        if ui.resultsCollapsibleButton.collapsed:
            return
        for label in (ui.resultSummaryLabel, ui.resultWarningsLabel):
            label.setVisible(bool(label.text))
        for table in (ui.measurementsTable, ui.structuresTable):
            table.setVisible(table.rowCount > 0)
        ui.checksButton.setVisible(bool(ui.checksLabel.text))
        ui.checksButton.setArrowType(qt.Qt.DownArrow if ui.checksButton.checked else qt.Qt.RightArrow)
        ui.checksLabel.setVisible(ui.checksButton.checked and bool(ui.checksLabel.text))

    def _showButtons(self) -> None:
        ui, nodes = self.ui, results.explanationOf(self._node)
        why = "" if nodes is not None else _("There is no finished result: click Apply.")
        for widget in (ui.show3DCheckBox, ui.tableButton, ui.saveButton, ui.reportButton):
            _enable(widget, nodes is not None, why)
        isFromDicom = nodes is not None and database.isFromDicom(nodes.volume)
        _enable(ui.dicomButton, isFromDicom, why or _("The scan was not loaded from the DICOM database."))
        surface = self._node.GetNodeReference(SURFACE_ROLE) if self._node is not None else None
        ui.show3DCheckBox.setChecked(surface is not None and bool(surface.GetDisplayVisibility()))
        other = self._compared is not None and self._compared is not self._node
        comparing = nodes is not None and other
        _enable(
            ui.compareButton,
            comparing or self.sideBySide.isShown,
            why or _("Choose another result to compare this one with."),
        )
        ui.compareButton.setChecked(self.sideBySide.isShown)

    # --- what the user does ---

    def _canChange(self) -> bool:
        """Whether a widget was changed by the user, and there is a map to be changed: one may just be going away."""
        node = self._node
        return not self._updating and isInScene(node) and node.GetDisplayNode() is not None

    def _overlay(self, shown: bool) -> None:
        if shown:
            volume = self._node.GetNodeReference(results.INPUT_ROLE)
            self.logic.views.show(volume, self._node, self.ui.opacitySlider.value)
        else:
            saliency_display.showLegend(self._node, False)
            self.logic.views.hide(self._node)

    def _onOverlay(self, shown: bool) -> None:
        if self._canChange():
            self._overlay(shown)
            self._show()

    def _onLegend(self, shown: bool) -> None:
        if self._canChange():
            saliency_display.showLegend(self._node, shown)

    def _onOpacity(self, value: float) -> None:
        if not self._canChange():
            return
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            shown = (self._node.GetID(), self._compared.GetID() if self._compared is not None else None)
            if composite.GetForegroundVolumeID() in shown:
                composite.SetForegroundOpacity(value)

    def _onThreshold(self, value: float) -> None:
        if self._canChange():
            saliency_display.setThreshold(self._node, value)

    def _onWindow(self, value: float) -> None:
        if self._canChange():
            saliency_display.setWindow(self._node, value)

    def _onColours(self, colorNode: Any) -> None:
        if self._canChange() and colorNode is not None:
            saliency_display.setColours(self._node, colorNode)

    def _onJump(self, *_clicked: Any) -> None:
        self._jumpTo(self._node)

    @staticmethod
    def _jumpTo(saliencyNode: Any) -> None:
        point = surfaces.mostSalientPoint(saliencyNode)
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *point, slicer.vtkMRMLSliceNode.CenteredJumpSlice)

    def _onShow3D(self, shown: bool) -> None:
        nodes = self.explanation()
        if self._updating or nodes is None:
            return
        with slicer.util.tryWithErrorDisplay(_("The surfaces cannot be shown."), waitCursor=True):
            if surfaces.showIn3D(nodes, shown) is None and shown:
                slicer.util.infoDisplay(
                    _("The map has no surface to show: nothing in it passes half of its largest value."),
                    windowTitle=_("XAI-CLIP"),
                )
        if shown and slicer.app.layoutManager() is not None:
            slicer.util.resetThreeDViews()

    def _onTable(self, *_clicked: Any) -> None:
        nodes = self.explanation()
        if nodes is not None and nodes.measurements is not None:
            showTable(nodes.measurements)

    def _onCompare(self, shown: bool) -> None:
        if self._updating:
            return
        if not shown:
            self.sideBySide.giveBack()
            chosen.showOnly(self._node)
        elif self._node is not None and self._compared is not None:
            pairs = [(node.GetNodeReference(results.INPUT_ROLE), node) for node in (self._node, self._compared)]
            chosen.showOnly(self._node, self._compared)
            self.sideBySide.show(pairs[0], pairs[1], self.ui.opacitySlider.value)
        self._show()

    def _onSave(self, *_clicked: Any) -> None:
        folder = qt.QFileDialog.getExistingDirectory(self.ui.saveButton, _("Folder for the results"))
        if folder:
            self.saveTo(Path(folder))

    def saveTo(self, folder: Path) -> list[Path]:
        """Write the explanation that is shown into a folder."""
        nodes = self.explanation()
        if nodes is None:
            return []
        try:
            written = saving.save(nodes, folder)
        except InputError as error:
            slicer.util.errorDisplay(shown(error), windowTitle=_("XAI-CLIP"))
            return []
        slicer.util.showStatusMessage(_("{count} files were written.").format(count=len(written)), 5000)
        return written

    def _onReport(self, *_clicked: Any) -> None:
        chosen = qt.QFileDialog.getSaveFileName(
            self.ui.reportButton,
            _("Report"),
            "report.html",
            _("Web page (*.html)") + ";;" + _("PDF (*.pdf)"),
        )
        # Qt's own gives name and filter, PythonQt's the name alone.
        name = chosen[0] if isinstance(chosen, tuple) else chosen
        if name:
            self.reportTo(Path(name) if Path(name).suffix else Path(name).with_suffix(".html"))

    def reportTo(self, path: Path) -> None:
        """Begin to write the explanation that is shown as a page for a reader, an .html or .pdf file."""
        nodes = self.explanation()
        if nodes is None:
            return
        try:
            self.logic.startReporting(nodes, path)
        except InputError as error:
            slicer.util.errorDisplay(shown(error), windowTitle=_("XAI-CLIP"))

    def _onDicom(self, *_clicked: Any) -> None:
        folder = qt.QFileDialog.getExistingDirectory(self.ui.dicomButton, _("Folder for the DICOM objects"))
        if folder:
            self.dicomTo(Path(folder))

    def dicomTo(self, folder: Path) -> None:
        """Begin to write the explanation that is shown as DICOM objects into a folder of their own."""
        nodes = self.explanation()
        if nodes is None:
            return
        try:
            self.logic.startWritingDicom(nodes, folder)
        except InputError as error:
            slicer.util.errorDisplay(shown(error), windowTitle=_("XAI-CLIP"))


def summary(record: Mapping[str, Any]) -> str:
    """What was explained and how, in a line."""
    segmenter = (record.get("models") or {}).get("segmenter") or {}
    return _("{structure}, drawn by {model}; {method}, {score}, hidden by {baseline}.").format(
        structure=record["target"]["name"],
        model=segmenter.get("name", _("the network")),
        method=record["parameters"].get("method", ""),
        score=record["parameters"].get("score", ""),
        baseline=record["parameters"].get("baseline", ""),
    )


def warnings(record: Mapping[str, Any]) -> list[str]:
    """What a reader must know before he believes a map, a sentence each."""
    if not record:
        return []
    cut = [] if record.get("complete", True) else [_("Cancelled before the end: the map is incomplete.")]
    return [*cut, *(_("Warning: {text}").format(text=text) for text in record.get("warnings") or [])]


def passedChecks(record: Mapping[str, Any]) -> list[str]:
    """What was checked and gives no reason for doubt, a sentence each."""
    passed = [flag for flag in record.get("reliability") or [] if not flag.get("raised", True)]
    return [str(flag.get("sentence", "")) for flag in passed]


def _enable(widget: Any, enabled: bool, why: str) -> None:
    """Enable a widget, or let its tool tip say why it is disabled."""
    own = widget.property("xaiclipToolTip")
    if own is None:
        own = widget.toolTip
        widget.setProperty("xaiclipToolTip", own)
    widget.setEnabled(enabled)
    widget.setToolTip(own if enabled else why)
