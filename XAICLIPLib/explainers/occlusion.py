"""Occlusion: windows on a grid, each replaced by the baseline in turn.

References
----------
M. D. Zeiler, R. Fergus. "Visualizing and Understanding Convolutional Networks", ECCV 2014.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers.base import Captions, Estimate, Method, RunningMap, Scores, by, in_mm, in_voxels, size_for
from XAICLIPLib.explainers.parameters import parameter
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.system.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from XAICLIPLib.explainers.setting import Setting

    Array = NDArray[np.float64]
else:
    np, torch = lazy("numpy"), lazy("torch")

OVERLAP_IN_STRIDES = 2.0
"""To hide all of the target that a window can, or none of it, makes as much difference as this many strides."""

FEW = 12
"""Evaluated windows of which only the overlap with the target counts: their places are too few to tell of others."""

LEAST_OVERLAP = 0.02
"""A window that hides less of the target, as a share of the largest such share, may be extrapolated."""

DENSE, NEIGHBOURS = 3000, 48
"""Up to this many evaluated windows all of them tell of those in between, beyond it the nearest ones."""


@dataclass(frozen=True)
class Occlusion(Method):
    """Hide a cube, place after place: first on a coarse grid, then closely where the score moves."""

    name: ClassVar[str] = "occlusion"
    captions: ClassVar[Captions] = Captions("hidden cubes", "mean over the hidden cubes that hold a place")

    window_mm: float | None = parameter(
        None, "edge of the hidden cubes; default: by the size of the structure, 16 to 48", 1, 500, "mm"
    )
    stride_mm: float | None = parameter(
        None, "distance from one cube to the next, at most the edge; default: half of it", 0.5, 500, "mm"
    )
    exhaustive: bool = parameter(False, "evaluate every cube, also where a coarse grid already tells enough")
    tolerance: float = parameter(
        0.1,
        "look no closer when cubes lose what was expected, to this share of the largest effect; 0: every cube",
        0,
        # One round of refinement is always made; it was never further off than this, so that more would change nothing.
        0.2,
    )

    def check(self) -> None:
        """Refuse a stride that leaves gaps."""
        if self.window_mm and self.stride_mm and self.stride_mm > self.window_mm:
            raise InputError(
                f"stride_mm is {self.stride_mm:g}, more than window_mm, {self.window_mm:g}: that leaves gaps, give a "
                "shorter stride."
            )

    def sized_for(self, volume_ml: float) -> Occlusion:
        """With a window by the volume of the structure, and a stride of half of it."""
        window = self.window_mm or size_for(volume_ml)
        stride = self.stride_mm or window / 2
        if stride > window:
            raise InputError(
                f"stride_mm is {stride:g}, more than the window for this structure, {window:g} mm: that leaves gaps, "
                "give a shorter stride or a larger window_mm."
            )
        return replace(self, window_mm=window, stride_mm=stride)

    @property
    def reach_mm(self) -> float:
        """Half the window."""
        return (self.window_mm or 0.0) / 2

    def cautions(self, spacing_mm: Sequence[float]) -> list[str]:
        """See `cautions`."""
        assert self.window_mm is not None and self.stride_mm is not None
        return cautions(self.window_mm, self.stride_mm, self.exhaustive, spacing_mm)

    def estimates(self, setting: Setting, seed: int) -> Iterator[Estimate]:
        """See `occlusion`."""
        assert self.window_mm is not None and self.stride_mm is not None
        return occlusion(
            setting.scorer,
            setting.region & setting.changeable,
            setting.spacing_mm,
            window_mm=self.window_mm,
            stride_mm=self.stride_mm,
            exhaustive=self.exhaustive,
            tolerance=self.tolerance,
            target=setting.scorer.target.reference,
            changeable=setting.changeable,
        )


def cautions(window_mm: float, stride_mm: float, exhaustive: bool, spacing_mm: Sequence[float]) -> list[str]:
    """What a reader must know where the voxels are too coarse for the windows that were asked for."""
    size, stride = window_grid(window_mm, stride_mm, spacing_mm)
    used = f"windows of {by(in_mm(size, spacing_mm))} mm every {by(in_mm(stride, spacing_mm))} mm were used"
    lost = []
    if stride_mm < window_mm and any(n == step for n, step in zip(size, stride, strict=True)):
        lost.append("they do not overlap along every axis, so that the map is as coarse as they are")
    if not exhaustive and 2 * stride_mm <= window_mm and not _can_be_sparse(size, stride):
        lost.append("none lies between two others, so that every one was evaluated instead of coarse to fine")
    if not lost:
        return []
    return [
        f"The voxels of {by(list(spacing_mm))} mm on the network's grid are too coarse for windows of {window_mm:g} mm "
        f"every {stride_mm:g} mm: {used}; {', and '.join(lost)}. A larger window_mm avoids it."
    ]


def _can_be_sparse(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Windows that overlap by less than half have nothing between them to interpolate."""
    return all(2 * step <= n for step, n in zip(stride, size, strict=True))


def window_grid(
    window_mm: float, stride_mm: float, spacing_mm: Sequence[float]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Size and stride of windows in voxels.

    Where a window is asked to be two strides long, or any whole number of them, it is so in voxels too: rounded one by
    one, some places would lie in fewer windows than their neighbours, and be lines of another brightness in the map.
    """
    size, stride = in_voxels(window_mm, spacing_mm), in_voxels(stride_mm, spacing_mm)
    if math.isclose(window_mm / stride_mm, round(window_mm / stride_mm), rel_tol=1e-6):
        size = tuple(step * max(1, round(width / step)) for width, step in zip(size, stride, strict=True))
    return size, stride


def windows(region: Tensor, size: Sequence[int], stride: Sequence[int]) -> list[Perturbation]:
    """The windows of a grid over the volume that meet the region.

    A window that meets the region reaches up to its own size beyond it, so the context beside an organ is probed as
    well. The grid belongs to the volume, not to the region: guided and whole-volume occlusion evaluate the same
    windows where both do.

    Parameters
    ----------
    region
        (X, Y, Z) bool.
    size, stride
        Voxels along X, Y and Z. Windows are cut at the volume's border; the last one reaches it.
    """
    starts = [
        range(0, (math.ceil(max(0, extent - width) / step) + 1) * step, step)
        for extent, width, step in zip(region.shape, size, stride, strict=True)
    ]
    meeting = []
    for corner in itertools.product(*starts):
        box = tuple(
            slice(start, min(start + width, extent))
            for start, width, extent in zip(corner, size, region.shape, strict=True)
        )
        if bool(region[box].any()):
            meeting.append(Perturbation(box))
    return meeting


@dataclass(frozen=True)
class Windows:
    """The windows of an occlusion, and what is known before any is evaluated.

    Attributes
    ----------
    all
        Every window that meets the region and holds a voxel that can change.
    place
        (N, 3) float: each window's corner, in strides.
    overlap
        (N,) float: the share of the target that lies in each window, over the largest such share.
    coarse
        (N,) bool: whether it belongs to the coarse grid, which has every second place along each axis, and at the
        region's border those that lie between no two others and hide a part of the target.
    beyond
        (M, 3) float: places of the coarse grid just beyond those of the windows. They hide nothing of the target and
        are taken to lose nothing where it is interpolated, so that the map does not rise towards the region's border.
    of_air
        How many windows hold nothing that can change.
    """

    all: list[Perturbation]
    place: Array
    overlap: Array
    coarse: NDArray[np.bool_]
    beyond: Array
    of_air: int

    @classmethod
    def of(
        cls,
        region: Tensor,
        size: Sequence[int],
        stride: Sequence[int],
        target: Tensor | None,
        changeable: Tensor | None,
    ) -> Windows:
        """Lay out the windows over a region."""
        meeting = windows(region, size, stride)
        kept = meeting if changeable is None else [w for w in meeting if bool(changeable[w.box].any())]
        place = np.array([[s.start / step for s, step in zip(w.box, stride, strict=True)] for w in kept]).reshape(-1, 3)
        held = np.array([0.0 if target is None else float(target[w.box].sum()) for w in kept])
        places, overlap = np.round(place).astype(int), held / max(1.0, held.max(initial=0))
        coarse = (places % 2 == 0).all(axis=1)
        beyond = _just_beyond(places, size, stride, region.shape, target)
        # At the region's border a place may have nothing to be interpolated between; what is extrapolated is a guess,
        # and of windows that hide much of the target a bad one.
        coarse |= ~_bracketed(places, np.concatenate([places[coarse], beyond])) & (overlap > LEAST_OVERLAP)
        return cls(kept, place, overlap, coarse, beyond.astype(float), len(meeting) - len(kept))


def _just_beyond(
    places: NDArray[np.int64], size: Sequence[int], stride: Sequence[int], shape: Sequence[int], target: Tensor | None
) -> NDArray[np.int64]:
    """(M, 3): the coarse grid's places in the volume that are next to those given, and hide nothing of the target.

    Parameters
    ----------
    places
        (N, 3): the windows' corners in strides.
    size, stride, shape
        Of the windows and the volume, in voxels.
    target
        (X, Y, Z) bool.
    """
    steps = itertools.product((-1, 0, 1), repeat=3)
    around = {tuple(place) for step in steps for place in (places + np.array(step)).tolist()}
    most = [max(0, math.ceil((extent - width) / step)) for extent, width, step in zip(shape, size, stride, strict=True)]
    outside = []
    for place in sorted(around - {tuple(place) for place in places.tolist()}):
        if any(n % 2 for n in place) or not all(0 <= n <= last for n, last in zip(place, most, strict=True)):
            continue
        box = tuple(slice(n * step, n * step + width) for n, step, width in zip(place, stride, size, strict=True))
        if target is None or not bool(target[box].any()):
            outside.append(place)
    return np.array(outside, int).reshape(-1, 3)


def _bracketed(places: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,): whether each place lies between two known ones along every axis where it is not of the coarse grid itself.

    Parameters
    ----------
    places
        (N, 3) whole numbers from 0: the windows' corners in strides.
    known
        (M, 3): the same of those whose values will be known.
    """
    from scipy.ndimage import maximum_filter

    if not len(places):
        return np.ones(0, bool)
    grid = np.zeros(tuple(np.maximum(places.max(axis=0), known.max(axis=0, initial=0)) + 3), bool)
    grid[tuple(known.T + 1)] = True  # with an empty place around them
    between = np.ones(len(places), bool)
    for axis in range(places.shape[1]):
        beside = maximum_filter(grid, [1 if other == axis else 3 for other in range(places.shape[1])])
        step = np.eye(places.shape[1], dtype=int)[axis]
        both = beside[tuple((places + 1 - step).T)] & beside[tuple((places + 1 + step).T)]
        between &= both | (places[:, axis] % 2 == 0)
    return between


@dataclass
class _Known:
    """The scores lost that are known so far, and what they tell of the windows in between."""

    windows: Windows
    lost: Array
    evaluated: NDArray[np.bool_]

    @property
    def largest(self) -> float:
        return float(np.abs(self.lost[self.evaluated]).max(initial=0))

    def interpolated(self) -> Array:
        """(N,): what was evaluated, and for the other windows an interpolation of it.

        Radial basis functions of the window's place and of the share of the target that it hides: two windows that
        hide as much of the target lose alike. Exact at the evaluated windows.
        """
        known = self.lost[self.evaluated]
        result = self.lost.copy()
        if self.evaluated.all() or len(known) == 0:
            return result
        if len(known) < FEW:
            overlap = self.windows.overlap
            slope = np.ptp(overlap[self.evaluated]) > 0
            line = np.polyfit(overlap[self.evaluated], known, 1) if slope else [0.0, known.mean()]
            result[~self.evaluated] = np.polyval(line, overlap[~self.evaluated])
        else:
            at = np.column_stack([self.windows.place, OVERLAP_IN_STRIDES * self.windows.overlap])
            beyond = np.column_stack([self.windows.beyond, np.zeros(len(self.windows.beyond))])
            places = np.concatenate([at[self.evaluated], beyond])
            values = np.concatenate([known, np.zeros(len(beyond))])
            neighbours = None if len(values) <= DENSE else NEIGHBOURS
            result[~self.evaluated] = _radial_basis(places, values, at[~self.evaluated], neighbours)
        # No window is thought to matter more than every one that was tried.
        return np.clip(result, min(0, known.min()), max(0, known.max()))


def _radial_basis(at: Array, values: Array, others: Array, neighbours: int | None) -> Array:
    """Interpolate values (n) at places (n, d), all different, to others (m, d)."""
    from scipy.interpolate import RBFInterpolator

    spread = np.ptp(at, axis=0) > 0
    for degree in (1, 0):  # places in one plane have no slope across it
        with suppress(np.linalg.LinAlgError):
            model = RBFInterpolator(at[:, spread], values, neighbours, kernel="linear", degree=degree)
            return np.asarray(model(others[:, spread]), dtype=np.float64)
    return np.full(len(others), values.mean())


def occlusion(
    scorer: Scores,
    region: Tensor,
    spacing_mm: Sequence[float],
    *,
    window_mm: float,
    stride_mm: float,
    exhaustive: bool = False,
    tolerance: float = 0.1,
    target: Tensor | None = None,
    changeable: Tensor | None = None,
) -> Iterator[Estimate]:
    """Occlude window after window; the saliency of a voxel is the mean score lost over the windows that hold it.

    Coarse to fine: first the windows at every second place along each axis, in an order in which any first few range
    from those that hide most of the target to those that hide none of it. The others are interpolated, and evaluated
    in rounds, those with the largest effect first, until a round holds no surprise: its windows lost what had been
    expected of them. With ``exhaustive``, or a tolerance of 0, every window is evaluated.

    Yields an estimate after every network batch; the last one is complete. Close the iterator to cancel.

    Parameters
    ----------
    scorer
        What scores the perturbations, usually a `XAICLIPLib.scoring.scorer.Scorer`.
    region
        (X, Y, Z) bool, on the segmenter's grid; all true for the whole volume.
    spacing_mm
        Voxel size along X, Y and Z.
    window_mm, stride_mm
        Edge of the window and distance between windows.
    exhaustive
        Evaluate every window.
    tolerance
        Surprise (root mean square of a round) at which refinement stops, as a share of the largest score lost.
    target
        (X, Y, Z) bool: the target as predicted, by which windows are ordered and interpolated.
    changeable
        (X, Y, Z) bool: the voxels that perturbations can change, usually the body; the other ones are left out of the
        map, and windows that hold no other are skipped and counted.

    Raises
    ------
    InputError
        A size is no positive length, or the windows leave gaps between them.
    """
    if not 0 < stride_mm <= window_mm < math.inf:
        raise InputError(
            f"Windows of {window_mm:g} mm every {stride_mm:g} mm do not cover the region: "
            "both must be above zero and the stride at most the window."
        )
    size, stride = window_grid(window_mm, stride_mm, spacing_mm)
    grid = Windows.of(region.cpu(), size, stride, target, changeable)
    # A window that no patch of the target sees loses nothing, which is known at no cost.
    free = np.array([not scorer.touched(w) for w in grid.all], dtype=bool)
    known = _Known(grid, np.zeros(len(grid.all)), free.copy())
    sparse = not exhaustive and tolerance > 0 and _can_be_sparse(size, stride)
    used = {
        "window_mm_used": in_mm(size, spacing_mm),
        "stride_mm_used": in_mm(stride, spacing_mm),
        "coarse_to_fine": sparse,
    }
    running = _OcclusionMap(known, tuple(region.shape), changeable, free, used)

    chosen = np.flatnonzero(~known.evaluated & (grid.coarse | (not sparse)))
    if not len(chosen):  # all of the coarse grid costs nothing, or the region lies between its places
        chosen = np.flatnonzero(~known.evaluated)
    chosen = chosen[_spread_out(grid.overlap[chosen])]
    step = max(8, len(chosen) // 2)
    planned = min(len(chosen) + (2 * step if sparse else 0), len(grid.all) - int(free.sum()))
    expected = known.interpolated()
    while len(chosen):
        for batch in scorer.lost([grid.all[n] for n in chosen]):
            for number, value in batch:
                known.lost[chosen[number]], known.evaluated[chosen[number]] = value, True
            running.done += len(batch)
            yield Estimate(running.done, max(planned, running.done), running)
        off = known.lost[chosen] - expected[chosen]
        running.surprise = float(np.sqrt(np.mean(off**2))) / max(known.largest, 1e-12)
        left = np.flatnonzero(~known.evaluated)
        calm = running.rounds > 0 and running.surprise <= tolerance
        if not sparse or not len(left) or known.largest == 0 or calm:
            break
        running.rounds += 1
        expected = known.interpolated()
        chosen = left[np.argsort(-np.abs(expected[left]), kind="stable")][:step]
        planned = max(planned, running.done + len(chosen))
    running.finished = True
    yield Estimate(running.done, running.done, running)


@dataclass
class _OcclusionMap(RunningMap):
    """What the windows evaluated so far say.

    Attributes
    ----------
    known
        Their scores.
    shape, changeable
        Of the volume, and the voxels that can change.
    beyond
        (N,) bool: windows that no patch of the target sees, which lose nothing.
    used
        Findings that do not change: the sizes in whole voxels.
    done, rounds, surprise
        Windows evaluated, rounds of refinement, and how far the last round's windows were from what was expected.
    finished
        Whether no window will be evaluated any more.
    """

    known: _Known
    shape: tuple[int, ...]
    changeable: Tensor | None
    beyond: NDArray[np.bool_]
    used: Mapping[str, Any]
    done: int = 0
    rounds: int = 0
    surprise: float | None = None
    finished: bool = False

    def saliency(self) -> Tensor:
        """All windows, those between evaluated ones interpolated."""
        return self._mean(self.known.windows.all, self.known.interpolated())[0]

    def measured(self) -> Tensor:
        """Evaluated windows alone; at the end also those interpolated between them."""
        return self._measured()[0]

    def probed(self) -> Tensor:
        """Where `measured` knows something."""
        return self._measured()[1]

    def findings(self) -> dict[str, Any]:
        """How many windows there are, and what became of them."""
        windows = self.known.windows
        return {
            **self.used,
            "windows": len(windows.all) + windows.of_air,
            "windows_of_air": windows.of_air,
            "windows_beyond_the_target": int(self.beyond.sum()),
            "windows_evaluated": self.done,
            "windows_interpolated": int((~self.known.evaluated).sum()),
            "correlation_with_overlap": self._correlation_with_overlap(),
            "rounds_of_refinement": self.rounds,
            "surprise_of_last_round": self.surprise,
        }

    def _correlation_with_overlap(self) -> float | None:
        """Pearson correlation of the score lost with how much of the target a window hides: what needs no network.

        None where fewer than `FEW` windows were evaluated, or either is the same for all of them.
        """
        evaluated = self.known.evaluated & ~self.beyond
        lost, overlap = self.known.lost[evaluated], self.known.windows.overlap[evaluated]
        if len(lost) < FEW or np.ptp(lost) == 0 or np.ptp(overlap) == 0:
            return None
        return float(np.corrcoef(lost, overlap)[0, 1])

    def _measured(self) -> tuple[Tensor, Tensor]:
        if self.finished:
            return self._mean(self.known.windows.all, self.known.interpolated())
        evaluated = np.flatnonzero(self.known.evaluated)
        return self._mean([self.known.windows.all[n] for n in evaluated], self.known.lost[evaluated])

    def _mean(self, windows: list[Perturbation], lost: Array) -> tuple[Tensor, Tensor]:
        return _mean_over_windows(windows, lost, self.shape, self.changeable)


def _spread_out(overlap: Array) -> NDArray[np.int64]:
    """An order in which any first few windows range from those that hide most of the target to those that hide none."""
    ranked = np.argsort(-overlap, kind="stable")
    bits = max(1, math.ceil(math.log2(max(2, len(ranked)))))
    # van der Corput: the ranks with their binary digits reversed
    turned = [int(f"{n:0{bits}b}"[::-1], 2) for n in range(2**bits)]
    return ranked[[n for n in turned if n < len(ranked)]]


def _mean_over_windows(
    windows: list[Perturbation], lost: Array, shape: Sequence[int], changeable: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The mean over the windows that hold each voxel (0 where none does), and whether one does."""
    total, count = torch.zeros(tuple(shape)), torch.zeros(tuple(shape))
    for window, value in zip(windows, lost.tolist(), strict=True):
        total[window.box] += value
        count[window.box] += 1
    probed = count > 0 if changeable is None else (count > 0) & changeable
    # In place: of a whole body each copy is half a gigabyte.
    return total.div_(count.clamp_(min=1)).masked_fill_(~probed, 0.0), probed
