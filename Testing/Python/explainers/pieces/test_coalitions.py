"""Which sets are removed, and their weights: by hand, and against what the kernels demand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from captum.attr._core.lime import get_exp_kernel_similarity_function
from numpy.typing import NDArray

from XAICLIPLib.explainers.pieces.coalitions import CERTAIN, Coalitions, exponential, exponential_weight, shapley

Draw = Callable[[int, int, np.random.Generator], Coalitions]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows(removed: NDArray[np.bool_]) -> list[tuple[bool, ...]]:
    return [tuple(row.tolist()) for row in removed]


@pytest.mark.parametrize("draw", [exponential, shapley])
@pytest.mark.parametrize(("pieces", "samples"), [(1, 10), (2, 2), (4, 14), (6, 1000)])
def test_where_there_are_no_more_sets_than_samples_all_are_taken_once(draw: Draw, pieces: int, samples: int) -> None:
    sets = draw(pieces, samples, rng())
    assert sets.removed[0].all()
    assert len(set(rows(sets.removed))) == len(sets) == 2**pieces - 1
    assert not sets.random.any()
    assert sets.removed.any(axis=1).all()


@pytest.mark.parametrize("draw", [exponential, shapley])
@pytest.mark.parametrize(("pieces", "samples"), [(5, 20), (8, 200), (40, 320), (70, 200)])
def test_there_are_as_many_sets_as_asked_for_and_none_twice(draw: Draw, pieces: int, samples: int) -> None:
    sets = draw(pieces, samples, rng())
    assert sets.removed[0].all()
    assert not sets.removed[1:].all(axis=1).any()
    assert sets.removed.any(axis=1).all()
    assert len(set(rows(sets.removed))) == len(sets)
    assert samples - 1 <= len(sets) - 1 <= samples
    assert not sets.random[0]
    assert sets.random.any()


@pytest.mark.parametrize("draw", [exponential, shapley])
def test_seeds_decide(draw: Draw) -> None:
    one, same, other = (draw(30, 100, rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.removed, same.removed)
    assert not np.array_equal(one.removed, other.removed)


def test_limes_weight_is_that_of_captum() -> None:
    removed = rng().random((20, 9)) < 0.5
    removed[0] = False
    kernel = get_exp_kernel_similarity_function("cosine", kernel_width=0.25)
    kept = torch.tensor(~removed).double()
    expected = [float(kernel(torch.ones(1, 9).double(), row[None], None)) for row in kept]
    np.testing.assert_allclose(exponential_weight(removed), expected, rtol=1e-6)
    assert exponential_weight(removed)[0] == 1


def test_limes_sets_miss_each_piece_half_of_the_time() -> None:
    sets = exponential(20, 4000, rng())
    np.testing.assert_allclose(sets.removed[1:].mean(axis=0), 0.5, atol=0.03)
    pairs = np.corrcoef(sets.removed[1:].T) - np.eye(20)
    assert np.abs(pairs).max() < 0.08


def shapley_kernel(pieces: int, size: int) -> float:
    """Lundberg and Lee 2017, theorem 2."""
    return (pieces - 1) / (math.comb(pieces, size) * size * (pieces - size))


def test_all_sets_have_the_weights_of_the_shapley_kernel() -> None:
    sets = shapley(6, 62, rng())
    expected = np.array([shapley_kernel(6, int(row.sum())) for row in sets.removed[1:]])
    np.testing.assert_allclose(sets.weight[1:], expected / expected.sum())
    assert sets.weight[0] == CERTAIN


def test_drawn_sets_weigh_by_size_as_the_shapley_kernel_wants() -> None:
    """Each size has its share of the kernel: exactly where all its sets are taken, on average elsewhere."""
    pieces, total = 9, np.zeros(10)
    for seed in range(150):
        sets = shapley(pieces, 90, rng(seed))
        total += np.bincount(sets.removed[1:].sum(axis=1), sets.weight[1:], minlength=pieces + 1)[: pieces + 1]
    kernel = np.array([0, *(shapley_kernel(pieces, s) * math.comb(pieces, s) for s in range(1, pieces)), 0])
    np.testing.assert_allclose(total / 150, kernel / kernel.sum(), atol=0.004)
    sizes = Counter(sets.removed[~sets.random].sum(axis=1).tolist())
    assert sizes == {9: 1, 1: 9, 8: 9}, "the smallest and largest sets all come"


def test_drawn_sets_come_with_their_complements() -> None:
    sets = shapley(30, 200, rng())
    drawn = np.flatnonzero(sets.random)
    assert len(drawn) == 200
    for first, second in drawn.reshape(-1, 2):
        assert (sets.removed[first] ^ sets.removed[second]).all()
        assert sets.group[first] == sets.group[second]
        assert sets.weight[first] == sets.weight[second]
    assert len(np.unique(sets.group)) == 1 + 100


def test_the_sets_known_so_far_stand_for_all_drawn() -> None:
    sets = shapley(9, 90, rng())
    some = np.arange(len(sets)) < 40
    part = sets[some]
    assert len(part) == 40
    assert part.weight[part.random].sum() == pytest.approx(sets.weight[sets.random].sum())
    np.testing.assert_array_equal(part.weight[~part.random], sets.weight[some & ~sets.random])
