"""Integrated gradients and Seg-Grad-CAM: against captum without a sliding window, against autograd with one."""

from __future__ import annotations

import builtins
import dataclasses
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from monai.networks.nets import SegResNet, SwinUNETR, UNet
from planted import CUE, SHAPE, Blind, Planted, last, planted_scorer
from torch import Tensor, nn

from Testing.Python.scoring.test_scorer import Case, convolutions_of_two_channels, make_case, segresnet, unet
from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers.integrated_gradients import integrated_gradients
from XAICLIPLib.explainers.seg_grad_cam import seg_grad_cam
from XAICLIPLib.scoring.options import SCORES, Score
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.scores import target_score
from XAICLIPLib.segmentation.sliding_window import SlidingWindow, Tiling

SMALL = (24, 20, 13)
CONV = "network.down_layers.1.1.conv1.conv"
"""A coarse convolution of the SegResNet of test_scoring."""


def whole_case() -> Case:
    return make_case(segresnet, (16, 16, 12), (8, 8, 6), None)


def score_of(case: Case, logits: Tensor) -> Tensor:
    voxels = case.target.voxels
    inside, reference = logits[:, voxels], case.target.reference[voxels]
    return target_score(case.kind, inside, reference, case.target.label, case.activation)


def score_of_volumes(case: Case) -> Any:
    """The score as captum wants it: (N, C, X, Y, Z) to (N)."""
    return lambda volumes: torch.stack([score_of(case, logits) for logits in case.network(volumes)])


# --- integrated gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [3, 8])
def test_integrated_gradients_are_those_of_captum(steps: int) -> None:
    case = whole_case()
    expected = IntegratedGradients(score_of_volumes(case)).attribute(
        case.volume[None], baselines=case.baseline[None], n_steps=steps, method="gausslegendre", internal_batch_size=2
    )[0]
    found = last(integrated_gradients(case.scorer(), steps=steps)).saliency()
    assert found.dtype == torch.float32
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found, expected.sum(0).float(), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("kind", SCORES)
def test_integrated_gradients_add_up_to_the_change_of_the_score(kind: Score) -> None:
    """Completeness, with several patches; soft Dice stands in for hard Dice."""
    case = make_case(unet, SMALL, (12, 10, 6))
    case.kind = kind
    case.baseline = 0.5 * case.volume
    estimate = last(integrated_gradients(case.scorer(), steps=24))
    if kind == "hard dice":
        case.kind = "soft dice"
    everything = Perturbation(tuple(slice(0, n) for n in SMALL))
    change = case.full_losses([everything])[0]
    assert abs(change) > 1e-3
    found = estimate.findings()
    assert found["score_change"] == pytest.approx(change, abs=1e-4 * max(1, abs(change)))
    # The margin over the best other class has kinks on the way, which 24 points see coarsely.
    assert float(estimate.saliency().sum()) == pytest.approx(change, rel=0.06 if kind == "logit margin" else 0.02)
    assert found["completeness_gap"] == pytest.approx(abs(float(estimate.saliency().sum()) - change), abs=1e-4)
    assert (estimate.done, estimate.planned) == (24, 24)


def test_channels_are_added() -> None:
    case = make_case(convolutions_of_two_channels, SMALL, (12, 10, 6), channels=2)
    case.baseline = torch.tensor([-1.0, 2.0]).reshape(2, 1, 1, 1).expand_as(case.volume)
    estimate = last(integrated_gradients(case.scorer(), steps=8))
    assert estimate.saliency().shape == SMALL
    assert float(estimate.saliency().sum()) == pytest.approx(estimate.findings()["score_change"], rel=0.02)


def test_running_estimates_of_the_integral_are_already_like_it() -> None:
    case = whole_case()
    estimates = []
    for estimate in integrated_gradients(case.scorer(), steps=16):
        estimates.append((estimate.done, estimate.saliency()))
    assert [done for done, _ in estimates] == list(range(1, 17))
    final = estimates[-1][1].flatten()
    likeness = [float(torch.corrcoef(torch.stack([s.flatten(), final]))[0, 1]) for _, s in estimates]
    assert likeness[3] > 0.8


def test_integrated_gradients_refuse_a_baseline_that_changes_from_place_to_place() -> None:
    scorer = dataclasses.replace(whole_case().scorer(), baseline=lambda box, strength: torch.zeros(1))
    with pytest.raises(InputError, match="choose the baseline air, mean or blur"):
        last(integrated_gradients(scorer, steps=2))


# --- Seg-Grad-CAM -----------------------------------------------------------------------------------


def test_seg_grad_cam_is_that_of_captum_where_there_is_no_window() -> None:
    case = whole_case()
    layer = dict(case.network.named_modules())[CONV]
    cam = LayerGradCam(score_of_volumes(case), layer).attribute(
        case.volume[None].requires_grad_(), relu_attributions=False
    )
    expected = LayerGradCam.interpolate(cam, case.volume.shape[1:], "trilinear")[0, 0].detach().relu()
    case.volume = case.volume.detach()
    found = last(seg_grad_cam(case.scorer(), case.network, layer=CONV))
    assert expected.max() > 1e-6
    torch.testing.assert_close(found.saliency() / expected.max(), expected / expected.max(), atol=1e-4, rtol=1e-4)
    assert found.findings() == {"layer": CONV}


def cam_by_hand(case: Case, layer: nn.Module) -> Tensor:
    """Full sliding-window inference with a graph; the gradient of the score at the layer's output, patch by patch."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    hook = layer.register_forward_hook(keep)
    logits = case.full_logits(case.volume.clone().requires_grad_(), 1)
    hook.remove()
    score_of(case, logits).backward()
    tiling = Tiling.of(case.volume.shape[1:], case.window)
    total = torch.zeros(tiling.padded_shape)
    for box, output in zip(tiling.patches, outputs, strict=True):
        assert output.grad is not None
        weights = output.grad[0].mean((1, 2, 3))
        map_ = (weights[:, None, None, None] * output.detach()[0]).sum(0)
        total[box] += nn.functional.interpolate(map_[None, None], [s.stop - s.start for s in box], mode="trilinear")[
            0, 0
        ]
    return total[tiling.inner].relu()


@pytest.mark.parametrize("shape", [SMALL, (24, 20, 11)], ids=["padded along one axis", "padded along one axis by more"])
def test_seg_grad_cam_adds_the_maps_of_the_patches(shape: tuple[int, int, int]) -> None:
    case = make_case(segresnet, shape, (12, 10, 5))
    expected = cam_by_hand(case, dict(case.network.named_modules())[CONV])
    estimates = list(seg_grad_cam(case.scorer(), case.network, layer=CONV))
    found = estimates[-1].saliency()
    assert found.shape == shape
    assert expected.max() > 1e-6
    torch.testing.assert_close(found / expected.max(), expected / expected.max(), atol=1e-4, rtol=1e-3)
    assert found.min() == 0
    assert [e.done for e in estimates] == [*range(2, estimates[-1].planned, 2), estimates[-1].planned]


def coarsest(name: str) -> tuple[nn.Module, str]:
    if name == "SegResNet":
        network: nn.Module = SegResNet(
            init_filters=8, blocks_down=(1, 1), blocks_up=(1,), in_channels=1, out_channels=2
        )
        return network, "down_layers.1.1.conv2.conv"
    if name == "UNet":
        network = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2))
        return network, "model.1.submodule.1.submodule.conv"
    return SwinUNETR(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1)), "encoder10.layer.conv2.conv"


@pytest.mark.parametrize("name", ["SegResNet", "UNet", "SwinUNETR"])
def test_the_deepest_convolution_is_chosen(name: str) -> None:
    network, expected = coarsest(name)
    network.eval().requires_grad_(False)
    shape = (64, 32, 32) if name == "SwinUNETR" else (16, 16, 16)
    case = make_case(lambda: network, shape, (8, 8, 8), None)
    if name == "SwinUNETR":
        case.kind = "mean probability"
    assert last(seg_grad_cam(case.scorer(), network)).findings() == {"layer": expected}


@pytest.mark.parametrize("layer", ["down_layers.1.1.conv1", "network.down_layers.1", "network"])
def test_other_layers_can_be_named_and_unknown_ones_are_refused(layer: str) -> None:
    case = whole_case()
    if layer.startswith("network"):
        assert last(seg_grad_cam(case.scorer(), case.network, layer=layer)).findings() == {"layer": layer}
        return
    with pytest.raises(
        InputError, match=rf'no layer "{layer}": choose one such as .*network\.down_layers\.1\.1\.conv1\.conv, '
    ):
        last(seg_grad_cam(case.scorer(), case.network, layer=layer))


def test_a_layer_without_feature_maps_is_refused() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.tokens(x.reshape(len(x), -1, 8)).reshape(x.shape)
            return torch.cat([y, -y], 1)

    case = make_case(Tokens, (16, 16, 16), (8, 8, 8), None)
    with pytest.raises(InputError, match=r"layer tokens .* gives no feature maps: choose a convolution"):
        last(seg_grad_cam(case.scorer(), case.network, layer="tokens"))
    with pytest.raises(InputError, match="no convolution to look into"):
        last(seg_grad_cam(case.scorer(), case.network))


def test_a_layer_that_does_not_run_is_refused() -> None:
    case = whole_case()
    case.network.add_module("spare", nn.Conv3d(1, 1, 1))
    with pytest.raises(InputError, match=r"cannot be differentiated .at its layer spare"):
        last(seg_grad_cam(case.scorer(), case.network, layer="spare"))


def test_where_two_graphs_do_not_fit_maps_are_made_one_by_one() -> None:
    case = make_case(segresnet, SMALL, (12, 10, 6))
    tight: list[int] = []

    def small_memory(patches: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            tight.append(len(patches))
            if len(tight) % 3 == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        result: Tensor = case.network(patches)
        return result

    expected = last(seg_grad_cam(case.scorer(), case.network, layer=CONV)).saliency()
    found = last(seg_grad_cam(case.scorer(4, small_memory), case.network, layer=CONV)).saliency()
    assert len(tight) > 3
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3)


def test_without_captum_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without_captum(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("captum"):
            raise ImportError(name)
        return imported(name, *arguments, **options)

    case = whole_case()
    monkeypatch.setattr(builtins, "__import__", without_captum)
    with pytest.raises(InputError, match="pip install captum"):
        last(seg_grad_cam(case.scorer(), case.network, layer=CONV))


# --- both -------------------------------------------------------------------------------------------


def run(method: str, scorer: Scorer, network: nn.Module) -> Tensor:
    if method == "integrated gradients":
        return last(integrated_gradients(scorer, steps=16)).saliency()
    return last(seg_grad_cam(scorer, network)).saliency()


METHODS = ["integrated gradients", "seg-grad-cam"]


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_ignores_its_input_has_no_saliency(method: str) -> None:
    network = Blind()
    assert run(method, planted_scorer(network), network).abs().max() == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("window", [None, SlidingWindow((16, 16, 16), 0.5, "gaussian")], ids=["whole", "windows"])
def test_a_planted_cue_has_all_the_saliency(method: str, window: SlidingWindow | None) -> None:
    network = Planted()
    saliency = run(method, planted_scorer(network, window), network)
    assert saliency[CUE].mean() > 0
    near = torch.zeros(SHAPE, dtype=torch.bool)
    reach = 0 if method == "integrated gradients" else 1  # the feature map is blurred by the convolution
    near[tuple(slice(s.start - reach, s.stop + reach) for s in CUE)] = True
    assert saliency[~near].abs().max() == 0
    assert saliency[CUE].max() == saliency.max()


@pytest.mark.parametrize("method", METHODS)
def test_closing_the_iterator_cancels(method: str) -> None:
    case = make_case(segresnet, SMALL, (12, 10, 6))
    scorer = case.scorer()
    running = (
        integrated_gradients(scorer, steps=9)
        if method == "integrated gradients"
        else seg_grad_cam(scorer, case.network)
    )
    estimate = next(running)
    running.close()  # type: ignore[attr-defined]
    assert 0 < estimate.done < estimate.planned
    assert bool(estimate.saliency().isfinite().all())
    # Each point of integrated gradients looks at the whole volume, Seg-Grad-CAM at one patch after the other.
    assert bool(estimate.probed().any()) and bool(estimate.probed().all()) == (method == "integrated gradients")


@pytest.mark.parametrize("method", METHODS)
def test_a_network_without_gradient_is_refused(method: str) -> None:
    case = whole_case()

    def detached(patches: Tensor) -> Tensor:
        return torch.as_tensor(case.network(patches)).detach()

    with pytest.raises(InputError, match="cannot be differentiated"):
        run(method, case.scorer(4, detached), case.network)
