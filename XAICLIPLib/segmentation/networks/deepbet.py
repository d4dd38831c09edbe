"""deepbet's brain extraction as a segmenter: the networks of the installed package, its pipeline in two steps.

A small network finds the brain's box in a coarse copy of the head, and the main one draws the brain in that box. The
box is found once, in the scan as it is: it belongs to the preprocessing, and what is explained is the main network.
deepbet then keeps the largest piece and fills its holes; the label map here is the network's own.

References
----------
Fisch et al. "deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks", Computers in
Biology and Medicine 179, 2024. https://github.com/wwu-mmll/deepbet (MIT).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError, installing
from XAICLIPLib.segmentation.segmenter import Activation, Prepared
from XAICLIPLib.segmentation.untrusted.torchscript import read_torchscript
from XAICLIPLib.system.checksums import sha256

COARSE, FINE = (128, 128, 128), (256, 256, 256)
"""Voxels of the copy in which the box is found, and of the box for the main network, whatever their size in mm."""

QUANTILES = (0.005, 0.995)
MARGIN = 0.1
"""Added to the box on each side, as a share of its size."""

SLAB = 0.02
"""Share of a slice of the coarse copy that must be brain for the slice to belong to the box."""

MEAN, DEVIATION = 0.449, 0.226
"""Of the intensities, as the networks were trained."""


def load(device: torch.device) -> DeepbetSegmenter:
    """The networks of the installed package.

    Raises
    ------
    InputError
        deepbet is not installed or without its networks.
    """
    spec = importlib.util.find_spec("deepbet")  # without importing it: it needs packages that nothing else here does
    if spec is None or spec.origin is None:
        way = installing("deepbet")
        raise InputError(f'The model deepbet is not installed: run "{way}".', way)
    package = Path(spec.origin).parent
    for data in (package / "data", package.parent / "data"):  # the wheel puts its data beside the package
        folder = data / "models"
        if (folder / "model.pt").is_file() and (folder / "bbox_model.pt").is_file():
            return DeepbetSegmenter(folder, device)
    way = installing("--force-reinstall deepbet")
    raise InputError(f'The package deepbet in {package} has no networks: run "{way}".', way)


class DeepbetSegmenter:
    """deepbet on a device. Satisfies `XAICLIPLib.segmentation.segmenter.Segmenter`.

    Parameters
    ----------
    path
        The folder of ``model.pt`` and ``bbox_model.pt``.
    device
        Where the networks run.
    trust
        Without meaning: the networks are those of an installed package.

    Raises
    ------
    InputError
        A network cannot be read.
    """

    name = "deepbet"
    modality = "MR"
    inputs = ("image",)
    window = None
    activation: Activation = "softmax"
    labels: Mapping[int, str] = {0: "background", 1: "brain"}

    def __init__(self, path: Path, device: torch.device, trust: bool = False) -> None:
        self.folder = Path(path)
        self.device = device
        self.network = _read_network(self.folder / "model.pt", device)
        self._finder = _read_network(self.folder / "bbox_model.pt", device)

    @property
    def provenance(self) -> Mapping[str, str]:
        """Name, version, licence and the checksum of the main network."""
        try:
            version = importlib.metadata.version("deepbet")
        except importlib.metadata.PackageNotFoundError:
            version = "unknown"
        return {
            "name": self.name,
            "kind": "TorchScript",
            "version": version,
            "licence": "MIT",
            "sha256": sha256(self.folder / "model.pt"),
        }

    @torch.no_grad()
    def prepare(self, image: sitk.Image) -> Prepared:
        """Find the brain's box and bring what lies in it to the main network's size and intensities.

        Raises
        ------
        InputError
            There is no brain in the image.
        """
        turned = sitk.DICOMOrient(sitk.Cast(image, sitk.sitkFloat32), "RAS")
        volume = torch.from_numpy(sitk.GetArrayFromImage(turned).transpose(2, 1, 0).copy())
        coarse = _resized(volume, COARSE)
        low, high = (float(q) for q in np.quantile(coarse.numpy(), QUANTILES))
        if not low < high:
            raise InputError(
                f"The network deepbet cannot normalise this volume, most of which has one intensity ({low:g}): give "
                "the whole head, not masked."
            )
        found = self._finder(_normal(coarse, low, high)[None, None].to(self.device))[0, 1] > 0.5
        box = brain_box(found.cpu().numpy(), tuple(volume.shape))
        start, size = (np.array([f(s) for s in box]) for f in (lambda s: s.start, lambda s: s.stop - s.start))
        step = size / np.array(FINE)
        affine = imaging.ras_affine(turned)
        # Voxel centres: of n new voxels over m old ones, number i lies at (i + 1/2) m/n - 1/2.
        shift = np.eye(4)
        shift[:3, :3] = np.diag(step)
        shift[:3, 3] = start + step / 2 - 0.5
        values = _normal(_resized(volume[box], FINE), low, high)
        return Prepared(values[None], affine @ shift)

    def logits(self, patches: Tensor) -> Tensor:
        """Run the main network: (N, 1, *size) to (N, 2, *size)."""
        probability = self.network(patches)  # its last layer is a softmax
        smallest = torch.finfo(torch.float32).tiny
        return probability.float().clamp_min(smallest).log()


def brain_box(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Where, in a volume of a shape, the largest piece of a mask on the coarse copy lies, with a margin.

    Raises
    ------
    InputError
        It has no piece that fills a slice as far as a brain does.
    """
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1 if count else mask
    box = []
    for axis, length in enumerate(shape):
        others = tuple(other for other in range(3) if other != axis)
        slices = np.flatnonzero(largest.mean(others) > SLAB)
        if not len(slices):
            raise InputError("The network deepbet finds no brain in this volume: give a T1 of the whole head.")
        first, last, scale = int(slices[0]), int(slices[-1]) + 1, length / mask.shape[axis]
        middle, size = round(scale * (first + last) / 2), round((1 + 2 * MARGIN) * scale * (last - first))
        box.append(slice(max(0, int(middle - size / 2)), min(length, int(middle + size / 2))))
    return tuple(box)


def _normal(values: Tensor, low: float, high: float) -> Tensor:
    scaled = ((values - low) / (high - low)).clamp(0, 1)
    return DEVIATION * (scaled - scaled.mean()) / scaled.std() + MEAN


def _resized(volume: Tensor, size: tuple[int, int, int]) -> Tensor:
    return functional.interpolate(volume[None, None], size, mode="nearest-exact")[0, 0]


def _read_network(path: Path, device: torch.device) -> torch.nn.Module:
    try:
        return read_torchscript(path, device)
    except InputError as error:
        raise InputError(f"The network {path} is missing or damaged: install deepbet again.") from error
