"""Infidelity against captum, and what it says of maps whose worth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from planted_truth import SHAPE, SPACING, planted_case
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.infidelity import infidelity
from XAICLIPLib.perturbation.perturbation import Perturbation

EDGE = 12
SAMPLES = 12


def cubes(seed: int) -> list[tuple[slice, ...]]:
    """Those that the function draws, written down from its description."""
    generator = np.random.default_rng(seed)
    starts = [[int(generator.integers(n - EDGE + 1)) for n in SHAPE] for _ in range(SAMPLES)]
    return [tuple(slice(a, a + EDGE) for a in start) for start in starts]


@pytest.mark.parametrize("seed", [0, 3])
def test_infidelity_is_that_of_captum(seed: int) -> None:
    case = planted_case("one pole of the organ")
    saliency = case.occluded()
    everything = tuple(slice(0, n) for n in SHAPE)

    def forward(kept: Tensor) -> Tensor:
        scorer = case.scorer()
        hidden = [Perturbation(everything, 1 - k) for k in kept]
        lost = dict(pair for batch in scorer.lost(hidden) for pair in batch)
        return torch.tensor([scorer.full_score - lost[n] for n in range(len(hidden))], dtype=torch.float64)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        masks = torch.stack([torch.zeros(SHAPE, dtype=torch.float64) for _ in range(len(inputs))])
        for mask, where in zip(masks, cubes(seed), strict=True):
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
    found = infidelity(case.scorer(), saliency, SPACING, edge_mm=EDGE * 3.0, samples=SAMPLES, seed=seed)
    assert float(expected) > 0
    assert found.mean_squared_error == pytest.approx(float(expected), rel=1e-4, abs=1e-9)


def test_truth_foretells_better_than_its_opposite_and_the_scale_does_not_matter() -> None:
    case = planted_case("beside the organ")
    truth = case.evidence.float()
    found, scaled, opposite, nothing = (
        infidelity(case.scorer(), m, SPACING, edge_mm=15, samples=32).relative
        for m in (truth, 1000 * truth, -truth, torch.zeros(SHAPE))
    )
    assert found is not None
    assert found < 0.1
    assert scaled == pytest.approx(found)
    assert opposite == nothing == 1


def test_unusable_input_is_named() -> None:
    case = planted_case("beside the organ")
    with pytest.raises(InputError, match="network's grid"):
        infidelity(case.scorer(), torch.zeros(3, 3, 3), SPACING, edge_mm=9)
    with pytest.raises(InputError, match="at least 2"):
        infidelity(case.scorer(), torch.zeros(SHAPE), SPACING, edge_mm=9, samples=1)
