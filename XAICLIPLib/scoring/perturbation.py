"""A perturbation as data. Nothing here needs PyTorch before a pattern is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from XAICLIPLib.imaging.boxes import Box

Pattern = Callable[["Box", "torch.device"], "Tensor"]
"""Gives the strength of a perturbation within a box (of the segmenter's grid, inside the perturbation's own) on a
device, in [0, 1], of the box's shape. It is asked when the perturbation is about to be scored, so that thousands of
perturbations can wait as the few numbers that they are made from."""


@dataclass(frozen=True)
class Perturbation:
    """A set of voxels and how strongly each is replaced by the baseline.

    Attributes
    ----------
    box
        Bounds of the perturbed voxels in the segmenter's grid, inside the volume.
    strength
        1 replaces every voxel of the box; a tensor of the box's shape in [0, 1], or a pattern that gives one, tells
        each voxel its own share: ``(1 - strength) * image + strength * baseline``.
    """

    box: Box
    strength: float | Tensor | Pattern = 1.0
