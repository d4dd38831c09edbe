"""Owen gradients: what the network needs beside the organ, and which part of the organ carries the rest.

To hide the organ removes it, so that along one way from nothing to the whole scan nearly all is credited to the
outline, and the context is credited where half an organ is seen through half a context, which is no scan. Here organ
and context are two unions: the context is shown step by step once beside the whole organ and once without it, the organ
once within the whole context and once without it, and each gets the mean of its two. So each voxel has its Owen value
with infinitely small players (Aumann and Shapley's value within Owen's unions), and all of them add up to the score of
the scan over that of the baseline.

References
----------
G. Owen. "Values of Games with a Priori Unions", in Essays in Mathematical Economics and Game Theory, 1977.
R. J. Aumann, L. S. Shapley. "Values of Non-Atomic Games", 1974.
M. Sundararajan, A. Taly, Q. Yan. "Axiomatic Attribution for Deep Networks", ICML 2017.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers.base import Captions, Estimate, Method, RunningMap, in_voxels
from XAICLIPLib.explainers.parameters import parameter
from XAICLIPLib.system.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from XAICLIPLib.explainers.setting import Setting
    from XAICLIPLib.scoring.scorer import Scorer
else:
    np, torch = lazy("numpy"), lazy("torch")

LARGEST_SCALE = 4.0
"""What a way gains is known from its two ends. Where its gradients add up to less than a quarter of it, or to more than
four times as much, they say too little to be scaled to it."""

EVEN = 0.8
"""Share of the organ's credit that is spread evenly over it. Within an organ gradients are noisy, and by the other half
every part of it draws itself; what this is worth is measured in Testing/benchmarks/EXPLAINERS.md."""


@dataclass(frozen=True)
class OwenGradients(Method):
    """What the network needs around the organ and which part of the organ it needs, told apart, by gradients."""

    name: ClassVar[str] = "owen-gradients"
    captions: ClassVar[Captions] = Captions(
        "gradients", "credited to the cube around a place", region="Region of interest"
    )

    detail_mm: float = parameter(12.0, "edge of the cube over which a place's credit is summed", 1, 100, "mm")
    steps: int = parameter(6, "points on the two ways beside the rest of the scan; those without it have fewer", 2, 100)

    @property
    def reach_mm(self) -> float:
        """Half the cube."""
        return self.detail_mm / 2

    def estimates(self, setting: Setting, seed: int) -> Iterator[Estimate]:
        """See `owen_gradients`."""
        return owen_gradients(
            setting.scorer,
            setting.scorer.target.reference,
            setting.changeable,
            setting.spacing_mm,
            detail_mm=self.detail_mm,
            steps=self.steps,
        )


def owen_gradients(
    scorer: Scorer,
    organ: Tensor,
    changeable: Tensor,
    spacing_mm: Sequence[float],
    *,
    detail_mm: float = 12.0,
    steps: int = 6,
) -> Iterator[Estimate]:
    """Gradients of the score along four ways; the saliency of a place is the credit of the cube around it.

    Each way is integrated by the Gauss-Legendre rule. Yields an estimate after every gradient, of which each costs the
    target's patches twice forward and once back; the last estimate is complete. Close the iterator to cancel.

    Parameters
    ----------
    scorer
        Scores the volume; it also has the baseline.
    organ
        (X, Y, Z) bool: the one union. What else can change is the other.
    changeable
        (X, Y, Z) bool: the voxels that the baseline replaces.
    spacing_mm
        Voxel size along X, Y and Z.
    detail_mm
        Edge of the cube whose credit is summed for its middle voxel: single voxels of a gradient are noise. Organ and
        context are summed apart, so that neither bleeds into the other.
    steps
        Points on each of the two ways beside the rest; the two without it, where the network draws next to nothing,
        have half of them, at least 2.

    Raises
    ------
    InputError
        The network cannot be differentiated, or the baseline is another one for each perturbation.

    Notes
    -----
    What each way gains is known exactly from the scores at its two ends, and its credit is scaled to that: the score of
    a network often jumps between two points. The findings are ``credit_of_organ`` and ``credit_of_context``, which add
    up to ``score_change`` (of the volume over the baseline) where all ways could be scaled; ``completeness_gap``, how
    far they are from it before scaling; and ``organ_alone`` and ``context_alone``: the score where only that is shown.
    """
    if not isinstance(scorer.baseline, torch.Tensor):
        raise InputError(
            "Owen gradients need one baseline for the whole volume, and surroundings are others for each place: "
            "choose the baseline air, mean or blur."
        )
    device = scorer.volume.device
    organ, context = organ.to(device) & changeable.to(device), changeable.to(device) & ~organ.to(device)
    baseline = scorer.baseline.to(scorer.volume)
    difference = scorer.volume - baseline
    nothing = torch.zeros_like(organ)
    scores = {
        name: scorer.differentiable_score(torch.where(shown, scorer.volume, baseline))
        for name, shown in {"organ": organ, "context": context, "nothing": ~(organ | context)}.items()
    }
    scores["all"] = scorer.differentiable_score()
    # What is shown step by step, what beside it all the while, at how many points, and what that gains.
    few = max(2, steps // 2)
    ways = (
        (context, organ, steps, scores["all"] - scores["organ"]),
        (organ, context, steps, scores["all"] - scores["context"]),
        (context, nothing, few, scores["context"] - scores["nothing"]),
        (organ, nothing, few, scores["organ"] - scores["nothing"]),
    )
    points = [
        (abs(node), way, float(node + 1) / 2, float(weight) / 2)
        for way, (_, _, count, _) in enumerate(ways)
        for node, weight in zip(*np.polynomial.legendre.leggauss(count), strict=True)
    ]
    credits = [_Way(torch.zeros_like(difference[0]), gain) for *_, gain in ways]
    running = _OwenMap(organ, context, credits, in_voxels(detail_mm, spacing_mm), scores)
    # From the middle of each way outwards, so that a running estimate knows something of all.
    for done, (_, way, at, weight) in enumerate(sorted(points), 1):
        moving, beside, _, _ = ways[way]
        volume = baseline + difference * (at * moving + beside.to(difference.dtype))
        volume = torch.where(organ | context, volume, scorer.volume)
        credits[way].credit += weight * (scorer.gradient(volume) * difference * moving).sum(0)
        credits[way].covered += weight
        yield Estimate(done, len(points), running)


@dataclass
class _Way:
    """One way from hidden to shown.

    Attributes
    ----------
    credit
        (X, Y, Z): what its gradients so far give each voxel.
    gain
        What it gains in all, from its two ends.
    covered
        How much of it was covered, from 0 to 1.
    """

    credit: Tensor
    gain: float
    covered: float = 0.0

    def total(self) -> float:
        """What its gradients add up to, as of the whole way."""
        return float(self.credit.sum(dtype=torch.float64)) / self.covered if self.covered else 0.0

    def scaled(self) -> Tensor:
        """(X, Y, Z): the credit, scaled to the gain where it is near enough."""
        total = self.total()
        factor = self.gain / total if total else 0.0
        factor = factor if 1 / LARGEST_SCALE <= factor <= LARGEST_SCALE else 1.0
        return self.credit * (factor / max(self.covered, 1e-12))


@dataclass
class _OwenMap(RunningMap):
    """What the gradients so far say.

    Attributes
    ----------
    organ, context
        (X, Y, Z) bool: the unions.
    ways
        Context beside the organ, organ within the context, context alone, organ alone.
    cube
        Voxels along each axis over which credit is summed.
    scores
        Where only the organ, only the context, all or nothing is shown.
    """

    organ: Tensor
    context: Tensor
    ways: list[_Way]
    cube: tuple[int, ...]
    scores: dict[str, float]

    def credit(self) -> Tensor:
        """(X, Y, Z), on the device: of each voxel the mean of its two ways."""
        return sum((way.scaled() for way in self.ways), torch.zeros_like(self.ways[0].credit)) / 2

    def saliency(self) -> Tensor:
        credit = self.credit().cpu().numpy().astype(np.float64)
        both = sum(self._around(credit, union.cpu().numpy()) for union in (self.organ, self.context))
        return torch.from_numpy(np.asarray(both, np.float32))

    def _around(self, credit: NDArray[np.float64], union: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(X, Y, Z): credit of the cube around each voxel of a union, as of a cube that lies wholly in it."""
        from scipy.ndimage import uniform_filter

        if union.any() and np.array_equal(union, self.organ.cpu().numpy()):
            credit = (1 - EVEN) * credit + EVEN * credit[union].mean()
        sums, sizes = (
            uniform_filter(np.where(union, values, 0.0), self.cube, mode="constant")
            for values in (credit, np.ones(union.shape))
        )
        means = sums / np.maximum(sizes, 1e-9)
        return np.asarray(np.where(union, means * math.prod(self.cube), 0.0))

    def probed(self) -> Tensor:
        return (self.organ | self.context).cpu()

    def findings(self) -> dict[str, Any]:
        credit = self.credit()
        raw = sum(way.total() for way in self.ways) / 2
        change = self.scores["all"] - self.scores["nothing"]
        return {
            "credit_of_organ": float(credit[self.organ].sum(dtype=torch.float64)),
            "credit_of_context": float(credit[self.context].sum(dtype=torch.float64)),
            "organ_alone": self.scores["organ"],
            "context_alone": self.scores["context"],
            "score_change": change,
            "completeness_gap": abs(raw - change),
        }
