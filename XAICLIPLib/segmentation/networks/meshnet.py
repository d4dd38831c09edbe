"""brainchop's MeshNets as segmenters: dilated convolutions over a whole head at 1 mm, in TensorFlow.js's format.

The preprocessing is brainchop's: a head is brought to FreeSurfer's standard grid unless it lies on it, and its
intensities to [0, 1]. brainchop then crops to the head to save memory, which changes what the network sees at the
crop's border; here it sees the whole grid that it was trained on.

References
----------
Fedorov et al. "End-to-end learning of brain tissue segmentation from imperfect labeling", IJCNN 2017 (MeshNet).
Masoud, Hu, Plis. "Brainchop: In-browser MRI volumetric segmentation and rendering", JOSS 8(83), 2023.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.boxes import Box
from XAICLIPLib.segmentation.networks.layers_model import (
    is_layers_model,
    reach,
    read_json,
    read_layers_model,
    run_within,
)
from XAICLIPLib.segmentation.segmenter import Activation, Prepared

SIZE = 256
"""Voxels, and mm, along each axis of the grid."""

AXES = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""Columns: the grid's axes in RAS. They run to the left, down and to the front (LIA)."""

LARGEST_JSON = 1 << 24
"""Bytes of a ``model.json`` that is looked into."""


def is_meshnet(path: Path) -> bool:
    """Whether a folder with a ``model.json``, or that file, holds a network of 3D convolutions for TensorFlow.js."""
    with suppress(OSError, ValueError, InputError, RecursionError):
        file = _model_file(Path(path))
        return file.is_file() and file.stat().st_size <= LARGEST_JSON and is_layers_model(read_json(file))
    return False


class MeshNetSegmenter:
    """A MeshNet on a device. Satisfies `XAICLIPLib.segmentation.segmenter.Segmenter`.

    Parameters
    ----------
    path
        The folder of ``model.json``, its weights and, for the names of its classes, ``colormap.json``; or the first of
        these files.
    device
        Where the network runs.
    trust
        Without meaning: nothing in these files is code.

    Raises
    ------
    InputError
        A file is damaged, or the network is of a kind that is not supported.
    """

    inputs = ("image",)
    modality = "MR"
    window = None

    def __init__(self, path: Path, device: torch.device, trust: bool = False) -> None:
        self.file = _model_file(Path(path))
        self.device = device
        model = read_layers_model(self.file)
        if model.channels != 1:
            raise InputError(
                f"The model {self.file} takes {model.channels} images at once: choose one for a single T1."
            )
        self.activation: Activation = model.activation
        self.reach = reach(model.network)
        self.labels: Mapping[int, str] = _labels(self.file.with_name("colormap.json"), model.classes, self.activation)
        self.by_quantiles = "quantile" in model.comment.lower()
        self._sha256 = model.sha256
        # oneDNN's dilated 3D convolutions are two to six times faster with the channels last.
        self.network = model.network.to(device)
        if device.type == "cpu":
            for parameter in self.network.parameters():
                if parameter.ndim == 5:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)

    @property
    def name(self) -> str:
        """The folder's name, which is the model's at brainchop."""
        return self.file.resolve().parent.name

    @property
    def provenance(self) -> Mapping[str, str]:
        """Name, kind and the checksum of the weights; the files tell neither version nor licence."""
        return {
            "name": self.name,
            "kind": "MeshNet (TensorFlow.js)",
            "version": "unknown",
            "licence": "unknown",
            "sha256": self._sha256,
        }

    def prepare(self, image: sitk.Image) -> Prepared:
        """Bring a head to the standard grid and its intensities to about [0, 1].

        Raises
        ------
        InputError
            Its intensities cannot be normalised: too many voxels have the same one.
        """
        affine = standard_affine(image)
        grid = imaging.image_from_array(np.zeros((SIZE,) * 3, np.uint8), affine)
        if imaging.same_geometry(image, grid):
            values = _as_array(image)
        else:
            low, high = intensity_range(_as_array(image))
            values = _as_array(imaging.resample_like(sitk.Cast(image, sitk.sitkFloat32), grid, "linear", low))
            # The grid holds whole numbers from 0 to 255, which cut off the brightest of the fat.
            values = np.floor(np.clip((values - low) * (255 / (high - low)), 0, 255))
        low, high = np.quantile(values, (0.05, 0.95)) if self.by_quantiles else (values.min(), values.max())
        if not low < high:
            raise InputError(
                f"The network {self.name} cannot normalise this volume, most of which has one intensity ({low:g}): "
                "give the whole head, not masked."
            )
        normal = (values - np.float32(low)) / np.float32(high - low)
        return Prepared(torch.from_numpy(np.ascontiguousarray(normal, np.float32))[None], affine)

    def logits(self, patches: Tensor) -> Tensor:
        """Run the network: (N, 1, *size) to (N, K, *size)."""
        output: Tensor = self.network(patches)
        return output

    def logits_within(self, patches: Tensor, box: Box) -> Tensor:
        """The same inside a box of the patches, for less work; outside it 0, or right where gradients are followed."""
        if torch.is_grad_enabled():  # gradient methods look at layers as a whole
            return self.logits(patches)
        return run_within(self.network, patches, box)


def standard_affine(image: sitk.Image) -> NDArray[np.float64]:
    """Voxel index to RAS mm (4, 4) of FreeSurfer's standard grid around the middle of a volume."""
    middle = imaging.ras_affine(image) @ [*(n / 2 for n in image.GetSize()), 1]
    affine = np.eye(4)
    affine[:3, :3] = AXES
    affine[:3, 3] = middle[:3] - AXES @ np.full(3, SIZE / 2)
    return affine


def intensity_range(values: NDArray[np.float32]) -> tuple[float, float]:
    """What becomes 0 and 255 on the standard grid: the least value, and the one that 0.1% of the head exceed.

    As FreeSurfer's ``mri_convert --conform`` finds it, in a histogram of 1000 bins.
    """
    low, high = float(values.min()), float(values.max())
    counts, edges = np.histogram(values, 1000, (low, high))
    above = int(values.size - 0.001 * np.count_nonzero(np.abs(values) > 1e-15))
    reached = np.flatnonzero(np.cumsum(counts) >= above)
    cut = float(edges[max(int(reached[0]) - 2, 0)]) if len(reached) else high
    return low, cut if cut > low else high


def _as_array(image: sitk.Image) -> NDArray[np.float32]:
    """(X, Y, Z) float32."""
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(np.float32)


def _model_file(path: Path) -> Path:
    return path / "model.json" if path.is_dir() else path


def _labels(file: Path, classes: int, activation: Activation) -> dict[int, str]:
    """Names of the classes from ``colormap.json``; numbers where there is no such file."""
    if not file.is_file():
        names = [f"class {n}" for n in range(classes)]
    else:
        listed = read_json(file).get("labels")
        if not isinstance(listed, list) or len(listed) != classes:
            count = len(listed) if isinstance(listed, list) else 0
            raise InputError(
                f"{file} names {count} classes and the network has {classes}: get the file that belongs to it, or "
                "remove it to have numbers for names."
            )
        names = [_plain(str(name)) for name in listed]
    if activation == "softmax":
        names[0] = "background"
    return dict(enumerate(names))


def _plain(name: str) -> str:
    """FreeSurfer's "Cerebral-White-Matter" and "VentralDC" in words."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.sub(r"[_-]+", " ", apart).split()).lower()
