"""The test host behaves as the real Slicer was seen to behave: each test is a line of what was tried there."""

from __future__ import annotations

import enum
import pathlib
import textwrap
from typing import Annotated, Any

import numpy as np
import pytest


@pytest.fixture
def qt(scene: Any) -> Any:
    import qt

    return qt


@pytest.fixture
def slicer(scene: Any) -> Any:
    import slicer

    return slicer


# -- PythonQt ----------------------------------------------------------------------------------------------------------


def test_properties_are_attributes_and_calling_them_fails(qt: Any) -> None:
    button = qt.QPushButton("Apply")
    assert button.text == "Apply"
    assert button.isEnabled() is True
    assert isinstance(button.width, int)
    with pytest.raises(TypeError, match="'str' object is not callable"):
        button.text()
    combo = qt.QComboBox()
    combo.addItems(["liver", "spleen"])
    assert (combo.count, combo.currentText, combo.itemData(0)) == (2, "liver", None)
    with pytest.raises(TypeError, match="not callable"):
        combo.currentText()


def test_setters_and_properties_live_side_by_side(qt: Any) -> None:
    spin = qt.QDoubleSpinBox()
    spin.maximum = 7
    spin.setValue(9.0)
    assert spin.value == 7.0
    edit = qt.QPlainTextEdit()
    edit.plainText = "a"
    assert edit.toPlainText() == "a"


def test_unknown_names_raise_on_reading_and_on_writing(qt: Any) -> None:
    button = qt.QPushButton()
    with pytest.raises(AttributeError, match="QPushButton has no attribute named 'nosuch'"):
        _ = button.nosuch
    refused = "'typo' does not exist on QPushButton and creating new attributes on C\\+\\+ objects is not allowed"
    with pytest.raises(AttributeError, match=refused):
        button.typo = 1
    with pytest.raises(AttributeError, match="can not be overwritten"):
        button.setText = 1


def test_properties_refuse_values_of_the_wrong_kind(qt: Any) -> None:
    button = qt.QPushButton()
    with pytest.raises(AttributeError, match="'enabled' of type 'bool' does not accept an object of type NoneType"):
        button.enabled = None
    with pytest.raises(AttributeError, match="'count' of QComboBox object is not writable"):
        qt.QComboBox().count = 3


def test_signals_connect_by_signature_and_by_attribute(qt: Any) -> None:
    button, heard = qt.QPushButton(), []
    assert button.connect("clicked()", lambda: heard.append("no argument")) is True
    assert button.connect("clicked(bool)", heard.append) is True
    assert button.clicked.connect(lambda: heard.append("dropped")) is True
    button.click()
    assert heard == ["no argument", False, "dropped"]
    assert button.disconnect("clicked()") is True
    button.click()
    assert heard[3:] == [False, "dropped"]


def test_connecting_to_a_signal_that_does_not_exist_gives_false(qt: Any) -> None:
    assert qt.QPushButton().connect("pushed()", print) is False
    assert qt.QComboBox().connect("currentIndexChanged(QString)", print) is False


def test_bound_methods_can_be_disconnected(qt: Any) -> None:
    class Panel:
        def __init__(self) -> None:
            self.clicks = 0

        def onClick(self) -> None:
            self.clicks += 1

    panel, button = Panel(), qt.QPushButton()
    button.connect("clicked(bool)", panel.onClick)
    button.click()
    assert button.disconnect("clicked(bool)", panel.onClick) is True
    button.click()
    assert panel.clicks == 1
    assert button.disconnect("clicked(bool)", panel.onClick) is False


def test_keyword_arguments_are_refused(qt: Any) -> None:
    with pytest.raises(ValueError, match="text"):
        qt.QPushButton(text="q")
    with pytest.raises(ValueError, match="keyword"):
        qt.QPushButton().setText(text="q")


def test_wrong_arguments_raise_value_error(qt: Any) -> None:
    with pytest.raises(ValueError, match="setEnabled"):
        qt.QPushButton().setEnabled("a", "b")


def test_enumerators_are_integers_found_both_ways(qt: Any) -> None:
    assert qt.Qt.AlignLeft == qt.Qt.AlignmentFlag.AlignLeft == 1
    both = qt.Qt.AlignRight | qt.Qt.AlignTop
    assert type(both) is int
    label = qt.QLabel()
    label.setAlignment(both)
    assert label.alignment == both
    box = qt.QMessageBox.Ok | qt.QMessageBox.Cancel
    assert type(box) is int
    assert qt.QProcess().state() == qt.QProcess.NotRunning


def test_there_is_no_future_watcher_and_no_name_that_qt_lacks(qt: Any) -> None:
    for name in ("QFutureWatcher", "QNoSuchThing", "Slot", "QtCore"):
        with pytest.raises(AttributeError, match=name):
            getattr(qt, name)


def test_a_tool_tip_comes_back_wrapped(qt: Any) -> None:
    button = qt.QPushButton()
    button.toolTip = "Explain"
    assert button.toolTip == "<p>Explain</p>"
    button.setToolTip("<b>Explain</b>")
    assert button.toolTip == "<b>Explain</b>"
    assert qt.QPushButton().toolTip == ""


def test_lists_come_back_as_tuples(qt: Any, slicer: Any) -> None:
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    assert selector.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    parent = qt.QWidget()
    child = qt.QLabel("x", parent)
    assert parent.findChildren(qt.QWidget) == (child,)
    assert parent.findChildren("QLabel") == (child,)


def test_a_name_is_the_object_name_and_a_class_name_is_cpp(qt: Any) -> None:
    class Mine(qt.QLabel):
        pass

    label = Mine("x")
    label.name = "liverLabel"
    assert (label.objectName, label.className()) == ("liverLabel", "QLabel")


def test_python_subclasses_may_have_attributes_overrides_and_signals(qt: Any) -> None:
    class Watcher(qt.QObject):
        seen = qt.Signal(str)

        def __init__(self) -> None:
            super().__init__()
            self.events: list[Any] = []

        def eventFilter(self, watched: Any, event: Any) -> bool:
            self.events.append((watched, event.type() == qt.QEvent.Enter))
            return False

    watcher, button, heard = Watcher(), qt.QPushButton(), []
    button.installEventFilter(watcher)
    qt.QApplication.sendEvent(button, qt.QEvent(qt.QEvent.Enter))
    assert (button, True) in watcher.events
    watcher.seen.connect(heard.append)
    assert watcher.connect("seen(QString)", heard.append) is True
    watcher.seen.emit("liver")
    assert heard == ["liver", "liver"]


def test_overrides_on_ctk_classes_are_refused_because_pythonqt_ignores_them(qt: Any) -> None:
    import ctk

    with pytest.raises(TypeError, match="paintEvent"):
        type("Mine", (ctk.ctkCollapsibleButton,), {"paintEvent": lambda self, event: None})


def test_overrides_of_virtual_methods_are_called_on_qts_own_classes(qt: Any) -> None:
    class Fixed(qt.QWidget):
        def sizeHint(self) -> Any:
            return qt.QSize(123, 45)

    outer = qt.QWidget()
    layout = qt.QVBoxLayout(outer)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.addWidget(Fixed())
    assert outer.sizeHint.width() == 123
    assert (outer.layout() is layout, layout.parent() is outer) == (True, True)


def test_dialogs_end_by_exec_and_completers_complete(qt: Any) -> None:
    dialog = qt.QDialog()
    qt.QTimer.singleShot(0, dialog.accept)
    assert dialog.exec_() == qt.QDialog.Accepted == 1
    edit, completer = qt.QLineEdit(), qt.QCompleter(["liver", "spleen"])
    completer.setCaseSensitivity(qt.Qt.CaseInsensitive)
    edit.setCompleter(completer)
    completer.setCompletionPrefix("LI")
    assert (completer.completionCount(), completer.currentCompletion()) == (1, "liver")


def test_objects_that_qt_made_follow_the_same_rules(qt: Any) -> None:
    combo = qt.QComboBox()
    combo.editable = True
    edit = combo.lineEdit()
    assert isinstance(edit, qt.QLineEdit)
    assert edit is combo.lineEdit()
    edit.text = "liver"
    assert combo.currentText == "liver"
    with pytest.raises(AttributeError, match="typo"):
        edit.typo = 1


def test_a_destroyed_object_raises(qt: Any) -> None:
    button = qt.QPushButton()
    button.delete()
    with pytest.raises(ValueError, match="destroyed QPushButton"):
        _ = button.text
    with pytest.raises(AttributeError, match="destroyed QPushButton"):
        button.text = "Apply"


def test_is_instance_follows_qts_inheritance(qt: Any) -> None:
    button = qt.QPushButton()
    assert isinstance(button, qt.QWidget)
    assert isinstance(button, qt.QObject)
    assert not isinstance(button, qt.QLabel)
    assert issubclass(qt.QPushButton, qt.QWidget)
    assert type(button) is qt.QPushButton


def test_timers_fire(qt: Any, slicer: Any) -> None:
    fired: list[str] = []
    qt.QTimer.singleShot(0, lambda: fired.append("once"))
    timer = qt.QTimer()
    timer.interval = 0
    timer.connect("timeout()", lambda: fired.append("timeout"))
    timer.start()
    for _ in range(10):
        slicer.app.processEvents()
    assert {"once", "timeout"} <= set(fired)
    timer.stop()
    assert timer.active is False


def test_processes_run_and_their_output_is_bytes(qt: Any) -> None:
    import sys

    process, heard, ends = qt.QProcess(), [], []
    process.connect("readyReadStandardOutput()", lambda: heard.append(process.readAllStandardOutput().data()))
    process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: ends.append((code, status)))
    environment = qt.QProcessEnvironment.systemEnvironment()
    environment.insert("ORGAN", "liver")
    process.setProcessEnvironment(environment)
    process.start(sys.executable, ["-c", "import os; print(os.environ['ORGAN'], input())"])
    assert process.waitForStarted(10000)
    process.write(qt.QByteArray(b"left\n"))
    assert process.waitForFinished(20000)
    assert b"".join(heard).split() == [b"liver", b"left"]
    assert ends == [(0, qt.QProcess.NormalExit)]
    assert process.readAll().data() == b""


def test_settings_keep_types_and_missing_ones_are_none(qt: Any, slicer: Any) -> None:
    settings = qt.QSettings()
    for value in (3, True, 1.5, "text"):
        settings.setValue("XAICLIP/value", value)
        assert settings.value("XAICLIP/value") == value
        assert type(settings.value("XAICLIP/value")) is type(value)
    assert settings.value("XAICLIP/none") is None
    assert settings.fileName().startswith(slicer.app.temporaryPath)
    assert slicer.app.settings().value("XAICLIP/value") == "text"


def test_exceptions_in_slots_are_printed_and_do_not_stop_anything(qt: Any, slot_errors: list[BaseException]) -> None:
    def fail() -> None:
        raise RuntimeError("in a slot")

    button, heard = qt.QPushButton(), []
    button.connect("clicked()", fail)
    button.connect("clicked()", lambda: heard.append(1))
    button.click()
    assert heard == [1]
    assert str(slot_errors.pop()) == "in a slot"


# -- slicer ------------------------------------------------------------------------------------------------------------


def test_names_that_slicer_lacks_raise(slicer: Any) -> None:
    for owner in (slicer, slicer.util, slicer.app, slicer.modules):
        with pytest.raises(AttributeError):
            _ = owner.noSuchThing
    with pytest.raises(AttributeError, match="creating new attributes"):
        slicer.app.noSuchThing = 1


def test_names_newer_than_the_oldest_slicer_supported_are_not_there(slicer: Any) -> None:
    assert not hasattr(slicer.util, "LazyImport")
    with pytest.raises(AttributeError, match="executePythonModule"):
        slicer.util.executePythonModule("pip", ["--version"])


def test_without_a_main_window_there_is_none_and_no_layout(slicer: Any) -> None:
    assert slicer.util.mainWindow() is None
    assert slicer.app.layoutManager() is None
    volume = slicer.util.addVolumeFromArray(np.zeros((2, 3, 4)))
    slicer.util.setSliceViewerLayers(background=volume, fit=True)


def test_a_layout_manager_shows_nodes_when_asked_for(slicer: Any, layout_manager: Any) -> None:
    volume = slicer.util.addVolumeFromArray(np.zeros((2, 3, 4)))
    slicer.util.setSliceViewerLayers(background=volume, foreground=volume, foregroundOpacity=0.25, fit=True)
    assert slicer.app.layoutManager().sliceViewNames() == ("Red", "Green", "Yellow")
    for name in layout_manager.sliceViewNames():
        composite = layout_manager.sliceWidget(name).mrmlSliceCompositeNode()
        assert (composite.GetBackgroundVolumeID(), composite.GetForegroundOpacity()) == (volume.GetID(), 0.25)


def test_a_layout_brings_the_nodes_of_its_views(slicer: Any, layout_manager: Any) -> None:
    heard: list[int] = []
    layout_manager.connect("layoutChanged(int)", heard.append)
    wanted = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotTableView
    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
    chart = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotChartNode")
    logic = slicer.app.applicationLogic()

    def choose() -> None:
        logic.GetSelectionNode().SetActiveTableID(table.GetID())
        logic.GetSelectionNode().SetActivePlotChartID(chart.GetID())
        logic.PropagateTableSelection()
        logic.PropagatePlotChartSelection()

    choose()
    layout_manager.setLayout(wanted)
    red = layout_manager.sliceWidget("Red").mrmlSliceNode()
    assert red.IsMappedInLayout()
    layout_manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpGreenSliceView)
    assert not red.IsMappedInLayout()
    layout_manager.setLayout(wanted)
    del heard[:2]
    assert (layout_manager.layout, heard) == (wanted, [wanted])
    (view,) = slicer.util.getNodesByClass("vtkMRMLTableViewNode")
    (plot,) = slicer.util.getNodesByClass("vtkMRMLPlotViewNode")
    # As in Slicer: a view that the layout makes later does not know what was chosen before.
    assert (view.GetTableNodeID(), plot.GetPlotChartNodeID()) == (None, None)
    choose()
    assert (view.GetTableNodeID(), plot.GetPlotChartNodeID()) == (table.GetID(), chart.GetID())


def test_linked_views_follow_each_other(slicer: Any, layout_manager: Any) -> None:
    red, yellow = (layout_manager.sliceWidget(name).mrmlSliceCompositeNode() for name in ("Red", "Yellow"))
    for composite in (red, yellow):
        composite.SetLinkedControl(True)
    logic = layout_manager.sliceWidget("Red").sliceLogic()
    volume = slicer.util.addVolumeFromArray(np.zeros((2, 3, 4)))
    logic.StartSliceCompositeNodeInteraction(red.BackgroundVolumeFlag)
    red.SetBackgroundVolumeID(volume.GetID())
    logic.EndSliceCompositeNodeInteraction()
    assert yellow.GetBackgroundVolumeID() == volume.GetID()


def test_in_testing_mode_errors_are_raised_again_and_questions_answered_no(slicer: Any) -> None:
    assert slicer.app.testingEnabled() is True
    with pytest.raises(ZeroDivisionError), slicer.util.tryWithErrorDisplay("Failed."):
        _ = 1 / 0
    assert slicer.util.confirmOkCancelDisplay("Install?") is False


def test_the_startup_environment_is_a_dictionary(slicer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORGAN", "liver")
    assert slicer.util.startupEnvironment()["ORGAN"] == "liver"


def test_a_legend_needs_a_display_node(slicer: Any) -> None:
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    logic = slicer.modules.colors.logic()
    assert logic.AddDefaultColorLegendDisplayNode(volume) is None
    volume.CreateDefaultDisplayNodes()
    assert logic.AddDefaultColorLegendDisplayNode(volume) is not None


def test_the_scene_is_saved_and_read_again(slicer: Any, tmp_path: pathlib.Path) -> None:
    slicer.util.addVolumeFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4), name="scan")
    assert slicer.util.saveScene(str(tmp_path / "case.mrb"))
    slicer.mrmlScene.Clear(False)
    slicer.util.loadScene(str(tmp_path / "case.mrb"))
    assert slicer.util.arrayFromVolume(slicer.util.getNode("scan")).sum() == 276


def test_a_volume_is_written_and_loaded(slicer: Any, tmp_path: pathlib.Path) -> None:
    volume = slicer.util.addVolumeFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4), name="scan")
    assert slicer.util.saveNode(volume, str(tmp_path / "scan.nrrd"))
    loaded = slicer.util.loadVolume(str(tmp_path / "scan.nrrd"), {"name": "again"})
    assert loaded.GetName() == "again"
    assert np.array_equal(slicer.util.arrayFromVolume(loaded), slicer.util.arrayFromVolume(volume))


# -- MRML and CTK widgets ----------------------------------------------------------------------------------------------


def node_selector(slicer: Any, **properties: Any) -> Any:
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    for name, value in properties.items():
        setattr(selector, name, value)
    selector.setMRMLScene(slicer.mrmlScene)
    return selector


def test_a_node_added_later_counts_and_is_not_selected(slicer: Any) -> None:
    selector = node_selector(slicer)
    assert selector.nodeCount() == 0
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    assert selector.nodeCount() == 1
    assert selector.currentNode() is None
    assert selector.currentNodeID == ""


def test_the_current_node_is_handed_to_who_listens(slicer: Any) -> None:
    selector, nodes, valid, ids = node_selector(slicer), [], [], []
    assert selector.connect("currentNodeChanged(vtkMRMLNode*)", nodes.append) is True
    assert selector.connect("currentNodeChanged(bool)", valid.append) is True
    assert selector.connect("currentNodeIDChanged(QString)", ids.append) is True
    assert selector.connect("currentNodeChanged(vtkMRMLVolumeNode*)", nodes.append) is False
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    selector.setCurrentNode(volume)
    slicer.mrmlScene.RemoveNode(volume)
    assert nodes == [volume, None]
    assert valid == [True, False]
    assert ids == [volume.GetID() or ids[0], ""]


def test_a_selector_shows_what_its_filters_let_through(slicer: Any) -> None:
    selector = node_selector(slicer, noneEnabled=True)
    for name in ("scan", "saliency"):
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    label = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "label")
    slicer.util.getNode("saliency").SetAttribute("XAICLIP.Saliency", "1")
    assert selector.nodeCount() == 3
    selector.showChildNodeTypes = False
    assert selector.nodeCount() == 2
    selector.addAttribute("vtkMRMLScalarVolumeNode", "XAICLIP.Saliency", "1")
    assert [selector.nodeFromIndex(0).GetName(), selector.nodeFromIndex(1)] == ["saliency", None]
    slicer.util.getNode("saliency").HideFromEditorsOn()
    selector.removeAttribute("vtkMRMLScalarVolumeNode", "XAICLIP.Saliency")
    assert selector.nodeFromIndex(0).GetName() == "scan"
    assert label is not None


def test_a_selector_is_disabled_without_a_scene_and_keeps_a_request(slicer: Any) -> None:
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    assert selector.enabled is False
    selector.setCurrentNodeID(volume.GetID())
    selector.setMRMLScene(slicer.mrmlScene)
    assert selector.enabled is True
    assert selector.currentNode() is volume


def test_a_segment_selector_follows_its_segmentation(slicer: Any) -> None:
    selector, heard = slicer.qMRMLSegmentSelectorWidget(), []
    selector.setMRMLScene(slicer.mrmlScene)
    assert selector.connect("currentSegmentChanged(QString)", heard.append) is True
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    selector.setCurrentNode(segmentation)
    assert (selector.currentNodeID(), selector.currentSegmentID()) == (segmentation.GetID(), "")
    segmentation.GetSegmentation().AddEmptySegment("liver", "liver")
    segmentation.GetSegmentation().AddEmptySegment("spleen", "spleen")
    selector.setCurrentSegmentID("spleen")
    assert selector.currentSegmentID() == "spleen"
    assert heard[-1] == "spleen"


def test_ctk_widgets_have_ctks_properties(slicer: Any) -> None:
    import ctk

    slider, heard = ctk.ctkSliderWidget(), []
    slider.minimum, slider.maximum, slider.decimals, slider.suffix, slider.singleStep = 1, 9, 1, " mm", 0.5
    assert slider.connect("valueChanged(double)", heard.append) is True
    slider.value = 12.0
    assert (slider.value, heard) == (9.0, [9.0])
    with pytest.raises(AttributeError, match="ctkSliderWidget"):
        slider.maximumValue = 3
    section, closed = ctk.ctkCollapsibleButton(), []
    section.connect("contentsCollapsed(bool)", closed.append)
    section.collapsed = True
    assert (section.checked, closed) == (False, [True])
    path, paths = ctk.ctkPathLineEdit(), []
    path.connect("currentPathChanged(QString)", paths.append)
    path.currentPath = "/data"
    assert paths == ["/data"]
    bounds = ctk.ctkRangeWidget()
    bounds.setRange(0, 1)
    bounds.setValues(0.25, 0.75)
    assert (bounds.minimumValue, bounds.maximumValue) == (0.25, 0.75)


def test_child_widget_variables_pick_up_layouts_and_inner_names(slicer: Any, qt: Any) -> None:
    import ctk

    outer = qt.QWidget()
    layout = qt.QVBoxLayout(outer)
    layout.setObjectName("outerLayout")
    slider = ctk.ctkSliderWidget()
    slider.name = "opacitySlider"
    layout.addWidget(slider)
    names = vars(slicer.util.childWidgetVariables(outer))
    assert {"outerLayout", "opacitySlider", "Slider", "SpinBox", "qt_spinbox_lineedit"} <= set(names)


# -- parameter nodes ---------------------------------------------------------------------------------------------------


class Method(enum.Enum):
    OCCLUSION = 1
    RISE = 2


@pytest.fixture
def parameters(slicer: Any) -> Any:
    from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper

    class Panel:
        prompt = "liver"
        windows = 5
        baseline = "air"
        method = Method.OCCLUSION

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    # Written out, because the names in annotations of a local class cannot be looked up.
    Panel.__annotations__ = {
        "volume": slicer.vtkMRMLScalarVolumeNode,
        "prompt": str,
        "threshold": Annotated[float, WithinRange(0, 1), Default(0.5)],
        "windows": Annotated[int, WithinRange(1, 99)],
        "whole": bool,
        "baseline": Annotated[str, Choice(["air", "mean"])],
        "method": Method,
        "folder": pathlib.Path,
    }
    return parameterNodeWrapper(Panel)(node)


def test_parameters_have_defaults_and_stay_in_the_node(parameters: Any, slicer: Any) -> None:
    assert parameters.volume is None
    assert (parameters.prompt, parameters.threshold, parameters.windows) == ("liver", 0.5, 5)
    assert (parameters.whole, parameters.method, parameters.folder) == (False, Method.OCCLUSION, pathlib.Path())
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    parameters.volume, parameters.whole, parameters.method = volume, True, Method.RISE
    again = type(parameters)(parameters.parameterNode)
    assert (again.volume, again.whole, again.method) == (volume, True, Method.RISE)
    assert parameters.parameterNode.GetNodeReferenceID("volume") == volume.GetID()
    slicer.mrmlScene.RemoveNode(volume)
    assert again.volume is None


def test_a_parameter_read_too_early_stays_so_until_its_node_is_modified(parameters: Any, slicer: Any) -> None:
    """As while a scene is being loaded: the node that is referred to comes in later than the parameter node."""
    assert parameters.isCached("volume") and parameters.isCached("prompt")
    node = parameters.parameterNode
    node.SetNodeReferenceID("volume", "vtkMRMLScalarVolumeNode1")
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    assert (volume.GetID(), node.GetNodeReference("volume")) == ("vtkMRMLScalarVolumeNode1", volume)
    assert parameters.volume is None
    node.Modified()
    assert parameters.volume is volume


def test_parameters_refuse_what_their_annotations_do_not_allow(parameters: Any) -> None:
    for name, value, error in (
        ("threshold", 1.5, ValueError),
        ("baseline", "blur", ValueError),
        ("prompt", None, ValueError),
        ("windows", 2.5, TypeError),
        ("prompt", 3, TypeError),
    ):
        with pytest.raises(error):
            setattr(parameters, name, value)
    assert parameters.threshold == 0.5


def test_a_list_of_nodes_is_kept_with_its_gaps_and_forgets_what_was_removed(slicer: Any) -> None:
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    kind = type("Panel", (), {"__annotations__": {"volumes": list[slicer.vtkMRMLScalarVolumeNode]}})
    wrap = parameterNodeWrapper(kind)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    parameters = wrap(node)
    assert parameters.volumes == []
    first, second = (slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode") for _ in range(2))
    parameters.volumes = [first, None, second]
    assert wrap(node).volumes == [first, None, second]
    assert (node.GetParameter("volumes.len"), node.GetNodeReferenceID("volumes.2")) == ("3", second.GetID())
    slicer.mrmlScene.RemoveNode(second)
    assert parameters.volumes == [first, None, None]
    parameters.volumes = [first]
    assert parameters.volumes == [first] and not node.HasParameter("volumes.1")
    with pytest.raises(TypeError, match="vtkMRMLScalarVolumeNode"):
        parameters.volumes = [node]


def test_a_type_that_the_host_does_not_keep_is_refused(slicer: Any) -> None:
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    with pytest.raises(AttributeError, match="list"):
        parameterNodeWrapper(type("Panel", (), {"__annotations__": {"organs": list[str]}}))


def test_widgets_and_parameters_follow_each_other(parameters: Any, qt: Any, slicer: Any) -> None:
    import ctk

    selector = slicer.qMRMLNodeComboBox()
    selector.setMRMLScene(slicer.mrmlScene)
    widgets = {
        "volume": selector,
        "prompt": qt.QLineEdit(),
        "threshold": ctk.ctkSliderWidget(),
        "windows": qt.QSpinBox(),
        "whole": qt.QCheckBox(),
        "baseline": qt.QComboBox(),
        "method": qt.QComboBox(),
        "folder": ctk.ctkPathLineEdit(),
    }
    tag = parameters.connectParametersToGui(widgets)
    assert widgets["prompt"].text == "liver"
    assert widgets["threshold"].maximum == 1.0
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    parameters.volume, parameters.prompt, parameters.baseline = volume, "spleen", "mean"
    assert (selector.currentNode(), widgets["prompt"].text, widgets["baseline"].currentText) == (
        volume,
        "spleen",
        "mean",
    )
    widgets["windows"].value, widgets["whole"].checked, widgets["method"].currentIndex = 8, True, 1
    widgets["folder"].currentPath = "/data"
    assert (parameters.windows, parameters.whole, parameters.method) == (8, True, Method.RISE)
    assert parameters.folder == pathlib.Path("/data")
    parameters.disconnectGui(tag)
    widgets["windows"].value = 9
    assert parameters.windows == 8


def test_a_widget_is_matched_to_a_parameter_by_its_exact_type(parameters: Any, qt: Any) -> None:
    with pytest.raises(RuntimeError, match="Unable to create GUI connector"):
        parameters.connectParametersToGui({"prompt": qt.QLabel()})
    with pytest.raises(RuntimeError, match="Choice"):
        parameters.connectParametersToGui({"prompt": qt.QComboBox()})


# -- a whole module ----------------------------------------------------------------------------------------------------

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>Small</class>
<widget class="qMRMLWidget" name="Small"><layout class="QVBoxLayout" name="verticalLayout">
<item><widget class="ctkCollapsibleButton" name="inputs"><property name="text"><string>Inputs</string></property>
<layout class="QFormLayout" name="formLayout">
<item row="0" column="0"><widget class="QLabel" name="label">
<property name="text"><string>Volume:</string></property></widget></item>
<item row="0" column="1"><widget class="qMRMLNodeComboBox" name="volumeSelector">
<property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
<property name="addEnabled"><bool>false</bool></property>
<property name="SlicerParameterName" stdset="0"><string>volume</string></property></widget></item>
<item row="1" column="1"><widget class="QLineEdit" name="promptEdit">
<property name="SlicerParameterName" stdset="0"><string>prompt</string></property></widget></item>
</layout></widget></item>
<item><widget class="QPushButton" name="applyButton"><property name="enabled"><bool>false</bool></property>
<property name="toolTip"><string>Run.</string></property>
<property name="text"><string>Apply</string></property></widget></item>
</layout></widget>
<customwidgets>
<customwidget><class>qMRMLWidget</class><extends>QWidget</extends><container>1</container></customwidget>
<customwidget><class>qMRMLNodeComboBox</class><extends>QWidget</extends><header>qMRMLNodeComboBox.h</header></customwidget>
<customwidget><class>ctkCollapsibleButton</class><extends>QWidget</extends><container>1</container></customwidget>
</customwidgets>
<connections><connection><sender>Small</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
<receiver>volumeSelector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>
"""

MODULE = """
import slicer
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin


class Small(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Small")
        self.parent.categories = [_("Segmentation")]
        self.parent.contributors = ["XAICLIP developers"]


@parameterNodeWrapper
class SmallParameterNode:
    volume: vtkMRMLScalarVolumeNode
    prompt: str = "liver"


class SmallWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.calls = []

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/Small.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = SmallLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.parameters = self.logic.getParameterNode()
        self.parameters.connectGui(self.ui)

    def enter(self):
        self.calls.append("enter")

    def exit(self):
        self.calls.append("exit")

    def cleanup(self):
        self.calls.append("cleanup")
        self.removeObservers()

    def onSceneStartClose(self, caller, event):
        self.calls.append("close")

    def onApply(self):
        with slicer.util.tryWithErrorDisplay(_("Failed."), waitCursor=True):
            self.calls.append(self.parameters.prompt)


class SmallLogic(ScriptedLoadableModuleLogic):
    def getParameterNode(self):
        return SmallParameterNode(super().getParameterNode())
"""


@pytest.fixture
def small_module(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "Small"
    (folder / "Resources" / "UI").mkdir(parents=True)
    (folder / "Small.py").write_text(textwrap.dedent(MODULE))
    (folder / "Resources" / "UI" / "Small.ui").write_text(UI)
    return tmp_path


def test_a_module_after_slicers_template_runs_unmodified(
    load_module: Any, small_module: pathlib.Path, slicer: Any
) -> None:
    panel = load_module("Small", small_module)
    assert panel.calls == ["enter"]
    assert panel.ui.applyButton.parent().className() == "qMRMLWidget"
    assert slicer.modules.small.title == "Small"
    assert slicer.modules.small.categories == ("Segmentation",)
    assert slicer.util.getModuleWidget("Small") is panel
    assert slicer.modules.SmallWidget is panel
    assert {"volumeSelector", "promptEdit", "applyButton", "formLayout"} <= set(vars(panel.ui))
    assert panel.ui.promptEdit.property("SlicerParameterName") == panel.ui.promptEdit.SlicerParameterName == "prompt"
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    panel.ui.volumeSelector.setCurrentNode(volume)
    panel.ui.promptEdit.text = "spleen"
    assert (panel.parameters.volume, panel.parameters.prompt) == (volume, "spleen")
    panel.ui.applyButton.enabled = True
    panel.ui.applyButton.click()
    assert panel.calls[-1] == "spleen"
    slicer.mrmlScene.Clear(False)
    assert panel.calls[-1] == "close"


def test_a_module_can_be_reloaded(load_module: Any, small_module: pathlib.Path, slicer: Any) -> None:
    panel = load_module("Small", small_module)
    panel.onReload()
    assert panel.calls[-1] == "cleanup"
    assert slicer.modules.SmallWidget is not panel
    assert slicer.util.getModuleWidget("Small") is slicer.modules.SmallWidget


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("ctkCollapsibleButton", "ctkCollapsableButton", "ctkCollapsableButton"),
        ("addEnabled", "additionEnabled", "additionEnabled"),
        ("mrmlSceneChanged(vtkMRMLScene*)", "sceneChanged(vtkMRMLScene*)", "sceneChanged"),
        ("setMRMLScene(vtkMRMLScene*)", "setScene(vtkMRMLScene*)", "setScene"),
    ],
)
def test_a_ui_file_with_a_name_that_does_not_exist_is_refused(
    slicer: Any, tmp_path: pathlib.Path, right: str, wrong: str, complaint: str
) -> None:
    path = tmp_path / "Small.ui"
    path.write_text(UI.replace(right, wrong))
    with pytest.raises(AttributeError, match=complaint):
        slicer.util.loadUI(str(path))


# -- pictures ----------------------------------------------------------------------------------------------------------


def sphere(radius: float) -> np.ndarray:
    z, y, x = np.mgrid[-20:20, -20:20, -20:20]
    return np.sqrt(x**2 + y**2 + z**2) < radius


def test_slice_views_are_drawn_with_overlay_segment_and_legend(slicer: Any, layout_manager: Any) -> None:
    from Testing.host import render

    grey = slicer.util.addVolumeFromArray(np.full((40, 40, 40), 50, np.int16), name="scan")
    grey.CreateDefaultDisplayNodes()
    grey.GetDisplayNode().SetAutoWindowLevel(False)
    grey.GetDisplayNode().SetWindowLevelMinMax(0, 100)
    map_ = slicer.util.addVolumeFromArray(sphere(10).astype(np.float32), name="saliency")
    map_.CreateDefaultDisplayNodes()
    display = map_.GetDisplayNode()
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeFileInferno.txt")
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0, 2)
    display.SetThreshold(0.5, 2)
    display.ApplyThresholdOn()
    slicer.util.setSliceViewerLayers(background=grey, foreground=map_, foregroundOpacity=1.0)
    picture = render.pixels(render.slice_view("Red", "Axial", (200, 200)))
    assert picture.shape == (200, 200, 3)
    # 50 of 0..100 is mid grey; 1 of 0..2 is the middle of the table, (188, 55, 84) as matplotlib has it.
    assert abs(picture[20, 100].astype(int) - 127).max() <= 1
    assert abs(picture[100, 100].astype(int) - (188, 55, 84)).max() <= 2
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(map_)
    legend.SetTitleText("score lost")
    with_legend = render.pixels(render.slice_view("Red", "Axial", (200, 200)))
    assert (with_legend[:, 150:] != picture[:, 150:]).any()
    assert (with_legend[:, :100] == picture[:, :100]).all()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.SetReferenceImageGeometryParameterFromVolumeNode(grey)
    node.CreateDefaultDisplayNodes()
    segment = node.GetSegmentation().AddEmptySegment("organ", "organ", [0.0, 1.0, 0.0])
    slicer.util.updateSegmentBinaryLabelmapFromArray(sphere(15).astype(np.uint8), node, segment, grey)
    with_segment = render.pixels(render.slice_view("Red", "Axial", (200, 200))).astype(int)
    assert (with_segment[..., 1] - with_segment[..., 0] > 100).any()


def test_the_3d_view_shows_a_segment(slicer: Any, tmp_path: pathlib.Path) -> None:
    from Testing.host import render

    volume = slicer.util.addVolumeFromArray(np.zeros((40, 40, 40), np.int16))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.CreateDefaultDisplayNodes()
    segment = node.GetSegmentation().AddEmptySegment("organ", "organ", [0.0, 1.0, 0.0])
    slicer.util.updateSegmentBinaryLabelmapFromArray(sphere(15).astype(np.uint8), node, segment, volume)
    node.CreateClosedSurfaceRepresentation()
    picture = render.view_3d((120, 120))
    green = render.pixels(picture)[60, 60].astype(int)
    assert green[1] > green[0] + 80
    render.write(tmp_path / "view.png", [picture, picture])
    assert (tmp_path / "view.png").read_bytes()[:4] == b"\x89PNG"


def test_perceptual_colour_tables_are_there_as_in_slicer(slicer: Any) -> None:
    from matplotlib import colormaps

    node = slicer.mrmlScene.GetNodeByID("vtkMRMLColorTableNodeFileInferno.txt")
    colour = [0.0] * 4
    assert node.GetColor(128, colour)
    assert np.allclose(colour, colormaps["inferno"](128), atol=1 / 255)
