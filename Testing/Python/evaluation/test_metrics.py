"""Metrics of a map against closed forms and Quantus, and the planted-truth study: does each know the true map?"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_truth import (
    AGAINST_THE_EVIDENCE,
    ASKING_THE_NETWORK,
    NOTHING_KNOWN,
    PLACES,
    SHAPE,
    SPACING,
    planted_case,
    ranks_first,
    study,
)
from scipy.ndimage import gaussian_filter
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.controls import centre_map, smooth_noise
from XAICLIPLib.evaluation.curves import Steps, faithfulness, removal_curves
from XAICLIPLib.evaluation.metrics import (
    completeness,
    gini,
    outside_share,
    overlap,
    pointing_game,
    relevance_mass,
    relevance_rank,
)

UNIT = (1.0, 1.0, 1.0)


def random_case(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A map of either sign without ties, and a box."""
    saliency = torch.randn((10, 9, 8), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(saliency.shape, dtype=torch.bool)
    mask[2:6, 3:7, 1:5] = True
    return saliency, mask


# --- against closed forms ---------------------------------------------------------------------------


def test_pointing_measures_in_mm_along_each_axis() -> None:
    saliency, mask = torch.zeros(12, 12, 12), torch.zeros(12, 12, 12, dtype=torch.bool)
    mask[:4] = True
    saliency[6, 0, 0] = 1
    found = pointing_game(saliency, mask, (2.0, 1.0, 1.0))
    assert (found.hit, found.distance_mm, found.chance) == (0.0, 6.0, 4 / 12)
    near = pointing_game(saliency, mask, (2.0, 1.0, 1.0), tolerance_mm=6.0)
    assert (near.hit, near.chance) == (1.0, 7 / 12), "chance is that of the mask with the tolerance"


def test_pointing_gives_a_constant_map_what_chance_gets() -> None:
    _, mask = random_case()
    found = pointing_game(torch.ones(mask.shape), mask, UNIT)
    assert found.hit == pytest.approx(found.chance) == pytest.approx(float(mask.float().mean()))


def test_relevance_mass_counts_positive_values_and_outside_share_all() -> None:
    saliency, mask = torch.tensor([[[3.0, -1.0, 1.0, -5.0]]]), torch.tensor([[[True, True, False, False]]])
    assert relevance_mass(saliency, mask).value == 3 / 4
    assert outside_share(saliency, mask, UNIT).value == 6 / 10
    assert outside_share(saliency, mask, UNIT, margin_mm=1.0).value == 5 / 10
    assert relevance_mass(-saliency.abs(), mask) == relevance_mass(torch.ones_like(saliency), mask)


def test_relevance_rank_gives_ties_what_chance_gives() -> None:
    mask = torch.zeros(4, 5, 5, dtype=torch.bool)
    mask[:1] = True
    flat = relevance_rank(torch.zeros(mask.shape), mask)
    assert flat.value == pytest.approx(flat.chance) == pytest.approx(0.25)
    partly = torch.zeros(mask.shape)
    partly[0, :2] = 1  # 10 of 25 found; the other 15 are drawn from 90 of which 15 lie in the mask
    assert relevance_rank(partly, mask).value == pytest.approx((10 + 15 * 15 / 90) / 25)


def test_gini_is_that_of_the_mean_difference() -> None:
    values = torch.rand((4, 3, 2), generator=torch.Generator().manual_seed(1)).double()
    flat = values.flatten()
    differences = (flat[:, None] - flat[None]).abs().mean()
    assert gini(-values) == pytest.approx(float(differences / (2 * flat.mean())))
    assert gini(torch.ones(3, 3, 3)) == pytest.approx(0)
    assert gini(torch.zeros(3, 3, 3)) == 0
    single = torch.zeros(10, 10, 10)
    single[0, 0, 0] = 1
    assert gini(single) == pytest.approx(0.999)
    assert gini(single, torch.ones(10, 10, 10) * (torch.arange(10) == 0)) == pytest.approx(0.99), "where it is compared"


def test_completeness_knows_shapley_values_from_others() -> None:
    assert completeness([0.2, 0.3, -0.1], 0.9, 0.5).gap == pytest.approx(0)
    off = completeness(np.array([0.2, 0.2]), 0.9, 0.1)
    assert (off.total, off.change) == (pytest.approx(0.4), pytest.approx(0.8))
    assert off.relative == pytest.approx(0.5)
    assert completeness([0.1], 0.5, 0.5).relative is None


def test_overlap_is_dice_and_iou_of_the_upper_half() -> None:
    organ = torch.zeros(8, 8, 8, dtype=torch.bool)
    organ[:4] = True
    saliency = torch.zeros(8, 8, 8)
    saliency[2:4] = 1.0
    saliency[4:5] = 0.5  # just marked
    saliency[5:] = -3
    found = overlap(saliency, organ, torch.ones_like(organ), UNIT).saliency
    assert found.dice == pytest.approx(2 * 2 / (3 + 4))
    assert found.iou == pytest.approx(2 / 5)


def test_overlap_controls_get_what_was_measured_of_null_maps() -> None:
    # ../shared/FIELD.md: within the organ white noise scores 0.67, smooth noise 1.00.
    organ = torch.zeros(24, 24, 24, dtype=torch.bool)
    organ[6:18, 6:18, 6:18] = True
    found = overlap(organ.float(), organ, organ, UNIT).controls
    assert set(found) == {"uniform", "centre", "white noise", "smooth noise"}
    assert found["white noise"].dice == pytest.approx(0.67, abs=0.02)
    assert found["smooth noise"].dice == pytest.approx(1.0, abs=0.01)
    assert found["uniform"].dice == 1.0


def test_overlap_of_a_map_without_effect_is_nothing() -> None:
    _, organ = random_case()
    assert overlap(torch.zeros(organ.shape), organ, organ, UNIT).saliency.dice == 0


def test_unusable_input_is_named() -> None:
    saliency, mask = random_case()
    with pytest.raises(InputError, match="mask is empty"):
        relevance_mass(saliency, torch.zeros_like(mask))
    with pytest.raises(InputError, match="10 × 9 × 8 voxels and the mask 9 × 8"):
        relevance_rank(saliency, mask[0])
    with pytest.raises(InputError, match="not finite"):
        gini(saliency.log())


# --- against Quantus --------------------------------------------------------------------------------


def quantus_of(name: str, saliency: Tensor, mask: Tensor) -> float:
    quantus = pytest.importorskip("quantus", reason="Quantus is not installed")
    metric = getattr(quantus, name)(abs=False, normalise=False, disable_warnings=True)
    a, s = saliency[None, None].numpy().astype(np.float64), mask[None, None].numpy()
    found = metric.evaluate_batch(a_batch=a, s_batch=s, x_batch=a)
    return float(np.asarray(found).ravel()[0])


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_quantus(seed: int) -> None:
    saliency, mask = random_case(seed)
    positive = saliency.clamp(min=0)
    smooth = torch.from_numpy(gaussian_filter(positive.numpy(), 1.0))
    for values in (positive, smooth):
        assert relevance_mass(values, mask).value == pytest.approx(
            quantus_of("RelevanceMassAccuracy", values, mask), rel=1e-6
        )
        assert pointing_game(values, mask, UNIT).hit == quantus_of("PointingGame", values, mask)
        assert gini(values) == pytest.approx(quantus_of("Sparseness", values, mask), abs=1e-5)
    assert relevance_rank(saliency, mask).value == pytest.approx(quantus_of("RelevanceRankAccuracy", saliency, mask))


# --- the planted-truth study --------------------------------------------------------------------------


@functools.cache
def found_in(place: str) -> dict[str, dict[str, float]]:
    return study(planted_case(place))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("metric", [*ASKING_THE_NETWORK, *AGAINST_THE_EVIDENCE])
def test_metric_knows_the_true_map(place: str, metric: str) -> None:
    values = found_in(place)[metric]
    assert ranks_first(metric, values), values
    assert ranks_first(metric, values, "occlusion"), values


@pytest.mark.parametrize("place", PLACES)
def test_overlap_with_the_organ_does_not_know_the_true_map_and_its_control_says_so(place: str) -> None:
    dice, lead = found_in(place)["Dice with the organ"], found_in(place)["its lead over null × region"]
    assert dice["centre"] > dice["truth"], "a map of nothing times the region beats the truth"
    assert dice["smooth noise"] > dice["truth"]
    assert all(lead[name] <= 1e-9 for name in NOTHING_KNOWN), "no map that knows nothing leads its own control"


def test_sparseness_does_not_know_the_true_map() -> None:
    truth = found_in("beside the organ")["sparseness"]["truth"]
    anywhere = torch.zeros(SHAPE)
    anywhere[0, 0, 0] = 1
    assert gini(anywhere) > truth, "a single voxel anywhere is sparser than the evidence"


def test_equal_steps_larger_than_the_organ_do_not_tell_its_parts_apart_and_geometric_ones_do() -> None:
    case = planted_case("one pole of the organ")
    maps = {"truth": case.evidence.float(), "centre": centre_map(case.region, SPACING)}

    def areas(steps: Steps) -> list[float]:
        curves = [removal_curves(case.scorer(), m, SPACING, count=16, steps=steps) for m in maps.values()]
        return [c.deletion["soft dice"].area for c in curves]

    assert case.organ.sum() < math.prod(SHAPE) / 16
    truth, centre = areas("equal")
    assert truth == pytest.approx(centre, abs=0.01)
    truth, centre = areas("geometric")
    assert truth < centre - 0.15


@pytest.mark.parametrize("place", PLACES)
def test_occlusion_leads_all_controls_and_noise_leads_none(place: str) -> None:
    case = planted_case(place)
    maps = case.maps()
    nothing = {name: maps[name] for name in ("random", "smooth noise", "centre", "edges")}
    found = faithfulness(case.scorer(), maps["occlusion"], SPACING, controls=nothing, count=10)
    empty = replace(found, saliency=removal_curves(case.scorer(), smooth_noise(SHAPE, SPACING, 7), SPACING, count=10))
    for way in ("deletion", "insertion"):
        lead, none = found.lead(way), empty.lead(way)
        assert lead is not None
        assert none is not None
        assert lead > 0.1 >= none
