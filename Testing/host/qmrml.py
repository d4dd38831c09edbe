"""The MRML widgets and the classes of Slicer's base library that a scripted module's panel uses."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import shiboken6
import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from Testing.host.ctk import ctkComboBox, ctkSliderWidget, stored
from Testing.host.pythonqt import wrapped

Property, Signal = QtCore.Property, QtCore.Signal


def observe(widget: Any, subject: Any, events: tuple[int, ...], method: Callable[..., None]) -> list[int]:
    """Have a method of a widget called on VTK events, with the node if there is one, while Qt keeps the widget."""
    held = weakref.WeakMethod(method)

    def forward(caller: Any, event: str, *node: Any) -> None:
        alive = held()
        if alive is not None and shiboken6.isValid(alive.__self__):
            alive(*node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def forward_node(caller: Any, event: str, node: Any) -> None:
        forward(caller, event, node)

    with_node = (slicer.vtkMRMLScene.NodeAddedEvent, slicer.vtkMRMLScene.NodeRemovedEvent)
    return [subject.AddObserver(event, forward_node if event in with_node else forward) for event in events]


class qMRMLWidget(wrapped(QtWidgets.QWidget)):
    """The top level of a module's panel: hands its scene to whatever is connected to `mrmlSceneChanged`."""

    cpp_class = True
    mrmlSceneChanged = Signal(object)
    cpp_signals = ("mrmlSceneChanged(vtkMRMLScene*)",)
    _scene: Any = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


class qSlicerWidget(qMRMLWidget):
    """The same in Slicer's base library."""

    cpp_class = True


class qMRMLNodeComboBox(wrapped(QtWidgets.QWidget)):
    """Chooses one node of the scene among those of some types."""

    cpp_class = True
    currentNodeChanged = Signal((object,), (bool,))
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    cpp_signals = (
        "currentNodeChanged(vtkMRMLNode*)",
        "nodeActivated(vtkMRMLNode*)",
        "nodeAdded(vtkMRMLNode*)",
        "nodeAddedByUser(vtkMRMLNode*)",
    )
    addEnabled = stored(bool, True)
    removeEnabled = stored(bool, True)
    editEnabled = stored(bool, False)
    renameEnabled = stored(bool, False)
    selectNodeUponCreation = stored(bool, True)
    _events = (
        slicer.vtkMRMLScene.NodeAddedEvent,
        slicer.vtkMRMLScene.NodeRemovedEvent,
        slicer.vtkMRMLScene.EndBatchProcessEvent,
    )

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._tags: list[int] = []
        self._attributes: dict[tuple[str, str], Any] = {}
        self._choices = {"nodeTypes": [], "noneEnabled": False, "noneDisplay": "None", "showHidden": False}
        self._choices |= {"showChildNodeTypes": True, "hideChildNodeTypes": []}
        self._nodes: list[Any] = []
        self._named: dict[str, list[int]] = {}
        self._baseName = ""
        self._requested = ""
        self._current: Any = None
        self._box = ctkComboBox()
        layout = wrapped(QtWidgets.QHBoxLayout)(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._box.currentIndexChanged.connect(self._indexChanged)
        self._box.activated.connect(lambda index: self.nodeActivated.emit(self._nodeAt(index)))
        self.setEnabled(False)

    def _choice(name: str, kind: Any) -> Any:
        def set_(self: Any, value: Any) -> None:
            self._choices[name] = value
            self._fill()

        return Property(kind, lambda self: self._choices[name], set_)

    nodeTypes = _choice("nodeTypes", "QStringList")
    hideChildNodeTypes = _choice("hideChildNodeTypes", "QStringList")
    noneEnabled = _choice("noneEnabled", bool)
    noneDisplay = _choice("noneDisplay", str)
    showHidden = _choice("showHidden", bool)
    showChildNodeTypes = _choice("showChildNodeTypes", bool)

    # -- scene

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._scene:
            return
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene = scene
        self._tags = observe(self, scene, self._events, self._sceneChanged) if scene is not None else []
        self._fill()
        if self._requested:
            self.setCurrentNodeID(self._requested)
            self._requested = ""
        self.setEnabled(scene is not None)

    def _sceneChanged(self, node: Any = None) -> None:
        if node is None or any(node.IsA(kind) for kind in self._choices["nodeTypes"]):
            self._fill()

    def _shows(self, node: Any) -> bool:
        choices = self._choices
        if choices["showChildNodeTypes"]:
            fits = any(node.IsA(kind) for kind in choices["nodeTypes"])
        else:
            fits = node.GetClassName() in choices["nodeTypes"]
        if not fits or any(node.IsA(kind) for kind in choices["hideChildNodeTypes"]):
            return False
        if node.GetHideFromEditors() and not choices["showHidden"]:
            return False
        wanted = {key: value for key, value in self._attributes.items() if node.IsA(key[0])}
        return all(
            node.GetAttribute(name) is not None and value in (None, node.GetAttribute(name))
            for (_, name), value in wanted.items()
        )

    def _fill(self) -> None:
        """Show the nodes of the scene, keeping the current one; where that is gone, the one that took its place."""
        scene = self._scene
        if scene is not None and scene.IsBatchProcessing():
            return
        nodes = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())] if scene is not None else []
        before, self._nodes = self._nodes, [node for node in nodes if self._shows(node)]
        for node in self._nodes:
            if node.GetID() not in self._named:
                self._named[node.GetID()] = observe(self, node, (vtk.vtkCommand.ModifiedEvent,), self._rename)
        node = self._current
        if node is not None and node not in self._nodes:
            row = min(before.index(node), len(self._nodes) - 1)
            node = self._nodes[row] if row >= 0 else None
        self._box.blockSignals(True)
        self._box.clear()
        if self.noneEnabled:
            self._box.addItem(self.noneDisplay)
        for shown in self._nodes:
            self._box.addItem(shown.GetName() or "")
        self._box.setCurrentIndex(self._indexOf(node))
        self._box.blockSignals(False)
        for added in self._nodes:
            if added not in before:
                self.nodeAdded.emit(added)
        self._setCurrent(node)

    def _rename(self) -> None:
        first = int(self.noneEnabled)
        for row, node in enumerate(self._nodes):
            if self._box.itemText(first + row) != node.GetName():
                self._box.setItemText(first + row, node.GetName() or "")

    # -- the current node

    def _indexOf(self, node: Any) -> int:
        first = int(self.noneEnabled)
        return self._nodes.index(node) + first if node in self._nodes else first - 1

    def _nodeAt(self, index: int) -> Any:
        row = index - int(self.noneEnabled)
        return self._nodes[row] if 0 <= row < len(self._nodes) else None

    def _indexChanged(self, index: int) -> None:
        self._setCurrent(self._nodeAt(index))

    def _setCurrent(self, node: Any) -> None:
        if node is self._current:
            return
        self._current = node
        self.currentNodeChanged.emit(node)
        self._emitValid(node is not None)
        self.currentNodeIDChanged.emit(node.GetID() if node is not None else "")

    def _emitValid(self, valid: bool) -> None:
        object.__getattribute__(self, "currentNodeChanged")[bool].emit(valid)

    def currentNode(self) -> Any:
        return self._current

    def setCurrentNode(self, node: Any) -> None:
        self.setCurrentNodeID((node.GetID() or "") if node is not None else "")

    def setCurrentNodeID(self, node_id: str) -> None:
        if self._scene is None:
            self._requested = node_id
            return
        found = next((node for node in self._nodes if node.GetID() == node_id), None)
        self._box.setCurrentIndex(self._indexOf(found))
        self._setCurrent(found)

    currentNodeID = Property(str, lambda self: self._current.GetID() if self._current else "", setCurrentNodeID)

    def setCurrentNodeIndex(self, index: int) -> None:
        self.setCurrentNode(self._nodes[index] if 0 <= index < len(self._nodes) else None)

    def nodeCount(self) -> int:
        return len(self._nodes)

    def nodeFromIndex(self, index: int) -> Any:
        return self._nodes[index] if 0 <= index < len(self._nodes) else None

    # -- new nodes

    def addAttribute(self, node_type: str, name: str, value: Any = None) -> None:
        self._attributes[(node_type, name)] = value
        self._fill()

    def removeAttribute(self, node_type: str, name: str) -> None:
        self._attributes.pop((node_type, name), None)
        self._fill()

    def _setBaseName(self, name: str) -> None:
        self._baseName = name

    baseName = Property(str, lambda self: self._baseName, _setBaseName)

    def addNode(self, node_type: str = "") -> Any:
        kind = node_type or next(iter(self.nodeTypes), "")
        if kind not in self.nodeTypes:
            return None
        name = self._scene.GenerateUniqueName(self._baseName) if self._baseName else ""
        node = self._scene.AddNewNodeByClass(kind, name)
        for (owner, attribute), value in self._attributes.items():
            if node.IsA(owner):
                node.SetAttribute(attribute, value)
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        self._scene.RemoveNode(self._current)


class qMRMLColorTableComboBox(qMRMLNodeComboBox):
    """Chooses a colour table."""

    cpp_class = True

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.nodeTypes = ["vtkMRMLColorTableNode", "vtkMRMLProceduralColorNode"]
        self.addEnabled = self.removeEnabled = False


class qMRMLSliderWidget(ctkSliderWidget):
    """A slider with the scene's units."""

    cpp_class = True
    quantity = stored(str, "")
    _scene: Any = None
    mrmlSceneChanged = Signal(object)
    mrmlScene = qMRMLWidget.mrmlScene
    setMRMLScene = qMRMLWidget.setMRMLScene


class qMRMLSegmentSelectorWidget(qMRMLWidget):
    """Chooses a segmentation and one of its segments."""

    cpp_class = True
    currentNodeChanged = Signal(object)
    currentSegmentChanged = Signal(str)
    cpp_signals = ("currentNodeChanged(vtkMRMLNode*)",)
    _events = (
        slicer.vtkSegmentation.SegmentAdded,
        slicer.vtkSegmentation.SegmentRemoved,
        slicer.vtkSegmentation.SegmentModified,
    )

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._nodes = qMRMLNodeComboBox()
        self._nodes.nodeTypes = ["vtkMRMLSegmentationNode"]
        self._nodes.noneEnabled = True
        self._nodes.addEnabled = False
        self._segments = wrapped(QtWidgets.QComboBox)()
        self._watched: tuple[Any, list[int]] = (None, [])
        self._noneEnabled = False
        layout = wrapped(QtWidgets.QHBoxLayout)(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._nodes)
        layout.addWidget(self._segments)
        self._nodes.currentNodeChanged.connect(self._nodeChanged)
        self._segments.currentIndexChanged.connect(lambda _: self.currentSegmentChanged.emit(self.currentSegmentID()))

    def _setNoneEnabled(self, value: bool) -> None:
        self._noneEnabled = value
        self._fill()

    noneEnabled = Property(bool, lambda self: self._noneEnabled, _setNoneEnabled)
    segmentationNodeSelectorVisible = Property(
        bool, lambda self: not self._nodes.isHidden(), lambda self, value: self._nodes.setVisible(value)
    )

    def setMRMLScene(self, scene: Any) -> None:
        super().setMRMLScene(scene)
        self._nodes.setMRMLScene(scene)

    def _nodeChanged(self, node: Any) -> None:
        watched, tags = self._watched
        for tag in tags:
            watched.RemoveObserver(tag)
        segmentation = node.GetSegmentation() if node is not None else None
        tags = observe(self, segmentation, self._events, self._fill) if segmentation is not None else []
        self._watched = (segmentation, tags)
        self._fill()
        self.currentNodeChanged.emit(node)

    def _fill(self) -> None:
        node, current = self.currentNode(), self.currentSegmentID()
        self._segments.blockSignals(True)
        self._segments.clear()
        if self._noneEnabled or node is None:
            self._segments.addItem("None", "")
        segmentation = node.GetSegmentation() if node is not None else None
        for segment_id in segmentation.GetSegmentIDs() if segmentation is not None else ():
            self._segments.addItem(segmentation.GetSegment(segment_id).GetName(), segment_id)
        self._segments.setCurrentIndex(max(0, self._segments.findData(current)))
        self._segments.blockSignals(False)
        if self.currentSegmentID() != current:
            self.currentSegmentChanged.emit(self.currentSegmentID())

    def currentNode(self) -> Any:
        return self._nodes.currentNode()

    def setCurrentNode(self, node: Any) -> None:
        self._nodes.setCurrentNode(node)

    def setCurrentNodeID(self, node_id: str) -> None:
        self._nodes.setCurrentNodeID(node_id)

    def currentNodeID(self) -> str:
        return str(self._nodes.currentNodeID)

    def currentSegmentID(self) -> str:
        return str(self._segments.itemData(self._segments.currentIndex) or "")

    def setCurrentSegmentID(self, segment_id: str) -> None:
        self._segments.setCurrentIndex(self._segments.findData(segment_id))


CLASSES = {
    cls.__name__: cls
    for cls in (
        qMRMLWidget,
        qSlicerWidget,
        qMRMLNodeComboBox,
        qMRMLColorTableComboBox,
        qMRMLSliderWidget,
        qMRMLSegmentSelectorWidget,
    )
}
