"""RISE: the patterns, each estimator by hand, the standard error against the spread over seeds."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from planted import CUE, Planted, last, planted_scorer
from scipy.interpolate import RegularGridInterpolator
from sklearn.linear_model import Ridge
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers import rise as module
from XAICLIPLib.explainers.base import Estimate
from XAICLIPLib.explainers.rise import FEWEST, Estimator, _Cells, _Masks, ridge_regression, rise
from XAICLIPLib.scoring.perturbation import Perturbation

SHAPE = (22, 20, 16)
CPU = torch.device("cpu")
ESTIMATORS: tuple[Estimator, ...] = ("ridge", "debiased", "mean")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """For arrays as small as these, threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def region() -> Tensor:
    """A box with a corner missing."""
    found = torch.zeros(SHAPE, dtype=torch.bool)
    found[2:20, 3:18, 2:14] = True
    found[2:8, 3:8, 2:6] = False
    return found


def evidence(box: tuple[slice, ...] = (slice(7, 12), slice(8, 13), slice(7, 12))) -> Tensor:
    """(X, Y, Z): where a score comes from; all together is 1."""
    weight = torch.zeros(SHAPE)
    weight[box] = 1
    return weight / weight.sum()


class Rule:
    """A scorer that loses by a rule on the share of the evidence that is hidden, some patterns at a time.

    A large network's first batches finish no pattern (``slow``), and its scores come in any order (``shuffled``).
    """

    def __init__(
        self,
        rule: Callable[[float], float],
        weight: Tensor | None = None,
        slow: bool = False,
        shuffled: bool = False,
        together: int = 4,
    ) -> None:
        self.rule, self.slow, self.shuffled, self.together = rule, slow, shuffled, together
        self.weight = evidence() if weight is None else weight
        self.strengths: list[Tensor] = []

    def touched(self, perturbation: Perturbation) -> list[int]:
        return [0]

    def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
        batch: list[tuple[int, float]] = []
        if self.slow:
            yield []
        for number, perturbation in enumerate(perturbations):
            assert callable(perturbation.strength)
            strength = torch.zeros(SHAPE)
            strength[perturbation.box] = perturbation.strength(perturbation.box, CPU)
            self.strengths.append(strength)
            batch.append((number, self.rule(float((strength * self.weight).sum()))))
            if len(batch) == self.together:
                yield batch[::-1] if self.shuffled else batch
                batch = []
        if batch:
            yield batch


def additive(hidden: float) -> float:
    return 0.8 * hidden


def curved(hidden: float) -> float:
    return 0.9 * hidden**2 + 0.1 * hidden


def run(rule: Callable[[float], float], seed: int = 0, **options: object) -> Estimate:
    told: dict[str, object] = {"cell_mm": 5, "samples": 300, "wanted_error": 0.0} | options
    return last(rise(Rule(rule), region(), (1, 1, 1), seed=seed, **told))  # type: ignore[arg-type]


# The patterns


def masks(keep: float = 0.5, seed: int = 0) -> _Masks:
    return _Masks(region(), (5, 5, 5), keep, seed)


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_patterns_hide_their_share_smoothly_and_nothing_outside_the_region(keep: float) -> None:
    drawn = masks(keep)
    strengths = torch.stack([drawn.strength(n, drawn.box, CPU) for n in range(300)])
    assert float(strengths[:, drawn.region].mean()) == pytest.approx(1 - keep, abs=0.02)
    assert float(strengths[:, ~drawn.region].abs().max()) == 0
    assert 0 <= float(strengths.min()) <= float(strengths.max()) <= 1
    inner = drawn.region[:-1] & drawn.region[1:]
    steps = (strengths[:, 1:] - strengths[:, :-1]).abs()[:, inner]
    assert float(steps.max()) <= 1 / 5 + 1e-5, "from one point to the next in a cell's length"


def test_patterns_differ_in_points_and_in_shift_and_are_the_same_when_asked_again() -> None:
    shifts = {masks().hidden_points(n)[1] for n in range(20)}
    assert len(shifts) == 20
    assert all(0 <= s < 5 for shift in shifts for s in shift)
    assert torch.equal(masks().strength(3, masks().box, CPU), masks().strength(3, masks().box, CPU))
    assert not torch.equal(masks().strength(3, masks().box, CPU), masks(seed=1).strength(3, masks().box, CPU))


def test_a_pattern_is_interpolated_between_its_shifted_points() -> None:
    drawn = masks()
    hidden, moved = drawn.hidden_points(5)
    points = tuple(5.0 * np.arange(n) - m for n, m in zip(hidden.shape, moved, strict=True))
    voxels = np.argwhere(drawn.region.numpy()).astype(float)
    expected = RegularGridInterpolator(points, hidden.numpy().astype(float))(voxels)
    found = drawn.strength(5, drawn.box, CPU)[drawn.region]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert expected.std() > 0.1


def test_a_part_of_a_pattern_is_that_part_of_the_whole() -> None:
    drawn = masks()
    whole = drawn.strength(7, drawn.box, CPU)
    part = (slice(4, 11), slice(9, 10), slice(5, 13))
    inner = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, drawn.box, strict=True))
    torch.testing.assert_close(drawn.strength(7, part, CPU), whole[inner])


def test_a_cells_hidden_share_is_the_mean_over_its_voxels() -> None:
    drawn = masks()
    cells = _Cells(drawn)
    number = 11
    hidden, moved = drawn.hidden_points(number)
    weights = [drawn.along(a, np.arange(float(n)), moved[a]) for a, n in enumerate(drawn.region.shape)]
    smooth = torch.einsum("abc,xa,yb,zc->xyz", hidden, *weights).numpy()
    expected = [
        smooth[x : x + 5, y : y + 5, z : z + 5].mean()
        for x in range(0, 18, 5)
        for y in range(0, 15, 5)
        for z in range(0, 12, 5)
        if drawn.region[x : x + 5, y : y + 5, z : z + 5].any()
    ]
    assert cells.hidden(number) == pytest.approx(expected, abs=1e-5)


# The estimators by hand


@pytest.mark.parametrize("estimator", ["mean", "debiased"])
def test_voxelwise_estimators_are_what_their_formulas_say(estimator: Estimator) -> None:
    scorer = Rule(curved)
    estimate = last(
        rise(scorer, region(), (1, 1, 1), cell_mm=5, samples=60, keep=0.4, estimator=estimator, wanted_error=0)
    )
    mask = 1 - torch.stack(scorer.strengths).double().numpy()
    score = 1 - np.array([curved(float((s * scorer.weight).sum())) for s in scorer.strengths])
    if estimator == "mean":
        paper = (score[:, None, None, None] * mask).sum(0) / (60 * 0.4)  # Petsiuk et al. 2018, equation 6
        expected = (paper - score.mean()) / (1 - 0.4)
        each = (score[:, None, None, None] * mask / 0.4 - score[:, None, None, None]) / 0.6
        error = each.std(0, ddof=1) / np.sqrt(60)
    else:
        centred, deviation = mask - mask.mean(0), score - score.mean()
        spread = np.maximum((centred**2).sum(0), 1e-9)
        expected = (centred * deviation[:, None, None, None]).sum(0) / spread
        residual = deviation[:, None, None, None] - expected * centred
        error = np.sqrt((residual**2).sum(0) / 58 / spread)
    inside = region().numpy()
    assert estimate.saliency().numpy()[inside] == pytest.approx(expected[inside], abs=1e-5)
    assert estimate.standard_error() is not None
    assert estimate.standard_error().numpy()[inside] == pytest.approx(error[inside], abs=1e-5)
    assert float(estimate.saliency()[~region()].abs().max()) == 0


def test_the_ridge_is_scikit_learns_and_its_covariance_the_sandwich() -> None:
    rng = np.random.default_rng(0)
    design = rng.random((80, 12))
    values = design @ rng.random(12) + design[:, 0] ** 2 + 0.05 * rng.standard_normal(80)
    found = ridge_regression(design, values)
    x, y = design - design.mean(0), values - values.mean()
    alpha = found.strength * (x**2).sum() / 12
    assert found.coefficients == pytest.approx(Ridge(alpha=alpha).fit(design, values).coef_, abs=1e-8)
    inverse = np.linalg.inv(x.T @ x + alpha * np.eye(12))
    leverage = np.einsum("ij,jk,ik->i", x, inverse, x) + 1 / 80
    errors = (y - x @ found.coefficients) / (1 - leverage)
    expected = inverse @ (x.T * errors**2) @ x @ inverse
    assert found.covariance == pytest.approx(expected, rel=1e-6)
    assert found.r2 == pytest.approx(Ridge(alpha=alpha).fit(design, values).score(design, values), abs=1e-9)


def test_the_ridge_strength_is_that_of_the_least_cross_validation_error() -> None:
    """Pure noise is shrunk to nothing, a clean line hardly at all."""
    rng = np.random.default_rng(1)
    design = rng.random((60, 20))
    noise = ridge_regression(design, rng.standard_normal(60))
    clean = ridge_regression(design, design @ np.arange(20.0))
    assert noise.strength > 100 * clean.strength
    assert clean.coefficients == pytest.approx(np.arange(20.0), abs=1e-2)


def test_an_additive_function_is_recovered_in_place_and_size() -> None:
    """Each cell has its own worth, lost as far as the cell is hidden: at its centre that is the saliency."""
    box = torch.zeros(SHAPE, dtype=torch.bool)
    box[2:22, 3:18, 1:16] = True  # 4 × 3 × 3 cells of 5 voxels
    worth = np.random.default_rng(4).normal(size=(4, 3, 3))
    weight = torch.zeros(SHAPE)
    weight[box] = torch.from_numpy(np.kron(worth / 125, np.ones((5, 5, 5))).ravel()).float()
    estimate = last(rise(Rule(float, weight), box, (1, 1, 1), cell_mm=5, samples=150, wanted_error=0))
    found = estimate.saliency()
    np.testing.assert_allclose(found[4:22:5, 5:18:5, 3:16:5], worth, atol=2e-3)
    assert estimate.findings()["r2"] > 0.9999
    # Between the centres it is interpolated, and flat in the outer half of an outer cell.
    centres = (np.arange(4.0, 22, 5), np.arange(5.0, 18, 5), np.arange(3.0, 16, 5))
    voxels = np.argwhere(box.numpy())
    clipped = np.clip(voxels, [c[0] for c in centres], [c[-1] for c in centres])
    expected = RegularGridInterpolator(centres, worth)(clipped)
    assert np.corrcoef(found[box].numpy(), expected)[0, 1] > 0.999
    np.testing.assert_allclose(found[box].numpy(), expected, atol=2e-3)
    assert estimate.standard_error() is not None
    assert float(estimate.standard_error().max()) < 2e-3


def test_hiding_one_cell_costs_what_the_map_says_there() -> None:
    """Evidence that fills one cell exactly: hidden, it costs 0.8, and nothing else costs anything."""
    cell = (slice(7, 12), slice(8, 13), slice(7, 12))  # the second cell along each axis, from (2, 3, 2)
    saliency = run(additive, samples=400).saliency()
    centre = tuple((s.start + s.stop - 1) // 2 for s in cell)
    assert float(saliency[centre]) == pytest.approx(0.8, abs=0.01)
    beyond = torch.ones(SHAPE, dtype=torch.bool)
    beyond[4:15, 5:16, 4:15] = False  # the neighbours' centres
    assert float(saliency[beyond].abs().max()) < 0.01


def test_where_the_region_has_no_cell_none_takes_part() -> None:
    """Every cell of an L costs 1: so does every voxel, those beside the corner that the region lacks as well."""
    bent = torch.zeros(SHAPE, dtype=torch.bool)
    bent[2:17, 3:18, 2:12] = True
    bent[7:17, 8:18] = False
    estimate = last(rise(Rule(float, bent / 5**3), bent, (1, 1, 1), cell_mm=5, samples=80, wanted_error=0))
    assert estimate.findings()["cells"] == 10
    np.testing.assert_allclose(estimate.saliency()[bent], 1.0, atol=2e-3)
    assert float(estimate.saliency()[~bent].abs().max()) == 0


# Chance


def error_over_spread(estimator: Estimator, samples: int) -> float:
    """Root mean square of the standard error over the region, as a share of the spread of the map over 20 seeds."""
    runs = [run(curved, seed=seed, estimator=estimator, samples=samples) for seed in range(20)]
    maps = torch.stack([r.saliency()[region()] for r in runs])
    errors = torch.stack([r.standard_error()[region()] for r in runs if r.standard_error() is not None])
    assert len(errors) == 20
    return float(errors.square().mean().sqrt() / maps.var(0).mean().sqrt())


@pytest.mark.parametrize(("estimator", "samples"), [("ridge", 300), ("ridge", 110), ("debiased", 200), ("mean", 200)])
def test_the_standard_error_is_the_spread_over_seeds(estimator: Estimator, samples: int) -> None:
    assert error_over_spread(estimator, samples) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("estimator", "samples", "most"),
    [
        *(("ridge", 8, 1.5), ("ridge", 20, 1.7), ("ridge", 36, 3.0), ("ridge", 54, 1.4), ("ridge", 90, 1.25)),
        *(("debiased", 5, 1.2), ("mean", 5, 1.2)),
    ],
)
def test_few_patterns_are_not_taken_for_certain(estimator: Estimator, samples: int, most: float) -> None:
    """With fewer patterns than cells, 36, a fit goes through all scores: that says nothing of how sure it is."""
    assert 0.8 < error_over_spread(estimator, samples) < most


@pytest.mark.parametrize("samples", [20, 36])
def test_few_patterns_do_not_converge(samples: int) -> None:
    found = run(curved, samples=samples, wanted_error=0.05).findings()
    assert found["cells"] == 36
    assert found["stopped"] == "samples"
    assert found["relative_error"] > 0.05


def test_the_ridge_has_twenty_times_the_signal_to_noise_of_the_plain_mean() -> None:
    ratios = {}
    for estimator in ("ridge", "mean"):
        maps = torch.stack(
            [run(curved, seed=s, estimator=estimator, samples=250).saliency()[region()] for s in range(8)]
        )
        ratios[estimator] = float(maps.mean(0).var() / maps.var(0).mean())
    assert ratios["ridge"] > 20 * ratios["mean"]


def test_equal_seeds_give_equal_maps_and_the_random_state_of_others_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = (run(curved, seed=seed, samples=60).saliency() for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(3), expected)


# Running it


@pytest.mark.parametrize("estimator", ["ridge", "debiased"])
def test_a_network_that_ignores_its_input_has_no_saliency(estimator: Estimator) -> None:
    estimate = run(lambda hidden: 0.0, estimator=estimator, samples=200, wanted_error=0.05)
    assert float(estimate.saliency().abs().max()) == 0
    assert estimate.standard_error() is not None
    assert float(estimate.standard_error().max()) == 0
    assert estimate.findings()["relative_error"] == 0
    json.dumps(estimate.findings(), allow_nan=False)


def test_the_plain_mean_of_a_constant_score_is_chance_and_its_error_says_so() -> None:
    """The paper's formula makes a map of the masks alone: no other than what the standard error allows for."""
    estimate = run(lambda hidden: 0.0, estimator="mean", samples=200)
    assert estimate.standard_error() is not None
    saliency, error = (values[region()].double() for values in (estimate.saliency(), estimate.standard_error()))
    assert float(saliency.abs().max()) > 0.05
    assert 0.5 < float((saliency / error).square().mean().sqrt()) < 1.5
    assert estimate.findings()["stopped"] == "samples", "it never becomes sure of nothing"


def test_a_planted_cue_has_its_saliency() -> None:
    scorer = planted_scorer(Planted())
    everywhere = torch.ones(scorer.volume.shape[1:], dtype=torch.bool)
    saliency = last(rise(scorer, everywhere, (1, 1, 1), cell_mm=4, samples=800, wanted_error=0)).saliency()
    peak = np.unravel_index(int(saliency.argmax()), saliency.shape)
    assert all(s.start - 2 <= p < s.stop + 2 for p, s in zip(peak, CUE, strict=True))


def test_it_stops_when_it_is_sure_enough_and_says_so() -> None:
    sure = run(additive, samples=5000, wanted_error=0.05)
    assert sure.findings()["stopped"] == "converged"
    assert sure.done == sure.planned < 5000
    assert sure.findings()["relative_error"] < 0.05
    unsure = run(curved, samples=150, wanted_error=0.001)
    assert unsure.findings()["stopped"] == "samples"
    assert unsure.done == unsure.planned == 150


@pytest.mark.parametrize("cell_mm", [3, 4, 5, 6])
def test_it_stops_at_a_multiple_of_fifty_patterns(cell_mm: float) -> None:
    found = last(rise(Rule(additive), region(), (1, 1, 1), cell_mm=cell_mm, samples=5000, wanted_error=0.05))
    assert found.findings()["stopped"] == "converged"
    assert found.done % 50 == 0 and found.done >= 3 * found.findings()["cells"]


def test_the_cell_that_was_used_is_told() -> None:
    found = last(rise(Rule(additive), region(), (1, 1, 4), cell_mm=5, samples=60))
    assert found.findings()["cell_mm_used"] == [5, 5, 4]


@pytest.mark.parametrize("together", [1, 7, 64])
@pytest.mark.parametrize("shuffled", [False, True])
def test_where_it_stops_does_not_hang_on_the_size_of_the_batches(together: int, shuffled: bool) -> None:
    options: dict[str, Any] = {"cell_mm": 5, "samples": 5000, "wanted_error": 0.05}
    expected = last(rise(Rule(additive), region(), (1, 1, 1), **options))
    found = last(rise(Rule(additive, shuffled=shuffled, together=together), region(), (1, 1, 1), **options))
    assert found.done == expected.done < 5000
    assert torch.equal(found.saliency(), expected.saliency())


def test_the_error_that_is_reached_is_that_of_the_maps() -> None:
    estimate = run(curved, samples=150)
    assert estimate.standard_error() is not None
    error, saliency = estimate.standard_error()[region()], estimate.saliency()
    expected = float(error.square().mean().sqrt() / saliency.abs().max())
    assert estimate.findings()["relative_error"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_cancelling_keeps_what_is_known(estimator: Estimator) -> None:
    running = rise(Rule(curved, slow=True), region(), (1, 1, 1), cell_mm=5, samples=300, estimator=estimator)
    seen = []
    for estimate in itertools.islice(running, 6):
        seen.append(estimate.done)
        assert estimate.planned == 300
        saliency = estimate.saliency()
        assert saliency.shape == SHAPE
        assert float(saliency.abs().max()) < 5, "a score of at most 1 is not lost many times over"  # false for NaN
        assert torch.equal(estimate.probed(), region() if estimate.done else torch.zeros_like(region()))
        assert (estimate.standard_error() is not None) == (estimate.done >= FEWEST)
        if estimate.standard_error() is not None:
            assert bool(torch.isfinite(estimate.standard_error()).all())
            assert float(estimate.standard_error()[region()].min()) > 0
        assert estimate.findings()["stopped"] is None
        json.dumps(estimate.findings(), allow_nan=False)
    assert seen == [0, 4, 8, 12, 16, 20]
    running.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scores_may_come_in_any_order(estimator: Estimator) -> None:
    told: dict[str, Any] = {"cell_mm": 5, "samples": 80, "estimator": estimator, "wanted_error": 0}
    maps = [last(rise(Rule(curved, shuffled=s), region(), (1, 1, 1), **told)).saliency() for s in (False, True)]
    torch.testing.assert_close(maps[0], maps[1])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("samples", [2, 3])
def test_two_patterns_are_a_result_without_an_error(samples: int, estimator: Estimator) -> None:
    estimate = run(curved, samples=samples, estimator=estimator, wanted_error=0.05)
    assert estimate.done == estimate.planned == samples
    assert estimate.standard_error() is None
    assert estimate.findings()["relative_error"] is None
    assert estimate.findings()["stopped"] == "samples"
    assert bool(torch.isfinite(estimate.saliency()).all())


def test_an_empty_region_has_a_complete_estimate_of_nothing_and_no_cell_is_refused() -> None:
    estimate = last(rise(Rule(curved), torch.zeros(SHAPE, dtype=torch.bool), (1, 1, 1), cell_mm=5, samples=10))
    assert (estimate.done, estimate.planned) == (0, 0)
    assert float(estimate.saliency().abs().max()) == 0
    with pytest.raises(InputError, match="Cells of 0 mm"):
        last(rise(Rule(curved), region(), (1, 1, 1), cell_mm=0, samples=10))


def test_a_region_smaller_than_a_cell_has_one_cell() -> None:
    small = torch.zeros(SHAPE, dtype=torch.bool)
    small[9:11, 9:11, 9:10] = True
    estimate = last(rise(Rule(additive), small, (1, 1, 1), cell_mm=5, samples=60, wanted_error=0))
    assert estimate.findings()["cells"] == 1
    assert bool(torch.isfinite(estimate.saliency()).all())


def test_with_fewer_patterns_than_cells_the_noise_is_not_taken_for_a_map() -> None:
    """A strength of nearly nothing would fit any scores exactly."""
    rng = np.random.default_rng(3)
    strengths, sizes = [], []
    for _ in range(8):
        design, truth = rng.random((100, 120)), np.zeros(120)
        truth[:5] = 1
        found = ridge_regression(design, design @ truth + 0.3 * rng.standard_normal(100))
        strengths.append(found.strength)
        sizes.append(float(np.linalg.norm(found.coefficients)))
        assert found.r2 is None
    assert min(strengths) > 1e-2
    assert max(sizes) < 2 * np.sqrt(5)


def test_before_anything_is_known_the_map_is_empty_and_nothing_breaks() -> None:
    estimates = rise(Rule(curved, slow=True), region(), (1, 1, 1), cell_mm=5, samples=8)
    first = next(estimates)
    assert first.done == 0
    assert float(first.saliency().abs().max()) == 0
    assert first.standard_error() is None
    assert first.findings()["r2"] is None


@pytest.mark.parametrize("at_once", [1, 10**6])
@pytest.mark.parametrize("cell", [(5, 4, 3), (30, 4, 7), (30, 30, 30)])
def test_map_and_error_are_those_of_a_list_of_cells_for_each_voxel(
    cell: tuple[int, int, int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the definition, voxel by voxel: hats between the centres, shared among the cells that hold the region."""
    monkeypatch.setattr(module, "VOXELS_AT_ONCE", at_once)
    some = region()
    some[2:20, 3:18, 8:14] = torch.rand((18, 15, 6), generator=torch.Generator().manual_seed(1)) > 0.97
    cells = _Cells(_Masks(some, cell, 0.5, 0))
    draws = np.random.default_rng(0)
    values, root = draws.normal(size=len(cells)), draws.normal(size=(len(cells), len(cells) + 2))
    sides = [np.minimum(np.arange(math.ceil(n / c) + 1) * c, n) for n, c in zip((18, 15, 12), cell, strict=True)]
    grids = []
    for edges in sides:
        centres = (edges[:-1] + edges[1:] - 1) / 2
        grids.append([np.interp(np.arange(edges[-1]), centres, row) for row in np.eye(len(centres))])
    weights = np.array(
        [
            (grids[0][a][:, None, None] * grids[1][b][:, None] * grids[2][c])[some[2:20, 3:18, 2:14].numpy()]
            for a, b, c in np.argwhere(cells.inside)
        ]
    )
    weights /= weights.sum(axis=0)
    covariance = root @ root.T
    expected = np.einsum("an,ab,bn->n", weights, covariance, weights)
    assert cells.interpolated(values).numpy() == pytest.approx(values @ weights, abs=5e-7)
    assert cells.interpolated_variance(covariance).numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_map_of_a_whole_body_takes_few_bytes_a_voxel() -> None:
    """It was 519 bytes, of a list of eight cells for each voxel."""
    code = """
import numpy as np, torch
from XAICLIPLib.explainers.rise import _Cells, _Masks, _Regression
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024
def both(n):
    fit = _Regression(_Cells(_Masks(torch.ones((n, n, n), dtype=torch.bool), (n // 4,) * 3, 0.5, 0)))
    for number in range(8):
        fit.add(number, float(number % 3))
    return fit.saliency(), fit.standard_error()
both(20)
before = peak()
both(160)
print((peak() - before) / 160**3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40
