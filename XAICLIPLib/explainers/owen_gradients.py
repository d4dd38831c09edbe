"""Owen gradients: what the network needs beside the organ, and which part of the organ carries the rest.

To hide the organ removes it, so that along one way from nothing to the whole scan nearly all is credited to the
outline, and the context is credited where half an organ is seen through half a context, which is no scan. Here organ
and context are two unions: the context is shown step by step once beside the whole organ and once without it, the organ
once within the whole context and once without it, and each gets the mean of its two. So each voxel has its Owen value
with infinitely small players (Aumann and Shapley's value within Owen's unions), and all of them add up to the score of
the scan over that of the baseline. What is shown of it is smoothed: credit is summed over cubes, and most of the
organ's is spread evenly over it (`OwenGradients.even_share`).

References
----------
G. Owen. "Values of Games with a Priori Unions", in Essays in Mathematical Economics and Game Theory, 1977.
R. J. Aumann, L. S. Shapley. "Values of Non-Atomic Games", 1974.
M. Sundararajan, A. Taly, Q. Yan. "Axiomatic Attribution for Deep Networks", ICML 2017.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from XAICLIPLib.explainers.base import Captions, Estimate, Method, RunningMap, in_voxels
from XAICLIPLib.explainers.integrated_gradients import fixed_baseline
from XAICLIPLib.explainers.parameters import parameter
from XAICLIPLib.system.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from XAICLIPLib.explainers.setting import Setting
    from XAICLIPLib.imaging.boxes import Box
    from XAICLIPLib.scoring.scorer import Scorer
else:
    np, torch = lazy("numpy"), lazy("torch")


@dataclass(frozen=True)
class OwenGradients(Method):
    """How much of the score is owed to the organ and to its surroundings, and to which places, by gradients."""

    name: ClassVar[str] = "owen-gradients"
    captions: ClassVar[Captions] = Captions(
        "gradients", "", "credit of the cube around a place (part of the {score})", "Region of interest"
    )

    detail_mm: float = parameter(12.0, "edge of the cube over which a place's credit is summed", 1, 100, "mm")
    steps: int = parameter(
        6, "points on each path beside the rest of the scan; those without it have half as many", 2, 100
    )
    even_share: float = parameter(
        0.8, "share of the organ's credit that is spread evenly over it: within an organ gradients are noisy", 0, 1
    )

    def estimates(self, setting: Setting, seed: int) -> Iterator[Estimate]:
        """See `owen_gradients`."""
        return owen_gradients(
            setting.scorer,
            setting.scorer.target.reference,
            setting.changeable,
            setting.spacing_mm,
            detail_mm=self.detail_mm,
            steps=self.steps,
            even_share=self.even_share,
            structures=Structures.of(setting),
        )


UNNAMED, UNTOLD = "not drawn by the network", "not told apart"
"""What of the context belongs to no structure, and what of its credit the gradients did not place."""


@dataclass(frozen=True)
class Structures:
    """What the network drew, by which the credit of the context is told apart.

    Attributes
    ----------
    labels
        (X, Y, Z) whole numbers; 0 belongs to none.
    numbers
        The numbers in ``labels`` of each structure, by its name; of overlapping ones a number may belong to several.
    voxel_ml
        Volume of a voxel.
    """

    labels: Tensor
    numbers: Mapping[str, Sequence[int]]
    voxel_ml: float

    @classmethod
    def of(cls, setting: Setting) -> Structures:
        """All that the network drew but the target."""
        parts = {number: tuple(setting.parts.get(number, (number,))) for number in setting.names}
        of_target = set(setting.target_numbers)
        numbers = {name: parts[number] for number, name in setting.names.items() if number not in of_target}
        return cls(setting.labels, numbers, math.prod(setting.spacing_mm) / 1000)

    def credits(self, credit: Tensor, context: Tensor, box: Box) -> list[dict[str, Any]]:
        """Credit of the part of the context that each structure holds in a box, where both lie."""
        labels = self.labels[box].to(credit.device)[context].long()
        count = int(labels.max()) + 1 if len(labels) else 1
        sums = torch.bincount(labels, credit[context].double(), count).tolist()
        sizes = torch.bincount(labels, minlength=count).tolist()
        named = {UNNAMED: [0], **self.numbers}
        rows = [
            {
                "structure": name,
                "volume_ml": sum(sizes[n] for n in numbers if n < count) * self.voxel_ml,
                "credit": sum(sums[n] for n in numbers if n < count),
            }
            for name, numbers in named.items()
        ]
        return [row for row in rows if row["volume_ml"]]


def owen_gradients(
    scorer: Scorer,
    organ: Tensor,
    changeable: Tensor,
    spacing_mm: Sequence[float],
    *,
    detail_mm: float = 12.0,
    steps: int = 6,
    even_share: float = 0.8,
    structures: Structures | None = None,
) -> Iterator[Estimate]:
    """Gradients of the score along four paths; the saliency of a place is the credit of the cube around it.

    Each path is integrated by the Gauss-Legendre rule. Yields an estimate after every gradient, of which each costs the
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
        Points on each of the two paths beside the rest of the scan; the two without it, where the network draws next
        to nothing, have half of them, at least 2.
    even_share
        Share of the organ's credit that is spread evenly over it. On the validation subjects the gradient's detail
        within an organ was worth little, and the outline's order beside it much (`Testing/benchmarks/EXPLAINERS.md`).

    structures
        What the network drew, by which the context's credit is told apart; None: it is not.

    Raises
    ------
    MethodUnsuited
        The network cannot be differentiated, or the baseline is another one for each perturbation.

    Notes
    -----
    What each path gains is known exactly from the scores at its two ends. The credit of its gradients is scaled to
    that, by no more than `SCALE`, because a network's score often jumps between two points. The findings are

    - ``credit_of_organ`` and ``credit_of_context``, exact Owen values of the two unions, from those scores;
    - ``score_change``, of the volume over the baseline; ``organ_alone`` and ``context_alone``, the score where only
      that is shown;
    - ``completeness_gap`` and ``completeness_gap_scaled``: how far the gradients' credit is from adding up to the
      change before scaling and after it;
    - ``context_credits``, what each structure in the context is owed by the gradients, the largest first.
    """
    box, device = scorer.sees, scorer.volume.device  # beyond it nothing matters, and a large scan is not held again
    here = (slice(None), *box)
    baseline = fixed_baseline(scorer, "Owen gradients")[here]
    organ, context = organ.to(device) & changeable.to(device), changeable.to(device) & ~organ.to(device)
    running = _OwenMap(organ, context, box, in_voxels(detail_mm, spacing_mm), even_share, structures)
    organ, context = organ[box], context[box]
    difference = scorer.volume[here] - baseline
    nothing, fixed = torch.zeros_like(organ), ~(organ | context)  # what cannot change is always shown
    shown = {"nothing": nothing, "organ": organ, "context": context, "all": organ | context}
    changed = scorer.volume.clone()
    for name, mask in shown.items():
        changed[here] = torch.where(mask | fixed, scorer.volume[here], baseline)
        running.scores[name] = scorer.differentiable_score(changed)
    few = max(2, steps // 2)
    # What is shown step by step, what beside it all the while, at how many points, and from which score to which.
    plans = (
        (context, organ, steps, "organ", "all"),
        (organ, context, steps, "context", "all"),
        (context, nothing, few, "nothing", "context"),
        (organ, nothing, few, "nothing", "organ"),
    )
    points: list[tuple[Any, ...]] = []
    for moving, beside, count, start, end in plans:
        path = _Path(torch.zeros_like(difference[0]), running.scores[end] - running.scores[start])
        running.paths.append(path)
        if bool(moving.any()):
            nodes, weights = np.polynomial.legendre.leggauss(count)
            points += [
                (abs(node), len(points) + n, path, moving, beside, float(node + 1) / 2, float(weight) / 2)
                for n, (node, weight) in enumerate(zip(nodes, weights, strict=True))
            ]
    # From the middle of each path outwards, so that a running estimate knows something of all.
    points.sort(key=lambda point: point[:2])
    for done, (_, _, path, moving, beside, at, weight) in enumerate(points, 1):
        changed[here] = baseline + difference * (at * moving + (beside | fixed).to(difference.dtype))
        path.credit += weight * (scorer.gradient(changed)[here] * difference * moving).sum(0)
        path.covered += weight
        yield Estimate(done, len(points), running)


SCALE = 4.0
"""The credit of a path is scaled to its gain by at most this factor, and by no less than its inverse."""


@dataclass
class _Path:
    """One path from hidden to shown.

    Attributes
    ----------
    credit
        (X, Y, Z): what its gradients so far give each voxel.
    gain
        What it gains in all: the score at its end less that at its start.
    covered
        How much of it was covered, from 0 to 1.
    """

    credit: Tensor
    gain: float
    covered: float = 0.0

    def total(self) -> float:
        """What its gradients add up to, as of the whole path."""
        return float(self.credit.sum(dtype=torch.float64)) / self.covered if self.covered else 0.0

    def scaled(self) -> Tensor:
        """(X, Y, Z): the credit of the whole path, scaled towards its gain."""
        total = self.total()
        factor = min(max(self.gain / total, 1 / SCALE), SCALE) if total else 0.0
        return self.credit * (factor / max(self.covered, 1e-12))


@dataclass
class _OwenMap(RunningMap):
    """What the gradients so far say.

    Attributes
    ----------
    organ, context
        (X, Y, Z) bool: the unions.
    box
        Where the credit of the paths lies in the volume.
    cube
        Voxels along each axis over which credit is summed.
    even_share
        Share of the organ's credit that is spread evenly over it.
    structures
        What the network drew.
    paths
        Context beside the organ, organ within the context, context alone, organ alone.
    scores
        Where only the organ, only the context, all or nothing is shown.
    """

    organ: Tensor
    context: Tensor
    box: Box
    cube: tuple[int, ...]
    even_share: float
    structures: Structures | None = None
    paths: list[_Path] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)

    def credit(self) -> Tensor:
        """(X, Y, Z) of the box, on the device: of each voxel the mean of its two paths, the organ's spread as asked."""
        credit = sum((path.scaled() for path in self.paths), torch.zeros_like(self.paths[0].credit)) / 2
        organ = self.organ[self.box]
        if bool(organ.any()):
            even = credit[organ].mean()
            credit = torch.where(organ, torch.lerp(credit, even.expand_as(credit), self.even_share), credit)
        return credit

    def saliency(self) -> Tensor:
        # Beyond the box there is no credit, but there are voxels that a cube at its border counts.
        shape = tuple(self.organ.shape)
        wider = tuple(
            slice(max(0, s.start - n), min(extent, s.stop + n))
            for s, n, extent in zip(self.box, self.cube, shape, strict=True)
        )
        inner = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(self.box, wider, strict=True))
        credit = np.zeros([w.stop - w.start for w in wider])
        credit[inner] = self.credit().cpu().numpy()
        both = sum(self._around(credit, union[wider].cpu().numpy()) for union in (self.organ, self.context))
        saliency = torch.zeros(shape)
        saliency[wider] = torch.from_numpy(np.asarray(both, np.float32))
        return saliency

    def _around(self, credit: NDArray[np.float64], union: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(X, Y, Z): credit of the cube around each voxel of a union, as of a cube that lies wholly in it."""
        from scipy.ndimage import uniform_filter

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
        placed = {
            name: float(credit[union[self.box]].sum(dtype=torch.float64)) for name, union in self.unions().items()
        }
        # Each union's Owen value is the mean of what it adds beside the other and without it: of scores, exactly.
        context, organ, context_alone, organ_alone = (path.gain for path in self.paths)
        exact = {"organ": (organ + organ_alone) / 2, "context": (context + context_alone) / 2}
        change = self.scores["all"] - self.scores["nothing"]
        return {
            "credit_of_organ": exact["organ"],
            "credit_of_context": exact["context"],
            "organ_alone": self.scores["organ"],
            "context_alone": self.scores["context"],
            "score_change": change,
            "completeness_gap": abs(sum(path.total() for path in self.paths) / 2 - change),
            "completeness_gap_scaled": abs(placed["organ"] + placed["context"] - change),
            **self._by_structure(credit, exact["context"] - placed["context"]),
        }

    def unions(self) -> dict[str, Tensor]:
        """The two masks by their names."""
        return {"organ": self.organ, "context": self.context}

    def _by_structure(self, credit: Tensor, untold: float) -> dict[str, Any]:
        """The context's credit by structure, where the structures are known; with what the gradients did not place."""
        if self.structures is None:
            return {}
        rows = self.structures.credits(credit, self.context[self.box], self.box)
        rows.append({"structure": UNTOLD, "volume_ml": 0.0, "credit": untold})
        return {"context_credits": sorted(rows, key=lambda row: -abs(row["credit"]))}
