"""XAI-CLIP tells why a segmentation network drew an organ where it did.

The module, its panel and its self-tests; the parts are in `XAICLIPModule`, and what computes is in `XAICLIPLib`, which
runs in a process of its own.
"""

import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

# Installed, the library lies beside this file. Of a checkout, Slicer knows only this folder.
try:
    import XAICLIPLib  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from XAICLIPModule.logic import XAICLIPLogic
from XAICLIPModule.panel.panel import Panel
from XAICLIPModule.testing.selftests import XAICLIPTest

__all__ = ["XAICLIP", "XAICLIPLogic", "XAICLIPTest", "XAICLIPWidget"]


class XAICLIP(ScriptedLoadableModule):
    """What Slicer shows of the module in its menus and help."""

    def __init__(self, parent) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("XAI-CLIP")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = [
            "Colors",
            "Markups",
            "Segmentations",
            "SubjectHierarchy",
            "Tables",
            "Volumes",
        ]
        self.parent.contributors = ["XAICLIP developers"]
        self.parent.helpText = _(
            "Explains why a segmentation network drew an organ where it did: choose a CT or MR scan, type the organ's "
            "name, click Apply, and see which parts of the scan the network leaned on. Research software, not for "
            'diagnosis. <a href="https://github.com/xaiclip/SlicerXAICLIP">Documentation</a>.'
        )
        self.parent.acknowledgementText = _(
            "Implements and extends XAI-CLIP by Alzubaidi, Ammar, Alsharqi, Rekik and Behzad (arXiv 2602.07017, 2026); "
            "please cite that paper. Developed by the XAICLIP developers and published under the Apache License 2.0."
        )
        slicer.app.connect("startupCompleted()", self._registerSampleData)

    def _registerSampleData(self) -> None:
        from XAICLIPModule.scene import sample_data

        sample_data.register(Path(self.resourcePath("Icons")))


class XAICLIPWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel: loads the widgets, and hands them to `XAICLIPModule.panel.panel.Panel`."""

    def __init__(self, parent=None) -> None:
        self.logic = None
        self.panel = None
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)

    def setup(self) -> None:
        """Make the widgets; called when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/XAICLIP.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = self.makeLogic()
        self.panel = Panel(self.ui, widget, self.logic)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        # Selectors that follow the nodes as they come in would write over the choices that are being loaded.
        self.addObserver(scene, scene.StartImportEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneChanged)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneChanged)
        self.initializeParameterNode()

    def makeLogic(self) -> XAICLIPLogic:
        """The logic of the panel; tests make another."""
        return XAICLIPLogic()

    def enter(self) -> None:
        """Called each time the user opens the module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Called each time the user opens another module; a computation goes on meanwhile."""

    def cleanup(self) -> None:
        """Called before the module goes away, also when Slicer exits: what goes on is ended."""
        self.removeObservers()
        if self.panel is not None:
            self.panel.close()
        if self.logic is not None:
            self.logic.stop()
        self.panel = self.logic = None  # after a reload this widget may still be entered

    def onReload(self) -> None:
        """Reload the parts and the library too, which `reloadScriptedModule` would leave as they are."""
        for name in [name for name in sys.modules if name.partition(".")[0] in ("XAICLIPLib", "XAICLIPModule")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def initializeParameterNode(self) -> None:
        """Show the choices that the scene holds; there is a parameter node from here on."""
        if self.logic is not None and self.panel is not None:
            self.panel.setParameterNode(self.logic.getParameterNode())

    def onSceneStartClose(self, _caller=None, _event=None) -> None:
        """Let go of a parameter node that is about to be emptied or filled."""
        if self.panel is not None and self.logic is not None:
            self.panel.setParameterNode(None)
            self.logic.forgetParameterNode()

    def onSceneChanged(self, _caller=None, _event=None) -> None:
        """Show the choices of a scene that was closed or loaded."""
        self.initializeParameterNode()
