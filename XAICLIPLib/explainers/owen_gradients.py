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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers.base import Captions, Estimate, Method, RunningMap, in_voxels
from XAICLIPLib.explainers.parameters import parameter
from XAICLIPLib.system.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from XAICLIPLib.explainers.setting import Setting
    from XAICLIPLib.scoring.scorer import Scorer
else:
    np, torch = lazy("numpy"), lazy("torch")


@dataclass(frozen=True)
class OwenGradients(Method):
    """What the network needs around the organ and which part of the organ it needs, told apart, by gradients."""

    name: ClassVar[str] = "owen-gradients"
    captions: ClassVar[Captions] = Captions(
        "gradients", "credited to the cube around a place", region="Region of interest"
    )

    detail_mm: float = parameter(12.0, "edge of the cube over which a place's credit is summed", 1, 100, "mm")
    steps: int = parameter(5, "points on each of the four ways", 2, 100)

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
    steps: int = 5,
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
        Points on each way.

    Raises
    ------
    InputError
        The network cannot be differentiated, or the baseline is another one for each perturbation.

    Notes
    -----
    The findings are ``credit_of_organ`` and ``credit_of_context``, which add up to ``score_change`` (of the volume over
    the baseline) but for ``completeness_gap``; and ``organ_alone``, ``context_alone``: the score where only that is
    shown.
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
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    # What is shown step by step, and what beside it all the while.
    ways = ((context, organ), (organ, context), (context, nothing), (organ, nothing))
    running = _OwenMap(torch.zeros_like(difference[0]), organ, context, in_voxels(detail_mm, spacing_mm), scores)
    running.scores["all"] = scorer.differentiable_score()
    planned = steps * len(ways)
    # From the middle of each way outwards, one way after the other, so that a running estimate knows something of all.
    for done, (point, way) in enumerate(
        ((p, w) for p in np.argsort(np.abs(nodes), kind="stable") for w in range(len(ways))), 1
    ):
        moving, beside = ways[way]
        at = float(nodes[point] + 1) / 2
        volume = baseline + difference * (at * moving + beside.to(difference.dtype))
        volume = torch.where(organ | context, volume, scorer.volume)
        gradient = scorer.gradient(volume)
        running.credit += float(weights[point]) / 2 * (gradient * difference * moving).sum(0) / 2
        running.weight[way] += float(weights[point]) / 2
        yield Estimate(done, planned, running)


@dataclass
class _OwenMap(RunningMap):
    """What the gradients so far say.

    Attributes
    ----------
    credit
        (X, Y, Z): of each voxel.
    organ, context
        (X, Y, Z) bool: the unions.
    cube
        Voxels along each axis over which credit is summed.
    scores
        Where only the organ, only the context, all or nothing is shown.
    weight
        How much of each way was covered, by its number.
    """

    credit: Tensor
    organ: Tensor
    context: Tensor
    cube: tuple[int, ...]
    scores: dict[str, float]
    weight: dict[int, float] = field(default_factory=lambda: dict.fromkeys(range(4), 0.0))

    def saliency(self) -> Tensor:
        return sum((self.part(union) for union in (self.organ, self.context)), torch.zeros(self.organ.shape))

    def part(self, union: Tensor) -> Tensor:
        """(X, Y, Z), float32, on the CPU: credit of the cube around each voxel of a union, as of a full cube of it."""
        from scipy.ndimage import uniform_filter

        inside = union.cpu().numpy()
        means = [
            uniform_filter(np.where(inside, values, 0).astype(np.float64), self.cube, mode="constant")
            for values in (self.credit.cpu().numpy(), np.ones(inside.shape))
        ]
        covered = max(self._covered(union), 1e-12)
        values = np.where(inside, means[0] / np.maximum(means[1], 1e-9) * math.prod(self.cube) / covered, 0)
        return torch.from_numpy(values.astype(np.float32))

    def probed(self) -> Tensor:
        return (self.organ | self.context).cpu()

    def findings(self) -> dict[str, Any]:
        organ, context = (
            float(self.credit[union].sum(dtype=torch.float64)) / max(self._covered(union), 1e-12)
            for union in (self.organ, self.context)
        )
        change = self.scores["all"] - self.scores["nothing"]
        return {
            "credit_of_organ": organ,
            "credit_of_context": context,
            "organ_alone": self.scores["organ"],
            "context_alone": self.scores["context"],
            "score_change": change,
            "completeness_gap": abs(organ + context - change),
        }

    def _covered(self, union: Tensor) -> float:
        """How much of a union's two ways was covered, from 0 to 1."""
        ways = (0, 2) if union is self.context else (1, 3)
        return sum(self.weight[way] for way in ways) / 2
