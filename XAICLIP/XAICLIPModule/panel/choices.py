"""What is asked: the widgets of the panel, and the parameter node that remembers what they say."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers import methods
from XAICLIPLib.scoring import options
from XAICLIPLib.worker import protocol
from XAICLIPModule.display.saliency_display import SALIENCY_ATTRIBUTE
from XAICLIPModule.live.nodes import isInScene
from XAICLIPModule.panel import feasibility
from XAICLIPModule.panel.installation_panel import InstallationPanel
from XAICLIPModule.scene import sample_data, saved_record, terminology
from XAICLIPModule.widgets import further_images, method_words
from XAICLIPModule.widgets.folded_text import FoldedText
from XAICLIPModule.widgets.further_images import FurtherImages
from XAICLIPModule.widgets.method_form import MethodForm
from XAICLIPModule.widgets.model_choice import ModelChoice
from XAICLIPModule.worker import catalogue
from XAICLIPModule.worker.catalogue import Model
from XAICLIPModule.worker.question import Box, Question, Segment
from XAICLIPModule.worker.signals import Signal

ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "region": {
        "guided": (
            *("localizerLabel", "localizerComboBox", "localizerFolderButton", "thresholdLabel", "ownThresholdCheckBox"),
            *("regionThresholdLabel", "regionThresholdSlider", "marginLabel", "regionMarginSpinBox"),
        ),
        "prediction": ("marginLabel", "regionMarginSpinBox"),
        "segment": ("regionSegmentLabel", "regionSegmentSelector"),
        "box": ("regionBoxLabel", "regionBoxSelector"),
    },
    "target": {
        "structure": ("targetStructureLabel", "targetStructureComboBox"),
        "segment": ("targetSegmentLabel", "targetSegmentSelector"),
        "box": ("targetBoxLabel", "targetBoxSelector"),
    },
}
"""Widgets of a section that are there for some of its sources only."""


class Choices(VTKObservationMixin):
    """Connects the widgets of ``XAICLIP.ui`` that ask something with the parameter node, both ways.

    Parameters
    ----------
    ui
        The widgets by their names, as `slicer.util.childWidgetVariables` gives them.
    widget
        The whole, for dialogs.
    installation
        For the device and precision.

    Attributes
    ----------
    parameters
        The `XAICLIPParameterNode` that is shown, or None.
    changed
        Emitted whenever something was chosen, here or in the parameter node.
    downloadWanted
        Emitted with the name of a model that the user wants to have on this machine.
    removalWanted
        Emitted with the name of a model that the user wants to have off it.
    """

    def __init__(self, ui: Any, widget: Any, installation: InstallationPanel) -> None:
        super().__init__()
        self.ui, self.changed = ui, Signal()
        self.downloadWanted, self.removalWanted = Signal(), Signal()
        self.parameters: Any = None  # a XAICLIPParameterNode
        self._installation = installation
        self._guiTag: Any = None
        self._updating = False
        self._description = FoldedText(ui.modelDescriptionLabel, ui.modelMoreButton)
        self._completer: Any = None
        self._completions: list[str] = []
        self._trusted = ""  # the network that the trust box is about
        self._shownMethod: tuple[str, dict[str, Any]] | None = None
        download, remove = self.downloadWanted.emit, self.removalWanted.emit
        self.models = ModelChoice("model", ui, widget, self._onOwnModel, download, remove)
        self.localizers = ModelChoice("localizer", ui, widget, self._onOwnLocalizer, download, remove)
        self.furtherImages = FurtherImages(ui.inputsFormLayout, self._onFurtherImages)
        self._regions: tuple[str, ...] = protocol.REGIONS
        self.methodForm = MethodForm(ui.methodParametersWidget, self._onMethodParameters)
        self._fillChoices()
        self._connectWidgets()

    def close(self) -> None:
        """Let go of scene and parameter node; before the widgets go away."""
        self.setParameterNode(None)
        self.removeObservers()

    # --- choices ---

    def _fillChoices(self) -> None:
        ui = self.ui
        _fill(ui.methodComboBox, [(method_words.name(name), name) for name in methods.METHODS])
        _fill(ui.scoreComboBox, [(score, score) for score in options.SCORES])
        _fill(ui.baselineComboBox, [(baseline, baseline) for baseline in options.BASELINES])
        _fill(ui.modalityComboBox, [(_("Guessed from its intensities"), ""), ("CT", "CT"), ("MR", "MR")])
        self._fillRegions()
        _fill(
            ui.targetSourceComboBox,
            [
                (_("What the words say"), "prompt"),
                (_("Another structure of the network"), "structure"),
                (_("A segment"), "segment"),
                (_("A box"), "box"),
            ],
        )
        self._complete()

    def _fillRegions(self) -> None:
        sources = [
            (_("Where the words are found"), "guided"),
            (_("Where the network draws it"), "prediction"),
            (_("The whole scan (slow)"), "whole"),
            (_("Within a segment"), "segment"),
            (_("Within a box"), "box"),
        ]
        offered = {*self._regions, "segment", "box"}
        _fill(self.ui.regionSourceComboBox, [(text, source) for text, source in sources if source in offered])

    def _complete(self) -> None:
        """Complete the prompt with what the chosen network draws; with the whole vocabulary where that is not known."""
        offered = list(self.models.chosen().structures) or terminology.structures()
        if offered == self._completions:
            return
        completer = qt.QCompleter(offered, self.ui.promptLineEdit)
        completer.setCaseSensitivity(qt.Qt.CaseInsensitive)
        completer.setFilterMode(qt.Qt.MatchContains)
        completer.setMaxVisibleItems(12)
        self.ui.promptLineEdit.setCompleter(completer)
        self._completer, self._completions = completer, offered

    @property
    def isCompleting(self) -> bool:
        """Whether the list of completions is open."""
        return bool(self._completer.popup().visible)

    def _connectWidgets(self) -> None:
        ui = self.ui
        ui.sampleButton.connect("clicked(bool)", self._onSample)
        ui.trustCheckBox.connect("toggled(bool)", lambda _trusted: self._onParametersModified())
        for kind in ROWS:
            getattr(ui, f"{kind}CollapsibleButton").connect("contentsCollapsed(bool)", self._showRows)
        for combo, name in self._boundCombos():
            combo.connect("currentIndexChanged(int)", lambda _index, c=combo, n=name: self._onCombo(c, n))
        for selector, node, segment in self._boundSegments():
            slot = lambda *_changed, s=selector, n=node, i=segment: self._onSegment(s, n, i)  # noqa: E731
            selector.connect("currentNodeChanged(vtkMRMLNode*)", slot)
            selector.connect("currentSegmentChanged(QString)", slot)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.NodeAddedEvent, self._onNodeAdded)

    def _boundCombos(self) -> list[tuple[Any, str]]:
        """Combo boxes and the parameters that they show, by the data of their items."""
        ui = self.ui
        return [
            (ui.modelComboBox, "model"),
            (ui.localizerComboBox, "localizer"),
            (ui.methodComboBox, "method"),
            (ui.scoreComboBox, "score"),
            (ui.baselineComboBox, "baseline"),
            (ui.modalityComboBox, "modality"),
            (ui.regionSourceComboBox, "regionSource"),
            (ui.targetSourceComboBox, "targetSource"),
            (ui.targetStructureComboBox, "targetStructure"),
        ]

    def _boundSegments(self) -> list[tuple[Any, str, str]]:
        """Segment selectors, and the parameters for node and segment."""
        return [
            (self.ui.regionSegmentSelector, "regionSegmentation", "regionSegment"),
            (self.ui.targetSegmentSelector, "targetSegmentation", "targetSegment"),
        ]

    # --- parameter node → widgets ---

    def setParameterNode(self, parameters: Any) -> None:
        """Show the choices of a `XAICLIPParameterNode`, and write the user's into it; None for none."""
        if self.parameters is not None:
            self.parameters.disconnectGui(self._guiTag)
            self.removeObserver(self.parameters, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
        self.parameters = parameters
        self._trusted = ""  # nor is what was trusted in one scene in the next
        self.ui.trustCheckBox.setChecked(False)
        if parameters is None:
            return
        # Not connectGui: it gives no tag up to Slicer 5.13, so that the former parameter node would stay connected.
        self._updating = True
        try:
            self._guiTag = parameters.connectParametersToGui(self._boundByWrapper())
        finally:
            self._updating = False
        self.addObserver(parameters, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
        self._chooseFirstVolume()
        self._onParametersModified()
        # Once more: while a scene is imported, selectors do not know its nodes yet.
        qt.QTimer.singleShot(0, self._onParametersModified)

    def _boundByWrapper(self) -> dict[str, Any]:
        """Widgets of the .ui that name a parameter, by that name."""
        named = ((widget.property("SlicerParameterName"), widget) for widget in vars(self.ui).values())
        return {str(name): widget for name, widget in named if name}

    def _onParametersModified(self, *_event: Any) -> None:
        """Bring to date what `connectGui` cannot bind, and what follows from the choices."""
        parameters = self.parameters
        if parameters is None or self._updating:
            return
        self._updating = True
        try:
            self.models.offer(parameters.model)
            self.localizers.offer(parameters.localizer)
            for combo, name in self._boundCombos():
                if name == "targetStructure":  # the last: the model is chosen by now
                    self._fillTargetStructures()
                # Of another network than before, a structure that it has not is none, and not its first.
                _choose(combo, getattr(parameters, name), -1 if name == "targetStructure" else 0)
            for selector, node, segment in self._boundSegments():
                _select(selector, getattr(parameters, node), getattr(parameters, segment))
                if getattr(parameters, node) is not None and not getattr(parameters, segment):
                    setattr(parameters, segment, selector.currentSegmentID() or "")  # what it shows is what is chosen
            for kind in ROWS:
                self._place(getattr(parameters, f"{kind}Box"))
            self._showFurtherImages()
            self._showMethod()
            self._showVisible()
        finally:
            self._updating = False
        self.changed.emit()

    def _place(self, box: Any) -> None:
        """Give a new box a place in the middle of the scan: made in a selector, it has none."""
        volume = self.parameters.inputVolume
        if box is None or volume is None or box.GetNumberOfControlPoints() > 0:
            return
        bounds = [0.0] * 6
        volume.GetRASBounds(bounds)
        box.CreateDefaultDisplayNodes()
        box.SetCenter([(low + high) / 2 for low, high in zip(bounds[::2], bounds[1::2], strict=True)])
        box.SetSize([(high - low) / 2 for low, high in zip(bounds[::2], bounds[1::2], strict=True)])

    def _fillTargetStructures(self) -> None:
        structures = self.models.chosen().structures
        combo = self.ui.targetStructureComboBox
        if tuple(combo.itemText(i) for i in range(combo.count)) != structures:
            _fill(combo, [(structure, structure) for structure in structures])

    def _showMethod(self) -> None:
        description = methods.describe()[self.ui.methodComboBox.currentData]
        summary = method_words.translated(description["summary"])
        self.ui.methodSummaryLabel.setText("\n".join(filter(None, [summary, self.refused()])))
        name = self.ui.methodComboBox.currentData
        values = self._allMethodParameters().get(name, {})
        if (name, values) != self._shownMethod:
            self.methodForm.show(description, values)
            self._shownMethod = (name, values)

    def _showVisible(self) -> None:
        """Show what belongs to the choices: rows, tool tips, the model's description."""
        ui = self.ui
        self._showRows()
        if self._trusted != self.models.chosen().name:
            # Trust is in one network: not in the next one, and not in one that a scene brings.
            self._trusted = self.models.chosen().name
            ui.trustCheckBox.setChecked(False)
        own = ui.ownThresholdCheckBox.checked
        ui.regionThresholdSlider.setEnabled(own)
        ui.regionThresholdSlider.setToolTip(
            _("Similarity of place and words from which on a place belongs to the region.")
            if own
            else _('The localizer\'s own threshold is used: check "Own threshold" to choose another.')
        )
        self._complete()
        model = self.models.chosen()
        self._description.setText(model.description())
        self.models.showAbsence()
        for widget in (ui.trustLabel, ui.trustCheckBox):
            widget.setVisible(self.models.isOwn)
        for widget in (ui.furtherImagesLabel, ui.furtherImagesSpinBox):
            widget.setVisible(model.inputs is None)
        several = model.inputs is not None and len(model.inputs) > 1
        first = _("Scan ({name}):").format(name=model.inputs[0]) if several and model.inputs else _("&Scan:")
        ui.inputLabel.setText(first)

    def _showRows(self, *_collapsed: Any) -> None:
        """Show the rows of the chosen sources in the sections that are open: opening a section shows all of them."""
        for kind, rows in ROWS.items():
            if not getattr(self.ui, f"{kind}CollapsibleButton").collapsed:
                chosen = getattr(self.ui, f"{kind}SourceComboBox").currentData
                for name in {name for names in rows.values() for name in names}:
                    getattr(self.ui, name).setVisible(name in rows.get(chosen, ()))
        self.localizers.showAbsence(self._isGuided(), not self.ui.regionCollapsibleButton.collapsed)

    def _isGuided(self) -> bool:
        return bool(self.ui.regionSourceComboBox.currentData == "guided")

    def _showFurtherImages(self) -> None:
        self.furtherImages.show(self._furtherNames())
        nodes = list(self.parameters.furtherVolumes)
        self.furtherImages.setVolumes([node if isInScene(node) else None for node in nodes])

    def _furtherNames(self) -> list[str]:
        """Of the images beside the scan; those of a network that does not tell them are counted."""
        inputs = self.models.chosen().inputs
        if inputs is not None:
            return list(inputs[1:])
        count = self.parameters.furtherImages if self.parameters is not None else 0
        return [_("Image {number}").format(number=number) for number in range(2, count + 2)]

    # --- widgets → parameter node ---

    def _onCombo(self, combo: Any, name: str) -> None:
        if self.parameters is not None and not self._updating:
            setattr(self.parameters, name, combo.currentData or "")

    def _onSegment(self, selector: Any, node: str, segment: str) -> None:
        if self.parameters is not None and not self._updating:
            chosen, segmentId = selector.currentNode(), selector.currentSegmentID()
            self._updating = True
            try:
                setattr(self.parameters, node, chosen)
                setattr(self.parameters, segment, segmentId or "")
            finally:
                self._updating = False
            self.changed.emit()

    def _onMethodParameters(self) -> None:
        if self.parameters is not None and not self._updating:
            every, name = self._allMethodParameters(), self.ui.methodComboBox.currentData
            every[name] = self.methodForm.values()
            self._shownMethod = (name, every[name])
            self.parameters.methodParameters = json.dumps(every)

    def _allMethodParameters(self) -> dict[str, dict[str, Any]]:
        """The parameters of every method that were chosen, as far as it takes them."""
        every = saved_record.parseParameters(self.parameters.methodParameters) if self.parameters is not None else {}
        return {
            name: {key: value for key, value in values.items() if _takes(name, key, value)}
            for name, values in every.items()
            if name in methods.METHODS
        }

    def refused(self) -> str:
        """A sentence where the scene holds parameters that the chosen method does not take."""
        if self.parameters is None:
            return ""
        name, text = self.ui.methodComboBox.currentData, self.parameters.methodParameters
        given = saved_record.parseParameters(text).get(name, {})
        wrong = [key for key, value in given.items() if not _takes(name, key, value)]
        if wrong or (text.strip() and not saved_record.isObject(text)):
            return _(
                "Parameters of the method {method} that came with the scene cannot be used: its defaults are taken."
            ).format(method=name)
        return ""

    def _onSample(self, *_clicked: Any) -> None:
        with slicer.util.tryWithErrorDisplay(_("The sample could not be made.")):
            volume = sample_data.loadPhantom()
            if self.parameters is not None:
                self.parameters.inputVolume = volume

    def _onOwnModel(self, path: str) -> None:
        if self.parameters is not None:
            self.parameters.model = path
            self._onParametersModified()  # also where a scene had named it already

    def _onOwnLocalizer(self, path: str) -> None:
        if self.parameters is not None:
            self.parameters.localizer = path
            self._onParametersModified()

    def _onFurtherImages(self) -> None:
        if self.parameters is not None and not self._updating:
            self.parameters.furtherVolumes = self.furtherImages.volumes()

    def _onNodeAdded(self, *_event: Any) -> None:
        # Later: the node that was added may not have its voxels yet.
        qt.QTimer.singleShot(0, self._chooseFirstVolume)

    def _chooseFirstVolume(self) -> None:
        """Choose a scan where none is chosen, so that Apply works after loading one."""
        if self.parameters is None or self.parameters.inputVolume is not None:
            return
        for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
            scan = node.GetClassName() == "vtkMRMLScalarVolumeNode" and not node.GetAttribute(SALIENCY_ATTRIBUTE)
            if scan and node.GetImageData() is not None and not node.GetHideFromEditors():
                self.parameters.inputVolume = node
                return

    # --- what they ask ---

    def question(self) -> Question:
        """What the panel asks."""
        parameters, ui = self.parameters, self.ui
        assert parameters is not None
        guided = self._isGuided()
        grown = guided or ui.regionSourceComboBox.currentData == "prediction"
        name = ui.methodComboBox.currentData
        return Question(
            volumeNode=parameters.inputVolume,
            prompt=parameters.prompt,
            model=ui.modelComboBox.currentData,
            localizer=ui.localizerComboBox.currentData if guided else None,
            method=None if name == methods.default() else name,  # the default has a fallback, a choice has none
            parameters=self._allMethodParameters().get(name, {}),
            region=self._drawn("region") or ui.regionSourceComboBox.currentData,
            target=self._drawn("target")
            or (ui.targetStructureComboBox.currentData if ui.targetSourceComboBox.currentData == "structure" else None),
            score=ui.scoreComboBox.currentData,
            baseline=ui.baselineComboBox.currentData,
            threshold=parameters.regionThreshold if guided and parameters.ownThreshold else None,
            marginMm=parameters.regionMargin if grown and parameters.regionMargin >= 0 else None,
            modality=ui.modalityComboBox.currentData or None,
            device=self._installation.device,
            precision=self._installation.precision,
            seed=parameters.seed,
            checkMap=True if parameters.checkMap else None,
            trust=True if self.models.isOwn and ui.trustCheckBox.checked else None,
            name=parameters.outputName,
            furtherVolumeNodes=tuple(self.furtherImages.volumes()),
        )

    def _drawn(self, kind: str) -> Segment | Box | None:
        """What the user drew for region or target, where that is chosen."""
        parameters = self.parameters
        source = getattr(parameters, f"{kind}Source")
        if source == "segment":
            return Segment(getattr(parameters, f"{kind}Segmentation"), getattr(parameters, f"{kind}Segment"))
        return Box(getattr(parameters, f"{kind}Box")) if source == "box" else None

    def missingForAny(self) -> list[str]:
        """What is missing for any request, a sentence each."""
        parameters = self.parameters
        if parameters is None:
            return [_("The scene is being loaded.")]
        found = []
        if parameters.inputVolume is None:
            found.append(_("Load a scan and choose it."))
        elif parameters.inputVolume.GetAttribute(SALIENCY_ATTRIBUTE):
            found.append(_("Choose a scan: what is chosen is a map of this module."))
        if not parameters.prompt.strip():
            found.append(_("Type what to explain, such as liver."))
        return found

    def missingToLocalize(self) -> list[str]:
        """What is missing before the words can be looked for, a sentence each."""
        return [*self.missingForAny(), *filter(None, [self.localizers.missing() if self._isGuided() else ""])]

    def missing(self) -> list[str]:
        """All that is still missing before Apply can be clicked, a sentence each."""
        parameters, found = self.parameters, self.missingForAny()
        if parameters is None:
            return found
        if absent := self.models.missing():
            found.append(absent)
        found += further_images.missing(parameters.inputVolume, self._furtherNames(), self.furtherImages.volumes())
        found += self.missingToLocalize()[len(self.missingForAny()) :]
        if parameters.targetSource != "structure":  # which says by itself what is explained
            network = self.models.chosen()
            found += filter(None, [feasibility.objection(parameters.prompt, network.name, network.structures)])
        for kind, where in (("region", _("Search area")), ("target", _("What to explain"))):
            drawn = self._drawn(kind)
            if isinstance(drawn, Segment) and (drawn.node is None or not drawn.segmentId):
                found.append(_("Choose a segment in the section {section}.").format(section=where))
            if isinstance(drawn, Box) and drawn.node is None:
                found.append(_("Choose or draw a box in the section {section}.").format(section=where))
        if parameters.targetSource == "structure" and not self.ui.targetStructureComboBox.currentData:
            found.append(
                _("The structures of this network are not known: choose something else under What to explain.")
            )
        return found

    @property
    def isUnsure(self) -> bool:
        """Whether only a worker can tell if what is chosen is on this machine."""
        guided = self._isGuided()
        choices = [self.models, *([self.localizers] if guided else [])]
        return any(choice.missing() and not choice.known for choice in choices)

    def model(self, name: str) -> Model | None:
        """The listed network or localizer of a name."""
        return next((model for model in (*self.models.models, *self.localizers.models) if model.name == name), None)

    def toDescribe(self) -> tuple[str, bool] | None:
        """The network of which only a worker can tell what it draws, and whether its code is trusted; None if none."""
        if self.parameters is None or not self.models.isOwn or self.models.missing():
            return None
        asked = (self.models.chosen().name, bool(self.ui.trustCheckBox.checked))
        return None if self.models.isDescribed(*asked) else asked

    def describe(self, name: str, trusted: bool, reply: protocol.Described | None) -> None:
        """A worker has said what a network of the user's own draws; None where it could not load it."""
        self.models.describe(name, trusted, reply)
        self._onParametersModified()

    def setModels(self, hello: protocol.Greeting | None) -> None:
        """The worker knows its models better than the shipped list does; None where there is no worker to ask."""
        before = self._offered()
        for choice, told in ((self.models, "segmenters"), (self.localizers, "localizers")):
            models = [catalogue.fromReply(entry) for entry in getattr(hello, told)] if hello is not None else []
            choice.models, choice.known = models or choice.models, True
        if hello is not None:
            self._regions = hello.regions or protocol.REGIONS
        if self._offered() != before:
            self._updating = True
            try:
                self.models.fill()
                self.localizers.fill()
                self._fillRegions()
            finally:
                self._updating = False
        self._onParametersModified()

    def _offered(self) -> tuple[Any, ...]:
        return self.models.known, self.models.models, self.localizers.models, self._regions


def _takes(name: str, key: str, value: Any) -> bool:
    """Whether a method takes a value for a parameter."""
    try:
        methods.method(name, **{key: value})
    except (InputError, TypeError, ValueError, OverflowError):
        return False
    return True


def _fill(combo: Any, items: Iterable[tuple[str, Any]]) -> None:
    combo.clear()
    for text, data in items:
        combo.addItem(text, data)


def _choose(combo: Any, data: Any, otherwise: int = 0) -> None:
    """Choose the item with these data; the first where it is empty, and by default where it is unknown."""
    index = combo.findData(data) if data else 0
    combo.setCurrentIndex((index if index >= 0 else otherwise) if combo.count else -1)


def _select(selector: Any, node: Any, segmentId: str) -> None:
    if selector.currentNode() is not node:
        selector.setCurrentNode(node)
    if segmentId and selector.currentSegmentID() != segmentId:
        selector.setCurrentSegmentID(segmentId)
