"""Deletion and insertion: how fast a target is lost, or restored, when a saliency map gives the order of hiding voxels.

These metrics run the network and need no mask: cutting a map to the region cannot improve them. They depend on the
baseline, though: hiding by air and hiding by blur give different curves.

References
----------
V. Petsiuk, A. Das, K. Saenko. "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
W. Samek et al. "Evaluating the Visualization of What a Deep Neural Network Has Learned", IEEE TNNLS 2017.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.controls import Spacing, random_map
from XAICLIPLib.imaging.boxes import Box
from XAICLIPLib.scoring.options import Score
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer

Direction = Literal["deletion", "insertion"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
Steps = Literal["equal", "geometric"]

SCORES: tuple[Score, ...] = ("soft dice", "mean probability")

STEPS = 16

FIRST_MM3 = 500.0
"""Volume of the first of geometric steps: a cube of 8 mm, smaller even than an adrenal gland."""

RANDOM_ORDERS = 3
"""Number of random orders whose mean estimates chance."""

SPAN = 0.02
"""If the areas of the random and the ideal order differ by less than this, the score cannot tell orders apart."""


@dataclass(frozen=True)
class Curve:
    """A score against the volume removed (deletion) or restored (insertion).

    Attributes
    ----------
    direction
        Deletion: low is good. Insertion: high is good.
    volumes_mm3
        Volume removed or restored at each point, ascending. Equal steps begin with 0.
    scores
        At each point, in [0, 1] for Dice and probability.
    ideal
        The curve's area for a perfect order: the score is lost, or restored, completely at the first step.
    steps
        How the volumes were chosen.
    """

    direction: Direction
    volumes_mm3: tuple[float, ...]
    scores: tuple[float, ...]
    ideal: float
    steps: Steps = "geometric"

    @property
    def area(self) -> float:
        """Mean height of the curve, over the axis on which its steps are equal: volume, or logarithm of volume.

        An organ is a hundredth of a body. Over the volume itself, almost all of the area lies where any order has
        already removed the organ; over the logarithm, each doubling of the volume counts the same.
        """
        return _area(self.volumes_mm3, self.scores, self.steps)


@dataclass(frozen=True)
class Curves:
    """The deletion and insertion curves of one removal order, by score."""

    deletion: Mapping[Score, Curve]
    insertion: Mapping[Score, Curve]

    def of(self, direction: Direction) -> Mapping[Score, Curve]:
        """The curves of a direction, by score."""
        return self.deletion if direction == "deletion" else self.insertion

    def gap(self, score: Score = "soft dice") -> float:
        """Area of insertion minus area of deletion, from -1 to 1; high is good, 0 is an order without information."""
        return self.insertion[score].area - self.deletion[score].area


@dataclass(frozen=True)
class Faithfulness:
    """The curves of a map, of random orders and of control maps.

    Attributes
    ----------
    saliency
        Of the map.
    random
        Of random orders of cubes, one `Curves` for each.
    controls
        Of the control maps, by name.
    """

    saliency: Curves
    random: tuple[Curves, ...]
    controls: Mapping[str, Curves]

    def normalized_area(
        self, direction: Direction, score: Score = "soft dice", control: str | None = None
    ) -> float | None:
        """How far the map (or a control) gets from the random order, 0, to the ideal one, 1; high is good.

        Negative for a map that does worse than chance. The ideal order loses, or restores, the whole score at the
        first step. No real order does, because evidence has a volume: compare values, and do not expect a 1. None if
        the random and the ideal order cannot be told apart (`SPAN`).
        """
        curve = (self.saliency if control is None else self.controls[control]).of(direction)[score]
        chance = float(np.mean([c.of(direction)[score].area for c in self.random]))
        span = curve.ideal - chance
        # The ideal lies below chance for deletion and above it for insertion; otherwise the score is no use here.
        if (span if direction == "insertion" else -span) < SPAN:
            return None
        return (curve.area - chance) / span

    def lead(
        self,
        direction: Direction,
        score: Score = "soft dice",
        controls: Collection[str] | None = None,
        over_chance: bool = True,
    ) -> float | None:
        """The map's normalized area minus that of the best control; at or below 0 the map is of no use.

        ``controls`` names those to compare with; by default all. With ``over_chance`` chance is one of them, with an
        area of 0.
        """
        area = self.normalized_area(direction, score)
        names = [name for name in self.controls if controls is None or name in controls]
        others = [self.normalized_area(direction, score, name) for name in names]
        known = [value for value in others if value is not None]
        return None if area is None or len(known) < len(others) else area - max([0.0] * over_chance + known)


def faithfulness(
    scorer: Scorer,
    saliency: Tensor,
    spacing_mm: Spacing,
    *,
    controls: Mapping[str, Tensor] | None = None,
    removable: Tensor | None = None,
    count: int = STEPS,
    steps: Steps = "geometric",
    first_mm3: float = FIRST_MM3,
    random_orders: int = RANDOM_ORDERS,
    seed: int = 0,
    grain_mm: float = 0.0,
) -> Faithfulness:
    """Deletion and insertion curves of a map, of random orders, and of control maps.

    It takes ``2 * count * (1 + random_orders + len(controls))`` perturbations.

    Parameters
    ----------
    scorer, saliency, spacing_mm, removable, count, steps, first_mm3, seed, grain_mm
        As in `removal_curves`.
    controls
        Maps made without the network, by name: see `XAICLIPLib.evaluation.controls`.
    random_orders
        Number of random orders of cubes that chance is estimated from, at least 1.
    """
    if random_orders < 1:
        raise InputError(f"random_orders is {random_orders}: chance needs at least 1 random order.")

    def curves(order: Tensor) -> Curves:
        return removal_curves(
            scorer,
            order,
            spacing_mm,
            removable=removable,
            count=count,
            steps=steps,
            first_mm3=first_mm3,
            seed=seed,
            grain_mm=grain_mm,
        )

    shape = tuple(saliency.shape)
    random = tuple(curves(random_map(shape, spacing_mm, 1000 + seed * random_orders + n)) for n in range(random_orders))
    return Faithfulness(curves(saliency), random, {name: curves(other) for name, other in (controls or {}).items()})


def removal_curves(
    scorer: Scorer,
    saliency: Tensor,
    spacing_mm: Spacing,
    *,
    removable: Tensor | None = None,
    count: int = STEPS,
    steps: Steps = "geometric",
    first_mm3: float = FIRST_MM3,
    seed: int = 0,
    scores: Sequence[Score] = SCORES,
    grain_mm: float = 0.0,
) -> Curves:
    """Deletion and insertion curves in the order of a map, the highest values first.

    Voxels are replaced by the scorer's baseline. All scores are read from the same network calls. Beside the map, one
    int32 volume is kept, and with cubes an int64 one.

    Parameters
    ----------
    scorer
        Of the target that the map explains.
    saliency
        (X, Y, Z), on the scorer's grid. Voxels of equal value are ordered at random: an order by index would favour a
        uniform map if the target lies near the beginning of the array.
    spacing_mm
        Voxel size along X, Y and Z.
    removable
        (X, Y, Z) bool: the voxels that are removed at all, such as those of the body; by default all. Compare only
        maps with the same mask.
    count
        Points of each curve (besides 0 with equal steps), the last of which removes everything.
    steps
        ``geometric``: each step multiplies the removed volume by the same factor; ``equal``: each step adds the same
        volume. Equal steps as large as the organ do not tell its parts apart.
    first_mm3
        Volume of the first of geometric steps. Compare only areas with the same first step.
    seed
        Of the random order of equal values.
    scores
        The scores of the target that curves are made of.
    grain_mm
        Edge of the cubes that are removed one after the other, in the order of the map's mean over each; the first step
        is at least one cube. 0 removes voxel by voxel. Scattered single voxels are salt noise, which ruins a network's
        output long before a hole of the same volume does. Maps of different grain can therefore be compared only at one
        grain.

    Raises
    ------
    InputError
        The map is not on the scorer's grid, or not finite, or nothing can be removed, or there is no step.
    """
    shape = tuple(scorer.volume.shape[1:])
    cubes = cube_numbers(shape, spacing_mm, grain_mm) if grain_mm else None
    ranks, order = removal_order(saliency, shape, removable, seed, cubes)
    voxel_mm3 = math.prod(spacing_mm)
    amounts = step_sizes(len(order), count, steps, round(max(first_mm3, grain_mm**3) / voxel_mm3))
    extents = _extents(order, ranks.shape, amounts)
    everything = len(order)
    device = scorer.volume.device
    on_device = ranks.to(device)  # the scorer's device, where each perturbation reads the ranks

    def perturbations() -> Iterator[Perturbation]:
        for amount, (removed, kept) in zip(amounts, extents, strict=True):
            yield Perturbation(removed, RankRange(on_device, 0, amount))
            if amount < everything:
                assert kept is not None
                yield Perturbation(kept, RankRange(on_device, amount, everything))

    lost = dict(pair for batch in scorer.lost_by(perturbations(), scores) for pair in batch)
    full = np.array([scorer.full_score_by(kind) for kind in scores])
    # Deletion and insertion alternate; the last removes everything.
    values = np.stack([full - np.array(lost[n]) for n in range(len(lost))])
    deletion, insertion, bare = values[::2], np.concatenate([values[1::2], full[None]]), values[-1]
    volumes = [amount * voxel_mm3 for amount in amounts]
    if steps == "equal":
        volumes = [0.0, *volumes]
        deletion, insertion = np.concatenate([full[None], deletion]), np.concatenate([bare[None], insertion])

    def curve(direction: Direction, points: NDArray[np.float64], number: int) -> Curve:
        heights = points[:, number]
        ideal = np.full(len(heights), bare[number] if direction == "deletion" else full[number])
        if steps == "equal":
            ideal[0] = heights[0]  # nothing is removed or restored yet
        return Curve(
            direction, tuple(volumes), tuple(map(float, heights)), _area(volumes, ideal.tolist(), steps), steps
        )

    return Curves(
        {kind: curve("deletion", deletion, n) for n, kind in enumerate(scores)},
        {kind: curve("insertion", insertion, n) for n, kind in enumerate(scores)},
    )


def cube_numbers(shape: tuple[int, ...], spacing_mm: Spacing, edge_mm: float) -> NDArray[np.int64]:
    """(X, Y, Z): the number of the cube that each voxel lies in; the grid of cubes begins at the volume's corner."""
    edges = [max(1, round(edge_mm / s)) for s in spacing_mm]
    counts = [-(-n // e) for n, e in zip(shape, edges, strict=True)]
    axes = np.ix_(*[np.arange(n) // e for n, e in zip(shape, edges, strict=True)])
    return np.asarray((axes[0] * counts[1] + axes[1]) * counts[2] + axes[2], np.int64)


def removal_order(
    saliency: Tensor,
    shape: tuple[int, ...],
    removable: Tensor | None = None,
    seed: int = 0,
    cubes: NDArray[np.int64] | None = None,
) -> tuple[Tensor, NDArray[np.int64]]:
    """The order in which a map removes voxels: by falling value, equal values at random.

    With ``cubes`` (X, Y, Z), the number of each voxel's cube, cubes are removed one after the other, by the map's mean
    over each. A step that ends within a cube cuts off a slab of it, so that all orders have the same steps.

    Returns
    -------
    Tensor
        (X, Y, Z) int32, on the CPU: the rank of each voxel from 0; -1 for those that are never removed.
    NDArray
        (n,): flat indices of the voxels by rank.
    """
    if tuple(saliency.shape) != shape:
        raise InputError(
            f"The saliency has {' × '.join(map(str, saliency.shape))} voxels and the network's grid "
            f"{' × '.join(map(str, shape))}: give the map on the grid that it was computed on."
        )
    values = saliency.detach().cpu().numpy().ravel()
    allowed = np.arange(values.size) if removable is None else np.flatnonzero(removable.cpu().numpy())
    if not len(allowed):
        raise InputError("No voxel may be removed, so there is no curve: give a mask that is not empty.")
    if not np.isfinite(values[allowed]).all():
        raise InputError("The saliency holds values that are not finite: no order follows from them.")
    if cubes is None:
        shuffled = np.random.default_rng(seed).permutation(allowed)
        order = shuffled[np.argsort(-values[shuffled], kind="stable")]
    else:
        numbers = cubes.ravel()[allowed]
        sums, sizes = np.bincount(numbers, values[allowed].astype(np.float64)), np.bincount(numbers)
        chance = np.random.default_rng(seed).permutation(len(sums))
        place = np.empty(len(sums), np.int64)
        place[np.lexsort((chance, -sums / np.maximum(sizes, 1)))] = np.arange(len(sums))
        order = allowed[np.argsort(place[numbers], kind="stable")]
    ranks = np.full(values.size, -1, np.int32)
    ranks[order] = np.arange(len(order), dtype=np.int32)
    return torch.from_numpy(ranks.reshape(shape)), order


def step_sizes(total: int, count: int, steps: Steps, first: int = 1) -> list[int]:
    """Number of voxels removed at each point, ascending; fewer points if there are fewer voxels than points.

    Geometric steps begin with ``first`` voxels.
    """
    if count < 2:
        raise InputError(f"A curve of {count} points tells nothing: ask for at least 2.")
    if steps == "equal":
        shares: NDArray[Any] = np.arange(1, count + 1) / count
    else:
        shares = np.geomspace(min(1, max(1, first) / total), 1, count)
    sizes: list[int] = np.unique(np.maximum(1, np.round(shares * total)).astype(np.int64)).tolist()
    return sizes


@dataclass(frozen=True, eq=False)
class RankRange:
    """A pattern (see `XAICLIPLib.scoring.perturbation.Pattern`): the voxels whose rank lies in a range."""

    ranks: Tensor
    first: int
    end: int

    def __call__(self, box: Box, device: torch.device) -> Tensor:
        """1 where the rank lies in the range, in a box of the volume."""
        ranks = self.ranks[box]
        return ((ranks >= self.first) & (ranks < self.end)).to(device, torch.float32)


def _extents(order: NDArray[np.int64], shape: Sequence[int], amounts: Sequence[int]) -> list[tuple[Box, Box | None]]:
    """For each amount, the box around the voxels removed and the box around those that are left, if any."""
    starts = [0, *amounts[:-1]]
    axes = []
    for axis, size in enumerate(shape):
        along = (order // math.prod(shape[axis + 1 :]) % size).astype(np.int32)
        low, high = np.minimum.reduceat(along, starts), np.maximum.reduceat(along, starts) + 1
        before = zip(np.minimum.accumulate(low).tolist(), np.maximum.accumulate(high).tolist(), strict=True)
        after = zip(
            np.minimum.accumulate(low[::-1])[::-1].tolist(),
            np.maximum.accumulate(high[::-1])[::-1].tolist(),
            strict=True,
        )
        axes.append(([slice(a, b) for a, b in before], [slice(a, b) for a, b in after]))
    removed = zip(*(first for first, _ in axes), strict=True)
    kept = [*zip(*(second[1:] for _, second in axes), strict=True), None]
    return list(zip(removed, kept, strict=True))


def _area(volumes: Sequence[float], scores: Sequence[float], steps: Steps) -> float:
    """Mean height by trapezoids."""
    axis = np.asarray(volumes) if steps == "equal" else np.log(volumes)
    if len(axis) < 2:
        return float(scores[0])
    height = np.asarray(scores)
    return float(((height[1:] + height[:-1]) / 2 * np.diff(axis)).sum() / (axis[-1] - axis[0]))
