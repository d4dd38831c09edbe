"""Scorers whose answer is known: a rule on sets of pieces, a network that sees a cue, one that is blind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from XAICLIPLib.explainers.base import Estimate
from XAICLIPLib.imaging.boxes import Box
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.target import Target
from XAICLIPLib.segmentation.sliding_window import SlidingWindow, Tiling

SHAPE = (24, 16, 16)
CUE: Box = (slice(4, 8), slice(8, 12), slice(4, 8))
"""Where the planted cue lies: beside the target, not in it."""

WINDOW = SlidingWindow((16, 16, 16), 0.5, "gaussian")


class Rule:
    """A scorer that loses by a rule on the set of removed pieces, some perturbations at a time.

    Which pieces a perturbation removes is read from its strength, voxel by voxel: they must be whole.
    """

    def __init__(
        self, labels: Tensor, rule: Callable[[NDArray[np.bool_]], float], batch: int = 7, shuffled: bool = False
    ) -> None:
        self.labels, self.rule, self.batch, self.shuffled = labels, rule, batch, shuffled
        self.asked: list[tuple[bool, ...]] = []

    def removed(self, perturbation: Perturbation) -> NDArray[np.bool_]:
        strength = torch.zeros(self.labels.shape)
        assert callable(perturbation.strength)
        strength[perturbation.box] = perturbation.strength(perturbation.box, torch.device("cpu")).float()
        numbers = range(1, int(self.labels.max()) + 1)
        shares = [strength[self.labels == n].unique().tolist() for n in numbers]
        assert all(share in ([0.0], [1.0], []) for share in shares), "pieces are removed whole"
        assert strength[self.labels == 0].sum() == 0, "and nothing else is"
        return np.array([share == [1.0] for share in shares])

    def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
        found: list[tuple[int, float]] = []
        for number, perturbation in enumerate(perturbations):
            removed = self.removed(perturbation)
            self.asked.append(tuple(removed.tolist()))
            found.append((number, self.rule(removed)))
            if len(found) == self.batch:
                yield found[::-1] if self.shuffled else found
                found = []
        if found:
            yield found


def last(estimates: Iterator[Estimate]) -> Estimate:
    *_, estimate = estimates
    return estimate


def values(saliency: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """The value of each piece; it must be the same on all its voxels."""
    found = [saliency[labels == n].unique() for n in range(1, int(labels.max()) + 1)]
    assert all(len(f) == 1 for f in found)
    assert saliency[labels == 0].abs().sum() == 0
    return np.array([float(f) for f in found])


def blocks(shape: tuple[int, ...] = SHAPE, edge: int = 4) -> Tensor:
    """(X, Y, Z): cubes of an edge, numbered from 1."""
    axes = torch.meshgrid(*(torch.arange(n) // edge for n in shape), indexing="ij")
    counts = [-(-n // edge) for n in shape]
    return (axes[0] * counts[1] + axes[1]) * counts[2] + axes[2] + 1


class Planted(nn.Module):
    """Sees what is brighter than one half, wherever it lies, and draws the target everywhere if it sees enough.

    Two feature maps: the brightness, and one that the output does not depend on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv3d(1, 2, 3, padding=1, bias=False)
        nn.init.constant_(self.features.weight, 1 / 27)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.features((x - 0.5).relu())[:, :1].mean((2, 3, 4), keepdim=True)
        logit = (400 * seen - 2).expand(-1, 1, *x.shape[2:])
        return torch.cat([-logit, logit], 1)


class Blind(nn.Module):
    """Computes features and throws them away: its output is always the same."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv3d(1, 2, 3, padding=1)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        constant = torch.randn((1, 2, *x.shape[2:]), generator=generator)
        return constant + 0 * self.features(x)


def planted_scorer(network: nn.Module, window: SlidingWindow | None = WINDOW) -> Scorer:
    """A dark and noisy volume with a bright cue; the target lies elsewhere."""
    volume = 0.4 * torch.rand((1, *SHAPE), generator=torch.Generator().manual_seed(2))
    volume[0][CUE] = 1
    reference = torch.zeros(SHAPE, dtype=torch.bool)
    reference[10:14, 4:8, 8:12] = True
    target = Target("liver", 1, reference, reference)
    return Scorer(network, volume, torch.zeros_like(volume), Tiling.of(SHAPE, window), target, kind="mean probability")
