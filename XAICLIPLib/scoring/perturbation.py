"""A perturbation as data, and the running result of an explainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from XAICLIPLib.segmentation.sliding_window import Box

Pattern = Callable[[Box, torch.device], Tensor]
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


class Scores(Protocol):
    """What an explainer needs to know of a scorer (`XAICLIPLib.scoring.scorer.Scorer`)."""

    def touched(self, perturbation: Perturbation) -> Sequence[int]:
        """The network calls that a perturbation costs, by their numbers; none where it provably loses nothing."""
        ...

    def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
        """Lists of (number of the perturbation, score that it costs), in batches.

        The perturbations are drawn one by one as they are needed, so that a generator may decide late.
        """
        ...


@dataclass(frozen=True)
class Estimate:
    """What an explainer knows so far.

    The functions look at the explainer's own numbers, which go on changing: call them before the next step.

    Attributes
    ----------
    done, planned
        Perturbations evaluated so far, and in all as far as is known.
    saliency
        Gives (X, Y, Z), float32, on the segmenter's grid and the CPU: the score lost because of each voxel; 0 where
        nothing was perturbed.
    probed
        Gives (X, Y, Z), bool: where the saliency is known.
    standard_error
        Gives (X, Y, Z), float32: of the saliency, where the method is random; None elsewhere.
    findings
        Gives further numbers for the record, JSON types only: how well a model fits, what was skipped.
    measured
        Gives (X, Y, Z), float32: the saliency from what was measured alone, where `saliency` fills gaps by guesses that
        are good to look at and no result yet; None where it does not.
    """

    done: int
    planned: int
    saliency: Callable[[], Tensor]
    probed: Callable[[], Tensor]
    standard_error: Callable[[], Tensor] | None = None
    findings: Callable[[], dict[str, Any]] = dict
    measured: Callable[[], Tensor] | None = None
