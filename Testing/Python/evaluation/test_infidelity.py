"""Infidelity against captum, and what it says of maps whose worth is known."""

from __future__ import annotations

import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from planted_truth import PLACES, SHAPE, SPACING, planted_case
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.infidelity import hide_cubes, infidelity
from XAICLIPLib.scoring.perturbation import Perturbation

SAMPLES = 12


@pytest.mark.parametrize("seed", [0, 3])
def test_infidelity_is_that_of_captum(seed: int) -> None:
    case = planted_case("one pole of the organ")
    saliency = case.occluded()
    everything = tuple(slice(0, n) for n in SHAPE)
    hidden = hide_cubes(case.scorer(), SPACING, edge_mm=21, samples=SAMPLES, centres=case.region, seed=seed)

    def forward(kept: Tensor) -> Tensor:
        scorer = case.scorer()
        lost = dict(pair for batch in scorer.lost(Perturbation(everything, 1 - k) for k in kept) for pair in batch)
        return torch.tensor([scorer.full_score - lost[n] for n in range(len(kept))], dtype=torch.float64)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        masks = torch.stack([torch.zeros(SHAPE, dtype=torch.float64) for _ in range(len(inputs))])
        for mask, where in zip(masks, hidden.boxes, strict=True):
            mask[where] = 1
        return masks, inputs - masks

    expected = captum_infidelity(
        forward,
        perturb,
        torch.ones((1, *SHAPE), dtype=torch.float64),
        saliency[None].double(),
        n_perturb_samples=SAMPLES,
        normalize=True,
    )
    found = infidelity(saliency, hidden)
    assert float(expected) > 1e-6
    assert found.mean_squared_error == pytest.approx(float(expected), rel=1e-4, abs=1e-9)


def test_truth_foretells_better_than_its_opposite_and_the_scale_does_not_matter() -> None:
    case = planted_case("beside the organ")
    truth = case.evidence.float()
    hidden = hide_cubes(case.scorer(), SPACING, edge_mm=15)
    found, scaled, opposite, nothing = (
        infidelity(m, hidden).relative for m in (truth, 1000 * truth, -truth, torch.zeros(SHAPE))
    )
    assert found is not None
    assert found < 0.1
    assert scaled == pytest.approx(found)
    assert opposite == nothing == 1


def test_cubes_lie_where_they_may_and_are_cut_at_the_border() -> None:
    case = planted_case("beside the organ")
    corner = torch.zeros(SHAPE, dtype=torch.bool)
    corner[-1, 0, 0] = True
    hidden = hide_cubes(case.scorer(), SPACING, edge_mm=15, samples=2, centres=corner)
    assert hidden.boxes == ((slice(29, 32), slice(0, 3), slice(0, 3)),) * 2
    nothing = infidelity(torch.ones(SHAPE), hidden)
    assert (nothing.mean_squared_error, nothing.relative) == (0, None), "hiding air there costs nothing"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("seed", range(4))
def test_cubes_meet_small_evidence_whatever_the_seed(place: str, seed: int) -> None:
    case = planted_case(place)
    hidden = hide_cubes(case.scorer(), SPACING, edge_mm=15, samples=128, seed=seed)
    met = [bool(case.evidence[box].any()) for box in hidden.boxes]
    assert sum(met) >= 2
    assert [loss > 1e-4 for loss in hidden.lost] == met


def test_unusable_input_is_named() -> None:
    scorer = planted_case("beside the organ").scorer()
    with pytest.raises(InputError, match="network's grid"):
        infidelity(torch.zeros(3, 3, 3), hide_cubes(scorer, SPACING, edge_mm=9, samples=2))
    with pytest.raises(InputError, match="at least 2"):
        hide_cubes(scorer, SPACING, edge_mm=9, samples=1)
    with pytest.raises(InputError, match="not empty"):
        hide_cubes(scorer, SPACING, edge_mm=9, centres=torch.zeros(SHAPE, dtype=torch.bool))
