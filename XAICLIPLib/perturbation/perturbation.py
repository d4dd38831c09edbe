"""A perturbation as data, and the running result of an explainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from XAICLIPLib.segmentation.sliding_window import Box


@dataclass(frozen=True)
class Perturbation:
    """A set of voxels and how strongly each is replaced by the baseline.

    Attributes
    ----------
    box
        Bounds of the perturbed voxels in the segmenter's grid, inside the volume.
    strength
        1 replaces every voxel of the box; a tensor of the box's shape in [0, 1] gives each voxel its own share:
        ``(1 - strength) * image + strength * baseline``.
    """

    box: Box
    strength: float | Tensor = 1.0


class Scores(Protocol):
    """What an explainer needs to know of a scorer (`XAICLIPLib.scoring.Scorer`)."""

    def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
        """Lists of (number of the perturbation, score that it costs), in batches."""
        ...


@dataclass(frozen=True)
class Estimate:
    """What an explainer knows so far.

    The sums are the explainer's own and go on changing: read `saliency` before the next step.

    Attributes
    ----------
    total
        (X, Y, Z), sum over perturbations of the score lost at each voxel, on the segmenter's grid, on the CPU.
    weight
        (X, Y, Z), what the sum is divided by; 0 where nothing was perturbed.
    done, planned
        Perturbations evaluated so far, and in all.
    """

    total: Tensor
    weight: Tensor
    done: int
    planned: int

    def saliency(self) -> Tensor:
        """(X, Y, Z), mean score lost because of each voxel; 0 where nothing was perturbed."""
        return self.total / self.weight.clamp(min=1e-12)
