"""The module as the application knows it: found, opened, reloaded, left alone.

Run by CTest, by hand (see README.md beside this file), and on the test host by Testing/Module/test_application.py.
"""

import os
import time
import unittest
from pathlib import Path

import qt
import slicer


class XAICLIPApplicationTest(unittest.TestCase):
    """What a user meets before and after a computation, in the application itself."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)
        self.python = qt.QSettings().value("XAICLIP/PythonInterpreter")
        if os.environ.get("XAICLIP_TEST_PYTHON"):
            qt.QSettings().setValue("XAICLIP/PythonInterpreter", os.environ["XAICLIP_TEST_PYTHON"])
        self.module = slicer.modules.xaiclip
        self.widget = self.current()
        self.widget.enter()

    def tearDown(self):
        self.widget.exit()
        qt.QSettings().remove("XAICLIP/PythonInterpreter")
        if self.python:
            qt.QSettings().setValue("XAICLIP/PythonInterpreter", self.python)
        slicer.mrmlScene.Clear(0)
        slicer.app.processEvents()

    def current(self):
        """The widget that is shown: after a reload, the representation may still know the one before."""
        representation = self.module.widgetRepresentation()
        return getattr(slicer.modules, "XAICLIPWidget", None) or representation.self()

    def wait(self, until, seconds=60):
        end = time.monotonic() + seconds
        while not until():
            self.assertLess(time.monotonic(), end, f"waited {seconds} s in vain")
            slicer.app.processEvents()
            time.sleep(0.01)

    def test_the_module_introduces_itself(self):
        self.assertEqual(self.module.title, "XAI-CLIP")
        self.assertIn("Segmentation", list(self.module.categories))
        self.assertIn("not for diagnosis", self.module.helpText)
        self.assertTrue(self.module.acknowledgementText.strip())
        self.assertFalse(self.module.icon.isNull())

    def test_its_files_are_where_it_looks_for_them(self):
        resources = Path(self.module.path).parent / "Resources"
        for name in ("UI/XAICLIP.ui", "Icons/XAICLIP.png", "Icons/XAICLIPPhantom.png", "XAICLIPRequirements.txt"):
            self.assertTrue((resources / name).is_file(), name)
        from XAICLIPLib.resources import resource_path

        self.assertTrue(resource_path("models.json").is_file())
        self.assertTrue(resource_path("models", "abdomen-ct", "models", "model.pt").is_file())

    def test_it_opens_without_a_worker_and_says_what_it_needs(self):
        ui = self.widget.ui
        self.assertFalse(ui.applyButton.isEnabled())
        self.assertIn("Load a scan", ui.applyButton.toolTip)
        self.assertGreater(ui.modelComboBox.count, 0)
        self.assertIn("Apache-2.0", ui.modelDescriptionLabel.text)
        self.assertIsNone(self.widget.logic.session.hello)

    def test_every_selector_follows_the_scene(self):
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
        for name in ("regionBoxSelector", "targetBoxSelector"):
            self.assertEqual(getattr(self.widget.ui, name).nodeCount(), 1, name)
        slicer.mrmlScene.RemoveNode(node)
        self.assertEqual(self.widget.ui.regionBoxSelector.nodeCount(), 0)

    def test_it_can_be_reloaded(self):
        before = self.widget
        before.onReload()
        slicer.app.processEvents()
        self.widget = self.current()
        self.assertIsNot(self.widget, before)
        self.assertIsNone(before.logic)
        self.assertFalse(self.widget.ui.applyButton.isEnabled())
        self.assertEqual(self.widget.logic.state.value, "idle")

    def test_the_sample_is_offered_and_can_be_explained(self):
        from XAICLIPModule.scene import sample_data

        sample_data.register(Path(self.module.path).parent / "Resources" / "Icons")
        sources = slicer.modules.sampleDataSources[sample_data.CATEGORY]
        (source,) = [source for source in sources if source.sampleName == sample_data.SAMPLE]
        self.assertTrue(Path(source.thumbnailFileName).is_file())
        (volume,) = source.customDownloader(source)
        self.wait(lambda: self.widget.ui.inputSelector.currentNode() is volume)
        self.widget.ui.promptLineEdit.setText("liver")
        self.assertTrue(self.widget.ui.applyButton.isEnabled())

    def test_a_worker_that_is_killed_from_outside_comes_back(self):
        session = self.widget.logic.session
        told = []
        session.stopped.connect(told.append)
        try:
            session.start()
            self.wait(lambda: session.hello is not None or told)
            if told:
                self.skipTest(f"the worker does not run here: {told[0]}")
            process = session._process
            process.kill()
            self.wait(lambda: told)
            self.assertIn("click Apply", told[0])
            self.wait(lambda: process.state() == qt.QProcess.NotRunning)
            session.start()
            self.wait(lambda: session.hello is not None)
            session.stop()
            self.assertEqual(told[-1], "")
        finally:
            session.stopped.disconnect(told.append)
            session.stop()
