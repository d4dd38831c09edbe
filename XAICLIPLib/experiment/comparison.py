"""Guided against unguided: means over cases, and relative gains with intervals over cases, case by case in pairs.

Patients are the independent samples: the structures of one scan are averaged first, so that a case with many structures
does not count as many cases, and the interval is one for other patients.

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
"""Fewest cases from which anything is concluded."""

LARGEST = 300.0
"""Largest exponent, so that even the end of a huge interval is a finite number."""


@dataclass(frozen=True)
class Interval:
    """A number with its confidence interval.

    Attributes
    ----------
    value
        Over all cases.
    low, high
        Ends of the interval; None for a single case, which says nothing about other cases.
    cases
        Number of cases that it is based on.
    """

    value: float
    low: float | None
    high: float | None
    cases: int

    @property
    def sign(self) -> int:
        """1 if the whole interval lies above 0, -1 if below; 0 otherwise, and for fewer cases than `FEWEST`."""
        if self.low is None or self.high is None or self.cases < FEWEST:
            return 0
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Gains:
    """What guiding changes for one method. A change of -0.6 is 60% less; None if it is not defined.

    Attributes
    ----------
    method
        Name of the method.
    cases, maps
        Number of cases, and of pairs of a guided and an unguided map, that are compared.
    explain_time, total_time, patches
        Relative change of the cost.
    dice, iou
        Relative change of the paper's overlap with the organ.
    null_dice, null_iou
        The same for a control map, cut to the guided region, against the *explainer's* unguided map: the gain from the
        region alone.
    faithfulness
        Change of the area between insertion and deletion (not relative, because the area may be 0).
    outside, outside_chance
        Share of the unguided map's absolute effect that lies outside the guided region, and the share for a uniform
        map.
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
    """Compare the guided with the unguided maps of a method, where there are both; None if there are no such pairs."""
    pairs = paired_rows(rows, method)
    if not pairs:
        return None

    def change(quantity: Quantity, unguided: Quantity | None = None) -> Interval | None:
        return relative_change(*_by_case(pairs, quantity, unguided or quantity))

    faithfulness = _by_case(pairs, lambda row: row.faithfulness, lambda row: row.faithfulness)
    outside = _by_case(pairs, lambda row: row.outside, lambda row: row.outside)[1]
    return Gains(
        method,
        len({guided.case for guided, _ in pairs}),
        len(pairs),
        change(lambda row: row.explain_s),
        change(lambda row: row.total_s),
        change(lambda row: row.patches),
        change(lambda row: row.dice),
        change(lambda row: row.iou),
        change(lambda row: row.null_dice, lambda row: row.dice),
        change(lambda row: row.null_iou, lambda row: row.iou),
        difference(*faithfulness),
        mean_with_interval(outside),
        mean_over_cases([unguided for _, unguided in pairs], lambda row: row.outside_chance),
    )


def paired_rows(rows: Sequence[MapMeasurements], method: str) -> list[tuple[MapMeasurements, MapMeasurements]]:
    """The guided and the unguided map of each case and structure that has both."""
    by_region: dict[RegionName, dict[tuple[int, str], MapMeasurements]] = {"guided": {}, "whole": {}}
    for row in rows:
        if row.method == method:
            by_region[row.region][row.case, row.structure] = row
    whole = by_region["whole"]
    return [(row, whole[key]) for key, row in sorted(by_region["guided"].items()) if key in whole]


def mean_over_cases(rows: Sequence[MapMeasurements], quantity: Quantity) -> float:
    """Mean over the cases of the mean over each case's maps."""
    return float(np.mean([np.mean([quantity(row) for row in rows if row.case == case]) for case in _cases(rows)]))


def relative_change(guided: Array, unguided: Array) -> Interval | None:
    """Mean of ``guided`` over mean of ``unguided``, minus 1, with a 95% interval by Student's t.

    Parameters
    ----------
    guided, unguided
        (n,): one value for each case, in the same order.

    Returns
    -------
    Interval
        None if the mean of ``unguided`` is 0, because nothing is relative to 0.

    Notes
    -----
    The error of a ratio of means is that of the mean of ``guided - ratio * unguided`` over the cases (Cochran). The
    interval is computed for the logarithm of the ratio, which keeps it above -100%. In simulations with 3, 4 and 10
    cases it covered 95% for normal values, 94% if cases differ in size as organs do (lognormal, 0.4), and 87% if some
    are ten times as large as others (lognormal, 1).
    """
    numerator, denominator = float(guided.mean()), float(unguided.mean())
    if denominator == 0:
        return None
    ratio = numerator / denominator
    half = _half_width((guided - ratio * unguided) / denominator)
    if half is None:
        return Interval(ratio - 1, None, None, len(guided))
    if ratio <= 0:
        low, high = ratio - half, ratio + half
    else:
        factor = math.exp(min(half / ratio, LARGEST))
        low, high = ratio / factor, ratio * factor
    return Interval(ratio - 1, low - 1, high - 1, len(guided))


def difference(guided: Array, unguided: Array) -> Interval:
    """Mean of ``guided`` minus mean of ``unguided``; parameters as in `relative_change`."""
    return mean_with_interval(guided - unguided)


def mean_with_interval(values: Array) -> Interval:
    """Mean of values (n,), one for each case, with a 95% interval by Student's t, which covers 95% of normal values."""
    value, half = float(values.mean()), _half_width(values)
    if half is None:
        return Interval(value, None, None, len(values))
    return Interval(value, value - half, value + half, len(values))


def _half_width(values: Array) -> float | None:
    """Half the width of the interval of a mean; None for a single case."""
    count = len(values)
    if count < 2:
        return None
    # Differences at the level of rounding count as none.
    spread = float(values.std(ddof=1)) if np.ptp(values) > 1e-12 * np.abs(values).max() else 0.0
    return float(student.ppf((1 + LEVEL) / 2, count - 1)) * spread / math.sqrt(count)


def _by_case(
    pairs: Sequence[tuple[MapMeasurements, MapMeasurements]], guided: Quantity, unguided: Quantity
) -> tuple[Array, Array]:
    """Means over each case's structures, of the guided and of the unguided maps: (n,) and (n,)."""
    cases = _cases([row for row, _ in pairs])
    first = [np.mean([guided(row) for row, _ in pairs if row.case == case]) for case in cases]
    second = [np.mean([unguided(row) for _, row in pairs if row.case == case]) for case in cases]
    return np.array(first, np.float64), np.array(second, np.float64)


def _cases(rows: Sequence[MapMeasurements]) -> list[int]:
    return sorted({row.case for row in rows})
