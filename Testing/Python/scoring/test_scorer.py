"""Incremental scores against inference on the whole perturbed volume, written out by hand."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import SegResNet, SwinUNETR, UNet
from torch import Tensor, nn

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.boxes import Box
from XAICLIPLib.scoring.options import SCORES, Score
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer, _Kept
from XAICLIPLib.scoring.scores import decided, probability, target_score
from XAICLIPLib.scoring.target import Target
from XAICLIPLib.segmentation.segmenter import Activation
from XAICLIPLib.segmentation.sliding_window import SlidingWindow, Tiling

WINDOW = SlidingWindow((16, 16, 16), 0.5, "gaussian")


class Stretched(nn.Module):
    """A network with its logits stretched, so that random weights give scores that perturbations change."""

    def __init__(self, network: nn.Module, factor: float = 6) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x) * self.factor
        return logits


def segresnet() -> nn.Module:
    network = SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,), in_channels=1, out_channels=3)
    return Stretched(network)


def unet() -> nn.Module:
    network = UNet(
        spatial_dims=3, in_channels=1, out_channels=3, channels=(8, 16), strides=(2,), num_res_units=1, norm="instance"
    )
    return Stretched(network)


def swin() -> nn.Module:
    return Stretched(SwinUNETR(in_channels=1, out_channels=3, feature_size=12, depths=(1, 1, 1, 1)))


def convolutions_of_two_channels() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv3d(2, 6, 3, padding=1), nn.ELU(), nn.Conv3d(6, 2, 3, padding=1)).requires_grad_(False)


def box(*bounds: tuple[int, int]) -> Box:
    return tuple(slice(start, stop) for start, stop in bounds)


def mask(shape: tuple[int, ...], where: Box) -> Tensor:
    found = torch.zeros(shape, dtype=torch.bool)
    found[where] = True
    return found


@dataclass
class Case:
    """A volume, a network and a target, scored in both ways."""

    network: nn.Module
    volume: Tensor
    target: Target
    window: SlidingWindow | None = WINDOW
    activation: Activation = "softmax"
    kind: Score = "soft dice"
    baseline: Tensor = field(init=False)
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.baseline = torch.full_like(self.volume, -1.0)

    def forward(self, patches: Tensor) -> Tensor:
        self.sizes.append(len(patches))
        result: Tensor = self.network(patches)
        return result

    def scorer(self, batch_size: int = 4, forward: Callable[[Tensor], Tensor] | None = None) -> Scorer:
        return Scorer(
            forward or self.forward,
            self.volume,
            self.baseline,
            Tiling.of(self.volume.shape[1:], self.window),
            self.target,
            self.activation,
            self.kind,
            batch_size,
        )

    @torch.no_grad()
    def full_score(self, perturbation: Perturbation | None = None) -> float:
        """The oracle: perturb the whole volume, let MONAI segment it, score the target."""
        volume = self.volume.clone()
        if perturbation is not None:
            strength = torch.zeros(volume.shape[1:])
            strength[perturbation.box] = perturbation.strength
            volume = (1 - strength) * volume + strength * self.baseline
        inside = self.full_logits(volume)[:, self.target.voxels]
        reference = self.target.reference[self.target.voxels]
        return float(target_score(self.kind, inside, reference, self.target.label, self.activation))

    def full_logits(self, volume: Tensor, batch: int = 4) -> Tensor:
        """(C, X, Y, Z) to (K, X, Y, Z) as MONAI infers it; gradients follow."""
        if self.window is None:
            logits: Tensor = self.network(volume[None])[0]
            return logits
        found = sliding_window_inference(
            volume[None],
            self.window.roi_size,
            batch,
            self.network,
            overlap=self.window.overlap,
            mode=self.window.mode,
            sigma_scale=self.window.sigma_scale,
            cval=self.window.padding_value,
            padding_mode=self.window.padding_mode,
        )
        assert isinstance(found, Tensor)
        return found[0]

    def full_losses(self, perturbations: list[Perturbation]) -> list[float]:
        whole = self.full_score()
        return [whole - self.full_score(p) for p in perturbations]


def losses(scorer: Scorer, perturbations: list[Perturbation]) -> list[float]:
    found = dict(pair for batch in scorer.lost(perturbations) for pair in batch)
    assert sorted(found) == list(range(len(perturbations))), "each perturbation is scored once"
    return [found[n] for n in range(len(perturbations))]


def ball_target(shape: tuple[int, ...], centre: tuple[float, ...], radius: float, label: int) -> Target:
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    distance = torch.stack([(a - c) ** 2 for a, c in zip(axes, centre, strict=True)]).sum(0).sqrt()
    return Target("liver", label, distance <= radius, distance <= radius + 2)


def make_case(
    build: Callable[[], nn.Module],
    shape: tuple[int, int, int],
    centre: tuple[float, float, float],
    window: SlidingWindow | None = WINDOW,
    label: int = 1,
    channels: int = 1,
) -> Case:
    torch.manual_seed(5)
    network = build()
    volume = torch.rand((channels, *shape))
    return Case(network, volume, ball_target(shape, centre, 5, label), window)


def mixed_perturbations(shape: tuple[int, ...]) -> list[Perturbation]:
    """Boxes and soft masks: within the target, across its border, at the volume's corner, over everything."""
    generator = torch.Generator().manual_seed(7)
    x, y, z = shape
    middle = box((x // 4, x // 4 + 7), (y // 4, y // 4 + 5), (z // 4, z // 4 + 6))
    return [
        Perturbation(middle),
        Perturbation(box((0, 6), (0, 9), (0, 7))),
        Perturbation(box((x - 5, x), (y - 7, y), (z - 4, z))),
        Perturbation(middle, 0.35),
        Perturbation(middle, torch.rand((7, 5, 6), generator=generator)),
        Perturbation(middle, torch.rand((7, 5, 6), generator=generator) > 0.5),
        Perturbation(box((0, x), (0, y), (0, z)), torch.rand(shape, generator=generator)),
        Perturbation(box((x // 2, x // 2 + 1), (0, y), (0, z))),
    ]


CASES: dict[str, tuple[Any, ...]] = {
    "SegResNet": (segresnet, (30, 26, 21), (12.0, 12.0, 10.0), WINDOW),
    "UNet with instance norm": (unet, (30, 26, 21), (12.0, 12.0, 10.0), WINDOW),
    "SwinUNETR": (swin, (64, 40, 20), (12.0, 12.0, 10.0), SlidingWindow((64, 32, 32), 0.5), 0),
    "padded along one axis": (segresnet, (30, 26, 11), (12.0, 12.0, 5.0), SlidingWindow((16, 16, 16), 0.25)),
    "padded with a value": (unet, (13, 26, 11), (6.0, 12.0, 5.0), SlidingWindow((16, 16, 16), 0.5, "gaussian", 0.2, 3)),
    "target at a corner": (segresnet, (30, 26, 21), (29.0, 25.0, 0.0), WINDOW),
    "slabs of five slices": (segresnet, (24, 20, 11), (10.0, 10.0, 4.0), SlidingWindow((16, 16, 8), (0.5, 0.5, 0.75))),
    "no window": (segresnet, (16, 24, 16), (8.0, 8.0, 8.0), None),
}


def copying(mode: str, *roi: int) -> SlidingWindow:
    return SlidingWindow(roi, 0.5, "gaussian", padding_mode=mode)


# A copy of the border stands in the padding: it changes with the border, also where the patch holds no more of it.
CASES |= {
    "padded by replicate": (unet, (13, 26, 11), (6.0, 12.0, 5.0), copying("replicate", 16, 16, 16)),
    "padded by reflect": (unet, (13, 26, 11), (6.0, 12.0, 5.0), copying("reflect", 16, 16, 16)),
    "padded by circular": (unet, (13, 26, 11), (6.0, 12.0, 5.0), copying("circular", 16, 16, 16)),
    "padded by replicate by far": (unet, (9, 26, 8), (0.0, 12.0, 7.0), copying("replicate", 32, 16, 16)),
    "padded by circular by far": (unet, (12, 26, 8), (0.0, 12.0, 7.0), copying("circular", 24, 16, 16)),
}


@pytest.mark.parametrize("name", CASES)
def test_score_lost_is_that_of_full_inference_on_the_perturbed_volume(name: str) -> None:
    case = make_case(*CASES[name])
    perturbations = mixed_perturbations(tuple(case.volume.shape[1:]))
    if name == "SwinUNETR":  # slow
        perturbations = perturbations[1:7:2]
    expected = case.full_losses(perturbations)
    assert max(abs(e) for e in expected) > 5e-3, "the perturbations matter, or the comparison says nothing"
    scorer = case.scorer()
    assert scorer.full_score == pytest.approx(case.full_score(), abs=1e-5)
    assert losses(scorer, perturbations) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular"])
def test_a_change_of_each_border_changes_its_copies(mode: str) -> None:
    """One voxel thick, along every face of the volume, and a corner: what the copies add is most of the change."""
    shape = (10, 20, 9)
    case = make_case(unet, shape, (5.0, 9.0, 4.0), copying(mode, 16, 16, 16))
    faces = [
        Perturbation(tuple(slice(a, b) if n == axis else slice(0, size) for n, size in enumerate(shape)))
        for axis, long in enumerate(shape)
        for a, b in ((0, 1), (1, 2), (long - 2, long - 1), (long - 1, long))
    ]
    faces += [Perturbation(box((0, 1), (0, 1), (0, 1)), 0.5), Perturbation(box((-3, 1), (5, 40), (8, 12)))]
    inside = [Perturbation(tuple(slice(max(0, s.start), s.stop) for s in p.box), p.strength) for p in faces]
    expected = case.full_losses(inside)
    assert max(abs(e) for e in expected) > 5e-3
    assert losses(case.scorer(), faces) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_every_score_and_activation_is_exact(kind: Score, activation: Activation) -> None:
    case = make_case(unet, (30, 26, 21), (12, 12, 10))
    case.kind, case.activation = kind, activation
    perturbations = mixed_perturbations((30, 26, 21))
    expected = case.full_losses(perturbations)
    assert max(abs(e) for e in expected) > 0.02
    # A voxel on the fence may be decided otherwise by the last bit: hard Dice moves by one voxel of the target's 500.
    assert losses(case.scorer(), perturbations) == pytest.approx(expected, abs=5e-3 if kind == "hard dice" else 1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_several_scores_come_from_the_same_network_calls(activation: Activation) -> None:
    case = dataclasses.replace(make_case(segresnet, (30, 26, 21), (12.0, 12.0, 10.0)), activation=activation)
    perturbations = mixed_perturbations((30, 26, 21))
    together = case.scorer()
    found = dict(pair for batch in together.lost_by(perturbations, SCORES) for pair in batch)
    for number, kind in enumerate(SCORES):
        own = dataclasses.replace(case, kind=kind).scorer()
        assert together.full_score_by(kind) == own.full_score
        assert [found[n][number] for n in range(len(found))] == pytest.approx(losses(own, perturbations), abs=1e-9)
        assert together.forwards == own.forwards


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_group_of_structures_is_scored_exactly(kind: Score, activation: Activation) -> None:
    case = make_case(unet, (30, 26, 21), (12, 12, 10))
    case.target = dataclasses.replace(case.target, label=(0, 2))
    case.kind, case.activation = kind, activation
    perturbations = mixed_perturbations((30, 26, 21))
    expected = case.full_losses(perturbations)
    assert losses(case.scorer(), perturbations) == pytest.approx(expected, abs=5e-3 if kind == "hard dice" else 1e-5)


def test_a_group_has_the_voxels_of_any_of_its_structures() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((4, 500), generator=generator)
    everywhere = torch.ones(500, dtype=torch.bool)
    softmax = logits.exp() / logits.exp().sum(0)
    sigmoid = 1 / (1 + (-logits).exp())
    expected = {
        "softmax": (softmax[1] + softmax[3], (logits.argmax(0) == 1) | (logits.argmax(0) == 3)),
        "sigmoid": (torch.maximum(sigmoid[1], sigmoid[3]), (logits[1] > 0) | (logits[3] > 0)),
    }
    activations: tuple[Activation, ...] = ("softmax", "sigmoid")
    for activation in activations:
        shares, mine = expected[activation]
        torch.testing.assert_close(probability(logits, (1, 3), activation), shares)
        assert torch.equal(decided(logits, (1, 3), activation), mine)
        for alone in (1, (1,)):
            torch.testing.assert_close(
                probability(logits, alone, activation), (softmax if activation == "softmax" else sigmoid)[1]
            )
        score = target_score("mean probability", logits, everywhere, (1, 3), activation)
        assert float(score) == pytest.approx(float(shares.mean()), rel=1e-5)


def test_several_input_channels_are_perturbed_together() -> None:
    def two_channels() -> nn.Module:
        return Stretched(SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,), in_channels=2, out_channels=2))

    case = make_case(two_channels, (24, 20, 13), (12, 12, 6), channels=2)
    case.baseline = torch.tensor([-1.0, 2.0]).reshape(2, 1, 1, 1).expand_as(case.volume)
    perturbations = mixed_perturbations((24, 20, 13))
    assert losses(case.scorer(), perturbations) == pytest.approx(case.full_losses(perturbations), abs=1e-4)


def test_only_patches_that_meet_both_target_and_perturbation_are_computed() -> None:
    shape = (60, 16, 16)
    case = make_case(segresnet, shape, (0, 8, 8), SlidingWindow((16, 16, 16), 0.5))
    scorer = case.scorer()
    assert sum(case.sizes) == 2  # the target and its rim end at 7: only the patch [0, 16) holds it; it runs doubled
    case.sizes.clear()
    far = [Perturbation(box((start, 60), (0, 16), (0, 16))) for start in (24, 40, 59)]
    assert losses(scorer, far) == [0.0, 0.0, 0.0]
    assert case.full_losses(far) == [0.0, 0.0, 0.0]
    assert scorer.forwards == 0
    assert case.sizes == []
    assert scorer.touched(far[0]) == []
    near = Perturbation(box((2, 5), (0, 4), (0, 4)))
    losses(scorer, [near])
    assert scorer.forwards == len(scorer.touched(near)) == 1


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_batch_size_does_not_change_the_result(batch_size: int) -> None:
    case = make_case(segresnet, (30, 26, 21), (12, 12, 10))
    perturbations = mixed_perturbations((30, 26, 21))
    expected = losses(case.scorer(4), perturbations)
    case.sizes.clear()
    assert losses(case.scorer(batch_size), perturbations) == pytest.approx(expected, abs=1e-5)
    assert max(case.sizes) <= max(batch_size, 2)  # a lone patch runs doubled on a CPU


def test_patches_of_different_perturbations_share_a_batch() -> None:
    case = make_case(segresnet, (16, 16, 16), (8, 8, 8), None)
    scorer = case.scorer(batch_size=5)
    case.sizes.clear()
    perturbations = [Perturbation(box((n, n + 3), (0, 9), (4, 9))) for n in range(10)]
    batches = [len(batch) for batch in scorer.lost(perturbations)]
    assert case.sizes == [5, 5]
    assert batches == [5, 5]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_scores_are_the_same_when_memory_runs_out(limit: int) -> None:
    case = make_case(segresnet, (30, 26, 21), (12, 12, 10))
    perturbations = mixed_perturbations((30, 26, 21))
    expected = losses(case.scorer(), perturbations)

    def small_memory(patches: Tensor) -> Tensor:
        case.sizes.append(len(patches))
        if len(patches) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        result: Tensor = case.network(patches)
        return result

    case.sizes.clear()
    scorer = case.scorer(8, small_memory)
    assert losses(scorer, perturbations) == pytest.approx(expected, abs=1e-5)
    assert scorer.batch_in_use == {1: 1, 2: 2, 5: 4}[limit]
    (warning,) = scorer.warnings
    assert warning == f"Memory ran out: batches were cut from 8 to {scorer.batch_in_use} patches."
    assert case.sizes.count(8) == 1, "what failed is not tried again"


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kept_bytes", [0, 40_000])
def test_scores_are_the_same_where_little_is_kept_of_the_unperturbed_logits(
    activation: Activation, kept_bytes: int
) -> None:
    case = make_case(segresnet, (30, 26, 21), (12, 12, 10))
    case.activation = activation
    perturbations = mixed_perturbations((30, 26, 21))
    everything, little = case.scorer(), case.scorer()
    little._kept = _Kept(kept_bytes)
    assert losses(little, perturbations) == pytest.approx(losses(everything, perturbations), abs=1e-6)
    kept = list(little._kept._logits.values())
    assert sum(logits.numel() * logits.element_size() for logits in kept) <= kept_bytes
    assert bool(kept) == bool(kept_bytes)
    assert little.forwards > everything.forwards, "what is not kept is computed again, and counted"


def test_of_overlapping_classes_only_the_targets_own_are_kept() -> None:
    case = make_case(segresnet, (24, 20, 18), (12, 12, 10))
    softmax = case.scorer()
    case.activation = "sigmoid"
    sigmoid = case.scorer()
    classes = len(softmax._logits)
    assert classes > 1 and len(sigmoid._logits) == 1
    assert {len(logits) for logits in sigmoid._kept._logits.values()} == {1}
    perturbations = mixed_perturbations((24, 20, 18))
    assert losses(sigmoid, perturbations) == pytest.approx(case.full_losses(perturbations), abs=1e-5)
    (_, _, cotangent), *_ = sigmoid.cotangents()
    assert len(cotangent) == classes, "gradients are taken by all that the network says"


def test_a_perturbation_waits_with_one_sum_and_not_with_one_change_for_each_patch() -> None:
    case = make_case(segresnet, (30, 26, 21), (12, 12, 10))
    scorer, sizes = case.scorer(2), []
    change = scorer._change

    def watched(pending: Any, number: int, own: Tensor) -> None:
        change(pending, number, own)
        sizes.append((pending.done, pending.logits.shape[1]))

    scorer._change = watched  # type: ignore[method-assign]
    everything = Perturbation(tuple(slice(0, n) for n in (30, 26, 21)))
    losses(scorer, [everything])
    voxels = int(case.target.voxels.sum())
    assert sizes == [(n + 1, voxels) for n in range(scorer.patches_of_target)] and len(sizes) > 4


def test_memory_that_holds_no_patch_at_all_is_an_error() -> None:
    def no_memory(patches: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        make_case(segresnet, (16, 16, 16), (8, 8, 8), None).scorer(4, no_memory)


def test_closing_the_iterator_cancels() -> None:
    case = make_case(segresnet, (16, 16, 16), (8, 8, 8), None)
    scorer = case.scorer(batch_size=2)
    drawn: list[int] = []

    def endless() -> Iterator[Perturbation]:
        while True:
            drawn.append(len(drawn))
            yield Perturbation(box((0, 4), (0, 4), (0, 4)))

    running = scorer.lost(endless())
    first = next(running)
    running.close()  # type: ignore[attr-defined]
    assert [number for number, _ in first] == [0, 1]
    assert scorer.forwards == 2
    assert len(drawn) == 2, "perturbations are drawn as they are needed"
    assert losses(scorer, [Perturbation(box((0, 4), (0, 4), (0, 4)))])[0] == pytest.approx(first[0][1], abs=1e-6)


def test_no_perturbations_give_no_scores() -> None:
    assert list(make_case(segresnet, (16, 16, 16), (8, 8, 8), None).scorer().lost([])) == []


def test_replacing_by_the_same_values_loses_nothing() -> None:
    case = make_case(segresnet, (30, 26, 21), (12, 12, 10))
    case.baseline = case.volume
    assert losses(case.scorer(), mixed_perturbations((30, 26, 21))) == pytest.approx([0.0] * 8, abs=1e-6)


def test_scoring_leaves_volume_and_baseline_alone() -> None:
    case = make_case(segresnet, (30, 26, 21), (12, 12, 10))
    before = case.volume.clone(), case.baseline.clone()
    losses(case.scorer(), mixed_perturbations((30, 26, 21)))
    assert torch.equal(case.volume, before[0])
    assert torch.equal(case.baseline, before[1])


@pytest.mark.parametrize("where", ["nowhere", "outside the voxels that count"])
def test_an_empty_target_is_refused_by_name(where: str) -> None:
    case = make_case(segresnet, (16, 16, 16), (8, 8, 8), None)
    shape = (16, 16, 16)
    reference = mask(shape, box((0, 0), (0, 0), (0, 0)) if where == "nowhere" else box((0, 2), (0, 2), (0, 2)))
    case.target = Target("left kidney", 1, reference, mask(shape, box((8, 12), (8, 12), (8, 12))))
    with pytest.raises(InputError, match="no left kidney in this volume"):
        case.scorer()


def test_scores_by_hand() -> None:
    probabilities = torch.tensor([0.9, 0.6, 0.2, 0.1])
    reference = torch.tensor([True, True, False, False])
    logits = torch.stack([torch.log(1 - probabilities), torch.log(probabilities)])

    def score(kind: Score, activation: Activation, values: Tensor) -> float:
        return float(target_score(kind, values, reference, 1, activation))

    odds = torch.stack([torch.zeros(4), torch.logit(probabilities)])
    cases: tuple[tuple[Activation, Tensor], ...] = (("softmax", logits), ("sigmoid", odds))
    for activation, values in cases:
        assert score("soft dice", activation, values) == pytest.approx(2 * 1.5 / (1.8 + 2))
        assert score("hard dice", activation, values) == pytest.approx(1.0)
        assert score("mean probability", activation, values) == pytest.approx(0.75)
    wrong = torch.stack([torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, 1.0])])
    assert score("hard dice", "softmax", wrong) == pytest.approx(2 * 1 / (3 + 2))
    assert score("hard dice", "sigmoid", wrong) == pytest.approx(2 * 1 / (3 + 2))


def test_an_output_that_is_not_finite_is_refused() -> None:
    case = make_case(segresnet, (16, 16, 16), (8, 8, 8), None)
    with pytest.raises(InputError, match="not finite on this volume"):
        case.scorer(4, lambda patches: case.network(patches) * float("nan"))
    scorer = case.scorer(4)
    scorer._batches.forward = lambda patches: case.network(patches) * float("nan")
    with pytest.raises(InputError, match="not finite where a part"):
        losses(scorer, [Perturbation(box((0, 9), (0, 9), (0, 9)))])


def test_a_scorer_that_is_let_go_frees_its_tensors() -> None:
    scorer = make_case(segresnet, (30, 26, 21), (12, 12, 10)).scorer()
    losses(scorer, mixed_perturbations((30, 26, 21)))
    gone = weakref.ref(scorer)
    gc.disable()
    try:
        del scorer
        assert gone() is None, "nothing but the garbage collector would free it"
    finally:
        gc.enable()


# Half precision


class Steps(nn.Module):
    """A network of operators that half precision leaves alone; told to, it misbehaves where that is on."""

    def __init__(self, misbehave: str = "") -> None:
        super().__init__()
        self.misbehave, self.autocast = misbehave, 0

    def forward(self, x: Tensor) -> Tensor:
        values = torch.cat([-x, x, 0 * x], 1) * 6
        if torch.is_autocast_enabled("cpu"):
            self.autocast += 1
            if self.misbehave == "raises":
                raise RuntimeError('"step_kernel" not implemented for BFloat16')
            if self.misbehave == "overflows":
                return values * float("inf")
        return values


def halved(build: Callable[[], nn.Module]) -> tuple[Case, Scorer]:
    case = make_case(build, (30, 26, 21), (12, 12, 10))
    return case, dataclasses.replace(case.scorer(), precision="reduced")


def test_half_precision_is_used_where_it_gives_the_same() -> None:
    case, scorer = halved(Steps)
    perturbations = mixed_perturbations((30, 26, 21))
    assert losses(scorer, perturbations) == pytest.approx(losses(case.scorer(), perturbations), abs=1e-6)
    assert scorer.reduced
    assert scorer.warnings == []
    assert isinstance(case.network, Steps) and case.network.autocast > 0


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (segresnet, "where full precision gets"),
        (lambda: Steps("raises"), "does not run in it"),
        (lambda: Steps("overflows"), "not finite in it"),
    ],
    ids=["inexact", "not implemented", "out of range"],
)
def test_half_precision_is_not_used_where_it_does_not_and_the_scores_are_those_of_full_precision(
    build: Callable[[], nn.Module], why: str
) -> None:
    case, scorer = halved(build)
    perturbations = mixed_perturbations((30, 26, 21))
    assert losses(scorer, perturbations) == losses(case.scorer(), perturbations)
    assert not scorer.reduced
    (warning,) = scorer.warnings
    assert why in warning


def test_half_precision_is_not_tried_for_gradients() -> None:
    case, scorer = halved(Steps)
    assert scorer.gradient().abs().max() > 0
    assert isinstance(case.network, Steps) and case.network.autocast == 0
