"""The gradient of the score, against autograd through sliding-window inference on the whole volume."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from Testing.Python.scoring.test_scorer import CASES, Case, convolutions_of_two_channels, make_case, segresnet, unet
from XAICLIPLib.errors import InputError, MethodUnsuited
from XAICLIPLib.scoring.options import SCORES, Score
from XAICLIPLib.scoring.scores import target_score
from XAICLIPLib.segmentation.backpropagation import vector_jacobian_product
from XAICLIPLib.segmentation.segmenter import Activation

SHAPE = (24, 20, 13)


def full_gradient(case: Case, volume: Tensor) -> tuple[float, Tensor]:
    """The oracle: MONAI segments the whole volume, autograd follows all of it."""
    inputs = volume.clone().requires_grad_()
    logits = case.full_logits(inputs)
    voxels = case.target.voxels
    kind: Score = "soft dice" if case.kind == "hard dice" else case.kind
    score = target_score(kind, logits[:, voxels], case.target.reference[voxels], case.target.label, case.activation)
    (gradient,) = torch.autograd.grad(score, inputs)
    return float(score.detach()), gradient


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert not found.requires_grad
    largest = float(expected.abs().max())
    assert largest > 1e-6, "the score depends on the volume, or the comparison says nothing"
    torch.testing.assert_close(found / largest, expected / largest, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_that_of_full_inference(name: str) -> None:
    case = make_case(*CASES[name])
    expected_score, expected = full_gradient(case, case.volume)
    scorer = case.scorer()
    assert_same(scorer.gradient(), expected)
    assert scorer.differentiable_score() == pytest.approx(expected_score, abs=1e-5)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_every_score_and_activation_has_its_gradient_at_any_volume(kind: Score, activation: Activation) -> None:
    case = make_case(unet, SHAPE, (12, 10, 6), channels=1)
    case.kind, case.activation = kind, activation
    other = 0.3 * case.volume + 0.7 * torch.rand(case.volume.shape)
    expected_score, expected = full_gradient(case, other)
    scorer = case.scorer()
    assert_same(scorer.gradient(other), expected)
    assert scorer.differentiable_score(other) == pytest.approx(expected_score, abs=1e-5)


def test_several_channels_each_have_their_gradient() -> None:
    case = make_case(convolutions_of_two_channels, SHAPE, (12, 10, 6), channels=2)
    assert_same(case.scorer().gradient(), full_gradient(case, case.volume)[1])


def test_there_is_no_gradient_outside_the_targets_patches() -> None:
    case = make_case(segresnet, (60, 16, 16), (0, 8, 8))
    gradient = case.scorer().gradient()
    assert gradient[:, :16].abs().max() > 0
    assert gradient[:, 16:].abs().max() == 0


def test_gradients_are_there_also_where_the_caller_infers() -> None:
    case = make_case(segresnet, SHAPE, (12, 10, 6))
    expected = case.scorer().gradient()
    with torch.inference_mode():
        assert_same(case.scorer().gradient(), expected)
        assert_same(case.scorer().gradient(case.volume * 1.0), expected)
    assert torch.is_grad_enabled()


def test_scores_are_the_same_after_a_gradient() -> None:
    case = make_case(segresnet, SHAPE, (12, 10, 6))
    scorer = case.scorer()
    before, volume = scorer.full_score, case.volume.clone()
    scorer.gradient(0.5 * case.volume)
    assert scorer.differentiable_score() == pytest.approx(before, abs=1e-6)
    assert torch.equal(case.volume, volume)


def test_where_two_graphs_do_not_fit_one_is_taken_after_the_other() -> None:
    case = make_case(segresnet, SHAPE, (12, 10, 6))
    sizes: list[int] = []

    def small_memory(patches: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            sizes.append(len(patches))
            if len(sizes) % 3 == 1:  # each pair is refused, and then taken one by one, doubled on a CPU
                raise torch.OutOfMemoryError("CUDA out of memory.")
        result: Tensor = case.network(patches)
        return result

    assert_same(case.scorer(4, small_memory).gradient(), case.scorer().gradient())
    assert sizes == [2] * len(sizes)
    assert len(sizes) > 3


def test_memory_that_holds_no_graph_at_all_is_an_error() -> None:
    case = make_case(segresnet, (16, 16, 16), (8, 8, 8), None)

    def no_memory(patches: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        result: Tensor = case.network(patches)
        return result

    with pytest.raises(MethodUnsuited, match="gradients of the network do not fit into the memory: choose a method"):
        case.scorer(4, no_memory).gradient()


class Undifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.cat([x, -x, 2 * x], 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("derivative for aten::strange is not implemented")


@pytest.mark.parametrize("how", ["detached", "inference mode", "no derivative"])
def test_a_network_without_gradient_is_refused(how: str) -> None:
    case = make_case(segresnet, (16, 16, 16), (8, 8, 8), None)

    def forward(patches: Tensor) -> Tensor:
        if how == "no derivative":
            result: Tensor = Undifferentiable.apply(patches)
            return result
        if how == "inference mode":
            with torch.inference_mode():
                return torch.as_tensor(case.network(patches))
        return torch.as_tensor(case.network(patches)).detach()

    with pytest.raises(InputError, match=r"cannot be differentiated .*: choose a method that needs no gradient"):
        case.scorer(4, forward).gradient()


@pytest.mark.parametrize("trained", [False, True])
def test_a_network_that_ignores_its_input_has_no_gradient(trained: bool) -> None:
    constant = torch.randn(3, 16, 16, 16).requires_grad_(trained)

    def forward(patches: Tensor) -> Tensor:
        return constant.expand(len(patches), *constant.shape)

    case = make_case(segresnet, (16, 16, 16), (8, 8, 8), None)
    gradient = case.scorer(4, forward).gradient()
    assert gradient.shape == case.volume.shape
    assert gradient.abs().max() == 0


def test_the_product_is_that_of_the_jacobian_written_out() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Tanh()).requires_grad_(False)
    patches, cotangents = torch.rand(2, 1, 3, 2, 2), torch.randn(2, 2, 3, 2, 2)
    found = vector_jacobian_product(network, list(patches), list(cotangents))
    for patch, cotangent, product in zip(patches, cotangents, found, strict=True):
        jacobian = torch.autograd.functional.jacobian(network, patch[None]).reshape(24, 12)
        torch.testing.assert_close(product.flatten(), cotangent.flatten() @ jacobian)
