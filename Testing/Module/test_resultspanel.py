"""The section Results, clicked through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def run(layout_manager: Any, panel: Any, session: Any, volume: Any) -> Any:
    """A function that lets a run finish, and gives its saliency volume."""
    from XAICLIPModule.worker.question import Question

    def finish(**changes: Any) -> Any:
        panel.logic.startExplaining(Question(volume, "liver"))
        session.explain(volume, **changes)
        return panel.ui.resultSelector.currentNode()

    return finish


@pytest.fixture
def ui(panel: Any) -> Any:
    return panel.ui


@pytest.fixture
def red(layout_manager: Any) -> Any:
    return layout_manager.sliceWidget("Red").mrmlSliceCompositeNode()


def test_without_a_result_everything_says_why_it_is_disabled(ui: Any) -> None:
    names = "overlayCheckBox legendCheckBox show3DCheckBox opacitySlider saliencyThresholdSlider windowSpinBox "
    names += "coloursSelector jumpButton tableButton compareButton saveButton reportButton"
    for name in names.split():
        assert not getattr(ui, name).isEnabled(), name
        assert "click Apply" in getattr(ui, name).toolTip, name


def test_a_result_is_laid_over_the_scan_with_a_legend(run: Any, ui: Any, red: Any, volume: Any) -> None:
    node = run()
    assert (red.GetBackgroundVolumeID(), red.GetForegroundVolumeID()) == (volume.GetID(), node.GetID())
    assert ui.overlayCheckBox.checked and ui.legendCheckBox.checked
    ui.overlayCheckBox.setChecked(False)
    assert red.GetForegroundVolumeID() is None
    assert not ui.legendCheckBox.checked
    ui.overlayCheckBox.setChecked(True)
    assert red.GetForegroundVolumeID() == node.GetID()
    ui.legendCheckBox.setChecked(False)
    from XAICLIPModule.display import saliency_display

    assert not saliency_display.legend(node).GetVisibility()


def test_opacity_threshold_window_and_colours_follow_the_widgets(run: Any, ui: Any, red: Any, scene: Any) -> None:
    from XAICLIPModule.display import saliency_display

    node = run()
    ui.opacitySlider.value = 0.35
    assert red.GetForegroundOpacity() == pytest.approx(0.35)
    ui.saliencyThresholdSlider.value = 0.4
    assert saliency_display.threshold(node) == pytest.approx(0.4)
    ui.windowSpinBox.setValue(0.2)
    assert saliency_display.window(node) == pytest.approx(0.2)
    other = scene.CreateNodeByClass("vtkMRMLColorTableNode")
    other.UnRegister(None)
    other.SetTypeToGrey()
    other.SetHideFromEditors(False)
    scene.AddNode(other)
    ui.coloursSelector.setCurrentNode(other)
    assert saliency_display.colours(node) is other
    assert node.GetScalarVolumeDisplayNode().GetLowerThreshold() == pytest.approx(0.08)


def test_widgets_follow_what_is_changed_elsewhere(run: Any, ui: Any) -> None:
    node = run()
    node.GetScalarVolumeDisplayNode().SetWindowLevelMinMax(0, 0.9)  # as the Volumes module does
    assert ui.windowSpinBox.value == pytest.approx(0.9)


def test_jump_goes_to_the_most_salient_place(run: Any, ui: Any, layout_manager: Any) -> None:
    from XAICLIPModule.display import surfaces

    node = run()
    ui.jumpButton.click()
    wanted = surfaces.mostSalientPoint(node)
    for name, axis in (("Red", 2), ("Green", 1), ("Yellow", 0)):
        view = layout_manager.sliceWidget(name).mrmlSliceNode()
        assert view.GetSliceToRAS().GetElement(axis, 3) == pytest.approx(wanted[axis], abs=0.01)


def offset(layout_manager: Any, name: str, axis: int) -> float:
    return float(layout_manager.sliceWidget(name).mrmlSliceNode().GetSliceToRAS().GetElement(axis, 3))


@pytest.mark.parametrize("estimates", [True, False])
def test_views_that_show_nothing_of_a_new_map_move_to_it(
    panel: Any, ui: Any, session: Any, volume: Any, layout_manager: Any, slicer_host: Any, estimates: bool
) -> None:
    from XAICLIPModule.display import surfaces
    from XAICLIPModule.worker.question import Question

    def explain() -> Any:
        slicer_host.vtkMRMLSliceNode.JumpAllSlices(slicer_host.mrmlScene, 500, 500, 500)
        panel.logic.startExplaining(Question(volume, "liver"))
        if estimates:
            session.estimate(volume)
            first = offset(layout_manager, "Red", 2)
        session.explain(volume)
        if estimates:
            assert offset(layout_manager, "Red", 2) == first, "once, when the first map appears"
        return surfaces.mostSalientPoint(ui.resultSelector.currentNode())

    assert ui.followCheckBox.checked
    peak = explain()
    for name, axis in (("Red", 2), ("Green", 1), ("Yellow", 0)):
        assert offset(layout_manager, name, axis) == pytest.approx(peak[axis], abs=0.01)
    ui.followCheckBox.setChecked(False)
    explain()
    assert offset(layout_manager, "Red", 2) == pytest.approx(500)
    import qt

    assert slicer_host.util.toBool(qt.QSettings().value("XAICLIP/MoveViewsToMap")) is False


def test_views_stay_where_one_of_them_shows_the_map(
    panel: Any, ui: Any, session: Any, volume: Any, layout_manager: Any, slicer_host: Any
) -> None:
    from XAICLIPModule.scene import export
    from XAICLIPModule.worker.question import Question

    place = (export.worldFromVolume(volume) @ (8, 7, 6, 1))[:3]
    slicer_host.vtkMRMLSliceNode.JumpAllSlices(slicer_host.mrmlScene, *place, 1)
    layout_manager.sliceWidget("Red").sliceLogic().SetSliceOffset(500)
    panel.logic.startExplaining(Question(volume, "liver"))
    session.explain(volume)
    assert offset(layout_manager, "Red", 2) == pytest.approx(500)


def test_measurements_are_read_at_a_glance(run: Any, ui: Any) -> None:
    run()
    table = ui.measurementsTable
    rows = {table.item(i, 0).text(): table.item(i, 1).text() for i in range(table.rowCount)}
    assert rows["Score of the undisturbed network"] == "0.975"
    assert rows["Overlap of region and prediction (Dice)"] == "0.80"
    assert ui.resultWarningsLabel.text == "Warning: The liver touches the edge of the scan."


def test_show_3d_shows_the_organ_and_what_matters(run: Any, ui: Any) -> None:
    from XAICLIPModule.display import surfaces
    from XAICLIPModule.scene import results

    node = run()
    ui.show3DCheckBox.setChecked(True)
    nodes = results.explanationOf(node)
    model = node.GetNodeReference(results.SURFACE_ROLE)
    assert model.GetPolyData().GetNumberOfPoints() > 0
    assert model.GetDisplayVisibility()
    assert nodes.segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
    assert nodes.segmentation.GetDisplayNode().GetVisibility3D()
    bounds = model.GetPolyData().GetBounds()
    peak = surfaces.mostSalientPoint(node)
    assert all(bounds[2 * a] <= peak[a] <= bounds[2 * a + 1] for a in range(3))
    ui.show3DCheckBox.setChecked(False)
    assert not model.GetDisplayVisibility()
    assert not nodes.segmentation.GetDisplayNode().GetVisibility3D()


def test_the_table_is_shown_in_a_view(run: Any, ui: Any, layout_manager: Any, slicer_host: Any) -> None:
    from XAICLIPModule.scene import results

    node = run()
    ui.tableButton.click()
    selection = slicer_host.app.applicationLogic().GetSelectionNode()
    assert selection.GetActiveTableID() == results.explanationOf(node).measurements.GetID()
    (view,) = slicer_host.util.getNodesByClass("vtkMRMLTableViewNode")
    assert view.GetTableNodeID() == selection.GetActiveTableID()
    assert layout_manager.layout == slicer_host.vtkMRMLLayoutNode.SlicerLayoutFourUpTableView


def test_structures_are_bars_with_their_names(run: Any, ui: Any) -> None:
    from XAICLIPModule.testing.played_session import structuresFor

    run()
    assert ui.structuresTable.isHidden()
    helped = {"structure": "table", "volume_ml": 9.0, "score_lost": -0.05, "share": 0.0}
    run(measurements={"score_unperturbed": 0.9, "structures": [*structuresFor(), helped]})
    assert not ui.structuresTable.isHidden()
    rows = [(ui.structuresTable.item(row, 0).text(), ui.structuresTable.cellWidget(row, 1)) for row in range(3)]
    assert [(name, bar.value, bar.format) for name, bar in rows] == [
        ("spleen", 1000, "0.200"),
        ("aorta", 500, "0.100"),
        ("table", 250, "-0.050"),
    ]
    assert rows[0][1].styleSheet != rows[2][1].styleSheet, "what helped has a colour of its own"


def test_what_lies_around_it_is_credited_by_name(run: Any, ui: Any) -> None:
    credits = [
        {"structure": "spleen", "volume_ml": 120.0, "credit": 0.2},
        {"structure": "not drawn by the network", "volume_ml": 9000.0, "credit": -0.05},
    ]
    region = {"volume_ml": 448.0, "in_target_ml": 129.0, "score": 0.84}
    regions = {"sufficient": {"map": region, "outline": {**region, "volume_ml": 916.0}}, "necessary": {"map": None}}
    numbers = {"largest_score_lost": 0.0138, "credit_of_context": 0.15, "context_credits": credits}
    run(measurements=numbers, key_regions=regions)
    assert not ui.structuresTable.isHidden()
    header = [ui.structuresTable.horizontalHeaderItem(column).text() for column in (0, 1)]
    assert header == ["What lies around it", "Credit"]
    assert [ui.structuresTable.item(row, 0).text() for row in range(2)] == [
        "spleen",
        "not drawn by the network",
    ]
    assert [ui.structuresTable.cellWidget(row, 1).format for row in range(2)] == ["0.200", "-0.050"]
    shown = {
        ui.measurementsTable.item(row, 0).text(): ui.measurementsTable.item(row, 1).text()
        for row in range(ui.measurementsTable.rowCount)
    }
    assert shown["Credit of what lies around it"] == "0.150"
    assert shown["Largest credit of a place"] == "0.0138", "nothing was hidden, and no score lost"
    assert shown["Enough of the scan for the structure, in the order of the map"] == "448 ml"
    assert shown["Enough of the scan for the structure, in the order of the outline"] == "916 ml"


def test_of_a_credited_map_the_colours_end_at_what_lies_around_the_structure(run: Any) -> None:
    """On the scale of the structure, which is the strongest, nothing around it would be seen."""
    from XAICLIPModule.display import saliency_display

    assert saliency_display.window(run()) == pytest.approx(0.4)
    credited = run(measurements={"context_credits": [{"structure": "spleen", "volume_ml": 120.0, "credit": 0.2}]})
    around = saliency_display.window(credited)
    assert 0.1 < around < 0.151, "the played target is where the map is above 0.15"


def contours(node: Any) -> bool:
    from XAICLIPModule.scene import results

    return bool(results.explanationOf(node).segmentation.GetDisplayVisibility())


def test_only_what_is_chosen_is_shown(run: Any, ui: Any, red: Any) -> None:
    from XAICLIPModule.display import saliency_display
    from XAICLIPModule.scene import results

    first = run()
    ui.show3DCheckBox.setChecked(True)
    surface = first.GetNodeReference(results.SURFACE_ROLE)
    second = run()
    assert (contours(first), contours(second)) == (False, True)
    assert not surface.GetDisplayVisibility()
    assert not saliency_display.legend(first).GetVisibility() and saliency_display.legend(second).GetVisibility()
    ui.resultSelector.setCurrentNode(first)
    assert (contours(first), contours(second)) == (True, False)
    assert surface.GetDisplayVisibility() and ui.show3DCheckBox.checked
    assert red.GetForegroundVolumeID() == first.GetID()
    assert saliency_display.legend(first).GetVisibility() and not saliency_display.legend(second).GetVisibility()


def test_compared_contours_are_drawn_over_their_own_map_alone(run: Any, ui: Any, layout_manager: Any) -> None:
    from XAICLIPModule.scene import results

    first, second = run(), run()
    displays = [results.explanationOf(node).segmentation.GetDisplayNode() for node in (second, first)]
    ui.compareSelector.setCurrentNode(first)
    assert not contours(first)
    ui.compareButton.setChecked(True)
    assert contours(first) and contours(second)
    views = [layout_manager.sliceWidget(name).mrmlSliceNode().GetID() for name in ("Red", "Yellow")]
    assert [tuple(display.GetViewNodeIDs()) for display in displays] == [(view,) for view in views]
    ui.compareButton.setChecked(False)
    assert (contours(first), contours(second)) == (False, True)
    assert all(not display.GetViewNodeIDs() for display in displays)


def test_results_unfold_with_the_first_one(run: Any, ui: Any, scene: Any) -> None:
    assert ui.resultsCollapsibleButton.collapsed
    node = run()
    assert not ui.resultsCollapsibleButton.collapsed
    scene.RemoveNode(node)
    assert ui.resultsCollapsibleButton.collapsed


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_deleted_result_takes_everything_of_its_own_with_it(
    run: Any, ui: Any, scene: Any, slicer_host: Any, by_hand: bool
) -> None:
    from XAICLIPModule.scene import removal
    from XAICLIPModule.testing.played_session import structuresFor

    run()
    ids = {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())}
    hierarchy = scene.GetSubjectHierarchyNode()
    items = hierarchy.GetNumberOfItems()
    second = run(measurements={"score_unperturbed": 0.9, "structures": structuresFor()})
    ui.show3DCheckBox.setChecked(True)
    if by_hand:
        scene.RemoveNode(second)
        slicer_host.app.processEvents()
    else:
        removal.remove(second)
    left = {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())} - ids
    assert not {node for node in left if "Storage" not in node}, left
    assert hierarchy.GetNumberOfItems() == items


def test_what_a_copy_of_a_result_needs_stays(run: Any, scene: Any, slicer_host: Any) -> None:
    from XAICLIPModule.scene import results

    node = run()
    segmentation = results.explanationOf(node).segmentation
    copy = scene.CopyNode(node)
    scene.RemoveNode(copy)
    slicer_host.app.processEvents()
    assert scene.GetNodeByID(segmentation.GetID()) is segmentation


def test_two_results_are_compared_side_by_side_and_back(
    run: Any, ui: Any, panel: Any, layout_manager: Any, slicer_host: Any
) -> None:
    first, second = run(), run()
    assert not ui.compareButton.isEnabled() and "another result" in ui.compareButton.toolTip
    ui.compareSelector.setCurrentNode(first)
    assert ui.compareButton.isEnabled()
    before = layout_manager.layout
    ui.compareButton.setChecked(True)
    shown = {
        name: layout_manager.sliceWidget(name).mrmlSliceCompositeNode().GetForegroundVolumeID()
        for name in ("Red", "Yellow")
    }
    assert shown == {"Red": second.GetID(), "Yellow": first.GetID()}
    assert layout_manager.layout == slicer_host.vtkMRMLLayoutNode.SlicerLayoutSideBySideView
    assert layout_manager.sliceWidget("Yellow").mrmlSliceNode().GetOrientation() == "Axial"
    ui.compareButton.setChecked(False)
    assert layout_manager.layout == before
    assert layout_manager.sliceWidget("Yellow").mrmlSliceNode().GetOrientation() == "Sagittal"


def test_results_are_saved_as_files_that_fit_the_scan(
    run: Any, ui: Any, tmp_path: Path, volume: Any, monkeypatch: Any
) -> None:
    import qt
    import SimpleITK as sitk

    from XAICLIPModule.scene import export

    run()
    folder = tmp_path / "saved"
    folder.mkdir()
    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_arguments: str(folder))
    ui.saveButton.click()
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "saliency.nrrd",
        "region.nrrd",
        "target.nrrd",
        "explanation.json",
        "measurements.csv",
        "figure.png",
    }
    saved, scan = sitk.ReadImage(str(folder / "saliency.nrrd")), export.imageFromVolume(volume)
    assert saved.GetSize() == scan.GetSize()
    np.testing.assert_allclose(saved.GetOrigin(), scan.GetOrigin(), atol=1e-6)
    np.testing.assert_allclose(saved.GetDirection(), scan.GetDirection(), atol=1e-6)
    assert json.loads((folder / "explanation.json").read_text())["prompt"] == "liver"
    assert "0.975" in (folder / "measurements.csv").read_text()


def test_what_is_enough_and_what_is_necessary_are_segments_until_ticked_hidden(
    panel: Any, session: Any, volume: Any, ui: Any, tmp_path: Path
) -> None:
    from XAICLIPModule.scene import results, saving
    from XAICLIPModule.worker.question import Question

    panel.logic.startExplaining(Question(volume, "liver", checkMap=True))
    session.explain(volume)
    nodes = results.explanationOf(ui.resultSelector.currentNode())
    assert nodes is not None
    segments, view = nodes.segmentation.GetSegmentation(), nodes.segmentation.GetDisplayNode()
    for key, name in (
        ("sufficient", "enough when all else is hidden"),
        ("necessary", "half of the score is lost without it"),
    ):
        assert segments.GetSegment(key).GetName() == name
        assert not view.GetSegmentVisibility(key), "it would hide the map"
    assert view.GetSegmentVisibility("target")
    written = {path.name for path in saving.save(nodes, tmp_path / "saved")}
    assert {"sufficient.nrrd", "necessary.nrrd"} <= written


def test_a_folder_that_cannot_be_written_is_told(panel: Any, run: Any) -> None:
    run()
    assert panel.panel.results.saveTo(Path("/proc/nowhere")) == []


def test_a_file_of_the_users_own_is_not_overwritten(panel: Any, run: Any, tmp_path: Path) -> None:
    run()
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "measurements.csv").write_text("mine")
    assert panel.panel.results.saveTo(folder) == []
    assert [path.name for path in folder.iterdir()] == ["measurements.csv"]
    (folder / "measurements.csv").unlink()
    assert panel.panel.results.saveTo(folder)
    assert panel.panel.results.saveTo(folder), "an earlier result of the panel's own is replaced"


def test_a_result_deleted_by_hand_leaves_an_empty_section(run: Any, ui: Any, scene: Any) -> None:
    node = run()
    scene.RemoveNode(node)
    assert ui.resultSelector.currentNode() is None
    assert ui.measurementsTable.rowCount == 0
    assert not ui.saveButton.isEnabled()


def test_a_record_from_elsewhere_is_taken_for_none(run: Any, ui: Any) -> None:
    node = run()
    for text in ("{broken", "[]", '{"prompt": "liver"}'):
        node.SetAttribute("XAICLIP.Record", text)
        other = ui.resultSelector
        other.setCurrentNode(None)
        other.setCurrentNode(node)
        assert ui.measurementsTable.rowCount == 0
        assert not ui.saveButton.isEnabled()


def test_without_a_main_window_nothing_breaks(panel: Any, session: Any, volume: Any) -> None:
    from XAICLIPModule.worker.question import Question

    panel.logic.startExplaining(Question(volume, "liver"))
    session.explain(volume)
    ui = panel.ui
    for button in (ui.jumpButton, ui.tableButton):
        button.click()
    ui.show3DCheckBox.setChecked(True)
    ui.overlayCheckBox.setChecked(True)


@pytest.mark.parametrize("given", ["report.html", "report", "report.pdf"])
def test_a_report_is_asked_of_the_worker_with_the_scan_and_told_where_it_is(
    run: Any, ui: Any, panel: Any, session: Any, tmp_path: Path, monkeypatch: Any, given: str
) -> None:
    import qt

    run()
    wanted = tmp_path / given
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *_arguments: str(wanted))
    ui.reportButton.click()
    asked = session.requests[-1]
    assert asked.type == "report"
    assert asked.output == str(wanted if wanted.suffix else wanted.with_suffix(".html"))
    names = {path.name for path in Path(asked.folder).iterdir()}
    assert {"saliency.nrrd", "region.nrrd", "target.nrrd", "explanation.json", "figure.png"} <= names
    assert Path(asked.volume).is_file()
    assert "report" in ui.statusLabel.text
    session.answer("reported", files={"html": asked.output})
    assert asked.output in ui.statusLabel.text
    assert not Path(asked.folder).exists(), "the scan does not stay behind"


def test_a_report_of_another_kind_of_file_is_refused(panel: Any, run: Any, session: Any, tmp_path: Path) -> None:
    run()
    before = len(session.requests)
    panel.panel.results.reportTo(tmp_path / "report.docx")
    assert len(session.requests) == before


def test_passed_checks_are_folded_away_and_told_in_plain_words(run: Any, ui: Any) -> None:
    flag = {"name": "leans outside", "sentence": "12% of the effect lies outside.", "value": 0.12, "threshold": 0.5}
    run()
    assert ui.checksButton.isHidden() and ui.checksLabel.isHidden()
    run(reliability=[{**flag, "raised": False}, {**flag, "raised": False}, {**flag, "raised": True}])
    assert ui.checksButton.text == "2 checks passed"
    assert not ui.checksButton.isHidden() and ui.checksLabel.isHidden()
    ui.checksButton.click()
    assert not ui.checksLabel.isHidden()
    assert ui.checksLabel.text.splitlines() == ["12% of the effect lies outside."] * 2
    run(reliability=[{**flag, "raised": False}])
    assert ui.checksButton.text == "1 check passed"
