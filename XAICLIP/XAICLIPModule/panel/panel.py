"""The panel: Apply, what goes on, and the sections put together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from XAICLIPLib.errors import InputError
from XAICLIPLib.worker import protocol
from XAICLIPModule.display import chosen
from XAICLIPModule.installation.package_installation import InstallationState
from XAICLIPModule.logic import State, XAICLIPLogic
from XAICLIPModule.panel.choices import Choices
from XAICLIPModule.panel.foreign_text import shown, showPlain
from XAICLIPModule.panel.installation_panel import InstallationPanel
from XAICLIPModule.panel.results_panel import ResultsPanel
from XAICLIPModule.scene.results import ExplanationNodes
from XAICLIPModule.worker.catalogue import Model


class Panel:
    """Lets the logic do what the choices ask, and shows what comes of it.

    Parameters
    ----------
    ui
        The widgets of ``XAICLIP.ui`` by their names, as `slicer.util.childWidgetVariables` gives them.
    widget
        The whole, for dialogs.
    logic
        What computes.
    """

    def __init__(self, ui: Any, widget: Any, logic: XAICLIPLogic) -> None:
        self.ui, self.logic = ui, logic
        showPlain(widget)
        self._chosenResults: tuple[Any, Any] | None = None
        self._isDownloading = False
        self._warned: list[str] = []
        self.installation = InstallationPanel(ui, logic.session)
        self.choices = Choices(ui, widget, self.installation)
        self.results = ResultsPanel(ui, logic)
        ui.applyButton.connect("clicked(bool)", self.onApplyButton)
        ui.showRegionButton.connect("clicked(bool)", self.onShowRegionButton)
        ui.promptLineEdit.connect("returnPressed()", self._onReturnPressed)
        self.choices.changed.connect(self._onChoicesChanged)
        self.choices.downloadWanted.connect(self.onDownload)
        self.choices.removalWanted.connect(self.onRemove)
        self._connectLogic()
        self._showState()

    def close(self) -> None:
        """Let go of scene, logic and parameter node; before the widgets go away."""
        self.setParameterNode(None)
        for signal, slot in self._logicSlots():
            signal.disconnect(slot)
        self.choices.close()
        self.installation.close()
        self.results.close()

    def setParameterNode(self, parameters: Any) -> None:
        """Show the choices and results of a `XAICLIPParameterNode`, and write the user's into it; None for none."""
        if parameters is not None and parameters is self.choices.parameters:
            return  # a map that is being computed keeps its place when the user comes back to the module
        self._chosenResults = None
        self.choices.setParameterNode(parameters)
        if parameters is None:
            self.results.setNodes(None, None)

    def _onChoicesChanged(self) -> None:
        parameters = self.choices.parameters
        # Only where they were changed: else a map that is being computed would lose its place to an older one.
        chosen = (parameters.result, parameters.compared)
        if chosen != self._chosenResults:
            self._chosenResults = chosen
            self.results.setNodes(*chosen)
        self.checkCanApply()
        if self.choices.isUnsure:
            qt.QTimer.singleShot(0, self._lookForModels)  # the worker's hello may change the choices at once
        elif self.choices.toDescribe() is not None:
            qt.QTimer.singleShot(0, self._describe)

    # --- Apply ---

    def checkCanApply(self) -> None:
        """Enable what can be clicked, and let the tool tips of the rest say what is missing."""
        ui = self.ui
        if self.installation.packages.isBusy:
            ui.applyButton.setEnabled(self.installation.packages.state is InstallationState.INSTALLING)
            ui.applyButton.setToolTip(_("End the installation; what is not finished is not installed."))
            ui.showRegionButton.setEnabled(False)
            ui.showRegionButton.setToolTip(_("Packages are being installed."))
        elif self.logic.state is State.IDLE:
            absent = self.choices.missing()
            ui.applyButton.setEnabled(not absent)
            explain = [_("Explain why the network drew the structure where it did."), self.choices.refused()]
            ui.applyButton.setToolTip(shown("\n".join(absent or filter(None, explain))))
            base = self.choices.missingToLocalize()
            ui.showRegionButton.setEnabled(not base)
            ui.showRegionButton.setToolTip(
                shown("\n".join(base)) or _("Find the words in the scan and show where, without explaining yet.")
            )
        else:
            ui.applyButton.setEnabled(True)
            ui.applyButton.setToolTip(
                _("End at once, without a result.")
                if self.logic.state is State.CANCELLING
                else _("End the download.")
                if self._isDownloading
                else _("End with what is known by then.")
            )
            ui.showRegionButton.setEnabled(False)
            ui.showRegionButton.setToolTip(_("A computation is going on."))

    def onApplyButton(self, *_clicked: Any) -> None:
        """Apply, Cancel, or Stop, by what goes on."""
        if self.installation.packages.isBusy:
            self.installation.packages.cancel()
            return
        if self.logic.state is not State.IDLE:
            self.logic.cancel()
            return
        self._begin(lambda: self.logic.startExplaining(self.choices.question()))

    def onShowRegionButton(self, *_clicked: Any) -> None:
        """Look for the words without explaining."""
        self._begin(lambda: self.logic.startLocalizing(self.choices.question()))

    def onDownload(self, name: str) -> None:
        """Get a model of the catalogue onto this machine; where its licence limits what it is for, after agreement."""
        model = self.choices.model(name)
        if model is not None and model.restriction and not self._agrees(model):
            self._say(_("Nothing was downloaded: the licence was not agreed to."))
            return
        self._begin(lambda: self.logic.startDownloading(name))

    def _agrees(self, model: Model) -> bool:
        text = _(
            "The licence of {name} may forbid clinical or commercial use: {licence}.\n\nIt comes from {source}. Read "
            "its terms there, and download it only if what you want it for is allowed.\n\nDo you agree to the licence?"
        ).format(name=model.name, licence=model.restriction, source=model.source)
        return bool(slicer.util.confirmOkCancelDisplay(shown(text), _("XAI-CLIP - licence")))

    def onRemove(self, name: str) -> None:
        """Delete what was downloaded of a model, after asking."""
        text = _("Delete the files of {name} from this machine? They can be downloaded again.").format(name=name)
        if slicer.util.confirmOkCancelDisplay(shown(text), _("XAI-CLIP - remove a model")):
            self._begin(lambda: self.logic.startRemoving(name))

    def _lookForModels(self) -> None:
        """Ask the worker what is on this machine, where that matters; where it does not start, nobody knows."""
        if self.choices.parameters is None or not self.choices.isUnsure or self.installation.packages.isBusy:
            return
        if self.logic.session.hello is not None:
            self.choices.setModels(self.logic.session.hello)
            return
        try:
            self.logic.lookForModels()
        except InputError:
            self._onSessionStopped("")

    def _describe(self) -> None:
        """Ask the worker what a network of the user's own draws; nothing is told where that does not work."""
        asked, session = self.choices.toDescribe(), self.logic.session
        if asked is None or session.isBusy or self.installation.packages.isBusy or self.logic.state is not State.IDLE:
            return
        if session.hello is None:
            with suppress(InputError):
                session.start()  # whose hello brings us back here
            return
        name, trusted = asked
        self.choices.models.describe(name, trusted, None)  # asked once, whatever comes of it
        session.requestAside(
            "describe",
            lambda reply: self._onDescribed(name, trusted, reply),
            model=name,
            device=self.installation.device,
            trust=trusted,
        )

    def _onDescribed(self, name: str, trusted: bool, reply: Any) -> None:
        if isinstance(reply, protocol.Described) and self.choices.parameters is not None:
            self.choices.describe(name, trusted, reply)

    def _onSessionStopped(self, _message: str) -> None:
        if self.choices.isUnsure:
            self.choices.setModels(None)

    def _begin(self, start: Callable[[], None]) -> None:
        try:
            if self.logic.session.isBusy:
                raise InputError(_("A computation is going on: wait for it, or cancel it first."))
            self.installation.packages.ensure(lambda: self._started(start))
        except InputError as error:
            self._onFailed(str(error), "input")

    def _started(self, start: Callable[[], None]) -> None:
        """Begin what was waiting for packages: the scene may have changed meanwhile."""
        try:
            self._say("")
            if self.choices.parameters is not None:
                start()
        except InputError as error:
            self._onFailed(str(error), "input")

    def _onInstallation(self, state: InstallationState) -> None:
        if state is InstallationState.INSTALLING:
            self._say(_("Installing packages …"))
        elif state is InstallationState.CANCELLING:
            self._say(_("Ending the installation …"))
        self._showState()
        self.checkCanApply()

    def _onInstallationLine(self, line: str) -> None:
        if self.installation.packages.state is InstallationState.INSTALLING:
            self._say(_("Installing packages: {line}").format(line=line if len(line) <= 100 else line[:99] + "…"))

    def _onInstalled(self, problem: str) -> None:
        self._say(problem or _("The packages are installed."), warning=bool(problem))

    def _onReturnPressed(self) -> None:
        # Return in the list of completions accepts one, and should not start minutes of work.
        idle = self.logic.state is State.IDLE and not self.installation.packages.isBusy
        if idle and not self.choices.isCompleting and not self.choices.missing():
            self.onApplyButton()

    # --- what goes on ---

    def _logicSlots(self) -> list[tuple[Any, Any]]:
        logic, packages = self.logic, self.installation.packages
        return [
            (packages.stateChanged, self._onInstallation),
            (packages.logged, self._onInstallationLine),
            (packages.ended, self._onInstalled),
            (logic.stateChanged, self._onStateChanged),
            (logic.progressed, self._onProgressed),
            (logic.warned, self._onWarned),
            (logic.appeared, self.results.follow),
            (logic.estimated, self._onEstimated),
            (logic.finished, self._onFinished),
            (logic.regionFound, self._onRegionFound),
            (logic.reported, self._onReported),
            (logic.dicomWritten, self._onDicomWritten),
            (logic.downloaded, self._onDownloaded),
            (logic.removed, self._onRemoved),
            (logic.failed, self._onFailed),
            (logic.cancelled, self._onCancelled),
            (logic.session.greeted, self._onGreeted),
            (logic.session.stopped, self._onSessionStopped),
        ]

    def _connectLogic(self) -> None:
        for signal, slot in self._logicSlots():
            signal.connect(slot)

    def _onStateChanged(self, _state: State) -> None:
        self._showState()
        self.checkCanApply()

    def _showState(self) -> None:
        ui, state, installing = self.ui, self.logic.state, self.installation.packages.isBusy
        titles = {
            State.IDLE: _("Apply"),
            State.STARTING: _("Cancel"),
            State.RUNNING: _("Cancel"),
            State.CANCELLING: _("Stop at once"),
        }
        ui.applyButton.setText(_("Cancel") if installing else titles[state])
        ui.progressBar.setVisible(installing or state is not State.IDLE)
        if installing:
            ui.progressBar.setRange(0, 0)
        if state is not State.IDLE:  # remembered, for what is said once it has ended
            self._isDownloading = self.logic.isDownloading
        if state is State.STARTING:
            self._warned.clear()
            ui.progressBar.setRange(0, 0)
            self._say(_("Starting the worker (the first time takes up to a minute) …"))
        elif state is State.RUNNING:
            ui.progressBar.setRange(0, 0)
            if self._isDownloading:
                self._say(_("Downloading …"))
            elif self.logic.isWritingDicom:
                self._say(_("Writing the DICOM objects …"))
            else:
                self._say(_("Writing the report …") if self.logic.isReporting else _("Loading the models …"))
        elif state is State.CANCELLING:
            self._say(_("Ending …") if self._isDownloading else _("Ending with what is known by now …"))
        for name in (
            *("inputSelector", "sampleButton", "modelComboBox", "modelFolderButton", "modelDownloadButton"),
            *("furtherImagesSpinBox", "promptLineEdit", "localizerDownloadButton"),
            *("modelRemoveButton", "localizerRemoveButton"),
        ):
            getattr(ui, name).setEnabled(state is State.IDLE and not installing)
        self.choices.furtherImages.setEnabled(state is State.IDLE and not installing)

    def _onProgressed(self, stage: str, done: int, total: int, secondsLeft: float | None) -> None:
        if self.logic.state is not State.RUNNING:
            return
        stages = {
            "localize": _("Looking for the words in the scan"),
            "segment": _("Segmenting"),
            "explain": _("Hiding parts of the scan"),
            "check": _("Checking the map"),
            "download": _("Downloading"),
        }
        bar = self.ui.progressBar
        bar.setRange(0, 100 if total or stage != "download" else 0)  # of an unknown size: busy
        bar.setValue(int(100 * done / total) if total else 0)
        left = "" if secondsLeft is None else " – " + _("{time} left").format(time=duration(secondsLeft))
        parts = megabytes(done, total) if stage == "download" else f"{done} / {total}"
        self._say("\n".join([f"{stages.get(stage, stage)}: {parts}{left}", *self._warned]), bool(self._warned))

    def _onWarned(self, sentence: str) -> None:
        """Keep a warning below the progress: the user may want to end what goes on."""
        if sentence not in self._warned:
            self._warned.append(sentence)

    def _onEstimated(self, saliencyNode: Any) -> None:
        self.results.showDeveloping(saliencyNode)

    def _onFinished(self, nodes: ExplanationNodes) -> None:
        # What is to be known about the map stands beside it, under Results, for as long as it is shown.
        everyOne = (nodes, *nodes.further)
        isComplete = all(one.complete for one in everyOne)
        lines = [_("Done.") if isComplete else _("Cancelled: the map is what was known by then.")]
        if nodes.further:
            names = ", ".join(str(one.record["target"]["name"]) for one in everyOne)
            lines.append(_("{names} were explained: choose one under Results.").format(names=names))
        for name, reason in nodes.missing.items():
            lines.append(_("{name} was not explained: {reason}.").format(name=name, reason=reason))
        self._say("\n".join(lines), warning=bool(nodes.missing))
        for one in everyOne:
            self.results.noteFigure(one)
        if self.choices.parameters is not None:
            self.choices.parameters.result = nodes.saliency
        if nodes.further:
            chosen.showOnly(nodes.saliency)

    def _onRegionFound(self, segmentationNode: Any, warnings: list[str]) -> None:
        text = _('The region is shown as a segment. To explain within it, edited or not, choose "Within a segment".')
        self._say("\n".join([text, *warnings]), warning=bool(warnings))
        if self.choices.parameters is not None:
            self.choices.parameters.regionSegmentation = segmentationNode
            self.choices.parameters.regionSegment = segmentationNode.GetSegmentation().GetNthSegmentID(0)

    def _onReported(self, path: Path) -> None:
        self._say(_("The report was written to {path}").format(path=path))

    def _onDicomWritten(self, folder: Path, isInDatabase: bool) -> None:
        if isInDatabase:
            text = _("The DICOM objects were written to {folder} and added to the DICOM database.")
        else:
            text = _("The DICOM objects were written to {folder}")
        self._say(text.format(folder=folder))

    def _onDownloaded(self, name: str) -> None:
        self._say(_("{name} is on this machine now.").format(name=name))

    def _onRemoved(self, name: str, isStillHere: bool) -> None:
        if isStillHere:
            text = _("{name} is still here: it lies in the cache of the library that downloaded it.")
        else:
            text = _("{name} was removed from this machine.")
        self._say(text.format(name=name))

    def _onFailed(self, message: str, kind: str) -> None:
        self._say(message, warning=True)
        self._showChosenResults()
        slicer.util.errorDisplay(shown(message), windowTitle=_("XAI-CLIP"))

    def _onCancelled(self) -> None:
        self._say(
            _("The download was cancelled.") if self._isDownloading else _("Cancelled before there was a result.")
        )
        self._showChosenResults()

    def _showChosenResults(self) -> None:
        """Turn back to the results that are selected, after a run that brought none."""
        if self.choices.parameters is not None:
            parameters = self.choices.parameters
            self.results.setNodes(parameters.result, parameters.compared, overlay=False)

    def _onGreeted(self, hello: protocol.Greeting) -> None:
        self.choices.setModels(hello)

    def _say(self, text: str, warning: bool = False) -> None:
        label = self.ui.statusLabel
        label.setStyleSheet("font-weight: bold" if warning else "")
        label.setText(text)
        label.setVisible(bool(text))


def megabytes(done: int, total: int) -> str:
    """Bytes in words: "1.2 / 375.0 MB", or "1.2 MB" where the total is not known (0)."""
    return f"{done / 1e6:,.1f} MB" if not total else f"{done / 1e6:,.1f} / {total / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """A time in words: "40 s", "3 min", "2 h"."""
    if seconds < 90:
        return _("{count} s").format(count=max(1, round(seconds)))
    if seconds < 90 * 60:
        return _("{count} min").format(count=round(seconds / 60))
    return _("{count} h").format(count=round(seconds / 3600))
