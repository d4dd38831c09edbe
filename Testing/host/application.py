"""`slicer.app`: Slicer's application object, with the managers that a scripted module asks it for."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from Testing.host.ctk import stored
from Testing.host.pythonqt import wrapped
from Testing.host.storage import qSlicerCoreIOManager

Signal = QtCore.Signal
QObject = wrapped(QtCore.QObject)
# slicer-core says which Slicer it was made from.
VERSION = (5, 12)


class qSlicerModuleFactoryManager(QObject):
    cpp_class = True

    def __init__(self, manager: Any) -> None:
        super().__init__(manager)
        self._manager = manager

    def loadedModuleNames(self) -> list[str]:
        return list(self._manager._modules)


class qSlicerModuleManager(QObject):
    """The loaded modules by name."""

    cpp_class = True
    moduleLoaded = Signal(str)
    moduleAboutToBeUnloaded = Signal(str)
    moduleUnloaded = Signal(str)

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        self._modules: dict[str, Any] = {}
        self._factory = qSlicerModuleFactoryManager(self)

    def module(self, name: str) -> Any:
        return self._modules.get(name)

    def modulesNames(self) -> list[str]:
        return list(self._modules)

    def factoryManager(self) -> Any:
        return self._factory


class qMRMLSliceWidget(wrapped(QtWidgets.QWidget)):
    """One slice view without its picture: node and logic, which is what code moves and reads."""

    cpp_class = True

    def __init__(self, logic: Any) -> None:
        super().__init__()
        self._logic = logic

    def sliceLogic(self) -> Any:
        return self._logic

    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> Any:
        return self._logic.GetSliceCompositeNode()


class qSlicerLayoutManager(QObject):
    """Layouts with their view nodes, and slice views by name: what a main window brings, when a test asks for it."""

    cpp_class = True
    layoutChanged = Signal(int)
    threeDViewCount = stored(int, 0)
    plotViewCount = stored(int, 0)
    tableViewCount = stored(int, 0)

    def __init__(self, application_logic: Any) -> None:
        super().__init__()
        self._logics = vtk.vtkCollection()
        application_logic.SetSliceLogics(self._logics)
        self._widgets: dict[str, Any] = {}
        views = {"Red": "Axial", "Green": "Coronal", "Yellow": "Sagittal"}
        for name, orientation in views.items():
            logic = slicer.vtkMRMLSliceLogic()
            logic.SetMRMLApplicationLogic(application_logic)
            logic.SetMRMLScene(slicer.mrmlScene)
            logic.AddSliceNode(name)
            logic.GetSliceNode().SetOrientation(orientation)
            self._logics.AddItem(logic)
            self._widgets[name] = qMRMLSliceWidget(logic)
        # Makes the layout node, and the nodes of the views that a layout shows.
        self._layout_logic = slicer.vtkMRMLLayoutLogic()
        self._layout_logic.SetMRMLScene(slicer.mrmlScene)
        self.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)

    def sliceViewNames(self) -> list[str]:
        return list(self._widgets)

    def sliceWidget(self, name: str) -> Any:
        return self._widgets.get(name)

    def mrmlSliceLogics(self) -> Any:
        return self._logics

    def resetSliceViews(self) -> None:
        for widget in self._widgets.values():
            widget.sliceLogic().FitSliceToBackground()

    def resetThreeDViews(self) -> None:
        """There are none to be reset."""

    def layoutLogic(self) -> Any:
        return self._layout_logic

    def setLayout(self, layout: int) -> None:
        node = self._layout_logic.GetLayoutNode()
        if node.GetViewArrangement() != layout:
            node.SetViewArrangement(layout)
            description = node.GetLayoutDescription(layout)
            for name, widget in self._widgets.items():
                widget.mrmlSliceNode().SetMappedInLayout(f'singletontag="{name}"' in description)
            self.layoutChanged(layout)

    layout = QtCore.Property(int, lambda self: self._layout_logic.GetLayoutNode().GetViewArrangement(), setLayout)

    def _close(self) -> None:
        self._layout_logic.SetMRMLScene(None)
        self._logics.RemoveAllItems()
        for widget in self._widgets.values():
            logic = widget.sliceLogic()
            for node in (logic.GetSliceCompositeNode(), logic.GetSliceNode()):
                slicer.mrmlScene.RemoveNode(node)
            logic.SetMRMLScene(None)
        # Singletons, which outlive the closing of a scene: the next manager's layouts are to make them anew.
        for kind in ("vtkMRMLTableViewNode", "vtkMRMLPlotViewNode"):
            for node in slicer.util.getNodesByClass(kind):
                slicer.mrmlScene.RemoveNode(node)


class qSlicerApplication(wrapped(QtWidgets.QApplication)):
    """The application: settings in a temporary file, testing mode on, no main window."""

    cpp_class = True
    startupCompleted = Signal()
    mrmlSceneChanged = Signal(object)
    cpp_signals = ("mrmlSceneChanged(vtkMRMLScene*)",)
    slicerHome = stored(str, "")
    temporaryPath = stored(str, "")
    cachePath = stored(str, "")
    extensionsInstallPath = stored(str, "")
    documentationBaseUrl = stored(str, "https://slicer.readthedocs.io/en/latest/")
    majorVersion = stored(int, VERSION[0])
    minorVersion = stored(int, VERSION[1])
    os = stored(str, {"Darwin": "macosx", "Windows": "win"}.get(platform.system(), "linux"))
    arch = stored(str, platform.machine())

    def __init__(self, folder: Path) -> None:
        super().__init__(["Slicer"])
        self.setOrganizationName("NA-MIC")
        self.setApplicationName("Slicer")
        ini = QtCore.QSettings.Format.IniFormat
        QtCore.QSettings.setDefaultFormat(ini)
        QtCore.QSettings.setPath(ini, QtCore.QSettings.Scope.UserScope, str(folder))
        self.temporaryPath = self.slicerHome = self.cachePath = str(folder)
        self._testing = True
        cache = slicer.vtkCacheManager()
        cache.SetRemoteCacheDirectory(str(folder))  # where scene bundles are unpacked
        data_io = slicer.vtkDataIOManager()
        data_io.SetCacheManager(cache)
        slicer.mrmlScene.SetCacheManager(cache)
        slicer.mrmlScene.SetDataIOManager(data_io)
        self._settings = wrapped(QtCore.QSettings)()
        self._logic = slicer.vtkSlicerApplicationLogic()
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self._modules = qSlicerModuleManager(self)
        self._files = qSlicerCoreIOManager(self)
        self._layouts: Any = None

    def mrmlScene(self) -> Any:
        return slicer.mrmlScene

    def applicationLogic(self) -> Any:
        return self._logic

    def testingEnabled(self) -> bool:
        return self._testing

    def settings(self) -> Any:
        return self._settings

    def userSettings(self) -> Any:
        return self._settings

    def revisionUserSettings(self) -> Any:
        return self._settings

    def moduleManager(self) -> Any:
        return self._modules

    def coreIOManager(self) -> Any:
        return self._files

    def ioManager(self) -> Any:
        return self._files

    def layoutManager(self) -> Any:
        return self._layouts

    def startupEnvironment(self) -> Any:
        return wrapped(QtCore.QProcessEnvironment)(QtCore.QProcessEnvironment.systemEnvironment())

    def moduleDocumentationUrl(self, name: str) -> str:
        return f"{self.documentationBaseUrl}user_guide/modules/{name.lower()}.html"

    def pauseRender(self) -> None:
        self.setRenderPaused(True)

    def resumeRender(self) -> None:
        self.setRenderPaused(False)

    def setRenderPaused(self, pause: bool) -> None:
        """Nothing is drawn here."""


def new_scene() -> Any:
    """The scene of the application, as Slicer sets it up: orientations, colours, subject hierarchy, selection."""
    scene = slicer.vtkMRMLScene()
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    for name in ("vtkMRMLInteractionNode", "vtkMRMLSelectionNode"):
        node = scene.CreateNodeByClass(name)
        node.UnRegister(None)
        node.SetSingletonTag("Singleton")
        scene.AddNode(node)
    return scene
