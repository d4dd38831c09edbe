"""Structures removed whole: the table against full inference, structure by structure, and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from planted import CUE, SHAPE, Blind, Planted, Rule, last, planted_scorer
from torch import Tensor

from Testing.Python.scoring.test_scorer import Case, make_case, segresnet
from XAICLIPLib.explainers.structures import REST, structures
from XAICLIPLib.scoring.perturbation import Perturbation

NAMES = {1: "liver", 2: "spleen", 3: "left kidney", 9: "stomach"}
SPACING = (1.5, 2.0, 4.0)


def anatomy() -> Tensor:
    """Four structures in a body, 7, in air, 0; one label, 5, has no name and one name, 9, no voxel."""
    labels = torch.zeros((10, 8, 6), dtype=torch.uint8)
    labels[1:9, 1:7] = 7
    labels[2:5, 2:5, 1:3] = 1
    labels[6, 2:4, 2:6] = 2
    labels[7:9, 5, 4] = 3
    labels[1, 6, 0] = 5
    return labels


def worth(removed: NDArray[np.bool_]) -> float:
    """Liver and spleen stand in for each other, spleen and kidney need each other; the body costs less than nothing."""
    z = removed.astype(float)
    return float(0.3 * z[0] + 0.2 * z[1] + 0.1 * z[2] - 0.05 * z[6] + 0.15 * z[0] * z[1] - 0.08 * z[1] * z[2])


def test_the_table_tells_volume_loss_and_share_sorted_by_loss() -> None:
    estimate = last(structures(Rule(anatomy(), worth), anatomy(), NAMES, None, SPACING, rest=7))
    table = estimate.findings()["structures"]
    assert "interactions" not in estimate.findings()
    assert [row["structure"] for row in table] == ["liver", "spleen", "left kidney", REST]
    assert [row["score_lost"] for row in table] == pytest.approx([0.3, 0.2, 0.1, -0.05])
    assert [row["share"] for row in table] == pytest.approx([0.5, 1 / 3, 1 / 6, 0])
    body = int((anatomy() == 7).sum())
    assert [row["volume_ml"] for row in table] == pytest.approx([n * 0.012 for n in (18, 8, 2, body)])
    assert json.loads(json.dumps(estimate.findings())) == estimate.findings()
    assert (estimate.done, estimate.planned) == (4, 4)


def test_the_map_has_each_loss_on_its_structure() -> None:
    estimate = last(structures(Rule(anatomy(), worth), anatomy(), NAMES, None, SPACING, rest=7))
    labels = anatomy()
    expected = 0.3 * (labels == 1) + 0.2 * (labels == 2) + 0.1 * (labels == 3) - 0.05 * (labels == 7)
    torch.testing.assert_close(estimate.saliency(), expected)
    assert torch.equal(estimate.probed(), torch.isin(labels, torch.tensor([1, 2, 3, 7])))


def test_the_rest_may_have_a_name_of_its_own() -> None:
    names = {**NAMES, 7: "soft tissue"}
    table = last(structures(Rule(anatomy(), worth), anatomy(), names, None, SPACING, rest=7)).findings()["structures"]
    assert [row["structure"] for row in table][-1] == "soft tissue"
    assert len(table) == 4


def test_only_structures_that_meet_the_region_are_removed_but_whole() -> None:
    region = torch.zeros(anatomy().shape, dtype=torch.bool)
    region[4, 2, 1] = region[6, 2, 2] = True
    scorer = Rule(anatomy(), worth)
    estimate = last(structures(scorer, anatomy(), NAMES, region, SPACING, rest=7))
    table = estimate.findings()["structures"]
    assert [(row["structure"], row["volume_ml"]) for row in table] == [
        ("liver", pytest.approx(18 * 0.012)),
        ("spleen", pytest.approx(8 * 0.012)),
    ]
    assert [sum(asked) for asked in scorer.asked] == [1, 1]
    assert torch.equal(estimate.probed(), (anatomy() == 1) | (anatomy() == 2))


def test_the_target_is_removed_wherever_it_lies_and_what_is_not_is_named() -> None:
    region = torch.zeros(anatomy().shape, dtype=torch.bool)
    region[4, 2, 1] = True
    scorer = Rule(anatomy(), worth)
    found = last(structures(scorer, anatomy(), NAMES, region, SPACING, own=[3], rest=7)).findings()
    assert [row["structure"] for row in found["structures"]] == ["liver", "left kidney"]
    assert found["not_removed"] == ["spleen", REST]
    assert last(structures(scorer, anatomy(), NAMES, None, SPACING, rest=7)).findings()["not_removed"] == []


def test_interactions_by_hand() -> None:
    estimate = last(structures(Rule(anatomy(), worth, batch=2), anatomy(), NAMES, None, SPACING, pairs=3, rest=7))
    found = {tuple(sorted(row["structures"])): row for row in estimate.findings()["interactions"]}
    assert (estimate.done, estimate.planned) == (7, 7)
    expected = {
        ("liver", "spleen"): (0.65, 0.15),
        ("left kidney", "liver"): (0.4, 0.0),
        ("left kidney", "spleen"): (0.22, -0.08),
    }
    assert found.keys() == expected.keys()
    for names, (lost, interaction) in expected.items():
        assert found[names]["score_lost"] == pytest.approx(lost)
        assert found[names]["interaction"] == pytest.approx(interaction, abs=1e-9)


@pytest.mark.parametrize(("pairs", "expected"), [(0, 0), (1, 0), (2, 1), (4, 6), (20, 6)])
def test_pairs_are_those_of_the_most_important(pairs: int, expected: int) -> None:
    estimate = last(structures(Rule(anatomy(), worth), anatomy(), NAMES, None, SPACING, pairs=pairs, rest=7))
    interactions = estimate.findings().get("interactions", [])
    assert len(interactions) == expected
    assert estimate.done == estimate.planned == 4 + expected
    if expected == 1:
        assert interactions[0]["structures"] == ["liver", "spleen"]


def network_case() -> tuple[Case, Tensor]:
    case = make_case(segresnet, (30, 26, 21), (12, 12, 10))
    labels = torch.zeros((30, 26, 21), dtype=torch.long)
    labels[2:28, 2:24] = 7
    labels[case.target.reference] = 1
    labels[18:24, 8:16, 6:14] = 2
    labels[4:7, 18:22, 3:18] = 3
    return case, labels


def test_losses_are_those_of_full_inference_without_each_structure() -> None:
    case, labels = network_case()
    estimate = last(structures(case.scorer(), labels, NAMES, None, (3, 3, 3), pairs=2, rest=7))
    everything = tuple(slice(0, n) for n in labels.shape)

    def loss(*numbers: int) -> float:
        gone = torch.isin(labels, torch.tensor(numbers)).float()
        return case.full_losses([Perturbation(everything, gone)])[0]

    number = {name: n for n, name in {**NAMES, 7: REST}.items()}
    table = estimate.findings()["structures"]
    assert len(table) == 4
    assert abs(table[0]["score_lost"]) > 0.01, "something matters, or the comparison says nothing"
    for line in table:
        assert line["score_lost"] == pytest.approx(loss(number[line["structure"]]), abs=1e-5)
    (pair,) = estimate.findings()["interactions"]
    assert pair["score_lost"] == pytest.approx(loss(*(number[name] for name in pair["structures"])), abs=1e-5)
    assert pair["interaction"] == pytest.approx(
        pair["score_lost"] - table[0]["score_lost"] - table[1]["score_lost"], abs=1e-6
    )


def test_cancelling_keeps_what_is_known() -> None:
    running = structures(Rule(anatomy(), worth, batch=2), anatomy(), NAMES, None, SPACING, pairs=3, rest=7)
    estimate = next(running)
    running.close()  # type: ignore[attr-defined]
    assert (estimate.done, estimate.planned) == (2, 7)
    assert [row["structure"] for row in estimate.findings()["structures"]] == ["liver", "spleen"]
    assert estimate.findings()["interactions"] == []
    assert estimate.saliency()[anatomy() > 2].abs().max() == 0


def test_where_nothing_meets_the_region_the_estimate_is_complete_and_empty() -> None:
    region = torch.zeros(anatomy().shape, dtype=torch.bool)
    scorer = Rule(anatomy(), worth)
    estimate = last(structures(scorer, anatomy(), NAMES, region, SPACING, pairs=2, rest=7))
    assert (estimate.done, estimate.planned) == (0, 0)
    assert estimate.findings()["structures"] == []
    assert estimate.saliency().abs().max() == 0
    assert not estimate.probed().any()


def planted_labels() -> Tensor:
    labels = torch.full(SHAPE, 7)
    labels[10:14, 4:8, 8:12] = 1
    labels[CUE] = 2
    labels[16:20, 0:4, 0:4] = 3
    return labels


def test_a_network_that_ignores_its_input_leans_on_no_structure() -> None:
    estimate = last(structures(planted_scorer(Blind()), planted_labels(), NAMES, None, (1, 1, 1), pairs=2, rest=7))
    assert estimate.saliency().abs().max() == 0
    assert {row["share"] for row in estimate.findings()["structures"]} == {0.0}
    assert estimate.findings()["interactions"][0]["interaction"] == 0


def test_a_planted_cue_has_all_the_saliency() -> None:
    estimate = last(structures(planted_scorer(Planted()), planted_labels(), NAMES, None, (1, 1, 1), rest=7))
    table = estimate.findings()["structures"]
    assert table[0]["structure"] == "spleen"
    assert table[0]["score_lost"] > 0.3
    assert table[0]["share"] == pytest.approx(1)
    assert estimate.saliency()[planted_labels() != 2].abs().max() == 0
