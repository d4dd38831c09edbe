"""The interface of every segmentation network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.segmentation.sliding_window import Window

Activation = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Prepared:
    """A volume in a network's input space: resampled, normalised, on the CPU.

    ``tensor`` is (C, X, Y, Z) float32; ``affine`` (4, 4) maps its voxel indices to RAS millimetres. ``held``,
    (H, X, Y, Z), are further channels of the network's input that no perturbation touches, such as a box prompt.
    """

    tensor: Tensor
    affine: NDArray[np.float64]
    held: Tensor | None = None

    @property
    def network_input(self) -> Tensor:
        """(C + H, X, Y, Z): the input of the network, held channels included."""
        return self.tensor if self.held is None else torch.cat([self.tensor, self.held])

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along X, Y and Z in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def mask_from(self, mask: sitk.Image) -> Tensor:
        """A mask on any grid as (X, Y, Z) bool on this grid; a mask finer than the grid does not vanish entirely."""
        grid = imaging.image_from_array(np.zeros(self.tensor.shape[1:], np.uint8), self.affine)
        near = imaging.resample_like(mask, grid, "nearest")
        if not sitk.GetArrayViewFromImage(near).any():
            near = imaging.resample_like(mask, grid, "linear", antialias=True) > 0
        return torch.from_numpy(np.ascontiguousarray(sitk.GetArrayFromImage(near).transpose(2, 1, 0))) != 0

    def as_image(self, values: Tensor) -> sitk.Image:
        """Values (X, Y, Z) on this grid as a volume."""
        return imaging.image_from_array(values.cpu().numpy(), self.affine)


class Segmenter(Protocol):
    """A segmentation network with its preprocessing, labels and window.

    ``labels`` maps each output channel to the structure's name; with ``softmax`` channel 0 is the background, with
    ``sigmoid`` every channel is a structure of its own. ``window`` is None where the network takes whole volumes; then
    it may have an attribute ``reach``, voxels along each axis: the distance beyond which no voxel of its input changes
    a voxel of its output, so that a fully convolutional network need not run on most of the volume; and a method
    ``logits_within(patches, box)``, correct only inside a box of the patches, where that is less work. Where it
    resamples, an attribute ``spacing_mm`` says to which voxel size along the patient's axes (None: the scan's own), so
    that what does not fit into memory is refused before.
    """

    @property
    def name(self) -> str:
        """Short name for the user."""
        ...

    @property
    def modality(self) -> str | None:
        """What it was trained on ("CT", "MR", "CT, MR"); None where that is not known."""
        ...

    @property
    def labels(self) -> Mapping[int, str]:
        """Structure of each output channel."""
        ...

    @property
    def activation(self) -> Activation:
        """How logits become probabilities."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the images that it takes at once, one for each channel: ("image",) for most."""
        ...

    @property
    def window(self) -> Window | None:
        """The network's sliding window."""
        ...

    @property
    def provenance(self) -> Mapping[str, str]:
        """Name, version, licence and checksum, for the record of an explanation."""
        ...

    def prepare(self, image: sitk.Image) -> Prepared:
        """Bring an image, with one component per pixel for each of ``inputs``, into the network's input space."""
        ...

    def logits(self, patches: Tensor) -> Tensor:
        """Run the network: (N, C + H, *size) to (N, K, *size), float32, on the device of ``patches``."""
        ...


@runtime_checkable
class Promptable(Protocol):
    """A network that segments what a prompt points at; it becomes a `Segmenter` only with a prompt."""

    def prompted(self, name: str, mask: sitk.Image, modality: str | None = None) -> Segmenter:
        """The segmenter of one structure, pointed at by a mask (uint8) in the geometry of the image to come.

        ``modality`` is that of the image, CT or MR; None to guess it from the intensities.
        """
        ...


def class_names(network: Segmenter | Promptable) -> tuple[str, ...]:
    """The names of what a network draws, in the order of its channels; none where it draws what it is pointed at."""
    labels: Mapping[int, str] = getattr(network, "labels", {})
    background = 0 if getattr(network, "activation", "") == "softmax" else None
    names = (str(name).strip() for channel, name in labels.items() if channel != background)
    return tuple(dict.fromkeys(filter(None, names)))
