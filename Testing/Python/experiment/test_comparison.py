"""Gains and their intervals, against numbers worked out by hand and distributions that are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from XAICLIPLib.experiment.comparison import (
    Interval,
    difference,
    gains,
    mean_over_cases,
    mean_with_interval,
    paired_rows,
    relative_change,
)
from XAICLIPLib.experiment.map_measurements import MapMeasurements

EMPTY = MapMeasurements(
    case=1,
    structure="liver",
    method="occlusion",
    region="guided",
    region_source="guided",
    explain_s=10.0,
    total_s=20.0,
    perturbations=100,
    patches=200,
    score=0.9,
    dice=0.6,
    iou=0.4,
    null="uniform",
    null_dice=0.7,
    null_iou=0.5,
    deletion=0.3,
    insertion=0.6,
    random_deletion=0.5,
    random_insertion=0.4,
    pointing=1.0,
    pointing_chance=0.02,
    mass=0.5,
    mass_chance=0.02,
    outside=0.0,
    outside_chance=0.9,
    machine="a machine",
)


def row(case: int, region: str, structure: str = "liver", **numbers: Any) -> MapMeasurements:
    return replace(EMPTY, case=case, region=region, structure=structure, **numbers)


def test_gains_are_those_worked_out_by_hand() -> None:
    rows = [
        row(1, "guided", dice=0.6, null_dice=0.8, iou=0.4, explain_s=10.0, patches=100, insertion=0.7, deletion=0.2),
        row(1, "whole", dice=0.4, null_dice=0.1, iou=0.2, explain_s=50.0, patches=400, insertion=0.6, deletion=0.2),
        row(2, "guided", dice=0.8, null_dice=0.7, iou=0.6, explain_s=20.0, patches=100, insertion=0.7, deletion=0.3),
        row(2, "whole", dice=0.4, null_dice=0.1, iou=0.2, explain_s=50.0, patches=400, insertion=0.6, deletion=0.3),
    ]
    rows = [replace(r, outside=0.25 * r.case) if r.region == "whole" else r for r in rows]
    found = gains(rows, "occlusion")
    assert found is not None and (found.cases, found.maps) == (2, 2)
    assert all(isinstance(i, Interval) for i in (found.dice, found.explain_time, found.outside))
    values = {name: getattr(found, name).value for name in ("dice", "iou", "null_dice", "explain_time", "patches")}
    assert values == pytest.approx(
        {"dice": 1.4 / 0.8 - 1, "iou": 1.5, "null_dice": 1.5 / 0.8 - 1, "explain_time": -0.7, "patches": -0.75}
    )
    assert found.faithfulness is not None and found.faithfulness.value == pytest.approx(0.1)
    assert found.outside is not None and found.outside.value == pytest.approx(0.375)


def test_a_case_with_many_structures_counts_as_one() -> None:
    rows = [row(1, region, f"s{n}", dice=d) for n in range(3) for region, d in (("guided", 0.9), ("whole", 0.3))]
    rows += [row(2, "guided", "s0", dice=0.3), row(2, "whole", "s0", dice=0.3)]
    found = gains(rows, "occlusion")
    assert found is not None and found.dice is not None
    assert found.dice.value == pytest.approx(0.6 / 0.3 - 1)
    assert (found.cases, found.maps) == (2, 4)
    guided = [r for r in rows if r.region == "guided"]
    assert mean_over_cases(guided, lambda r: r.dice) == pytest.approx(0.6)


def test_only_what_has_both_maps_is_compared() -> None:
    rows = [row(1, "guided"), row(1, "whole"), row(2, "guided", dice=99.0), row(3, "whole", dice=99.0)]
    rows += [row(1, "whole", "spleen", dice=99.0), replace(row(2, "whole"), method="rise")]
    assert [(a.case, a.structure, b.region) for a, b in paired_rows(rows, "occlusion")] == [(1, "liver", "whole")]
    assert gains(rows, "lime") is None
    found = gains(rows, "occlusion")
    assert found is not None and found.cases == 1 and found.dice is not None
    assert (found.dice.low, found.dice.high, found.dice.sign) == (None, None, 0), "one case says nothing of others"


def test_the_interval_of_a_ratio_is_that_worked_out_by_hand() -> None:
    guided, whole = np.array([1.0, 2.0, 4.0, 3.0]), np.array([4.0, 5.0, 7.0, 9.0])
    found = relative_change(guided, whole)
    assert found is not None and found.low is not None and found.high is not None
    assert found.value == pytest.approx(10 / 25 - 1)
    # Deviations from 0.4 times the whole: -0.6, 0, 1.2, -0.6; standard error sqrt(2.16 / 3 / 4) of a mean of 2.5.
    factor = np.exp(3.182446 * np.sqrt(2.16 / 3 / 4) / 2.5)
    assert (found.low, found.high) == pytest.approx((0.4 / factor - 1, 0.4 * factor - 1), rel=1e-5)
    assert (found.sign, found.cases) == (-1, 4)


def cover(found: list[Interval | None], truth: float) -> float:
    return float(np.mean([i is not None and i.low is not None and i.low <= truth <= i.high for i in found]))


@pytest.mark.parametrize("cases", [3, 4, 10])
def test_intervals_cover_what_they_say(cases: int) -> None:
    """Percentiles of a bootstrap covered 72%, 80% and 89%."""
    rng = np.random.default_rng(cases)
    means = [mean_with_interval(values) for values in rng.normal(2.0, 1.0, (4000, cases))]
    assert cover(means, 2.0) == pytest.approx(0.95, abs=0.012)
    size = rng.lognormal(0, 0.4, (4000, cases))
    pairs = 0.5 * size * rng.lognormal(0, 0.2, size.shape), size * rng.lognormal(0, 0.2, size.shape)
    assert 0.92 < cover([relative_change(a, b) for a, b in zip(*pairs, strict=True)], -0.5) < 0.965


def test_t_intervals_are_scipys() -> None:
    values = np.random.default_rng(5).normal(size=7)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_with_interval(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_a_mean_is_the_normal_one_for_many_cases() -> None:
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    found = mean_with_interval(values)
    assert found.low is not None and found.high is not None
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_pairs_stay_together() -> None:
    # Cases differ by a factor of a thousand, guided is always half: unpaired resamples would not know it.
    whole = np.array([1.0, 10.0, 100.0, 1000.0])
    found = relative_change(whole / 2, whole)
    assert found is not None and (found.low, found.high) == pytest.approx((-0.5, -0.5))
    apart = difference(whole - 1, whole)
    assert (apart.low, apart.high) == pytest.approx((-1, -1))


def test_nothing_is_relative_to_zero() -> None:
    assert relative_change(np.array([1.0, 2.0]), np.zeros(2)) is None
    half = relative_change(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    assert half is not None and half.value == 2.0 and half.sign == 0
    assert half.low is not None and half.low < -0.9 and half.high is not None and half.high > 1000
    lost = relative_change(np.zeros(3), np.array([1.0, 2.0, 3.0]))
    assert lost is not None and (lost.value, lost.low, lost.high) == (-1, -1, -1)


@pytest.mark.parametrize("cases", [2, 3, 4, 8])
def test_chance_alone_is_seldom_called_a_difference(cases: int) -> None:
    """Of two cases nothing is decided, of more one comparison in twenty."""
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(120, cases))
    decided = [difference(values, np.zeros(cases)).sign != 0 for values in noise]
    assert np.mean(decided) < 0.1
    assert difference(noise[0] + 50, np.zeros(cases)).sign == (1 if cases > 2 else 0)
