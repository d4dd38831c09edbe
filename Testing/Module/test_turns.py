"""Large scans and results go in turns, and come out as they would at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from XAICLIPLib.errors import InputError

from .conftest import wait


@pytest.fixture
def interrupted(module_path: Path, scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array is large: one slice at a time, and after each Slicer gets its turn."""
    monkeypatch.setattr("XAICLIPModule.live.turns.TURN_S", -1.0)
    monkeypatch.setattr("XAICLIPModule.live.turns.SLAB_BYTES", 1)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_a_volume_is_written_as_simpleitk_would_write_it(
    module_path: Path, volume: Any, tmp_path: Path, kind: Any
) -> None:
    import slicer

    from XAICLIPModule.live import turns
    from XAICLIPModule.scene import export

    array = slicer.util.arrayFromVolume(volume).astype(kind)
    slicer.util.updateVolumeFromArray(volume, array)
    work = export.writeVolume(volume, tmp_path / "volume.nrrd")
    read, expected = sitk.ReadImage(str(turns.wholly(work))), export.imageFromVolume(volume)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), array)
    assert read.GetPixelID() == expected.GetPixelID()
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(read, name)(), getattr(expected, name)(), atol=1e-9)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda array: array.fill(7), "is constant"),
        (lambda array: array.__setitem__((3, 4, 5), np.nan), "1 voxel of 2688 that is NaN"),
    ],
)
def test_a_volume_that_cannot_be_used_is_refused(
    module_path: Path, volume: Any, tmp_path: Path, spoil: Any, said: str
) -> None:
    import slicer

    from XAICLIPModule.live import turns
    from XAICLIPModule.scene import export

    array = slicer.util.arrayFromVolume(volume).astype(np.float32)
    spoil(array)
    slicer.util.updateVolumeFromArray(volume, array)
    with pytest.raises(InputError, match=said):
        turns.wholly(export.writeVolume(volume, tmp_path / "volume.nrrd"))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint32, np.float32])
def test_the_workers_files_are_read_as_they_are(module_path: Path, tmp_path: Path, kind: Any, compressed: bool) -> None:
    from XAICLIPModule.live import nrrd

    array = np.random.default_rng(0).integers(0, 100, (3, 4, 5)).astype(kind)
    path = tmp_path / "file.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=compressed)
    read = nrrd.mapped(path)
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype and isinstance(read, np.memmap) is not compressed
    path.write_bytes(path.read_bytes()[:-9])
    if not compressed:  # ITK fills what is cut off from a compressed file
        with pytest.raises(InputError, match=r"file\.nrrd cannot be read"):
            nrrd.mapped(path)


def test_a_run_in_turns_brings_the_same_nodes(
    layout_manager: Any, interrupted: None, panel: Any, session: Any, volume: Any
) -> None:
    import slicer

    from XAICLIPModule.scene import results
    from XAICLIPModule.testing.played_session import saliencyFor
    from XAICLIPModule.worker.question import Question

    panel.logic.startExplaining(Question(volume, "liver"))
    assert panel.logic.state.value == "starting", "the scan is still being written"
    wait(lambda: session.requests)
    session.estimate(volume)
    wait(lambda: panel.ui.overlayCheckBox.checked)
    session.explain(volume)
    assert panel.logic.state.value == "running", "the result is still being made"
    panel.logic.cancel()
    assert not session.cancelled, "it is here already"
    wait(lambda: panel.logic.state.value == "idle")
    nodes = results.explanationOf(panel.ui.resultSelector.currentNode())
    assert nodes is not None
    expected = saliencyFor(volume)
    np.testing.assert_allclose(slicer.util.arrayFromVolume(nodes.saliency), expected)
    for segment, threshold in (("region", 0), ("target", 0.15)):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segment, volume)
        np.testing.assert_array_equal(mask != 0, expected > threshold)


def test_a_scan_removed_while_its_result_is_made_leaves_nothing(
    interrupted: None, panel: Any, session: Any, volume: Any, scene: Any
) -> None:
    from XAICLIPModule.worker.question import Question

    told: list[str] = []
    panel.logic.cancelled.connect(lambda: told.append("cancelled"))
    panel.logic.startExplaining(Question(volume, "liver"))
    wait(lambda: session.requests)
    session.explain(volume)
    scene.RemoveNode(volume)
    wait(lambda: panel.logic.state.value == "idle")
    wait(lambda: scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0)
    assert told == ["cancelled"]
    for kind in ("vtkMRMLSegmentationNode", "vtkMRMLTableNode"):
        assert scene.GetNumberOfNodesByClass(kind) == 0


def test_a_worker_lost_while_the_scan_is_written_is_told(
    interrupted: None, panel: Any, session: Any, volume: Any
) -> None:
    from XAICLIPModule.worker.question import Question

    told: list[str] = []
    panel.logic.failed.connect(lambda message, kind: told.append(kind))
    panel.panel.logic.failed.disconnect(panel.panel._onFailed)  # its dialog waits for a person
    panel.logic.startExplaining(Question(volume, "liver"))
    session.crash()
    wait(lambda: panel.logic.state.value == "idle")
    assert told == ["stopped"] and not session.requests


def test_the_place_of_a_map_is_found_in_slabs_and_noted(module_path: Path, scene: Any) -> None:
    import slicer

    from XAICLIPModule.live import map_place

    array = np.zeros((7, 6, 5), np.float32)
    array[2:5, 1:3, 3] = 0.6
    array[4, 1, 3] = -1.0
    array[6, 5, 0] = 0.4
    survey = map_place.Survey(array.shape)
    for at in (slice(0, 3), slice(3, 7)):
        survey.look(array[at], at)
    expected = (3, 1, 4), ((3, 3), (1, 2), (2, 4))
    assert survey.place() == expected
    assert survey.extremes == (-1.0, pytest.approx(0.6))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    assert map_place.placeOf(node, array) == expected
    map_place.note(node, survey)
    assert map_place.placeOf(node, np.zeros_like(array)) == expected, "as noted"
    for text in ("1 2", "a b c d e f g h i", "99 0 0 0 0 0 0 0 0"):  # of a stranger's scene
        node.SetAttribute(map_place.PLACE_ATTRIBUTE, text)
        assert map_place.placeOf(node, array) == expected
