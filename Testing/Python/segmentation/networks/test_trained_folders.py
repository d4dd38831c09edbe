"""Trained folders are found without PyTorch, and those of interrupted downloads are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from XAICLIPLib.segmentation.networks.trained_folders import find_trained_folder, folds, is_nnunet, trained_datasets


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder where weights are looked for."""
    for name in ("TOTALSEG_HOME_DIR", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "results"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "nobody")
    return tmp_path / "results"


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "checkpoint_final.pth").touch()
    for name in ("plans.json", "dataset.json"):
        (folder / name).touch()
    return folder


def test_only_whole_folders_are_found_and_the_full_resolution_first(results: Path) -> None:
    assert trained_datasets() == [] and find_trained_folder(297) is None
    (results / "Dataset291_interrupted" / "T__P__3d_fullres" / "fold_0").mkdir(parents=True)
    write(results / "Dataset297_x" / "T__P__2d", "fold_0")
    full = write(results / "Dataset297_x" / "T__P__3d_fullres", "fold_0")
    write(results / "Dataset2970_other" / "T__P__3d_fullres", "fold_0")
    assert trained_datasets() == [297, 2970]
    assert find_trained_folder(297) == full and find_trained_folder(291) is None


def test_folds_are_ordered_by_number_and_all_comes_last(tmp_path: Path) -> None:
    folder = write(tmp_path, "fold_10", "fold_all", "fold_2")
    (tmp_path / "fold_0").mkdir()
    assert [fold.name for fold in folds(folder)] == ["fold_2", "fold_10", "fold_all"]
    assert is_nnunet(folder) and is_nnunet(folder / "fold_2") and not is_nnunet(folder / "fold_0")


def test_pytorch_is_not_imported() -> None:
    code = "import sys, XAICLIPLib.segmentation.networks.trained_folders; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
