"""`slicer.modules` and the base classes of scripted modules."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets

from Testing.host.ctk import stored
from Testing.host.pythonqt import wrapped
from Testing.host.qmrml import qSlicerWidget

# The modules of Slicer whose logic slicer-core has.
LOGICS = {
    "Colors": "vtkSlicerColorLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "Data": "vtkSlicerDataModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Models": "vtkSlicerModelsLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Texts": "vtkSlicerTextsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Units": "vtkSlicerUnitsLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
    "Volumes": "vtkSlicerVolumesLogic",
}


class qSlicerLoadableModule(wrapped(QtCore.QObject)):
    """A module of Slicer's own: here it has a logic and no panel."""

    cpp_class = True

    def __init__(self, name: str, logic: Any) -> None:
        super().__init__()
        self._logic, self._name = logic, name

    name = QtCore.Property(str, lambda self: self._name)

    def logic(self) -> Any:
        return self._logic


class qSlicerScriptedLoadableModule(wrapped(QtCore.QObject)):
    """The C++ side of a scripted module: its description, and its panel when somebody asks for it."""

    cpp_class = True
    title = stored(str, "")
    categories = stored("QStringList", [])
    dependencies = stored("QStringList", [])
    contributors = stored("QStringList", [])
    associatedNodeTypes = stored("QStringList", [])
    helpText = stored(str, "")
    acknowledgementText = stored(str, "")
    icon = stored(QtGui.QIcon, QtGui.QIcon())
    hidden = stored(bool, False)
    index = stored(int, -1)
    widgetRepresentationCreationEnabled = stored(bool, True)

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._name = str(path), path.stem
        self._widget: Any = None

    name = QtCore.Property(str, lambda self: self._name)
    path = QtCore.Property(str, lambda self: self._path)

    def widgetRepresentation(self) -> Any:
        if self._widget is None:
            self._widget = self.createNewWidgetRepresentation()
            setattr(slicer.modules, f"{self._name}Widget", self._widget.self())
        return self._widget

    def createNewWidgetRepresentation(self) -> Any:
        widget = qSlicerScriptedLoadableModuleWidget(self)
        widget.setMRMLScene(slicer.mrmlScene)
        widget._setup()
        return widget


class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """The frame in which a scripted module builds its panel."""

    cpp_class = True

    def __init__(self, module: Any) -> None:
        super().__init__()
        self._module = module
        self._python: Any = None
        wrapped(QtWidgets.QVBoxLayout)(self)

    def _setup(self) -> None:
        cls = getattr(sys.modules[self._module.name], f"{self._module.name}Widget")
        self._python = cls(self)
        self._python.setup()

    def self(self) -> Any:
        return self._python

    def enter(self) -> None:
        self._python.enter()

    def exit(self) -> None:
        self._python.exit()

    def reload(self) -> None:
        self._setup()
        setattr(slicer.modules, f"{self._module.name}Widget", self._python)


class ScriptedLoadableModule:
    """What a scripted module is to Slicer."""

    def __init__(self, parent: Any) -> None:
        super().__init__()
        self.parent = parent
        self.moduleName = type(self).__name__
        icon = Path(self.resourcePath(f"Icons/{self.moduleName}.png"))
        if icon.is_file():
            parent.icon = wrapped(QtGui.QIcon)(str(icon))
        if not hasattr(slicer, "selfTests"):
            slicer.selfTests = {}
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, filename: str) -> str:
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        url = (
            slicer.app.documentationBaseUrl + docPage if docPage else slicer.app.moduleDocumentationUrl(self.moduleName)
        )
        return f'<p>For more information see the <a href="{url}">online documentation</a>.</p>'

    def runTest(self, msec: int = 100, **kwargs: Any) -> None:
        module = importlib.import_module(type(self).__module__)
        test = getattr(module, f"{self.moduleName}Test")()
        test.messageDelay = msec
        test.runTest(**kwargs)


class ScriptedLoadableModuleWidget:
    """The Python side of a panel."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = slicer.util.settingsValue("Developer/DeveloperMode", False, converter=slicer.util.toBool)
        self.parent = parent if parent is not None else qSlicerWidget()
        if parent is None:
            self.parent.setLayout(wrapped(QtWidgets.QVBoxLayout)())
            self.parent.setMRMLScene(slicer.mrmlScene)
        self.layout = self.parent.layout()
        if parent is None:
            self.setup()
            self.parent.show()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename: str) -> str:
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def setup(self) -> None:
        """Builds the panel; the base class adds what developers see, which is nothing here."""

    def enter(self) -> None:
        """The user turned to the module."""

    def exit(self) -> None:
        """The user turned to another module."""

    def cleanup(self) -> None:
        """The module is about to go."""

    def onReload(self) -> None:
        slicer.util.reloadScriptedModule(self.moduleName)

    def _onModuleAboutToBeUnloaded(self, name: str) -> None:
        if name == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)


class ScriptedLoadableModuleLogic:
    """The logic of a scripted module: finds or makes its parameter node."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def createParameterNode(self) -> Any:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetModuleName(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node

    def getAllParameterNodes(self) -> list[Any]:
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        return [node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName]

    def getParameterNode(self) -> Any:
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
            if node is not None:
                node.SetAttribute("ModuleName", self.moduleName)  # closing the scene takes it away
                return node
        else:
            nodes = self.getAllParameterNodes()
            if nodes:
                return nodes[0]
        return slicer.mrmlScene.AddNode(self.createParameterNode())


class ScriptedLoadableModuleTest(unittest.TestCase):
    """The self-test of a scripted module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.messageDelay = 1000

    def delayDisplay(self, message: str, requestedDelay: int | None = None, msec: int | None = None) -> None:
        slicer.util.delayDisplay(message, min(msec or requestedDelay or self.messageDelay, 100))

    def runTest(self) -> None:
        raise AttributeError(f"{type(self).__name__} has no runTest()")


def base_class_module() -> types.ModuleType:
    """`slicer.ScriptedLoadableModule`."""
    module = types.ModuleType("slicer.ScriptedLoadableModule")
    classes = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    )
    module.__all__ = [cls.__name__ for cls in classes]  # type: ignore[attr-defined]
    for cls in classes:
        setattr(module, cls.__name__, cls)
    return module


def load_slicer_modules() -> None:
    """Register Slicer's own modules with their logics."""
    application_logic = slicer.app.applicationLogic()
    for name, logic_class in LOGICS.items():
        logic = getattr(slicer, logic_class)()
        logic.SetMRMLApplicationLogic(application_logic)
        application_logic.SetModuleLogic(name, logic)
        if name == "Colors":
            application_logic.SetColorLogic(logic)
        # slicer-core has no terminology files, which their logic would complain of at length.
        vtk.vtkObject.SetGlobalWarningDisplay(name != "Terminologies")
        logic.SetMRMLScene(slicer.mrmlScene)
        vtk.vtkObject.GlobalWarningDisplayOn()
        register(name, qSlicerLoadableModule(name, logic))


def register(name: str, module: Any) -> None:
    """Make a module known to the module manager and to `slicer.modules`."""
    slicer.app.moduleManager()._modules[name] = module
    setattr(slicer.modules, name.lower(), module)


def load_scripted_module(path: Path) -> Any:
    """Load a scripted module from its file, as Slicer does at start-up, and give its C++ side."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    python = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = python
    spec.loader.exec_module(python)
    module = qSlicerScriptedLoadableModule(path)
    setattr(slicer.modules, f"{path.stem}Instance", getattr(python, path.stem)(module))
    register(path.stem, module)
    slicer.app.startupCompleted()
    slicer.app.disconnect("startupCompleted()")  # Slicer starts once: the next module does not call this one again
    return module


def unload_scripted_module(name: str) -> None:
    """Let a module go, with the signal on which it cleans up."""
    slicer.app.moduleManager().moduleAboutToBeUnloaded(name)
    slicer.app.moduleManager()._modules.pop(name, None)
    for attribute in (name.lower(), f"{name}Instance", f"{name}Widget"):
        if hasattr(slicer.modules, attribute):
            delattr(slicer.modules, attribute)
