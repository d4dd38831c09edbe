"""Max-sensitivity against captum and a closed form."""

from __future__ import annotations

import pytest
import torch
from captum.metrics import sensitivity_max
from planted_truth import planted_case
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.stability import RADIUS, SAMPLES, stability

VOLUME = torch.rand((1, 8, 7, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def steep(volume: Tensor) -> Tensor:
    """A map that is steep in the input."""
    return (20 * volume).sin().sum(0) + 2


def test_sensitivity_is_that_of_captum() -> None:
    generator = torch.Generator().manual_seed(4)

    def perturb(inputs: Tensor, radius: float) -> Tensor:  # the noise of the function under test, one after another
        given = inputs[0] if isinstance(inputs, tuple) else inputs
        noise = [(2 * torch.rand(VOLUME.shape, generator=generator) - 1) * radius for _ in range(len(given))]
        return given + torch.stack(noise)

    def explain(inputs: Tensor | tuple[Tensor]) -> Tensor | tuple[Tensor]:
        if isinstance(inputs, tuple):  # as captum hands over what is not noisy, and wants it back
            return (torch.stack([steep(volume) for volume in inputs[0]]),)
        return torch.stack([steep(volume) for volume in inputs])

    expected = sensitivity_max(explain, VOLUME[None], perturb, perturb_radius=0.05, n_perturb_samples=5)
    found = stability(steep, VOLUME, radius=0.05, samples=5, seed=4)
    assert found.max_sensitivity == pytest.approx(float(expected), rel=1e-6)
    assert found.mean_sensitivity < found.max_sensitivity
    assert found.lowest_correlation is not None
    assert 0 < found.lowest_correlation < 1


def test_a_map_that_is_linear_in_the_input_changes_no_more_than_the_noise() -> None:
    found = stability(lambda volume: volume[0], VOLUME, radius=0.1, samples=6)
    largest = 0.1 * VOLUME.numel() ** 0.5 / float(VOLUME.norm())
    assert 0 < found.max_sensitivity < largest


def test_a_map_that_ignores_the_input_is_perfectly_stable_which_is_no_merit() -> None:
    found = stability(lambda volume: torch.ones(3, 3, 3), VOLUME)
    assert (found.max_sensitivity, found.lowest_correlation, found.samples) == (0, None, SAMPLES)


def test_gradients_can_be_taken_in_the_explainer() -> None:
    def gradient(volume: Tensor) -> Tensor:
        given = volume.clone().requires_grad_()
        (found,) = torch.autograd.grad((given**3).sum(), given)
        return found[0]

    assert stability(gradient, VOLUME).max_sensitivity > 0


def test_occlusion_of_a_planted_network_is_stable() -> None:
    case = planted_case("beside the organ")
    found = stability(lambda volume: case.occluded(volume=volume), case.volume, radius=RADIUS, samples=2)
    assert 0 < found.max_sensitivity < 0.5


def test_cancelling_keeps_what_was_measured() -> None:
    asked = iter([False, False, True])
    assert stability(steep, VOLUME, cancelled=lambda: next(asked)).samples == 2
    with pytest.raises(InputError, match="cancelled"):
        stability(steep, VOLUME, cancelled=lambda: True)


def test_unusable_input_is_named() -> None:
    with pytest.raises(InputError, match="radius of 0"):
        stability(steep, VOLUME, radius=0)
    with pytest.raises(InputError, match="not finite"):
        stability(lambda volume: volume.log() * torch.inf, VOLUME)
