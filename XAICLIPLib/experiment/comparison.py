"""Guided against unguided: means over cases, and relative gains with intervals over cases, case by case in pairs.

A patient is the unit of chance: the structures of one scan are averaged first, so that a case with many of them does
not count as many cases, and the interval says what other patients might have given.

References
----------
Student. "The Probable Error of a Mean", Biometrika 1908.
W. G. Cochran. "Sampling Techniques", 1977, chapter 6 (ratio estimators).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from XAICLIPLib.experiment.map_measurements import MapMeasurements, RegionName

Array = NDArray[np.float64]
Quantity = Callable[[MapMeasurements], float]

LEVEL = 0.95

FEWEST = 3
"""Cases without which nothing is decided."""

LARGEST = 300.0
"""Of an exponent, so that an interval without an end is still a number."""


@dataclass(frozen=True)
class Interval:
    """A number with its confidence interval.

    Attributes
    ----------
    value
        Over all cases.
    low, high
        Ends of the interval; None where there is a single case, which says nothing of others.
    cases
        How many it is based on.
    """

    value: float
    low: float | None
    high: float | None
    cases: int

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies above or below 0; 0 otherwise, and for fewer cases than `FEWEST`."""
        if self.low is None or self.high is None or self.cases < FEWEST:
            return 0
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Gains:
    """What guiding changes for one method. A change of -0.6 is 60% less; None where it cannot be told.

    Attributes
    ----------
    method
        Its name.
    cases, maps
        Cases, and structures of all cases, that have both maps.
    explain_time, total_time, patches
        Relative change of the cost.
    dice, iou
        Relative change of the paper's overlap with the organ.
    null_dice, null_iou
        The same for a map that knows nothing, cut to the guided region, against the *explainer's* unguided map: what
        the region alone gains.
    faithfulness
        Change of the area between insertion and deletion (not relative, for it may be 0).
    outside, outside_chance
        Share of the unguided map's absolute effect that lies outside the guided region, and of an even map's.
    """

    method: str
    cases: int
    maps: int
    explain_time: Interval | None
    total_time: Interval | None
    patches: Interval | None
    dice: Interval | None
    iou: Interval | None
    null_dice: Interval | None
    null_iou: Interval | None
    faithfulness: Interval | None
    outside: Interval | None
    outside_chance: float


def gains(rows: Sequence[MapMeasurements], method: str) -> Gains | None:
    """Compare the guided with the unguided maps of a method, over what has both; None where nothing has."""
    both = paired_rows(rows, method)
    if not both:
        return None

    def change(quantity: Quantity, unguided: Quantity | None = None) -> Interval | None:
        return relative_change(*_by_case(both, quantity, unguided or quantity))

    faithful = _by_case(both, lambda row: row.faithfulness, lambda row: row.faithfulness)
    outside = _by_case(both, lambda row: row.outside, lambda row: row.outside)[1]
    return Gains(
        method,
        len({guided.case for guided, _ in both}),
        len(both),
        change(lambda row: row.explain_s),
        change(lambda row: row.total_s),
        change(lambda row: row.patches),
        change(lambda row: row.dice),
        change(lambda row: row.iou),
        change(lambda row: row.null_dice, lambda row: row.dice),
        change(lambda row: row.null_iou, lambda row: row.iou),
        difference(*faithful),
        mean_with_interval(outside),
        mean_over_cases([unguided for _, unguided in both], lambda row: row.outside_chance),
    )


def paired_rows(rows: Sequence[MapMeasurements], method: str) -> list[tuple[MapMeasurements, MapMeasurements]]:
    """The guided and the unguided map of each case and structure that has both."""
    found: dict[RegionName, dict[tuple[int, str], MapMeasurements]] = {"guided": {}, "whole": {}}
    for row in rows:
        if row.method == method:
            found[row.region][row.case, row.structure] = row
    return [(row, found["whole"][key]) for key, row in sorted(found["guided"].items()) if key in found["whole"]]


def mean_over_cases(rows: Sequence[MapMeasurements], quantity: Quantity) -> float:
    """Mean over the cases of the mean over each case's maps."""
    return float(np.mean([np.mean([quantity(row) for row in rows if row.case == case]) for case in _cases(rows)]))


def relative_change(guided: Array, unguided: Array) -> Interval | None:
    """Mean of ``guided`` over mean of ``unguided``, less 1, with a 95% interval by Student's t.

    Parameters
    ----------
    guided, unguided
        (n,): one value for each case, in the same order.

    Returns
    -------
    Interval
        None where the mean of ``unguided`` is 0, so that nothing is relative to it.

    Notes
    -----
    Of a ratio of means the error is that of the cases' deviations from it, ``guided - ratio * unguided`` (Cochran), and
    that of its logarithm relative to the ratio, which keeps the interval above -100%. Measured by simulation for 3, 4
    and 10 cases, it covers 95% of normal values and 94% where cases differ in size as organs do (lognormal, 0.4); 87%
    where some are ten times as large as others (lognormal, 1).
    """
    above, below = float(guided.mean()), float(unguided.mean())
    if below == 0:
        return None
    ratio = above / below
    half = _half_width((guided - ratio * unguided) / below)
    if half is None:
        return Interval(ratio - 1, None, None, len(guided))
    if ratio <= 0:
        low, high = ratio - half, ratio + half
    else:
        factor = math.exp(min(half / ratio, LARGEST))
        low, high = ratio / factor, ratio * factor
    return Interval(ratio - 1, low - 1, high - 1, len(guided))


def difference(guided: Array, unguided: Array) -> Interval:
    """Mean of ``guided`` less mean of ``unguided``; parameters as in `relative_change`."""
    return mean_with_interval(guided - unguided)


def mean_with_interval(values: Array) -> Interval:
    """Mean of values (n,), one for each case, with a 95% interval by Student's t, which covers 95% of normal values."""
    value, half = float(values.mean()), _half_width(values)
    if half is None:
        return Interval(value, None, None, len(values))
    return Interval(value, value - half, value + half, len(values))


def _half_width(values: Array) -> float | None:
    """Half the width of the interval of a mean; None where a single case says nothing of others."""
    count = len(values)
    if count < 2:
        return None
    # Cases that agree to rounding agree.
    spread = float(values.std(ddof=1)) if np.ptp(values) > 1e-12 * np.abs(values).max() else 0.0
    return float(student.ppf((1 + LEVEL) / 2, count - 1)) * spread / math.sqrt(count)


def _by_case(
    both: Sequence[tuple[MapMeasurements, MapMeasurements]], guided: Quantity, unguided: Quantity
) -> tuple[Array, Array]:
    """Means over each case's structures, of the guided and of the unguided maps: (n,) and (n,)."""
    cases = _cases([row for row, _ in both])
    first = [np.mean([guided(row) for row, _ in both if row.case == case]) for case in cases]
    second = [np.mean([unguided(row) for _, row in both if row.case == case]) for case in cases]
    return np.array(first, np.float64), np.array(second, np.float64)


def _cases(rows: Sequence[MapMeasurements]) -> list[int]:
    return sorted({row.case for row in rows})
