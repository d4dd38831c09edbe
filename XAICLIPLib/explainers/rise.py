"""RISE: random smooth patterns hide parts of the region, and all scores together tell what each place contributes.

What counts is the estimator. The plain weighted mean of the paper is noisy; a ridge regression of the score on what
each cell of the region lost of its visibility needs far fewer patterns for the same map.

References
----------
V. Petsiuk, A. Das, K. Saenko. "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
J. G. MacKinnon, H. White. "Some heteroskedasticity-consistent covariance matrix estimators with improved finite sample
properties", Journal of Econometrics 1985.
G. H. Golub, M. Heath, G. Wahba. "Generalized cross-validation as a method for choosing a good ridge parameter",
Technometrics 1979.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers.base import Captions, Estimate, Method, RunningMap, Scores, in_mm, in_voxels, size_for
from XAICLIPLib.explainers.parameters import parameter
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.system.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from XAICLIPLib.explainers.setting import Setting
    from XAICLIPLib.imaging.boxes import Box

    Array = NDArray[np.float64]
else:
    np, torch = lazy("numpy"), lazy("torch")

Estimator = Literal["ridge", "debiased", "mean"]

CHECK_EVERY, EARLIEST = 50, 3
"""The error is looked at after each multiple of so many patterns, and not before there are so many for each cell."""

FEWEST = 5
"""Patterns from which on their spread says something: before that there is no standard error."""

RIDGES = tuple(10 ** (-6 + n / 4) for n in range(33))
"""Ridge strengths that are tried, from 1e-6 to 100, in units of the mean variance of a cell."""

FLATTEST = 0.05
"""A voxel's variance over the patterns is taken for at least this share of that of a point: of two or three patterns
that happen to hide a voxel alike, the slope would be in the thousands."""

VOXELS_AT_ONCE = 1_000_000
"""In layers of so many voxels a map is interpolated."""

ROUNDING = 1e-12
"""Where a fit leaves no more freedom than this, it is rounding."""


@dataclass(frozen=True)
class Rise(Method):
    """Hide random smooth patterns, and work out from all of them what each place contributes."""

    name: ClassVar[str] = "rise"
    captions: ClassVar[Captions] = Captions("random patterns", "by hiding the cell around a place")

    cell_mm: float | None = parameter(
        None, "size of the pattern's cells; default: as the cubes of occlusion", 1, 500, "mm"
    )
    samples: int = parameter(2000, "patterns at most", 2, 1_000_000)
    keep: float = parameter(0.5, "share of the cells that each pattern leaves visible", 0.05, 0.95)
    estimator: Estimator = parameter(
        "ridge", "how the map is worked out: ridge regression, debiased, or the plain weighted mean of the RISE paper"
    )
    wanted_error: float = parameter(
        0.05, "stop when the standard error is this share of the largest effect; 0: use all patterns", 0, 1
    )

    def sized_for(self, volume_ml: float) -> Rise:
        """With cells by the volume of the structure."""
        return replace(self, cell_mm=self.cell_mm or size_for(volume_ml))

    @property
    def reach_mm(self) -> float:
        """Half a cell."""
        return (self.cell_mm or 0.0) / 2

    def estimates(self, setting: Setting, seed: int) -> Iterator[Estimate]:
        """See `rise`."""
        assert self.cell_mm is not None
        return rise(
            setting.scorer,
            setting.region & setting.changeable,
            setting.spacing_mm,
            cell_mm=self.cell_mm,
            samples=self.samples,
            keep=self.keep,
            estimator=self.estimator,
            wanted_error=self.wanted_error,
            seed=seed,
        )


def rise(
    scorer: Scores,
    region: Tensor,
    spacing_mm: Sequence[float],
    *,
    cell_mm: float,
    samples: int,
    keep: float = 0.5,
    estimator: Estimator = "ridge",
    wanted_error: float = 0.05,
    seed: int = 0,
) -> Iterator[Estimate]:
    """Hide random smooth patterns within the region; the saliency of a voxel is the score lost by hiding it.

    Yields an estimate after every network batch; the last one is complete. Close the iterator to cancel.

    Parameters
    ----------
    scorer
        What scores the perturbations, usually a `XAICLIPLib.scoring.scorer.Scorer`.
    region
        (X, Y, Z) bool, on the segmenter's grid: everything outside it stays visible.
    spacing_mm
        Voxel size along X, Y and Z.
    cell_mm
        Distance of the points whose visibility is drawn; between them it is interpolated.
    samples
        Patterns at most.
    keep
        Probability of each point to stay visible.
    estimator
        ``ridge``: regression of the score lost on the share that each cell of a fixed grid is hidden by, strength by
        generalized cross-validation. ``debiased``: for each voxel the slope of the score lost over how far it is
        hidden. ``mean``: the paper's sum of masks weighted by their scores, over the expected sum of masks; the mean
        score is taken off and the rest divided by 1 - keep, so that it reads as score lost.
    wanted_error
        Stop when the root mean square of the standard error over the region is this share of the largest saliency.
    seed
        Of the patterns.

    Raises
    ------
    InputError
        A size is no positive length.

    Notes
    -----
    The standard error is that of chance in the choice of patterns: for another seed the map would differ by so much. It
    includes what comes from the model being linear and the network not. Of the ridge it errs on the safe side where
    patterns are few: measured on several rules, it is 0.9 to 1.8 times the spread over seeds with fewer patterns than
    cells, up to three times with as many, 0.8 to 1.25 times with more than twice as many. There is none below `FEWEST`
    patterns. The findings are ``samples``, ``cells``,
    ``cell_mm_used`` (in whole voxels), ``estimator``, ``relative_error`` (reached), ``stopped`` (``converged``,
    ``samples`` or None while running) and for ``ridge`` its ``ridge_strength`` and ``r2``.
    """
    if not 0 < cell_mm < math.inf:
        raise InputError(f"Cells of {cell_mm:g} mm are none: give a length above zero.")
    region = region.cpu()
    if not bool(region.any()):
        yield Estimate(0, 0, _NothingToHide(tuple(region.shape)))
        return
    masks = _Masks(region, in_voxels(cell_mm, spacing_mm), keep, seed)
    cells = _Cells(masks)
    fit: _Fit = _Regression(cells) if estimator == "ridge" else _Sums(masks, estimator)
    running = _RiseMap(
        masks, fit, {"cells": len(cells), "estimator": estimator, "cell_mm_used": in_mm(masks.cell, spacing_mm)}
    )
    # The next look at the error, always at a multiple
    due = CHECK_EVERY * math.ceil(max(EARLIEST * len(cells), 1) / CHECK_EVERY)
    waiting: dict[int, float] = {}
    for batch in scorer.lost(masks.perturbation(number) for number in range(samples)):
        waiting.update(batch)
        # One after the other, so that where it stops does not hang on the size of the batches.
        while not running.stopped and running.done in waiting:
            fit.add(running.done, waiting.pop(running.done))
            running.done += 1
            if running.done < due and running.done < samples:
                continue
            due = running.done + CHECK_EVERY
            running.look_at_the_error()
            sure = running.error is not None and running.error < wanted_error
            running.stopped = "converged" if sure else "samples" if running.done == samples else None
        yield Estimate(running.done, running.done if running.stopped else samples, running)
        if running.stopped:
            return


@dataclass
class _RiseMap(RunningMap):
    """What the patterns so far say.

    Attributes
    ----------
    masks, fit
        The patterns, and what is made of their scores.
    fixed_findings
        Findings that do not change.
    done, error, stopped
        Patterns so far, their relative standard error when it was last looked at, and why no more follow.
    """

    masks: _Masks
    fit: _Fit
    fixed_findings: dict[str, Any]
    done: int = 0
    error: float | None = None
    stopped: str | None = None

    def saliency(self) -> Tensor:
        return _in_volume(self.fit.saliency(), self.masks)

    def probed(self) -> Tensor:
        region = self.masks.whole_region
        return region if self.done else torch.zeros_like(region)

    def standard_error(self) -> Tensor | None:
        return _in_volume(self.fit.standard_error(), self.masks) if self.done >= FEWEST else None

    def findings(self) -> dict[str, Any]:
        so_far = {"samples": self.done, **self.fixed_findings, "relative_error": self.error, "stopped": self.stopped}
        return {**so_far, **self.fit.findings()}

    def look_at_the_error(self) -> None:
        """Compare the standard error with the largest effect."""
        largest = float(self.fit.saliency().abs().max())
        if self.done >= FEWEST:
            spread = float(self.fit.standard_error().square().mean().sqrt())
            self.error = spread / largest if largest else 0.0


@dataclass
class _NothingToHide(RunningMap):
    """The map of an empty region."""

    shape: tuple[int, ...]

    def saliency(self) -> Tensor:
        return torch.zeros(self.shape)

    def probed(self) -> Tensor:
        return torch.zeros(self.shape, dtype=torch.bool)


class _Fit(Protocol):
    """What is made of the scores so far; maps are (n,), one value for each voxel of the region."""

    def add(self, number: int, lost: float) -> None: ...

    def saliency(self) -> Tensor: ...

    def standard_error(self) -> Tensor: ...

    def findings(self) -> dict[str, Any]: ...


class _Masks:
    """Random smooth patterns over the region's box, each kept as the seed that it is drawn from.

    A pattern is a coarse grid of points, each visible or not, moved by a random part of their distance and interpolated
    linearly: the small masks of RISE, upsampled and shifted, in three dimensions.
    """

    def __init__(self, region: Tensor, cell: Sequence[int], keep: float, seed: int) -> None:
        from XAICLIPLib.imaging.boxes import bounds

        self.shape = tuple(region.shape)
        self.box: Box = bounds(region)
        self.whole_region, self.region = region, region[self.box]
        self.cell, self.keep, self.seed = tuple(cell), keep, seed
        # One more than the cells for the far end, and one for the shift
        self.points = tuple(math.ceil(n / c) + 2 for n, c in zip(self.region.shape, self.cell, strict=True))
        self._regions: dict[torch.device, Tensor] = {}

    def hidden_points(self, number: int) -> tuple[Tensor, tuple[float, ...]]:
        """The points of a pattern, 1 where hidden and 0 where visible, and its shift in voxels."""
        rng = np.random.default_rng((self.seed, number))
        hidden = torch.from_numpy((rng.random(self.points) >= self.keep).astype(np.float32))
        return hidden, tuple(float(rng.uniform(0, c)) for c in self.cell)

    def along(self, axis: int, places: Array, moved: float) -> Tensor:
        """(n, points): the weight of each point for the pattern at places in voxels from the box's start."""
        at = (places + moved) / self.cell[axis]
        distance = np.abs(at[:, None] - np.arange(self.points[axis])[None])
        return torch.from_numpy(np.maximum(0, 1 - distance).astype(np.float32))

    def strength(self, number: int, box: Box, device: torch.device) -> Tensor:
        """How far a pattern hides the voxels of a box of the volume within the region's: (box) in [0, 1]."""
        from XAICLIPLib.imaging.boxes import shift

        inner = shift(box, [-s.start for s in self.box])
        hidden, moved = self.hidden_points(number)
        weights = [
            self.along(axis, np.arange(s.start, s.stop, dtype=np.float64), moved[axis]).to(device)
            for axis, s in enumerate(inner)
        ]
        smooth = torch.einsum("abc,xa,yb,zc->xyz", hidden.to(device), *weights)
        if device not in self._regions:
            self._regions[device] = self.region.to(device)
        return smooth.mul_(self._regions[device][inner])

    def perturbation(self, number: int) -> Perturbation:
        """A pattern as data: nothing of it is made before it is scored."""
        return Perturbation(self.box, lambda box, device: self.strength(number, box, device))


class _Cells:
    """A fixed grid over the region's box, by which shifted patterns are compared."""

    def __init__(self, masks: _Masks) -> None:
        self.masks = masks
        self._edges = [
            np.minimum(np.arange(math.ceil(n / c) + 1) * c, n)
            for n, c in zip(masks.region.shape, masks.cell, strict=True)
        ]
        counts: NDArray[Any] = masks.region.numpy()
        for axis, edges in enumerate(self._edges):
            counts = np.add.reduceat(counts, edges[:-1], axis=axis, dtype=np.int64)
        self.inside = counts > 0
        centres = [(e[:-1] + e[1:] - 1) / 2 for e in self._edges]
        self._weights = [_between(count, c) for count, c in zip(masks.region.shape, centres, strict=True)]

    def __len__(self) -> int:
        """Cells that hold some of the region."""
        return int(self.inside.sum())

    def hidden(self, number: int) -> Array:
        """(cells,): the share of each cell that a pattern hides."""
        points, moved = self.masks.hidden_points(number)
        means = []
        for axis, edges in enumerate(self._edges):
            weights = self.masks.along(axis, np.arange(edges[-1], dtype=np.float64), moved[axis]).numpy()
            means.append(np.add.reduceat(weights, edges[:-1], axis=0) / np.diff(edges)[:, None])
        return np.asarray(np.einsum("abc,xa,yb,zc->xyz", points.numpy(), *means)[self.inside], dtype=np.float64)

    def interpolated(self, values: Array) -> Tensor:
        """(n,): values of the cells (J,) between the cells' centres, at each voxel of the region.

        Linear along each axis, flat in the outer half of an outer cell. A cell that holds nothing of the region has no
        value; the others around a voxel count for it.
        """
        grid = np.zeros(self.inside.shape)
        grid[self.inside] = values
        return self._at_voxels([(grid, self._weights)], power=1)

    def interpolated_variance(self, covariance: Array) -> Tensor:
        """(n,): the variance of `interpolated`, of values with a covariance (J, J).

        The product of the weights of two cells is again a product over the axes, of w² or of the w of two neighbours.
        """
        products = []
        for step in itertools.product((0, 1), repeat=3):
            pairs = [w[:, 1:] * w[:, :-1] if d else w**2 for w, d in zip(self._weights, step, strict=True)]
            products.append((self._covariance_of_neighbours(covariance, step), pairs))
        return self._at_voxels(products, power=2).clamp(min=0)

    def _covariance_of_neighbours(self, covariance: Array, step: Sequence[int]) -> Array:
        """The covariances, summed, of all two cells that span a box of one step or none along each axis."""
        numbers = np.full(self.inside.shape, -1)
        numbers[self.inside] = np.arange(len(self))
        shape = [int(size) - d for size, d in zip(self.inside.shape, step, strict=True)]
        total = np.zeros(shape)
        for corner in itertools.product(*(range(d + 1) for d in step)):
            one, other = (
                numbers[tuple(slice(a, a + n) for a, n in zip(at, shape, strict=True))]
                for at in (corner, [d - a for d, a in zip(step, corner, strict=True)])
            )
            total += np.where((one >= 0) & (other >= 0), covariance[one, other], 0)
        return total

    def _at_voxels(self, products: Sequence[tuple[Array, Sequence[Array]]], power: int) -> Tensor:
        """(n,): a sum of products over the axes, over the power of what the weights of the cells inside sum to.

        Each product is a grid of cells and, for each axis, weights (voxels, cells): one axis is multiplied after the
        other, layer by layer, so that no voxel has a list of its cells.
        """
        region, own = self.masks.region.numpy(), [(self.inside.astype(np.float64), self._weights)]
        layers, parts = max(1, VOXELS_AT_ONCE // max(1, math.prod(region.shape[1:]))), []
        for first in range(0, len(region), layers):
            layer = slice(first, first + layers)
            inside = region[layer]
            if inside.any():
                above, below = (sum(_product(grid, w, layer) for grid, w in part) for part in (products, own))
                parts.append((above[inside] / below[inside] ** power).astype(np.float32))
        return torch.from_numpy(np.concatenate(parts))


def _product(grid: Array, weights: Sequence[Array], layer: slice) -> Any:
    """(layer, Y, Z) of a grid of cells (a, b, c) and weights (X, a), (Y, b), (Z, c)."""
    x, y, z = weights
    by_layer = np.tensordot(x[layer], grid, 1)
    return np.matmul(np.matmul(y, by_layer), z.T)


def _between(count: int, centres: Array) -> Array:
    """(count, centres): the weight of each centre at each of ``count`` voxels, by linear interpolation."""
    at = np.interp(np.arange(count), centres, np.arange(len(centres)))
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(len(centres))))


@dataclass
class _Solution:
    """Coefficients of the cells (J,), their covariance (J, J), the ridge's strength and the fit."""

    coefficients: Array
    covariance: Array
    strength: float
    r2: float | None


@dataclass
class _Regression:
    """Ridge regression of the score lost on the hidden share of each cell."""

    cells: _Cells
    _rows: list[Array] = field(default_factory=list)
    _lost: list[float] = field(default_factory=list)
    _solved: tuple[int, _Solution] | None = None

    def add(self, number: int, lost: float) -> None:
        self._rows.append(self.cells.hidden(number))
        self._lost.append(lost)

    def saliency(self) -> Tensor:
        return self.cells.interpolated(self._solution().coefficients)

    def standard_error(self) -> Tensor:
        return self.cells.interpolated_variance(self._solution().covariance).sqrt()

    def findings(self) -> dict[str, Any]:
        return {"ridge_strength": self._solution().strength, "r2": self._solution().r2}

    def _solution(self) -> _Solution:
        if len(self._lost) < 2:  # the first batch of a large network may finish no pattern
            cells = len(self.cells)
            return _Solution(np.zeros(cells), np.zeros((cells, cells)), 0.0, None)
        if self._solved is None or self._solved[0] != len(self._lost):
            self._solved = len(self._lost), ridge_regression(np.stack(self._rows), np.array(self._lost))
        return self._solved[1]


def ridge_regression(design: Array, values: Array) -> _Solution:
    """Ridge regression with an intercept, strength by generalized cross-validation, and a robust covariance.

    Parameters
    ----------
    design
        (N, J).
    values
        (N,).

    Returns
    -------
    _Solution
        With the covariance by the sandwich HC3, which is the jackknife: the misfit of a linear model to a network
        depends on the pattern, and where N is near J or below the residuals are far smaller than the errors.
    """
    x, y = design - design.mean(axis=0), values - values.mean()
    left, size, right = np.linalg.svd(x, full_matrices=False)
    varying = size > 1e-10 * max(float(size[0]), 1e-12)  # with N patterns at most N - 1 directions vary
    left, size, right = left[:, varying], size[varying], right[varying]
    seen = left.T @ y
    scale = max(float((x**2).sum()) / x.shape[1], 1e-12)
    beyond = y - left @ seen  # what no linear model explains

    def validation(strength: float) -> float:
        shrunk = strength * scale / (size**2 + strength * scale)  # not 1 - kept, which would cancel
        residual = float(beyond @ beyond + (seen**2 * shrunk**2).sum())
        return residual / (len(y) - 1 - len(size) + float(shrunk.sum())) ** 2

    strength = float(min(RIDGES, key=validation))
    kept = size**2 / (size**2 + strength * scale)
    solver = right.T * (kept / size)  # (J, r): of left.T @ y the coefficients
    residual = y - left @ (kept * seen)
    leverage = (left**2 * kept).sum(axis=1) + 1 / len(y)
    spread = left * (residual / np.maximum(1 - leverage, ROUNDING))[:, None]
    covariance = solver @ (spread.T @ spread) @ solver.T
    determined = y.any() and len(y) > design.shape[1] + 1  # fewer patterns than cells can be fitted by anything
    r2 = 1 - float(residual @ residual) / float(y @ y) if determined else None
    return _Solution(solver @ seen, covariance, strength, r2)


class _Sums:
    """The plain and the debiased mean, voxel by voxel, as running sums over the patterns.

    Of a pattern with mask m (1 visible) and score s; s is 1 less what is lost, as if the whole volume scored 1.
    """

    def __init__(self, masks: _Masks, estimator: Estimator) -> None:
        self.masks, self.estimator = masks, estimator
        self.count, self._s, self._s2 = 0, 0.0, 0.0
        voxels = int(masks.region.sum())
        self._m, self._m2, self._sm, self._s2m, self._s2m2 = (
            torch.zeros(voxels, dtype=torch.float64) for _ in range(5)
        )

    def add(self, number: int, lost: float) -> None:
        strength = self.masks.strength(number, self.masks.box, torch.device("cpu"))
        mask = 1 - strength.masked_select(self.masks.region).double()
        score = 1 - lost
        self.count += 1
        self._s += score
        self._s2 += score**2
        self._m += mask
        self._sm.add_(mask, alpha=score)
        self._s2m.add_(mask, alpha=score**2)
        mask.square_()  # in place: of a whole body each copy is a gigabyte
        self._m2 += mask
        self._s2m2.add_(mask, alpha=score**2)

    def saliency(self) -> Tensor:
        if self.estimator == "mean":
            keep = self.masks.keep
            return ((self._sm / keep - self._s) / max(self.count, 1) / (1 - keep)).float()
        return self._slope().float()

    def standard_error(self) -> Tensor:
        n, keep = max(self.count, 3), self.masks.keep
        if self.estimator == "mean":  # of the mean over the patterns of (s m / p - s) / (1 - p)
            mean = (self._sm / keep - self._s) / n
            square = (self._s2m2 / keep**2 - 2 * self._s2m / keep + self._s2) / n
            return ((square - mean**2).clamp(min=0) / (n - 1)).sqrt().float() / (1 - keep)
        residual = (self._s2 - self._s**2 / n) - self._slope() ** 2 * self._variance()
        return (residual.clamp(min=0) / (n - 2) / self._variance()).sqrt().float()

    def findings(self) -> dict[str, Any]:
        return {}

    def _variance(self) -> Tensor:
        """Of the masks, times the number of patterns."""
        least = FLATTEST * self.masks.keep * (1 - self.masks.keep) * max(self.count, 1)
        return (self._m2 - self._m**2 / max(self.count, 1)).clamp(min=least)

    def _slope(self) -> Tensor:
        return (self._sm - self._s * self._m / max(self.count, 1)) / self._variance()


def _in_volume(values: Tensor, masks: _Masks) -> Tensor:
    """Values of the region's voxels (n,) as a volume (X, Y, Z), 0 elsewhere."""
    volume = torch.zeros(masks.shape)
    volume[masks.box].masked_scatter_(masks.region, values)
    return volume
