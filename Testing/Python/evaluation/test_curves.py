"""Deletion and insertion curves against inference on volumes written out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from Testing.Python.scoring.test_scorer import Case, convolutions_of_two_channels, make_case, segresnet
from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.controls import random_map
from XAICLIPLib.evaluation.curves import (
    Curve,
    Steps,
    cube_numbers,
    faithfulness,
    removal_curves,
    removal_order,
    step_sizes,
)
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.scores import target_score

SHAPE = (22, 20, 18)
SPACING = (1.0, 2.0, 1.5)
VOXEL_MM3 = 3.0


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(segresnet, SHAPE, (8.0, 8.0, 8.0))


@pytest.fixture(scope="module")
def saliency() -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def scores_by_hand(case: Case, removed: Tensor) -> tuple[float, float]:
    """Soft Dice and mean probability of the volume without some voxels, by MONAI's inference."""
    inside = case.full_logits(torch.where(removed, case.baseline, case.volume))[:, case.target.voxels]
    reference, label = case.target.reference[case.target.voxels], case.target.label
    dice, mean = (
        float(target_score(kind, inside, reference, label, "softmax")) for kind in ("soft dice", "mean probability")
    )
    return dice, mean


@pytest.mark.parametrize("steps", ["geometric", "equal"])
def test_curves_are_those_of_full_inference(case: Case, saliency: Tensor, steps: Steps) -> None:
    removable = torch.zeros(SHAPE, dtype=torch.bool)
    removable[2:20, 1:19, 3:16] = True
    found = removal_curves(case.scorer(), saliency, SPACING, removable=removable, count=5, steps=steps)
    order = torch.argsort(saliency[removable], descending=True)
    ranks = torch.full(SHAPE, 10**6)
    ranks[removable] = torch.argsort(order)
    for number, volume in enumerate(found.deletion["soft dice"].volumes_mm3):
        amount = round(volume / VOXEL_MM3)
        for curve, removed in ((found.deletion, ranks < amount), (found.insertion, removable & (ranks >= amount))):
            dice, mean = scores_by_hand(case, removed)
            assert curve["soft dice"].scores[number] == pytest.approx(dice, abs=1e-5)
            assert curve["mean probability"].scores[number] == pytest.approx(mean, abs=1e-5)
    assert found.deletion["soft dice"].volumes_mm3[-1] == pytest.approx(float(removable.sum()) * VOXEL_MM3)
    spread = np.ptp(found.deletion["soft dice"].scores)
    assert spread > 0.05, "the curve moves"


def test_both_scores_cost_what_one_does_and_patches_that_nothing_touches_cost_nothing(
    case: Case, saliency: Tensor
) -> None:
    one, both = case.scorer(), case.scorer()
    removal_curves(one, saliency, SPACING, count=4, scores=["soft dice"])
    removal_curves(both, saliency, SPACING, count=4)
    assert one.forwards == both.forwards
    assert both.forwards <= 7 * both.patches_of_target
    corner = torch.zeros(SHAPE, dtype=torch.bool)
    corner[:2, :2, :2] = True
    near = case.scorer()
    removal_curves(near, saliency, SPACING, count=4, removable=corner)
    assert near.forwards < both.forwards / 2


def test_curves_work_by_a_baseline_that_is_made_for_each_perturbation(saliency: Tensor) -> None:
    case = make_case(convolutions_of_two_channels, SHAPE, (8.0, 8.0, 8.0), channels=2)
    plain = case.scorer()

    def fill(box: tuple[slice, ...], strength: float | Tensor) -> Tensor:
        return case.baseline[(slice(None), *box)]

    made = dataclasses.replace(plain, baseline=fill)
    assert isinstance(made, Scorer)
    expected, found = (removal_curves(s, saliency, SPACING, count=4) for s in (plain, made))
    for kind in ("soft dice", "mean probability"):
        assert found.deletion[kind].scores == pytest.approx(expected.deletion[kind].scores, abs=1e-6)


def test_ties_are_broken_by_the_seed_and_not_by_the_index() -> None:
    flat = torch.zeros(SHAPE)
    ranks, order = removal_order(flat, SHAPE, seed=0)
    other, _ = removal_order(flat, SHAPE, seed=1)
    assert not torch.equal(ranks, other)
    assert torch.equal(ranks, removal_order(flat, SHAPE, seed=0)[0])
    assert sorted(order.tolist()) == list(range(flat.numel()))
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.05
    first = ranks < flat.numel() // 10
    assert 0.3 < float(first[: SHAPE[0] // 2].sum() / first.sum()) < 0.7


def test_order_follows_the_values_and_leaves_out_what_may_not_go() -> None:
    saliency = torch.tensor([[[0.5, -1.0, 2.0, 0.0]]])
    ranks, order = removal_order(saliency, (1, 1, 4), saliency != 0.5)
    assert ranks.flatten().tolist() == [-1, 2, 0, 1]
    assert order.tolist() == [2, 3, 1]


@pytest.mark.parametrize("total", [1, 3, 50, 10**6])
def test_steps_end_with_everything(total: int) -> None:
    for steps in ("equal", "geometric"):
        sizes = step_sizes(total, 8, steps)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == total
        assert sizes[0] >= 1
    assert step_sizes(10**6, 4, "geometric", 1000) == [1000, 10**4, 10**5, 10**6]
    assert step_sizes(100, 4, "equal") == [25, 50, 75, 100]
    assert step_sizes(100, 4, "geometric", 500) == [100], "a first step larger than all"


def test_area_is_the_mean_height_over_volume_or_its_logarithm() -> None:
    equal = Curve("deletion", (0.0, 1.0, 2.0), (1.0, 0.5, 0.0), 0.0, "equal")
    assert equal.area == pytest.approx(0.5)
    geometric = Curve("deletion", (1.0, 10.0, 100.0), (1.0, 0.5, 0.0), 0.0, "geometric")
    assert geometric.area == pytest.approx(0.5)
    assert Curve("deletion", (1.0, 3.0, 100.0), (1.0, 1.0, 0.0), 0.0).area == pytest.approx(
        (math.log(3) + math.log(100 / 3) / 2) / math.log(100)
    )


def test_normalized_area_is_zero_for_chance_and_one_for_the_ideal(case: Case, saliency: Tensor) -> None:
    found = faithfulness(case.scorer(), saliency, SPACING, controls={"same": saliency}, count=4, random_orders=1)
    chance = dataclasses.replace(found, saliency=found.random[0])
    for way in ("deletion", "insertion"):
        if found.normalized_area(way) is not None:
            assert chance.normalized_area(way) == pytest.approx(0)
            assert found.normalized_area(way) == pytest.approx(found.normalized_area(way, control="same"))
        curve = found.random[0].of(way)["soft dice"]
        best = dataclasses.replace(curve, scores=(curve.ideal,) * len(curve.scores))
        assert best.area == pytest.approx(curve.ideal)
        curves = dataclasses.replace(found.random[0], **{way: {"soft dice": best}})
        ideal = dataclasses.replace(found, saliency=curves)
        if found.normalized_area(way) is not None:
            assert ideal.normalized_area(way) == pytest.approx(1)


def test_a_score_that_nothing_moves_tells_no_orders_apart(saliency: Tensor) -> None:
    case = make_case(segresnet, SHAPE, (8.0, 8.0, 8.0))
    case.baseline = case.volume.clone()
    found = faithfulness(case.scorer(), saliency, SPACING, controls={"same": saliency}, count=3, random_orders=1)
    assert found.normalized_area("deletion") is None
    assert found.lead("insertion") is None


def test_unusable_input_is_named(case: Case, saliency: Tensor) -> None:
    scorer = case.scorer()
    with pytest.raises(InputError, match="3 × 3 × 3 voxels and the network's grid 22 × 20 × 18"):
        removal_curves(scorer, torch.zeros(3, 3, 3), SPACING)
    with pytest.raises(InputError, match="not finite"):
        removal_curves(scorer, torch.full(SHAPE, math.nan), SPACING)
    with pytest.raises(InputError, match="No voxel may be removed"):
        removal_curves(scorer, saliency, SPACING, removable=torch.zeros(SHAPE, dtype=torch.bool))
    with pytest.raises(InputError, match="at least 2"):
        removal_curves(scorer, saliency, SPACING, count=1)
    with pytest.raises(InputError, match="random_orders"):
        faithfulness(scorer, saliency, SPACING, random_orders=0)


def test_cubes_go_as_wholes_by_the_mean_of_the_map() -> None:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.random((13, 10, 8)).astype(np.float32))
    inside = torch.ones(values.shape, dtype=torch.bool)
    inside[:3] = False
    cubes = cube_numbers(tuple(values.shape), (3.0, 2.0, 4.0), 12.0)  # 4 × 6 × 3 voxels
    assert cubes.max() + 1 == 4 * 2 * 3
    ranks, order = removal_order(values, tuple(values.shape), inside, 0, cubes)
    assert bool((ranks[~inside] == -1).all())
    gone = cubes.ravel()[order]
    first = np.flatnonzero(np.diff(gone, prepend=-1))
    assert len(first) == len(np.unique(gone)), "each cube goes as one"
    means = [float(values[inside & torch.from_numpy(cubes == number)].mean()) for number in gone[first]]
    assert means == sorted(means, reverse=True)
    for number in np.unique(gone)[:5]:
        assert (np.diff(order[gone == number]) > 0).all(), "a cube that is cut is cut in slabs"


def test_all_orders_have_the_same_steps_where_cubes_are_removed(case: Case) -> None:
    """Also where the removable voxels are few and of an odd shape: areas over different axes cannot be compared."""
    removable = torch.zeros(SHAPE, dtype=torch.bool)
    removable[3:14, 5:16, 2:13] = True
    maps = [random_map(SHAPE, SPACING, seed) for seed in range(3)] + [removable.float()]
    volumes = {
        removal_curves(
            case.scorer(), values, SPACING, removable=removable, count=5, grain_mm=12.0, scores=("soft dice",)
        )
        .deletion["soft dice"]
        .volumes_mm3
        for values in maps
    }
    assert len(volumes) == 1
    ((first, *_),) = volumes
    assert first == pytest.approx(12.0**3, rel=0.01)


def test_scatter_wins_nothing_where_cubes_go_as_wholes(case: Case) -> None:
    """The same values, shuffled within each cube, give the same curves."""
    scorer = case.scorer()
    shape = SHAPE
    values = torch.from_numpy(np.random.default_rng(1).random(shape).astype(np.float32))
    cubes = cube_numbers(shape, (1.0, 1.0, 1.0), 4.0)
    shuffled = values.numpy().copy().ravel()
    for number in np.unique(cubes):
        places = np.flatnonzero(cubes.ravel() == number)
        shuffled[places] = np.random.default_rng(int(number)).permutation(shuffled[places])
    told = {"count": 4, "first_mm3": 64.0}
    both = [
        removal_curves(scorer, order, (1.0, 1.0, 1.0), grain_mm=4.0, **told)  # type: ignore[arg-type]
        for order in (values, torch.from_numpy(shuffled.reshape(shape)))
    ]
    assert both[0].gap() == pytest.approx(both[1].gap(), abs=1e-6)
    fine = removal_curves(scorer, torch.from_numpy(shuffled.reshape(shape)), (1.0, 1.0, 1.0), **told)  # type: ignore[arg-type]
    assert fine.gap() != pytest.approx(both[0].gap(), abs=1e-6)
