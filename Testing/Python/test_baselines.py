"""What replaces perturbed voxels."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.perturbation.baselines import BASELINES, BLUR_MM, Baseline, baseline_volume

SPACING = (2.0, 3.0, 6.0)


@pytest.fixture
def volume() -> Tensor:
    return torch.rand((2, 24, 20, 12), generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 5.0]).reshape(
        2, 1, 1, 1
    )


@pytest.fixture
def region() -> Tensor:
    region = torch.zeros(24, 20, 12, dtype=torch.bool)
    region[3:9, 4:8, 5:6] = True
    return region


@pytest.mark.parametrize("kind", BASELINES)
def test_a_baseline_has_the_shape_and_type_of_the_volume_and_leaves_it_alone(
    kind: Baseline, volume: Tensor, region: Tensor
) -> None:
    before = volume.clone()
    baseline = baseline_volume(kind, volume, region, SPACING)
    assert baseline.shape == volume.shape
    assert baseline.dtype == volume.dtype
    assert torch.equal(volume, before)


def test_air_is_the_minimum_of_each_channel(volume: Tensor, region: Tensor) -> None:
    baseline = baseline_volume("air", volume, region, SPACING)
    for channel in range(2):
        assert np.unique(baseline[channel]).tolist() == [volume[channel].min().item()]


def test_mean_is_that_of_each_channel_over_the_region(volume: Tensor, region: Tensor) -> None:
    baseline = baseline_volume("mean", volume, region, SPACING)
    for channel in range(2):
        assert baseline[channel].unique().numel() == 1
        assert baseline[channel, 0, 0, 0].item() == pytest.approx(volume[channel, 3:9, 4:8, 5].mean().item(), rel=1e-6)


def test_mean_of_an_empty_region_is_refused(volume: Tensor) -> None:
    with pytest.raises(InputError, match="region is empty"):
        baseline_volume("mean", volume, torch.zeros(24, 20, 12, dtype=torch.bool), SPACING)


def test_blur_has_one_width_in_mm_along_every_axis(region: Tensor) -> None:
    shape = (61, 41, 21)
    impulse = torch.zeros((1, *shape))
    impulse[0, 30, 20, 10] = 1
    blurred = baseline_volume("blur", impulse, region, SPACING)[0].double()
    assert blurred.sum().item() == pytest.approx(1, abs=1e-4)
    for axis, (extent, spacing) in enumerate(zip(shape, SPACING, strict=True)):
        profile = blurred.sum(dim=[a for a in range(3) if a != axis])
        mm = (torch.arange(extent) - extent // 2) * spacing
        assert (profile * mm**2).sum().sqrt().item() == pytest.approx(BLUR_MM, rel=0.02)


def test_blur_is_that_of_simpleitk_inside_the_volume(region: Tensor) -> None:
    volume = torch.zeros(1, 60, 44, 24)
    volume[0, 24:36, 16:28, 9:15] = torch.rand((12, 12, 6), generator=torch.Generator().manual_seed(2))
    image = sitk.GetImageFromArray(volume[0].numpy().transpose(2, 1, 0))
    image.SetSpacing(SPACING)
    expected = sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, [BLUR_MM**2] * 3, 256, 1e-4)).transpose(2, 1, 0)
    blurred = baseline_volume("blur", volume, region, SPACING)[0].numpy()
    assert np.abs(blurred - expected).max() < 0.02 * expected.max()


def test_air_is_what_lies_outside_the_body_where_that_is_known() -> None:
    volume = torch.full((1, 4, 4, 4), -2.0)  # z-scored tissue, darker than
    volume[:, 0] = 0.0  # the air, which was left at 0
    volume[:, 0, 0, 0] = -9.0  # and a corner that the scanner filled
    outside = torch.zeros(4, 4, 4, dtype=torch.bool)
    outside[0] = True
    region = torch.ones(4, 4, 4, dtype=torch.bool)
    assert bool((baseline_volume("air", volume, region, (1, 1, 1), outside) == 0).all())
    assert bool((baseline_volume("air", volume, region, (1, 1, 1), torch.zeros_like(outside)) == -9).all())
