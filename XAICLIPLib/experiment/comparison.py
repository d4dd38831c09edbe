"""Guided against unguided: means over cases, and relative gains with intervals from a paired bootstrap over cases.

A patient is the unit of chance: the structures of one scan are averaged first, so that a case with many of them does
not count as many cases, and the interval says what other patients might have given.

References
----------
B. Efron, R. J. Tibshirani. "An Introduction to the Bootstrap", 1993, chapters 8 (pairs) and 13 (percentiles).
Student. "The Probable Error of a Mean", Biometrika 1908.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, ttest_1samp

from XAICLIPLib.experiment.measured import Measured, RegionName

Array = NDArray[np.float64]
Quantity = Callable[[Measured], float]

LEVEL = 0.95

FEWEST = 3
"""Cases without which nothing is decided."""

RESAMPLES = 9999


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
    decided
        Whether a paired t test over the cases rejects 0 as well: percentiles of a few cases alone would in every
        second or fifth comparison of pure chance.
    """

    value: float
    low: float | None
    high: float | None
    cases: int
    decided: bool = True

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies above or below 0 and the t test agrees; 0 otherwise."""
        if self.low is None or self.high is None or not self.decided:
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


def gains(rows: Sequence[Measured], method: str, seed: int = 0) -> Gains | None:
    """Compare the guided with the unguided maps of a method, over what has both; None where nothing has."""
    both = paired_rows(rows, method)
    if not both:
        return None

    def change(quantity: Quantity, unguided: Quantity | None = None) -> Interval | None:
        return relative_change(*_by_case(both, quantity, unguided or quantity), seed=seed)

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
        difference(*faithful, seed=seed),
        mean_with_interval(outside, seed=seed),
        mean_over_cases([unguided for _, unguided in both], lambda row: row.outside_chance),
    )


def paired_rows(rows: Sequence[Measured], method: str) -> list[tuple[Measured, Measured]]:
    """The guided and the unguided map of each case and structure that has both."""
    found: dict[RegionName, dict[tuple[int, str], Measured]] = {"guided": {}, "whole": {}}
    for row in rows:
        if row.method == method:
            found[row.region][row.case, row.structure] = row
    return [(row, found["whole"][key]) for key, row in sorted(found["guided"].items()) if key in found["whole"]]


def mean_over_cases(rows: Sequence[Measured], quantity: Quantity) -> float:
    """Mean over the cases of the mean over each case's maps."""
    return float(np.mean([np.mean([quantity(row) for row in rows if row.case == case]) for case in _cases(rows)]))


def relative_change(guided: Array, unguided: Array, *, seed: int = 0) -> Interval | None:
    """Mean of ``guided`` over mean of ``unguided``, less 1, with a 95% interval from a paired bootstrap.

    Parameters
    ----------
    guided, unguided
        (n,): one value for each case, in the same order.
    seed
        Of the resamples.

    Returns
    -------
    Interval
        None where the mean of ``unguided`` is 0, so that nothing is relative to it.
    """
    if unguided.mean() == 0:
        return None

    def statistic(a: Array, b: Array, axis: int = -1) -> Array:
        below = b.mean(axis)
        # A resample of cases that are all 0 has no ratio; it takes part as "no bound".
        ratio = np.divide(a.mean(axis), below, out=np.full_like(below, np.inf), where=below != 0)
        return np.asarray(ratio - 1)

    # A case of twice the size changes by twice as much, but not by another factor.
    factors = (guided > 0).all() and (unguided > 0).all()
    tested = np.log(guided) - np.log(unguided) if factors else guided - unguided
    return _with_interval((guided, unguided), statistic, tested, seed)


def difference(guided: Array, unguided: Array, *, seed: int = 0) -> Interval:
    """Mean of ``guided`` less mean of ``unguided``; parameters as in `relative_change`."""
    return mean_with_interval(guided - unguided, seed=seed)


def mean_with_interval(values: Array, *, seed: int = 0) -> Interval:
    """Mean of values (n,), one for each case."""
    return _with_interval((values,), lambda a, axis=-1: a.mean(axis), values, seed)


def _with_interval(
    samples: tuple[Array, ...], statistic: Callable[..., Array], differences: Array, seed: int
) -> Interval:
    """The statistic of all cases; ``differences`` (n,), of values or their logarithms, are what a t test is made of."""
    # Over an axis, as in the bootstrap: numpy adds a row of a matrix up in another order than a vector.
    value = float(statistic(*(s[None] for s in samples))[0])
    count = len(samples[0])
    if count < 2:
        return Interval(value, None, None, count)
    with np.errstate(invalid="ignore"):  # a ratio to 0 in a resample has no standard error
        found = bootstrap(
            samples,
            statistic,
            paired=True,
            vectorized=True,
            confidence_level=LEVEL,
            n_resamples=RESAMPLES,
            method="percentile",  # BCa, the default, has no answer where all cases agree, and few cases often do
            random_state=np.random.default_rng(seed),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    if not (math.isfinite(low) and math.isfinite(high)):
        return Interval(value, None, None, count)
    return Interval(value, low, high, count, _differ(differences))


def _differ(values: Array) -> bool:
    """Whether a t test over the cases rejects a mean of 0."""
    if len(values) < FEWEST:
        return False
    if np.ptp(values) <= 1e-12 * np.abs(values).max():  # no spread, no test
        return bool(values.any())
    return bool(ttest_1samp(values, 0).pvalue < 1 - LEVEL)


def _by_case(both: Sequence[tuple[Measured, Measured]], guided: Quantity, unguided: Quantity) -> tuple[Array, Array]:
    """Means over each case's structures, of the guided and of the unguided maps: (n,) and (n,)."""
    cases = _cases([row for row, _ in both])
    first = [np.mean([guided(row) for row, _ in both if row.case == case]) for case in cases]
    second = [np.mean([unguided(row) for _, row in both if row.case == case]) for case in cases]
    return np.array(first, np.float64), np.array(second, np.float64)


def _cases(rows: Sequence[Measured]) -> list[int]:
    return sorted({row.case for row in rows})
