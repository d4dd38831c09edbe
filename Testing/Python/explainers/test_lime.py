"""LIME and kernel SHAP: what is known is recovered, and what is estimated is as uncertain as it says."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
import torch
from captum.attr import ShapleyValueSampling
from numpy.typing import NDArray
from planted import CUE, SHAPE, Blind, Planted, Rule, blocks, last, planted_scorer, values
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers.lime import Kernel, lime
from XAICLIPLib.explainers.pieces.coalitions import exponential_weight
from XAICLIPLib.scoring.perturbation import Perturbation

KERNELS: tuple[Kernel, ...] = ("exponential", "shap")


def row(pieces: int) -> Tensor:
    """(2 M + 1, 1, 1): a volume of pieces of two voxels, and one voxel of none."""
    return torch.cat([torch.arange(1, pieces + 1).repeat_interleave(2), torch.zeros(1)]).long()[:, None, None]


def curved(removed: NDArray[np.bool_]) -> float:
    """Neither additive nor symmetric: products, and a sigmoid over all."""
    z = removed.astype(float)
    inner = 1.5 * z[0] - 0.7 * z[1] + 2 * z[2] * z[3] + z[0] * z[-1] + np.linspace(0, 1, len(z)) @ z
    return float(1 / (1 + np.exp(1 - inner)) - 1 / (1 + np.e))


def shapley_values(pieces: int, rule: Callable[[NDArray[np.bool_]], float]) -> NDArray[np.float64]:
    """The definition: the mean, over all orders, of what each piece adds when its turn comes."""
    total = np.zeros(pieces)
    for order in itertools.permutations(range(pieces)):
        removed = np.zeros(pieces, np.bool_)
        before = 0.0
        for piece in order:
            removed[piece] = True
            after = rule(removed)
            total[piece] += after - before
            before = after
    return total / math.factorial(pieces)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("pieces", "samples"), [(1, None), (3, None), (25, None), (25, 60)])
def test_an_additive_function_is_recovered(kernel: Kernel, pieces: int, samples: int | None) -> None:
    worth = np.random.default_rng(0).normal(size=pieces)
    labels = row(pieces)
    estimate = last(lime(Rule(labels, lambda z: float(worth[z].sum())), labels, samples=samples, kernel=kernel))
    np.testing.assert_allclose(values(estimate.saliency(), labels), worth, atol=1e-4)
    found = estimate.findings()
    assert found["pieces"] == pieces
    assert found["samples"] == estimate.done == estimate.planned
    assert found["intercept"] == pytest.approx(0, abs=1e-4)
    assert found["completeness_gap"] == pytest.approx(0, abs=1e-4)
    assert found["removing_all"] == pytest.approx(worth.sum())
    if pieces > 1:
        assert found["r2"] == pytest.approx(1, abs=1e-6)
    assert json.loads(json.dumps(found)) == found


def test_kernel_shap_over_all_sets_gives_shapley_values() -> None:
    labels = row(6)
    estimate = last(lime(Rule(labels, curved), labels, kernel="shap"))
    expected = shapley_values(6, curved)
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(values(estimate.saliency(), labels), expected, atol=1e-5)
    assert estimate.done == 2**6 - 1
    assert estimate.standard_error() is None, "nothing was left to chance"


def test_kernel_shap_agrees_with_captums_shapley_values() -> None:
    labels = row(6)

    def score_lost(kept: Tensor) -> Tensor:
        return torch.tensor([-curved(~item.bool().numpy()) for item in kept])

    torch.manual_seed(0)
    sampled = ShapleyValueSampling(score_lost).attribute(
        torch.ones(1, 6), baselines=torch.zeros(1, 6), n_samples=1500, perturbations_per_eval=1
    )
    estimate = last(lime(Rule(labels, curved), labels, kernel="shap"))
    np.testing.assert_allclose(values(estimate.saliency(), labels), sampled[0].numpy(), atol=0.01)


def test_sampled_kernel_shap_lies_around_the_shapley_values() -> None:
    pieces = 10
    labels = row(pieces)

    def rule(removed: NDArray[np.bool_]) -> float:
        return curved(removed)

    everything = last(lime(Rule(labels, rule), labels, samples=2**pieces, kernel="shap"))
    exact = values(everything.saliency(), labels)
    runs = []
    for seed in range(20):
        estimate = last(lime(Rule(labels, rule), labels, samples=100, kernel="shap", seed=seed))
        runs.append(values(estimate.saliency(), labels))
        assert estimate.findings()["completeness_gap"] < 1e-4
    spread = np.std(runs, axis=0, ddof=1)
    assert np.abs(np.mean(runs, axis=0) - exact).max() < 4 * spread.max() / math.sqrt(20)
    assert spread.max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_standard_error_is_the_spread_over_seeds(kernel: Kernel) -> None:
    labels = row(14)
    runs, errors = [], []
    for seed in range(20):
        estimate = last(lime(Rule(labels, curved, batch=500), labels, samples=84, kernel=kernel, seed=seed))
        assert estimate.standard_error() is not None
        runs.append(values(estimate.saliency(), labels))
        errors.append(values(estimate.standard_error(), labels))
    observed = math.sqrt(np.var(runs, axis=0, ddof=1).mean())
    reported = math.sqrt(np.square(errors).mean())
    assert reported == pytest.approx(observed, rel=0.25)


def test_limes_coefficients_are_those_of_weighted_least_squares_by_hand() -> None:
    labels = row(5)
    scorer = Rule(labels, curved)
    estimate = last(lime(scorer, labels))
    removed = np.array([*scorer.asked, (False,) * 5])
    assert len({*map(tuple, removed.tolist())}) == 32, "all sets, with the unperturbed one"
    known = np.array([curved(z) for z in removed])
    weight = exponential_weight(removed)
    design = np.c_[np.ones(32), removed]
    expected = np.linalg.solve(design.T @ np.diag(weight) @ design, design.T @ (weight * known))
    np.testing.assert_allclose(values(estimate.saliency(), labels), expected[1:], atol=1e-6)
    found = estimate.findings()
    assert found["intercept"] == pytest.approx(expected[0], abs=1e-6)
    residual = known - design @ expected
    others = np.arange(32) > 0
    w, y = weight[others], known[others]
    total = (w * (y - (w * y).sum() / w.sum()) ** 2).sum()
    assert found["r2"] == pytest.approx(1 - (w * residual[others] ** 2).sum() / total, abs=1e-6)
    assert 0.3 < found["r2"] < 0.999
    assert found["completeness_gap"] == pytest.approx(abs(expected[1:].sum() - curved(np.ones(5, np.bool_))), abs=1e-6)
    assert found["completeness_gap"] > 0.01


@pytest.mark.parametrize("kernel", KERNELS)
def test_scores_may_come_in_any_order(kernel: Kernel) -> None:
    labels = row(12)
    results = [
        last(lime(Rule(labels, curved, shuffled=shuffled), labels, kernel=kernel)).saliency()
        for shuffled in (False, True)
    ]
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_running_estimates_are_finite_and_come_closer(kernel: Kernel) -> None:
    labels = row(20)
    worth = np.random.default_rng(1).normal(size=20)
    far, done = [], []
    for estimate in lime(Rule(labels, lambda z: float(worth[z].sum())), labels, kernel=kernel):
        found = values(estimate.saliency(), labels)
        assert np.isfinite(found).all()
        assert torch.equal(estimate.probed(), labels > 0)
        if estimate.standard_error() is not None:
            assert bool(estimate.standard_error().isfinite().all())
        json.dumps(estimate.findings(), allow_nan=False)
        far.append(float(np.abs(found - worth).mean()))
        done.append(estimate.done)
    assert done == sorted(set(done))
    assert done[-1] == estimate.planned
    assert far[0] > far[2] > far[-1]
    assert far[len(far) // 2] < 1e-4, "half of the samples suffice for an additive function"


@pytest.mark.parametrize("kernel", KERNELS)
def test_before_a_set_is_scored_nothing_is_known(kernel: Kernel) -> None:
    """The first batch of a large network may finish no set."""

    class Slow(Rule):
        def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
            yield []
            yield from super().lost(perturbations)

    labels = row(20)
    estimate = next(iter(lime(Slow(labels, curved), labels, kernel=kernel)))
    assert estimate.done == 0 < estimate.planned
    assert float(estimate.saliency().abs().max()) == 0
    assert estimate.standard_error() is None
    assert estimate.findings()["r2"] is None
    json.dumps(estimate.findings(), allow_nan=False)


def test_an_unfinished_shapley_estimate_is_not_bent_by_what_is_missing() -> None:
    """In a symmetric problem all pieces are worth the same, whenever it is cancelled after all single pieces."""
    labels = row(10)
    for estimate in lime(Rule(labels, lambda z: float(z.sum() ** 2) / 100), labels, samples=200, kernel="shap"):
        if estimate.done > 120:
            np.testing.assert_allclose(values(estimate.saliency(), labels), 0.1, atol=0.01)


@pytest.mark.parametrize("kernel", KERNELS)
def test_equal_seeds_ask_the_same_and_others_do_not(kernel: Kernel) -> None:
    labels = row(20)
    asked = []
    for seed in (3, 3, 4):
        scorer = Rule(labels, curved)
        last(lime(scorer, labels, kernel=kernel, seed=seed))
        asked.append(scorer.asked)
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]


@pytest.mark.parametrize(("pieces", "expected"), [(4, 15), (8, 201), (20, 201), (40, 321)])
def test_the_default_is_eight_samples_for_each_piece_within_bounds(pieces: int, expected: int) -> None:
    labels = row(pieces)
    assert next(iter(lime(Rule(labels, curved), labels))).planned == expected


@pytest.mark.parametrize("kernel", KERNELS)
def test_too_few_samples_are_refused_before_anything_is_computed(kernel: Kernel) -> None:
    labels = row(30)
    scorer = Rule(labels, curved)
    with pytest.raises(InputError, match="50 samples cannot tell 30 supervoxels apart: give at least 60 samples"):
        next(iter(lime(scorer, labels, samples=50, kernel=kernel)))
    assert scorer.asked == []


def test_no_pieces_have_a_complete_estimate_of_nothing() -> None:
    labels = torch.zeros((3, 4, 5), dtype=torch.long)
    estimate = last(lime(Rule(labels, curved), labels))
    assert (estimate.done, estimate.planned) == (0, 0)
    assert estimate.saliency().shape == estimate.probed().shape == (3, 4, 5)
    assert estimate.saliency().abs().max() == 0
    assert not estimate.probed().any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_network_that_ignores_its_input_has_no_saliency(kernel: Kernel) -> None:
    estimate = last(lime(planted_scorer(Blind()), blocks(edge=8), samples=24, kernel=kernel))
    assert estimate.saliency().abs().max() == 0
    assert estimate.findings()["r2"] is None
    assert estimate.standard_error() is not None
    assert estimate.standard_error().abs().max() == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_planted_cue_has_all_the_saliency(kernel: Kernel) -> None:
    scorer = planted_scorer(Planted())
    estimate = last(lime(scorer, blocks(), samples=200, kernel=kernel))
    saliency = estimate.saliency()
    assert saliency[CUE].unique().numel() == 1
    assert saliency[CUE].mean() > 0.3
    elsewhere = torch.ones(SHAPE, dtype=torch.bool)
    elsewhere[CUE] = False
    assert saliency[elsewhere].abs().max() < 1e-3 * saliency[CUE].mean()


@pytest.mark.parametrize("kernel", ["exponential", "shap"])
def test_before_anything_is_known_the_map_is_empty_and_nothing_breaks(kernel: Kernel) -> None:
    class Slow(Rule):
        """A scorer whose first batch finishes no set."""

        def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
            yield []
            yield from super().lost(perturbations)

    labels = row(6)
    first = next(lime(Slow(labels, lambda removed: float(removed.sum())), labels, kernel=kernel))
    assert first.done == 0
    assert float(first.saliency().abs().max()) == 0
    assert first.findings()["r2"] is None
