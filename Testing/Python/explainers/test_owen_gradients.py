"""Owen gradients: they add up, credit what is known to count, and nothing where nothing counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from planted import CUE, SHAPE, Blind, Planted, planted_scorer
from torch import Tensor, nn

from Testing.Python.scoring.test_scorer import make_case, segresnet
from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers.base import Estimate, final
from XAICLIPLib.explainers.owen_gradients import owen_gradients
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.segmentation.sliding_window import SlidingWindow

SPACING = (1.0, 1.0, 1.0)


def explained(scorer: Scorer, **options: Any) -> Estimate:
    everywhere = torch.ones(scorer.volume.shape[1:], dtype=torch.bool)
    told: dict[str, Any] = {"detail_mm": 1.0, "steps": 12, **options}
    return final(owen_gradients(scorer, scorer.target.reference, everywhere, SPACING, **told))


def test_organ_and_context_get_their_owen_values() -> None:
    """Each union gets the mean of what it adds alone and what it adds to the other: by scores, without gradients."""
    scorer = make_case(segresnet, (30, 26, 21), (12.0, 12.0, 10.0)).scorer()
    organ = scorer.target.reference
    baseline = scorer.baseline
    assert isinstance(baseline, Tensor)

    def score(shown: Tensor) -> float:
        return scorer.differentiable_score(torch.where(shown, scorer.volume, baseline))

    both, nothing = score(torch.ones_like(organ)), score(torch.zeros_like(organ))
    expected = (both - score(~organ) + score(organ) - nothing) / 2, (both - score(organ) + score(~organ) - nothing) / 2
    findings = explained(scorer, steps=24).findings()
    assert (findings["credit_of_organ"], findings["credit_of_context"]) == pytest.approx(expected, abs=1e-5)
    assert findings["completeness_gap"] < 0.02, "the gradients alone come near it"
    assert findings["score_change"] == pytest.approx(both - nothing, abs=1e-6)
    assert min(abs(value) for value in expected) > 0.01, "both count, or the comparison says nothing"


def test_with_a_detail_of_one_voxel_the_map_adds_up() -> None:
    estimate = explained(make_case(segresnet, (24, 22, 18), (12.0, 11.0, 9.0)).scorer())
    findings = estimate.findings()
    total = findings["credit_of_organ"] + findings["credit_of_context"]
    assert float(estimate.saliency().sum(dtype=torch.float64)) == pytest.approx(total, abs=1e-5)


def test_a_distant_cue_gets_all_the_credit() -> None:
    """The network draws by a cue beside the target alone: what is in the organ earns little, the cue most."""
    estimate = explained(planted_scorer(Planted()), detail_mm=3.0)
    saliency, cue = estimate.saliency(), torch.zeros(SHAPE, dtype=torch.bool)
    cue[CUE] = True
    best = np.unravel_index(int(saliency.argmax()), SHAPE)
    near = [s.start - 1 <= i <= s.stop for s, i in zip(CUE, best, strict=True)]
    assert all(near)
    findings = estimate.findings()
    assert findings["credit_of_context"] > 10 * abs(findings["credit_of_organ"])


def test_a_network_that_ignores_its_input_gets_no_map() -> None:
    estimate = explained(planted_scorer(Blind()))
    assert float(estimate.saliency().abs().max()) == 0
    assert estimate.findings()["score_change"] == 0


class OneVoxel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 2, 1)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 4 * self.layer(x)
        return logits


def test_a_network_that_looks_at_single_voxels_credits_the_scored_ones_alone() -> None:
    case = make_case(OneVoxel, (24, 22, 18), (12.0, 11.0, 9.0))
    saliency = explained(case.scorer()).saliency()
    assert float(saliency[~case.target.voxels].abs().max()) == 0
    assert float(saliency[case.target.voxels].abs().max()) > 0


def test_running_estimates_are_on_the_scale_of_the_last() -> None:
    scorer = make_case(segresnet, (24, 22, 18), (12.0, 11.0, 9.0)).scorer()
    everywhere = torch.ones(scorer.volume.shape[1:], dtype=torch.bool)
    sizes = [
        float(estimate.saliency().abs().sum())
        for estimate in owen_gradients(scorer, scorer.target.reference, everywhere, SPACING, detail_mm=4.0, steps=6)
    ]
    assert len(sizes) == 2 * 6 + 2 * 3
    assert 0.3 < sizes[3] / sizes[-1] < 3


def test_a_baseline_for_each_place_is_refused() -> None:
    scorer = planted_scorer(Planted())
    scorer.baseline = lambda box, strength: torch.zeros(1)
    with pytest.raises(InputError, match="choose the baseline air, mean or blur"):
        explained(scorer)


def test_what_cannot_change_is_always_shown() -> None:
    """Where only a part can change, both the paths and their ends keep the rest of the scan."""
    case = make_case(segresnet, (24, 22, 18), (12.0, 11.0, 9.0))
    scorer, changeable = case.scorer(), torch.zeros(24, 22, 18, dtype=torch.bool)
    changeable[6:20, 4:18, 3:15] = True
    findings = final(
        owen_gradients(scorer, scorer.target.reference, changeable, SPACING, detail_mm=1.0, steps=16)
    ).findings()
    assert isinstance(scorer.baseline, Tensor)
    hidden = scorer.differentiable_score(torch.where(changeable, scorer.baseline, scorer.volume))
    assert findings["score_change"] == pytest.approx(scorer.full_score - hidden, abs=1e-6)
    assert findings["completeness_gap"] < 0.02
    assert findings["completeness_gap_scaled"] < 1e-5
    total = findings["credit_of_organ"] + findings["credit_of_context"]
    assert total == pytest.approx(findings["score_change"], abs=1e-5)
    assert abs(total) > 0.01


@pytest.mark.parametrize("empty", ["organ", "context"])
def test_an_empty_union_costs_nothing_and_gets_nothing(empty: str) -> None:
    case = make_case(segresnet, (24, 22, 18), (12.0, 11.0, 9.0))
    scorer = case.scorer()
    organ = scorer.target.reference
    changeable = ~organ if empty == "organ" else organ
    *_, last = owen_gradients(scorer, organ, changeable, SPACING, detail_mm=1.0, steps=4)
    assert last.done == last.planned == 4 + 2
    findings = last.findings()
    assert findings[f"credit_of_{empty}"] == 0
    assert bool(torch.isfinite(last.saliency()).all())
    assert float(last.saliency()[~changeable].abs().max()) == 0


def test_the_even_share_moves_credit_within_the_organ_alone() -> None:
    scorer = make_case(segresnet, (24, 22, 18), (12.0, 11.0, 9.0)).scorer()
    organ = scorer.target.reference
    rough, even = explained(scorer, even_share=0.0).saliency(), explained(scorer, even_share=1.0).saliency()
    assert torch.allclose(rough[~organ], even[~organ])
    assert float(even[organ].std()) < 1e-6 < float(rough[organ].std())
    assert float(rough[organ].sum()) == pytest.approx(float(even[organ].sum()), rel=1e-4)


def test_a_scan_far_longer_than_the_patches_of_the_target_gives_the_same_and_nothing_beyond() -> None:
    """Only the box that these patches see is kept: an end that none of them sees changes nothing, and gets nothing."""
    windows = SlidingWindow((16, 16, 16), 0.5)
    case = make_case(segresnet, (60, 26, 21), (12.0, 12.0, 10.0), windows)
    scorer = case.scorer()
    end = scorer.sees[0].stop
    assert end < 60
    whole = explained(scorer, detail_mm=3.0, steps=4)
    case.volume[:, end:] = torch.randn_like(case.volume[:, end:])
    other = explained(case.scorer(), detail_mm=3.0, steps=4)
    assert torch.equal(whole.saliency(), other.saliency())
    assert whole.findings() == other.findings()
    assert not whole.saliency()[end + 2 :].any() and whole.saliency()[:end].abs().max() > 1e-3
    assert whole.map.paths[0].credit.shape[0] == end, "nothing is held of the rest"
