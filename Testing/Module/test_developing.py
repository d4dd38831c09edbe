"""Estimates become the map: in turns, the newest first, and no file is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from XAICLIPLib import imaging

from .conftest import wait


@pytest.fixture
def big(scene: Any, slicer_host: Any) -> Any:
    """A volume of many slices, as far as the map is concerned."""
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "scan")
    slicer_host.util.updateVolumeFromArray(node, np.zeros((40, 6, 5), np.int16))
    return node


@pytest.fixture
def made(big: Any, module_path: Path) -> Any:
    from XAICLIPModule.live.developing_map import DevelopingMap

    told: list[float] = []
    developing = DevelopingMap(big, "map", lambda node: told.append(float(values(node).max())))
    developing.told = told  # type: ignore[attr-defined]
    return developing


def values(node: Any) -> Any:
    import slicer

    return slicer.util.arrayFromVolume(node)


def estimate(path: Path, value: float, shape: tuple[int, int, int] = (40, 6, 5), compress: bool = False) -> Path:
    array = np.random.default_rng(0).random(shape, np.float32) * value
    array[-1, -1, -1] = value
    return imaging.write_volume(sitk.GetImageFromArray(array), path, compress=compress)


@pytest.mark.parametrize("compress", [False, True])
def test_the_map_is_what_the_file_holds(made: Any, tmp_path: Path, compress: bool) -> None:
    path = estimate(tmp_path / "a.nrrd", 0.5, compress=compress)
    wanted = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    made.feed(path)
    np.testing.assert_array_equal(values(made.node), wanted)
    assert not path.exists()


def test_long_copies_take_turns_and_the_newest_estimate_is_next(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr("XAICLIPModule.live.turns.TURN_S", -1.0)  # every turn ends at once ...
    monkeypatch.setattr("XAICLIPModule.live.turns.SLAB_BYTES", 1)
    paths = [estimate(tmp_path / f"{value}.nrrd", value) for value in (0.1, 0.2, 0.3)]
    for path in paths:
        made.feed(path)
    assert made.told == []
    assert not paths[1].exists(), "an estimate that a newer one overtook is passed over"
    monkeypatch.setattr("XAICLIPModule.live.turns.TURN_S", 1.0)
    wait(lambda: len(made.told) == 2)
    assert made.told == [pytest.approx(0.1), pytest.approx(0.3)]
    assert not any(path.exists() for path in paths)


def test_stopping_deletes_what_was_not_read(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import slicer

    monkeypatch.setattr("XAICLIPModule.live.turns.TURN_S", -1.0)
    monkeypatch.setattr("XAICLIPModule.live.turns.SLAB_BYTES", 1)
    paths = [estimate(tmp_path / f"{value}.nrrd", value) for value in (0.1, 0.2)]
    for path in paths:
        made.feed(path)
    made.stop()
    slicer.app.processEvents()
    assert made.told == []
    assert not any(path.exists() for path in paths)


def test_what_fits_nowhere_is_passed_over(made: Any, tmp_path: Path) -> None:
    other = estimate(tmp_path / "other.nrrd", 0.5, (3, 3, 3))
    cut = estimate(tmp_path / "cut.nrrd", 0.5)
    cut.write_bytes(cut.read_bytes()[:-100])
    for path in (other, cut, tmp_path / "none.nrrd"):
        made.feed(path)
        assert made.node is None
        assert not path.exists()
    made.feed(estimate(tmp_path / "good.nrrd", 0.5))
    assert made.told == [pytest.approx(0.5)]


def test_a_map_deleted_by_hand_is_not_written_to(made: Any, tmp_path: Path, scene: Any) -> None:
    made.feed(estimate(tmp_path / "a.nrrd", 0.5))
    scene.RemoveNode(made.node)
    path = estimate(tmp_path / "b.nrrd", 0.6)
    made.feed(path)
    assert made.told == [pytest.approx(0.5)]
    assert not path.exists()


def test_what_the_user_changes_meanwhile_is_kept(made: Any, tmp_path: Path, scene: Any) -> None:
    from XAICLIPModule.display import saliency_display

    made.feed(estimate(tmp_path / "a.nrrd", 0.5))
    assert saliency_display.window(made.node) == pytest.approx(0.5)
    made.feed(estimate(tmp_path / "b.nrrd", 0.6))
    assert saliency_display.window(made.node) == pytest.approx(0.6), "the window follows the map"
    saliency_display.setThreshold(made.node, 0.4)
    saliency_display.setWindow(made.node, 0.2)
    other = scene.AddNewNodeByClass("vtkMRMLColorTableNode", "other")
    other.SetTypeToGrey()
    saliency_display.setColours(made.node, other)
    made.feed(estimate(tmp_path / "c.nrrd", 0.7))
    assert saliency_display.window(made.node) == pytest.approx(0.2)
    assert saliency_display.threshold(made.node) == pytest.approx(0.4)
    assert saliency_display.colours(made.node) is other
