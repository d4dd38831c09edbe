"""TotalSegmentator's networks, found where it keeps its weights; TotalSegmentator itself is not needed.

They are nnU-Net's, with one step before: the image is brought to right, anterior, superior, because nnU-Net ignores
where the axes point, and resampled to 1.5 mm, or 3 or 6 mm for the fast ones. Crops, which some tasks take from a first
network, and what is done to the finished label map are left out.

References
----------
Wasserthal et al., TotalSegmentator: robust segmentation of 104 anatomic structures in CT images, Radiology: Artificial
Intelligence 2023; D'Antonoli et al., TotalSegmentator MRI, Radiology 2025.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging import ras_affine
from XAICLIPLib.segmentation.networks.nnunet import NnUNetSegmenter, channels_first, closest_canonical
from XAICLIPLib.segmentation.networks.trained_folders import trained, trained_datasets, weights_folders
from XAICLIPLib.segmentation.segmenter import Activation, Prepared
from XAICLIPLib.segmentation.sliding_window import Tiling

PREFIX = "totalsegmentator:"

OPEN = "Apache-2.0"
LICENSED = "TotalSegmentator's own, by request: free for research, not for commercial use"


@dataclass(frozen=True)
class Task:
    """How TotalSegmentator runs one of its networks.

    Attributes
    ----------
    dataset
        Number of nnU-Net's dataset, which begins the name of the folder.
    modality
        What it was trained on.
    spacing_mm
        To which the image is resampled before nnU-Net; None where it is left to nnU-Net.
    licence
        Of the weights.
    tile_step_size
        Distance of the tiles as a share of the patch.
    """

    dataset: int
    modality: str | None
    spacing_mm: float | None = 1.5
    licence: str = OPEN
    tile_step_size: float = 0.5


TASKS: Mapping[str, Task] = {
    "total/organs": Task(291, "CT", tile_step_size=0.8),
    "total/vertebrae": Task(292, "CT", tile_step_size=0.8),
    "total/cardiac": Task(293, "CT", tile_step_size=0.8),
    "total/muscles": Task(294, "CT", tile_step_size=0.8),
    "total/ribs": Task(295, "CT", tile_step_size=0.8),
    "total_fast": Task(297, "CT", 3.0),
    "total_fastest": Task(298, "CT", 6.0),
    "total_v3_fast": Task(836, "CT", 3.0),
    "total_v3_fastest": Task(837, "CT", 6.0),
    "total_mr/organs": Task(850, "MR"),
    "total_mr/muscles": Task(851, "MR"),
    "total_mr_fast": Task(852, "MR", 3.0),
    "total_mr_fastest": Task(853, "MR", 6.0),
    "body": Task(299, "CT"),
    "body_fast": Task(300, "CT", 6.0),
    "body_mr": Task(597, "MR"),
    "body_mr_fast": Task(598, "MR", 6.0),
    "vertebrae_mr": Task(756, "MR"),
    "breasts": Task(527, "CT"),
    "trunk_cavities": Task(343, "CT"),
    "vertebrae_body": Task(305, "CT", licence=LICENSED),
    "appendicular_bones": Task(304, "CT", licence=LICENSED),
    "appendicular_bones_mr": Task(855, "MR", licence=LICENSED),
    "tissue_types": Task(481, "CT", licence=LICENSED),
    "tissue_types_mr": Task(925, "MR", licence=LICENSED),
    "tissue_4_types": Task(485, "CT", licence=LICENSED),
    "face": Task(303, "CT", licence=LICENSED),
    "face_mr": Task(856, "MR", licence=LICENSED),
    "thigh_shoulder_muscles": Task(857, "CT, MR", licence=LICENSED),
}
"""Tasks of TotalSegmentator 2 that run on the whole image. Of the task total, every part is a network by itself."""


def available() -> list[str]:
    """Names of the networks whose weights are on this machine, as `load` takes them, in the order of `TASKS`.

    Those of tasks not listed there are named by their dataset, such as ``totalsegmentator:Dataset258``.
    """
    here = trained_datasets()
    known = [name for name, task in TASKS.items() if task.dataset in here]
    others = [n for n in here if n not in {task.dataset for task in TASKS.values()}]
    return [PREFIX + name for name in (*known, *(f"Dataset{n:03d}" for n in others))]


def load(name: str, device: torch.device, trust: bool = False) -> TotalSegmenter:
    """Load a network of TotalSegmentator by name.

    Parameters
    ----------
    name
        ``totalsegmentator:TASK`` with a name of `TASKS`, or ``totalsegmentator:DatasetNNN``.
    device
        Where it runs.
    trust
        See `XAICLIPLib.segmentation.networks.nnunet.NnUNetSegmenter`.

    Raises
    ------
    InputError
        No such task, or its weights are not on this machine.
    """
    short = name.removeprefix(PREFIX)
    task = TASKS.get(short)
    if task is None and (match := re.fullmatch(r"Dataset(\d+)", short)):
        number = int(match[1])
        task = next((t for t in TASKS.values() if t.dataset == number), Task(number, None, None, "unknown"))
    if task is None:
        parts = [PREFIX + known for known in TASKS if known.startswith(f"{short}/")]
        if parts:
            raise InputError(f"{name} is several networks: choose one of {', '.join(parts)}.")
        raise InputError(f"TotalSegmentator's {short} is not known here: choose one of {', '.join(TASKS)}.")
    folder = trained(task.dataset)
    if folder is None:
        searched = ", ".join(str(root) for root in weights_folders())
        raise InputError(
            f"The weights of {name} (Dataset{task.dataset:03d}) are not in {searched}: download them with "
            "totalseg_download_weights, or set TOTALSEG_WEIGHTS_PATH to the folder that holds them."
        )
    return TotalSegmenter(PREFIX + short, task, folder, device, trust)


class TotalSegmenter:
    """A network of TotalSegmentator. Satisfies `XAICLIPLib.segmentation.segmenter.Segmenter`.

    Parameters
    ----------
    name
        For the user.
    task
        How it is run.
    folder
        The trained folder.
    device
        Where it runs.
    trust
        See `XAICLIPLib.segmentation.networks.nnunet.NnUNetSegmenter`, whose errors this raises.
    """

    def __init__(self, name: str, task: Task, folder: Path, device: torch.device, trust: bool = False) -> None:
        self._name = name
        self.task = task
        self._inner = NnUNetSegmenter(folder, device, trust, task.tile_step_size)
        self.network = self._inner.network

    @property
    def name(self) -> str:
        """As `load` takes it."""
        return self._name

    @property
    def modality(self) -> str | None:
        """That of the task; of an unlisted one what its trained folder says."""
        return self.task.modality or self._inner.modality

    @property
    def inputs(self) -> tuple[str, ...]:
        """The images that the network takes at once."""
        return self._inner.inputs

    @property
    def labels(self) -> Mapping[int, str]:
        """Structure of each output channel, as the trained folder names it."""
        return self._inner.labels

    @property
    def activation(self) -> Activation:
        """As of nnU-Net."""
        return self._inner.activation

    @property
    def window(self) -> Callable[[tuple[int, ...]], Tiling]:
        """nnU-Net's sliding window, with TotalSegmentator's step."""
        return self._inner.window

    @property
    def provenance(self) -> Mapping[str, str]:
        """As of nnU-Net, and to what the image is resampled."""
        spacing = self.task.spacing_mm
        return {
            **self._inner.provenance,
            "name": self.name,
            "kind": "TotalSegmentator (nnU-Net)",
            "licence": self.task.licence,
            "dataset": self._inner.folder.path.parent.name,
            "resampled": "by nnU-Net alone, without TotalSegmentator's crop" if spacing is None else f"{spacing:g} mm",
        }

    def prepare(self, image: sitk.Image) -> Prepared:
        """Bring an image to right, anterior, superior and the task's spacing, then run nnU-Net's preprocessing.

        Raises
        ------
        InputError
            As of nnU-Net's.
        """
        image = closest_canonical(image)
        values, affine = channels_first(image), ras_affine(image)
        if self.task.spacing_mm is None:
            return self._inner.prepare_array(values, affine, image.GetSpacing())
        values, affine = resampled(values, affine, self.task.spacing_mm)
        # What nnU-Net is told is the nominal spacing, as it stands in the file that TotalSegmentator hands it.
        return self._inner.prepare_array(values, affine, (self.task.spacing_mm,) * 3)

    def logits(self, patches: Tensor) -> Tensor:
        """(N, C, X, Y, Z) to (N, K, X, Y, Z)."""
        return self._inner.logits(patches)


def resampled(
    values: NDArray[np.float32], affine: NDArray[np.float64], spacing_mm: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Resample (C, X, Y, Z) as TotalSegmentator does: cubic splines, whole numbers, first and last voxels in place.

    The size is that for ``spacing_mm``; as the ends stay in place, the voxels are a little off that size, which the
    affine that is returned says and TotalSegmentator's does not.
    """
    old = np.linalg.norm(affine[:3, :3], axis=0)
    factors = old / spacing_mm
    if np.allclose(factors, 1):
        return np.trunc(values), affine
    found = np.stack([ndimage.zoom(channel, factors, order=3) for channel in values])
    size, new = np.array(values.shape[1:]), np.array(found.shape[1:])
    result = affine.copy()
    result[:3, :3] *= np.where(new > 1, (size - 1) / np.maximum(new - 1, 1), spacing_mm / old)
    return np.trunc(found).astype(np.float32), result
