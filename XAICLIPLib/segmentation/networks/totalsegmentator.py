"""TotalSegmentator's networks, from the folder where it keeps its weights; the package itself is not needed.

They are networks of nnU-Net with one step before: the image is brought to right, anterior, superior, because nnU-Net
ignores the directions of the axes, and resampled to 1.5 mm, or 3 or 6 mm for the fast ones. The crop that some tasks
take by a first network, and the postprocessing of the label map, are left out.

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
from XAICLIPLib.segmentation.networks.trained_folders import find_trained_folder, trained_datasets, weights_folders
from XAICLIPLib.segmentation.segmenter import Activation, Prepared
from XAICLIPLib.segmentation.sliding_window import Tiling

PREFIX = "totalsegmentator:"

APACHE = "Apache-2.0"
LICENCE_BY_REQUEST = "TotalSegmentator's own, by request: free for research, not for commercial use"


@dataclass(frozen=True)
class Task:
    """How TotalSegmentator runs one of its networks.

    Attributes
    ----------
    dataset
        Number of nnU-Net's dataset, with which the name of the folder begins.
    modality
        CT, MR or both: the images it was trained on.
    spacing_mm
        Spacing to which the image is resampled before nnU-Net; None to leave it to nnU-Net.
    licence
        Licence of the weights.
    tile_step_size
        Distance of the tiles as a share of the patch.
    """

    dataset: int
    modality: str | None
    spacing_mm: float | None = 1.5
    licence: str = APACHE
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
    "vertebrae_body": Task(305, "CT", licence=LICENCE_BY_REQUEST),
    "appendicular_bones": Task(304, "CT", licence=LICENCE_BY_REQUEST),
    "appendicular_bones_mr": Task(855, "MR", licence=LICENCE_BY_REQUEST),
    "tissue_types": Task(481, "CT", licence=LICENCE_BY_REQUEST),
    "tissue_types_mr": Task(925, "MR", licence=LICENCE_BY_REQUEST),
    "tissue_4_types": Task(485, "CT", licence=LICENCE_BY_REQUEST),
    "face": Task(303, "CT", licence=LICENCE_BY_REQUEST),
    "face_mr": Task(856, "MR", licence=LICENCE_BY_REQUEST),
    "thigh_shoulder_muscles": Task(857, "CT, MR", licence=LICENCE_BY_REQUEST),
}
"""Tasks of TotalSegmentator 2 that run on the whole image. Of the task total, every part is a network by itself."""


def available() -> list[str]:
    """Names of the networks whose weights are on this machine, as `load` takes them, in the order of `TASKS`.

    Those of tasks not listed there are named by their dataset, such as ``totalsegmentator:Dataset258``.
    """
    on_this_machine = trained_datasets()
    known = [name for name, task in TASKS.items() if task.dataset in on_this_machine]
    others = [n for n in on_this_machine if n not in {task.dataset for task in TASKS.values()}]
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
    folder = find_trained_folder(task.dataset)
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
        """As for nnU-Net."""
        return self._inner.activation

    @property
    def window(self) -> Callable[[tuple[int, ...]], Tiling]:
        """nnU-Net's sliding window, with TotalSegmentator's step."""
        return self._inner.window

    @property
    def spacing_mm(self) -> tuple[float | None, float | None, float | None]:
        """That of the plans, which the task's is nearly."""
        return self._inner.spacing_mm

    @property
    def provenance(self) -> Mapping[str, str]:
        """As for nnU-Net, with the spacing to which the image is resampled."""
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
            As for nnU-Net.
        """
        image = closest_canonical(image)
        values, affine = channels_first(image), ras_affine(image)
        if self.task.spacing_mm is None:
            return self._inner.prepare_array(values, affine, image.GetSpacing())
        values, affine = resampled(values, affine, self.task.spacing_mm)
        # nnU-Net gets the nominal spacing, which is the one in the file that TotalSegmentator passes to it.
        return self._inner.prepare_array(values, affine, (self.task.spacing_mm,) * 3)

    def logits(self, patches: Tensor) -> Tensor:
        """(N, C, X, Y, Z) to (N, K, X, Y, Z)."""
        return self._inner.logits(patches)


def resampled(
    values: NDArray[np.float32], affine: NDArray[np.float64], spacing_mm: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Resample (C, X, Y, Z) as TotalSegmentator does: cubic splines, whole numbers, first and last voxels in place.

    The number of voxels is that for ``spacing_mm``. As the first and last voxels stay in place, the true voxel size
    differs a little; the returned affine accounts for that, TotalSegmentator's does not.
    """
    old = np.linalg.norm(affine[:3, :3], axis=0)
    factors = old / spacing_mm
    if np.allclose(factors, 1):
        return np.trunc(values), affine
    zoomed = np.stack([ndimage.zoom(channel, factors, order=3) for channel in values])
    size, new = np.array(values.shape[1:]), np.array(zoomed.shape[1:])
    result = affine.copy()
    result[:3, :3] *= np.where(new > 1, (size - 1) / np.maximum(new - 1, 1), spacing_mm / old)
    return np.trunc(zoomed).astype(np.float32), result
