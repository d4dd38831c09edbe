"""Evidence as a region: how little of the scan suffices, and how little must be hidden to lose the structure.

A map is an order of places. The *sufficient* region is the shortest beginning of that order that keeps most of the
score when all else is hidden; the *necessary* one is the shortest beginning whose hiding costs half of it. Both are
looked for by bisection over whole cubes, and each is verified by an exact score of its own. Neither is the smallest of
all sets, which no one can compute: they are the smallest found in the order of this map, and the order of the outline
(deepest in the organ first, then the nearest around it) stands beside them, for which the same is asked.

References
----------
B. Carter, J. Mueller, S. Jain, D. Gifford. "What made you do this? Understanding black-box decisions with sufficient
input subsets", AISTATS 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from XAICLIPLib.evaluation.controls import GRAIN_MM, Spacing, outline_maps
from XAICLIPLib.evaluation.curves import RankRange, cube_numbers, removal_order
from XAICLIPLib.imaging.boxes import bounds
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer

Kind = Literal["sufficient", "necessary"]
KINDS: tuple[Kind, ...] = get_args(Kind)

KEPT, LOST = 0.9, 0.5
"""Share of the score that a sufficient region keeps, and that hiding a necessary one costs."""

CLOSE = 1.05
"""The bisection ends where the next smaller region has at least this factor less."""


@dataclass(frozen=True)
class KeyRegion:
    """A beginning of a map's order that suffices, or is necessary.

    Attributes
    ----------
    kind
        Which of the two.
    voxels
        (X, Y, Z) bool, on the scorer's grid and the CPU.
    volume_ml
        Of the voxels.
    in_target_ml
        Of those that belong to the target.
    score
        Exact: with all else hidden (sufficient), or with the region hidden (necessary).
    """

    kind: Kind
    voxels: Tensor
    volume_ml: float
    in_target_ml: float
    score: float


def key_region(
    kind: Kind,
    scorer: Scorer,
    saliency: Tensor,
    spacing_mm: Spacing,
    changeable: Tensor,
    *,
    grain_mm: float = GRAIN_MM,
    seed: int = 0,
    between: Callable[[], None] = lambda: None,
    bare: float | None = None,
) -> KeyRegion | None:
    """The shortest beginning of a map's order that keeps `KEPT` of the score, or whose hiding costs `LOST` of it.

    Parameters
    ----------
    kind
        ``sufficient`` or ``necessary``.
    scorer, saliency, spacing_mm, grain_mm, seed
        As in `XAICLIPLib.evaluation.curves.removal_curves`.
    changeable
        (X, Y, Z) bool: the voxels that can be hidden; all others stay shown.
    between
        Called before each score; an exception in it ends the search.
    bare
        The score with everything hidden, where it is known already.

    Returns
    -------
    KeyRegion or None
        None where even to hide everything does not cost enough: the network draws what it cannot see.
    """
    shape = tuple(scorer.volume.shape[1:])
    if bare is None:
        between()
        bare = score_with(scorer, changeable.cpu())
    if bare >= KEPT * scorer.full_score if kind == "sufficient" else bare > (1 - LOST) * scorer.full_score:
        return None
    cubes = cube_numbers(shape, spacing_mm, grain_mm)
    ranks, order = removal_order(saliency, shape, changeable, seed, cubes)
    ends = _ends_of_cubes(cubes.ravel()[order])
    on_device = ranks.to(scorer.volume.device)
    scores: dict[int, float] = {}

    def score(count: int) -> float:
        """Of the first so many cubes, shown alone or hidden."""
        if count not in scores:
            between()
            first, end = (0, int(ends[count - 1])) if kind == "necessary" else (int(ends[count - 1]), len(order))
            scores[count] = scorer.full_score
            if first < end:
                box = bounds((on_device >= first) & (on_device < end))
                scores[count] -= _lost(scorer, Perturbation(box, RankRange(on_device, first, end)))
        return scores[count]

    def enough(count: int) -> bool:
        if kind == "sufficient":
            return score(count) >= KEPT * scorer.full_score
        return score(count) <= (1 - LOST) * scorer.full_score

    low, high = 0, len(ends)  # all of it is enough
    while high - low > 1 and high > CLOSE * low:
        middle = min(max(round(math.sqrt(max(low, 1) * high)), low + 1), high - 1)
        low, high = (low, middle) if enough(middle) else (middle, high)
    voxels = (ranks >= 0) & (ranks < int(ends[high - 1]))
    voxel_ml = math.prod(spacing_mm) / 1000
    target = scorer.target.reference.cpu()
    return KeyRegion(
        kind,
        voxels,
        float(voxels.sum()) * voxel_ml,
        float((voxels & target).sum()) * voxel_ml,
        score(high),
    )


def score_with(scorer: Scorer, hidden: Tensor) -> float:
    """Exact score with a mask (X, Y, Z) hidden."""
    if not bool(hidden.any()):
        return scorer.full_score
    box = bounds(hidden)
    return scorer.full_score - _lost(scorer, Perturbation(box, hidden[box].float()))


def _lost(scorer: Scorer, perturbation: Perturbation) -> float:
    """Score lost by one perturbation, whatever part of it the scorer tells the methods."""
    ((_, (lost,)),) = [pair for batch in scorer.lost_by([perturbation], (scorer.kind,)) for pair in batch]
    return lost


def _ends_of_cubes(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many voxels of an order the first one, two, three ... cubes have; a cube's voxels follow each other."""
    return np.append(np.flatnonzero(np.diff(numbers)) + 1, len(numbers))


@dataclass(frozen=True)
class KeyRegions:
    """The regions of a map and of the outline, and what the target's own voxels do.

    Attributes
    ----------
    by_map, by_outline
        The sufficient and the necessary region in the order of the map, and in that of the outline: deepest within the
        target first, then the nearest around it. None where there is none.
    target_shown, target_hidden
        Exact score with nothing shown but the target, and with nothing hidden but the target.
    """

    by_map: dict[Kind, KeyRegion | None]
    by_outline: dict[Kind, KeyRegion | None]
    target_shown: float
    target_hidden: float

    @property
    def sufficient_ml(self) -> tuple[float, float] | None:
        """Volume of the sufficient region, by the map and by the outline; None where one of them is not known."""
        regions = [by["sufficient"] for by in (self.by_map, self.by_outline)]
        known = [region.volume_ml for region in regions if region is not None]
        return (known[0], known[1]) if len(known) == 2 else None


def key_regions(
    scorer: Scorer, saliency: Tensor, spacing_mm: Spacing, changeable: Tensor, between: Callable[[], None]
) -> KeyRegions:
    """Both regions by the map and by the outline; the parameters are those of `key_region`."""
    changeable, reference = changeable.cpu(), scorer.target.reference.cpu()
    depth = outline_maps(reference, spacing_mm)["depth"]
    between()
    bare = score_with(scorer, changeable)  # with everything hidden: the same for every order

    def both(order: Tensor) -> dict[Kind, KeyRegion | None]:
        return {
            kind: key_region(kind, scorer, order, spacing_mm, changeable, between=between, bare=bare) for kind in KINDS
        }

    return KeyRegions(
        both(saliency),
        both(depth),
        score_with(scorer, changeable & ~reference),
        score_with(scorer, changeable & reference),
    )


def record(regions: KeyRegions | None) -> dict[str, Any] | None:
    """The regions for the record: volumes in ml and exact scores."""
    if regions is None:
        return None
    by = {"map": regions.by_map, "outline": regions.by_outline}
    return {
        "keeps": KEPT,
        "costs": LOST,
        "target_shown_alone": regions.target_shown,
        "target_hidden_alone": regions.target_hidden,
        **{
            kind: {name: None if (region := of[kind]) is None else _numbers(region) for name, of in by.items()}
            for kind in KINDS
        },
    }


def _numbers(region: KeyRegion) -> dict[str, float]:
    return {"volume_ml": region.volume_ml, "in_target_ml": region.in_target_ml, "score": region.score}
