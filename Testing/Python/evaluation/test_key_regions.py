"""The regions that suffice and are necessary are found where the evidence was planted, and their scores are exact."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from planted_truth import PLACES, SPACING, Case, planted_case

from XAICLIPLib.evaluation.controls import random_map
from XAICLIPLib.evaluation.key_regions import KEPT, LOST, KeyRegions, Kind, key_region, key_regions, record, score_with

EDGE_MM = 6.0
VOXEL_ML = math.prod(SPACING) / 1000


def everywhere(case: Case) -> torch.Tensor:
    return torch.ones_like(case.organ)


@cache
def regions_of(place: str) -> tuple[Case, KeyRegions]:
    case = planted_case(place)
    truth = case.evidence.float()
    return case, key_regions(case.scorer(), truth, SPACING, everywhere(case), lambda: None)


def score_on(case: Case, volume: torch.Tensor) -> float:
    """By a scorer of its own for the other volume: the target, and its reference, stay."""
    return case.scorer(volume=volume).full_score


@pytest.mark.parametrize("place", PLACES)
def test_the_scores_are_those_of_the_network_on_what_is_left(place: str) -> None:
    case, regions = regions_of(place)
    for kind, region in regions.by_map.items():
        assert region is not None
        kept = region.voxels if kind == "sufficient" else ~region.voxels
        assert region.score == pytest.approx(score_on(case, case.volume * kept), abs=1e-6)
    full = case.scorer().full_score
    sufficient, necessary = regions.by_map["sufficient"], regions.by_map["necessary"]
    assert sufficient is not None and sufficient.score >= KEPT * full
    assert necessary is not None and necessary.score <= (1 - LOST) * full


@pytest.mark.parametrize("place", PLACES)
def test_the_true_map_finds_the_evidence_and_the_outline_takes_more(place: str) -> None:
    case, regions = regions_of(place)
    for kind in ("sufficient", "necessary"):
        by_map, by_outline = regions.by_map[kind], regions.by_outline[kind]
        assert by_map is not None and by_outline is not None
        assert by_map.volume_ml < 0.7 * by_outline.volume_ml
        # Whole cubes of 12 mm, so that some tissue beside the evidence comes along, but never most of the scan.
        assert float((by_map.voxels & case.evidence).sum()) >= 0.4 * float(case.evidence.sum())
        assert by_map.in_target_ml == pytest.approx(float((by_map.voxels & case.organ).sum()) * VOXEL_ML)


def test_the_mask_alone_shows_that_the_evidence_lies_beside_it() -> None:
    case, regions = regions_of("beside the organ")
    blank = torch.zeros_like(case.volume)
    assert regions.target_shown == pytest.approx(score_on(case, case.volume * case.organ), abs=1e-6)
    assert regions.target_shown == pytest.approx(score_on(case, blank), abs=0.01), "the organ itself tells nothing"
    assert regions.target_hidden == pytest.approx(case.scorer().full_score, abs=0.01)
    held = record(regions)
    assert held is not None and held["target_shown_alone"] == regions.target_shown
    assert held["sufficient"]["map"]["volume_ml"] < held["sufficient"]["outline"]["volume_ml"]
    assert record(None) is None


@pytest.mark.parametrize("kind", ["sufficient", "necessary"])
def test_a_smaller_beginning_is_not_enough(kind: Kind) -> None:
    """In small cubes; for evidence of which every voxel counts the same, the score is monotone in the order."""
    case = planted_case("beside the organ")
    scorer, truth = case.scorer(), case.evidence.float()
    region = key_region(kind, scorer, truth, SPACING, everywhere(case), grain_mm=EDGE_MM)
    assert region is not None
    assert region.volume_ml <= float(case.evidence.sum()) * VOXEL_ML * 1.9  # at the border cubes hold other tissue
    cubes = torch.nn.functional.max_pool3d(region.voxels[None, None].float(), 2)  # cubes of two voxels
    first = torch.nonzero(cubes[0, 0])[0] * 2
    less = region.voxels.clone()
    for corner in (first, torch.nonzero(cubes[0, 0])[-1] * 2):
        x, y, z = (int(n) for n in corner)
        less[x : x + 2, y : y + 2, z : z + 2] = False
    score = score_with(scorer, ~less if kind == "sufficient" else less)
    if kind == "sufficient":
        assert score < KEPT * scorer.full_score
    else:
        assert score > (1 - LOST) * scorer.full_score


def test_a_map_of_nothing_takes_most_of_the_scan() -> None:
    case, regions = regions_of("one pole of the organ")
    noise = random_map(tuple(case.organ.shape), SPACING, 3)
    chance = key_region("sufficient", case.scorer(), noise, SPACING, everywhere(case))
    own = regions.by_map["sufficient"]
    assert chance is not None and own is not None
    assert chance.volume_ml > 3 * own.volume_ml


def test_where_hiding_everything_costs_nothing_there_is_no_region() -> None:
    case = planted_case("beside the organ")
    with torch.no_grad():
        case.network.out.weight.zero_()  # it draws the same whatever it sees
    regions = key_regions(case.scorer(), case.evidence.float(), SPACING, everywhere(case), lambda: None)
    assert set(regions.by_map.values()) == set(regions.by_outline.values()) == {None}
    held = record(regions)
    assert held is not None and held["necessary"] == {"map": None, "outline": None}


def test_between_is_asked_before_each_score() -> None:
    case = planted_case("beside the organ")
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        key_region("necessary", case.scorer(), case.evidence.float(), SPACING, everywhere(case), between=stop)
