"""The self-tests: the same in Slicer (Reload and Test, CTest) and on the test host (pytest).

Most play the worker themselves and need nothing but Slicer. One computes with the real worker and the shipped models;
it is skipped, and says so, where their packages are not installed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import qt
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest

from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPModule.display import saliency_display, surfaces, tables
from XAICLIPModule.installation import dependencies, interpreter
from XAICLIPModule.logic import ExplanationError, State, XAICLIPLogic
from XAICLIPModule.panel.panel import Panel
from XAICLIPModule.scene import export, results, saving
from XAICLIPModule.testing.played_session import PlayedSession, structuresFor
from XAICLIPModule.worker.question import Box, Question, Segment

SETTINGS = "XAICLIP/"


class XAICLIPTest(ScriptedLoadableModuleTest):
    """Panel, logic, results and the scene's life."""

    def setUp(self) -> None:
        """Start from an empty scene and default settings."""
        self._logics: list[XAICLIPLogic] = []
        self._panels: list[Any] = []
        slicer.mrmlScene.Clear(0)
        slicer.app.processEvents()
        self._folder = Path(tempfile.mkdtemp(prefix="XAICLIPTest-"))
        settings = qt.QSettings()
        self._settings = {key: settings.value(key) for key in settings.allKeys() if key.startswith(SETTINGS)}
        for key in self._settings:
            settings.remove(key)
        python = os.environ.get("XAICLIP_TEST_PYTHON")
        if python:  # one that has the packages, where Slicer's own has not
            settings.setValue(interpreter.SETTING, python)

    def tearDown(self) -> None:
        """Leave scene, settings and disk as they were."""
        for panel, widget in self._panels:
            panel.close()
            widget.deleteLater()
        for logic in self._logics:
            logic.stop()
        slicer.mrmlScene.Clear(0)
        slicer.app.processEvents()
        settings = qt.QSettings()
        for key in [key for key in settings.allKeys() if key.startswith(SETTINGS)]:
            settings.remove(key)
        for key, value in self._settings.items():
            settings.setValue(key, value)
        shutil.rmtree(self._folder, ignore_errors=True)

    def runTest(self) -> None:
        """Run all of them; fails where one fails, or none ran."""
        suite = unittest.defaultTestLoader.loadTestsFromTestCase(type(self))
        result = unittest.TextTestRunner(verbosity=2).run(suite)
        self.assertGreater(result.testsRun - len(result.skipped), 0, "no test ran")
        self.assertTrue(result.wasSuccessful(), "see the Python console")

    # --- what tests start from ---

    def _volume(self, name: str = "scan", shape: tuple[int, int, int] = (12, 14, 16)) -> Any:
        """A small volume in an oblique orientation, brighter in its middle."""
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
        array = np.zeros(shape, dtype=np.int16)
        array[3:-3, 3:-3, 3:-3] = 100
        slicer.util.updateVolumeFromArray(node, array)
        cos, sin = np.cos(0.3), np.sin(0.3)
        matrix = slicer.util.vtkMatrixFromArray(
            np.array([[2 * cos, -3 * sin, 0, 10], [2 * sin, 3 * cos, 0, -20], [0, 0, 4, 5], [0, 0, 0, 1]])
        )
        node.SetIJKToRASMatrix(matrix)
        node.CreateDefaultDisplayNodes()
        return node

    def _played(self, greets: bool = True) -> tuple[XAICLIPLogic, PlayedSession]:
        session = PlayedSession(self._folder, greets)
        logic = XAICLIPLogic(session)
        self._logics.append(logic)
        return logic, session

    def _panel(self, logic: XAICLIPLogic) -> Any:
        """The panel in a window of its own; its widgets by their names."""
        widget = slicer.util.loadUI(str(Path(__file__).resolve().parents[2] / "Resources" / "UI" / "XAICLIP.ui"))
        ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        panel = Panel(ui, widget, logic)
        self._panels.append((panel, widget))
        panel.setParameterNode(logic.getParameterNode())
        slicer.app.processEvents()
        return ui

    @staticmethod
    def _wait(until: Callable[[], bool], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds:g} s in vain")
            slicer.app.processEvents()
            time.sleep(0.01)

    @staticmethod
    def _outcomes(logic: XAICLIPLogic) -> list[tuple[Any, ...]]:
        """What the logic will tell, as it comes."""
        told: list[tuple[Any, ...]] = []
        logic.finished.connect(lambda nodes: told.append(("finished", nodes)))
        logic.failed.connect(lambda message, kind: told.append(("failed", message, kind)))
        logic.cancelled.connect(lambda: told.append(("cancelled",)))
        return told

    # --- inputs ---

    def test_apply_says_all_that_is_missing(self) -> None:
        logic, _session = self._played()
        ui = self._panel(logic)
        self.assertFalse(ui.applyButton.enabled)
        self.assertIn("Load a scan", ui.applyButton.toolTip)
        self.assertIn("Type what to explain", ui.applyButton.toolTip)
        self._volume()
        self._wait(lambda: ui.inputSelector.currentNode() is not None)
        self.assertNotIn("Load a scan", ui.applyButton.toolTip)
        ui.promptLineEdit.setText("liver")
        self.assertTrue(ui.applyButton.enabled)
        ui.regionSourceComboBox.setCurrentIndex(ui.regionSourceComboBox.findData("segment"))
        self.assertFalse(ui.applyButton.enabled)
        self.assertIn("Choose a segment", ui.applyButton.toolTip)

    def test_bad_inputs_are_refused_with_a_way_out(self) -> None:
        logic, session = self._played()
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        bent = self._volume("bent")
        grid = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "bending")
        bent.SetAndObserveTransformNodeID(grid.GetID())
        flat = self._volume("flat", (1, 14, 16))
        for volume, prompt, said in (
            (None, "liver", "No volume is chosen"),
            (self._volume(), "  ", "Nothing is asked for"),
            (empty, "liver", "has no voxels"),
            (bent, "liver", "non-linear transform"),
            (flat, "liver", "too thin"),
        ):
            with self.assertRaisesRegex(InputError, said):
                logic.explain(volume, prompt)
            self.assertIs(logic.state, State.IDLE)
        with self.assertRaisesRegex(InputError, "samples"):
            logic.explain(self._volume(), "liver", method="rise", parameters={"samples": -1})
        self.assertEqual(session.requests, [])

    def test_the_volume_goes_out_in_its_own_space(self) -> None:
        volume = self._volume()
        before = export.matrixFromVolume(volume)
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
        transform.SetMatrixTransformToParent(
            slicer.util.vtkMatrixFromArray(np.array([[0, -1, 0, 50], [1, 0, 0, 0], [0, 0, 1, 7], [0, 0, 0, 1.0]]))
        )
        volume.SetAndObserveTransformNodeID(transform.GetID())
        image = export.imageFromVolume(volume)
        point = np.array(image.TransformIndexToPhysicalPoint((3, 5, 2))) * (-1, -1, 1)
        np.testing.assert_allclose(point, (before @ (3, 5, 2, 1))[:3], atol=1e-9)

    # --- a run ---

    def test_a_run_ends_with_nodes_beside_the_scan(self) -> None:
        logic, session = self._played()
        told, volume = self._outcomes(logic), self._volume()
        logic.startExplaining(Question(volume, "liver"))
        self.assertIs(logic.state, State.RUNNING)
        self.assertTrue(Path(session.requests[0].volume).is_file())
        session.estimate(volume)
        session.explain(volume)
        self.assertIs(logic.state, State.IDLE)
        ((kind, nodes),) = told
        self.assertEqual(kind, "finished")
        array = slicer.util.arrayFromVolume(nodes.saliency)
        self.assertAlmostEqual(float(array.max()), 0.4, 5)
        np.testing.assert_allclose(export.matrixFromVolume(nodes.saliency), export.matrixFromVolume(volume))
        np.testing.assert_allclose(
            surfaces.mostSalientPoint(nodes.saliency), (export.matrixFromVolume(volume) @ (8, 7, 6, 1))[:3], atol=1e-4
        )
        for segment, threshold in (("region", 0), ("target", 0.15)):
            mask = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segment, volume)
            np.testing.assert_array_equal(mask != 0, array > threshold)
        self.assertIn("0.975", [value for _name, value in tables.rows(nodes.record)])
        self.assertEqual(nodes.record["prompt"], "liver")
        self.assertFalse(Path(session.requests[0].volume).exists(), "the scan's copy was left behind")
        saved = {path.name for path in saving.save(nodes, self._folder)}
        self.assertEqual(
            saved, {"saliency.nrrd", "region.nrrd", "target.nrrd", "explanation.json", "measurements.csv", "figure.png"}
        )

    def test_results_follow_the_scan_under_its_transform(self) -> None:
        logic, session = self._played()
        told, volume = self._outcomes(logic), self._volume()
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
        volume.SetAndObserveTransformNodeID(transform.GetID())
        logic.startExplaining(Question(volume, "liver"))
        session.explain(volume)
        nodes = told[0][1]
        for node in (nodes.saliency, nodes.segmentation):
            self.assertEqual(node.GetTransformNodeID(), transform.GetID())

    def test_structures_become_a_table_and_named_bars(self) -> None:
        logic, session = self._played()
        told, volume = self._outcomes(logic), self._volume()
        ui = self._panel(logic)
        logic.startExplaining(Question(volume, "liver", method="structures"))
        session.explain(volume, measurements={"score_unperturbed": 0.9, "structures": structuresFor()})
        nodes = told[0][1]
        self.assertEqual(nodes.structures.GetTable().GetNumberOfRows(), 2)
        bars = ui.structuresTable
        self.assertEqual([bars.item(row, 0).text() for row in range(bars.rowCount)], ["spleen", "aorta"])
        self.assertEqual([bars.cellWidget(row, 1).value for row in range(2)], [1000, 500])

    def test_what_is_drawn_becomes_a_mask(self) -> None:
        logic, session = self._played()
        volume = self._volume()
        roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
        roi.SetCenter(*(export.matrixFromVolume(volume) @ (8, 7, 6, 1))[:3])
        roi.SetSize(12, 12, 12)
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segmentation.GetSegmentation().AddEmptySegment("part", "part")
        drawn = np.zeros((12, 14, 16), dtype=np.uint8)
        drawn[2:5, 3:6, 4:8] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, segmentation, "part", volume)
        logic.startExplaining(Question(volume, "liver", region=Box(roi), target=Segment(segmentation, "part")))
        asked = session.requests[0]
        import SimpleITK as sitk

        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(asked.target.mask)), drawn)
        boxed = sitk.GetArrayFromImage(sitk.ReadImage(asked.region.mask))
        self.assertTrue(boxed[6, 7, 8])
        self.assertAlmostEqual(boxed.sum() * 2 * 3 * 4, 12**3, delta=12**3 * 0.4)

    def test_cancel_asks_first_and_ends_at_once_the_second_time(self) -> None:
        logic, session = self._played()
        told, volume = self._outcomes(logic), self._volume()
        logic.startExplaining(Question(volume, "liver"))
        logic.cancel()
        self.assertIs(logic.state, State.CANCELLING)
        self.assertEqual(session.cancelled, [session.requests[0].id])
        session.explain(volume, complete=False)
        self.assertFalse(told[0][1].complete)
        logic.startExplaining(Question(volume, "liver"))
        session.estimate(volume)
        logic.cancel()
        logic.cancel()
        self.assertEqual(told[1], ("cancelled",))
        maps = [n for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if n.GetAttribute("XAICLIP.Saliency")]
        self.assertEqual(len(maps), 1, "the unfinished map was left behind")

    def test_waiting_can_be_cancelled_before_the_worker_answers(self) -> None:
        logic, session = self._played(greets=False)
        told = self._outcomes(logic)
        logic.startExplaining(Question(self._volume(), "liver"))
        self.assertIs(logic.state, State.STARTING)
        logic.cancel()
        self.assertEqual(told, [("cancelled",)])
        session.greet()
        self.assertEqual(session.requests, [])

    def test_a_dead_worker_is_told_and_the_next_run_works(self) -> None:
        logic, session = self._played()
        told, volume = self._outcomes(logic), self._volume()
        logic.startExplaining(Question(volume, "liver"))
        session.crash()
        self.assertEqual(told[0][0::2], ("failed", "stopped"))
        self.assertIs(logic.state, State.IDLE)
        logic.startExplaining(Question(volume, "liver"))
        session.explain(volume)
        self.assertEqual(told[1][0], "finished")

    # --- the scene's life ---

    def test_a_scan_removed_meanwhile_cancels_its_run(self) -> None:
        logic, session = self._played()
        told, volume = self._outcomes(logic), self._volume()
        logic.startExplaining(Question(volume, "liver"))
        slicer.mrmlScene.RemoveNode(volume)
        self.assertEqual(len(session.cancelled), 1)
        session.answer("error", kind="cancelled", message="Cancelled.")
        self.assertEqual(told, [("cancelled",)])

    def test_closing_the_scene_cancels_and_leaves_nothing(self) -> None:
        logic, session = self._played()
        told, volume = self._outcomes(logic), self._volume()
        ui = self._panel(logic)
        logic.startExplaining(Question(volume, "liver"))
        session.estimate(volume)
        slicer.mrmlScene.Clear(0)
        session.answer("error", kind="cancelled", message="Cancelled.")
        self.assertEqual(told, [("cancelled",)])
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"), 0)
        self.assertIsNotNone(ui)

    def test_a_saved_scene_brings_the_results_back(self) -> None:
        logic, session = self._played()
        told, volume = self._outcomes(logic), self._volume()
        ui = self._panel(logic)
        ui.promptLineEdit.setText("liver")
        ui.methodComboBox.setCurrentIndex(ui.methodComboBox.findData("rise"))
        logic.startExplaining(Question(volume, "liver"))
        session.explain(volume)
        record = told[0][1].record
        saliency_display.setThreshold(told[0][1].saliency, 0.3)
        path = str(self._folder / "scene.mrb")
        self.assertTrue(slicer.util.saveScene(path))
        slicer.mrmlScene.Clear(0)
        slicer.util.loadScene(path)
        parameters = logic.getParameterNode()
        self.assertEqual((parameters.prompt, parameters.method), ("liver", "rise"))
        nodes = results.explanationOf(parameters.result)
        assert nodes is not None
        self.assertEqual(nodes.record, record)
        self._wait(lambda: ui.resultSelector.currentNode() is nodes.saliency)
        self.assertGreater(ui.measurementsTable.rowCount, 3)
        self.assertEqual(nodes.volume.GetName(), "scan")
        self.assertIsNotNone(nodes.segmentation)
        self.assertAlmostEqual(saliency_display.threshold(nodes.saliency), 0.3)
        rgba = [0.0] * 4
        saliency_display.colours(nodes.saliency).GetColor(40, rgba)
        self.assertEqual(rgba[3], 0.0, "below the threshold the map is transparent")

    # --- the panel ---

    def test_the_panel_shows_a_run_from_apply_to_the_table(self) -> None:
        logic, session = self._played()
        volume = self._volume()
        ui = self._panel(logic)
        ui.promptLineEdit.setText("liver")
        self._skipWithout(self._packagesAreThere(), "Apply asks for packages that are not installed")
        ui.applyButton.click()
        self.assertEqual(ui.applyButton.text, "Cancel")
        session.answer("progress", stage="explain", done=1, total=4, seconds_left=30)
        self.assertIn("1 / 4", ui.statusLabel.text)
        self.assertEqual(ui.progressBar.value, 25)
        session.estimate(volume)
        session.explain(volume)
        self.assertEqual(ui.applyButton.text, "Apply")
        self.assertGreater(ui.measurementsTable.rowCount, 3)
        self.assertIn("touches the edge", ui.resultWarningsLabel.text)
        self.assertTrue(ui.saveButton.enabled)

    def test_method_parameters_are_kept_by_method(self) -> None:
        logic, _session = self._played()
        self._volume()
        ui = self._panel(logic)
        panel = self._panels[-1][0]
        ui.methodComboBox.setCurrentIndex(ui.methodComboBox.findData("rise"))
        panel.choices.methodForm.widget("samples").setValue(500)
        ui.methodComboBox.setCurrentIndex(ui.methodComboBox.findData("occlusion"))
        self.assertEqual(dict(panel.choices.question().parameters), {})
        ui.methodComboBox.setCurrentIndex(ui.methodComboBox.findData("rise"))
        self.assertEqual(dict(panel.choices.question().parameters), {"samples": 500})
        self.assertEqual(panel.choices.methodForm.widget("samples").value, 500)

    # --- the real worker ---

    def test_full_run_on_the_phantom(self) -> None:
        self._skipWithout(self._packagesAreThere(), f"not installed: {', '.join(dependencies.missing())}")
        from XAICLIPModule.scene import sample_data

        volume = sample_data.loadPhantom(6.0, (48, 36, 28))  # what fits into seconds on a slow computer
        logic = XAICLIPLogic()
        self._logics.append(logic)
        with self.assertRaises((InputError, ExplanationError)):
            logic.explain(volume, "liver", model="/there/is/no/such/model")
        nodes = logic.explain(
            volume, "liver", parameters={"window_mm": 90, "stride_mm": 90, "exhaustive": True}, device="cpu"
        )
        self.assertGreater(nodes.record["measurements"]["score_unperturbed"], 0.5)
        self.assertGreater(float(slicer.util.arrayFromVolume(nodes.saliency).max()), 0)
        logic.progressed.connect(lambda *_progress: logic.cancel())
        with self.assertRaises(Cancelled):
            logic.explain(volume, "liver")

    def _packagesAreThere(self) -> bool:
        return not interpreter.chosen().isSlicers or not dependencies.missing()

    def _skipWithout(self, there: bool, why: str) -> None:
        if not there:
            self.skipTest(why)
