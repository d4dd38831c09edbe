"""Finding the trained folders of nnU-Net and TotalSegmentator that are complete; PyTorch is not imported."""

from __future__ import annotations

import os
import re
from pathlib import Path

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")


def is_nnunet(path: Path) -> bool:
    """Whether a path is a folder that nnU-Net trained, or one of its ``fold_N`` folders; never raises."""
    try:
        path = Path(path)
        folder = path.parent if path.name.startswith("fold_") else path
        return (
            (folder / "plans.json").is_file()
            and (folder / "dataset.json").is_file()
            and (find_checkpoint(path) is not None if folder != path else bool(folds(folder)))
        )
    except (OSError, ValueError):
        return False


def folds(folder: Path) -> list[Path]:
    """The folds of a trained folder that have a checkpoint, by number, ``fold_all`` last."""
    trained_folds = [f for f in folder.glob("fold_*") if find_checkpoint(f) is not None]

    def order(fold: Path) -> tuple[bool, int, str]:
        number = fold.name.removeprefix("fold_")
        return not number.isdecimal(), int(number) if number.isdecimal() else 0, number

    return sorted(trained_folds, key=order)


def find_checkpoint(fold: Path) -> Path | None:
    """The checkpoint of a fold, the final one if it exists; None where there is none."""
    return next((fold / name for name in CHECKPOINTS if (fold / name).is_file()), None)


def weights_folders() -> list[Path]:
    """Folders in which weights are searched, in order, as TotalSegmentator does; nnU-Net's own folder comes after."""
    folders = []
    if path := os.environ.get("TOTALSEG_WEIGHTS_PATH"):
        folders.append(Path(path))
    if path := os.environ.get("TOTALSEG_HOME_DIR"):
        folders.append(Path(path) / "nnunet" / "results")
    if path := os.environ.get("nnUNet_results"):  # noqa: SIM112 - nnU-Net spells it so
        folders.append(Path(path))
    return [*folders, Path.home() / ".totalsegmentator" / "nnunet" / "results"]


def find_trained_folder(number: int) -> Path | None:
    """The complete trained folder of a dataset, 3d_fullres if it has several configurations; None where there is none.

    Parameters
    ----------
    number
        Number of the dataset, with which the name of its folder begins: ``DatasetNNN_Name``.
    """
    for root in weights_folders():
        folders = [f for f in root.glob(f"Dataset{number:03d}*/*__*__*") if is_nnunet(f)]
        folders = [f for f in folders if re.match(rf"Dataset{number:03d}(_|$)", f.parent.name)]
        if folders:
            return min(folders, key=lambda f: ("__3d_fullres" not in f.name, f.name))
    return None


def trained_datasets() -> list[int]:
    """Numbers of all datasets with a trained folder on this machine, in order."""
    numbers = {number for root in weights_folders() for number in _datasets(root)}
    return sorted(number for number in numbers if find_trained_folder(number) is not None)


def _datasets(root: Path) -> list[int]:
    """Numbers of the datasets in a folder of results."""
    try:
        names = [entry.name for entry in root.iterdir()]
    except OSError:
        return []
    return [int(match[1]) for name in names if (match := re.match(r"Dataset(\d+)(_|$)", name))]
