"""A loss split by where it lands: exact against full inference, and nothing remote for a network that looks nowhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import CUE, SHAPE, Blind, Planted, planted_scorer
from torch import Tensor, nn

from Testing.Python.scoring.test_scorer import Case, make_case, segresnet, unet
from XAICLIPLib.scoring.effect import Effect
from XAICLIPLib.scoring.options import PARTS, SCORES, Score
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.scores import voxel_values
from XAICLIPLib.segmentation.sliding_window import SlidingWindow

WINDOWS = (SlidingWindow((16, 16, 16), 0.5), SlidingWindow((16, 16, 16), 0.25, "gaussian"), None)


def effects(scorer: Scorer, perturbations: list[Perturbation], groups: Tensor | None = None) -> list[Effect]:
    by_number = dict(pair for batch in scorer.effects(perturbations, groups) for pair in batch)
    return [by_number[n] for n in range(len(perturbations))]


@torch.no_grad()
def by_full_inference(case: Case, perturbation: Perturbation) -> tuple[float, float, float]:
    """Total, local and added, voxel by voxel from the logits of the whole volume, by the definition."""
    target = case.target
    strength = torch.zeros(case.volume.shape[1:])
    strength[perturbation.box] = torch.as_tensor(perturbation.strength, dtype=torch.float32)
    hidden = (1 - strength) * case.volume + strength * case.baseline
    reference = target.reference[target.voxels].double()
    before, after = (
        voxel_values(case.kind, case.full_logits(v)[:, target.voxels], target.label, case.activation).double()
        for v in (case.volume, hidden)
    )
    if case.kind in ("soft dice", "hard dice"):
        score = 2 * (before * reference).sum() / (before.sum() + reference.sum())
        shares = (before - after) * (2 * reference - score) / (after.sum() + reference.sum())
    else:
        shares = (before - after) * reference / reference.sum()
    changed = (hidden != case.volume).any(0)[target.voxels]
    added = shares[(after > before) & (reference == 0)].sum()
    return float(shares.sum()), float(shares[changed].sum()), float(added)


@pytest.mark.parametrize("seed", range(100))
def test_the_split_is_that_of_full_inference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(14, 25, 3))
    centre = tuple(float(rng.uniform(4, n - 4)) for n in shape)
    build, window = (segresnet, unet)[seed % 2], WINDOWS[seed % 3]
    if window is None:
        shape = tuple(int(n) // 4 * 4 for n in shape)
    case = make_case(build, shape, centre, window)  # type: ignore[arg-type]
    case.kind = SCORES[seed % len(SCORES)]
    starts = [int(rng.integers(0, n - 5)) for n in shape]
    box = tuple(slice(a, int(rng.integers(a + 2, n + 1))) for a, n in zip(starts, shape, strict=True))
    extent = tuple(s.stop - s.start for s in box)
    strengths = (1.0, 0.4, torch.from_numpy((rng.random(extent) > 0.5).astype(np.float32)))
    perturbation = Perturbation(box, strengths[seed // 4 % 3])
    if seed % 5 == 0:  # a part that is as the baseline already is not changed by hiding it
        case.volume[(slice(None), *box)][:, : extent[0] // 2] = -1.0
    (effect,) = effects(case.scorer(), [perturbation])
    total, local, added = by_full_inference(case, perturbation)
    assert effect.total == pytest.approx(total, abs=1e-6)
    assert effect.local == pytest.approx(local, abs=1e-6)
    assert effect.added == pytest.approx(added, abs=1e-6)
    assert effect.remote == pytest.approx(total - local, abs=1e-6)


def test_the_total_is_the_score_lost() -> None:
    case = make_case(segresnet, (30, 26, 21), (12.0, 12.0, 10.0))
    hidden = [Perturbation((slice(a, a + 8), slice(6, 15), slice(4, 12))) for a in range(0, 20, 4)]
    lost = dict(pair for batch in case.scorer().lost(hidden) for pair in batch)
    assert [effect.total for effect in effects(case.scorer(), hidden)] == pytest.approx(list(lost.values()), abs=1e-9)


class OneVoxel(nn.Module):
    """Decides on each voxel by that voxel alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 6, 1), nn.ELU(), nn.Conv3d(6, 3, 1))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return 5 * logits


@pytest.mark.parametrize("kind", SCORES)
def test_a_network_that_looks_at_single_voxels_has_no_remote_effect(kind: Score) -> None:
    case = make_case(OneVoxel, (24, 24, 20), (12.0, 12.0, 10.0))
    case.kind = kind
    hidden = [Perturbation((slice(a, a + 6), slice(8, 15), slice(7, 12))) for a in range(0, 18, 3)]
    split = effects(case.scorer(), hidden)
    assert max(abs(effect.total) for effect in split) > 1e-3
    # The logits of a patch may differ in the last bit with the other patches of its batch.
    assert max(abs(effect.remote) for effect in split) < 1e-6


def test_a_network_that_draws_by_a_distant_cue_has_a_remote_effect_alone() -> None:
    split = effects(planted_scorer(Planted()), [Perturbation(CUE)])
    assert split[0].total > 0.1
    assert split[0].local == 0
    (beside,) = effects(planted_scorer(Blind()), [Perturbation(CUE)])
    assert (beside.total, beside.local, beside.remote) == (0, 0, 0)


def test_groups_tell_where_the_loss_lands() -> None:
    case = make_case(segresnet, (30, 26, 21), (12.0, 12.0, 10.0))
    shape = tuple(case.volume.shape[1:])
    halves = torch.zeros(shape, dtype=torch.long)
    halves[12:] = 2
    hidden = [Perturbation((slice(4, 12), slice(6, 15), slice(4, 12)))]
    (whole,), (effect,) = effects(case.scorer(), hidden), effects(case.scorer(), hidden, halves)
    assert effect.total == pytest.approx(whole.total, abs=1e-9)
    assert len(effect.landed) == 3
    assert effect.landed[1] == 0
    assert sum(effect.landed) == pytest.approx(effect.total, abs=1e-9)
    assert abs(effect.landed[2]) > 1e-4, "what is hidden on one side is missed on the other"
    assert planted_scorer(Blind()).volume.shape[1:] == SHAPE


def test_a_scorer_tells_the_part_that_is_asked_for() -> None:
    case = make_case(segresnet, (30, 26, 21), (12.0, 12.0, 10.0))
    hidden = [Perturbation((slice(a, a + 8), slice(6, 15), slice(4, 12))) for a in range(0, 20, 4)]
    split = effects(case.scorer(), hidden)
    for part in PARTS:
        scorer = replace(case.scorer(), part=part)
        lost = dict(pair for batch in scorer.lost(hidden) for pair in batch)
        assert list(lost.values()) == pytest.approx([getattr(effect, part) for effect in split], abs=1e-9)
    assert split[0].remote != pytest.approx(split[0].local, abs=1e-5)
