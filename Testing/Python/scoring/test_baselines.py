"""What replaces perturbed voxels."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.scoring.baselines import BLUR_MM, baseline_for, baseline_volume, infill, with_held
from XAICLIPLib.scoring.options import BASELINES, Baseline

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


@pytest.mark.parametrize("kind", [kind for kind in BASELINES if kind != "surroundings"])
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


# In-fill


def ramp(shape: tuple[int, ...] = (20, 18, 15)) -> Tensor:
    x, y, z = torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij")
    return (x + 0.5 * y - 0.25 * z)[None]


def hole(shape: tuple[int, ...] = (20, 18, 15)) -> Tensor:
    known = torch.ones(shape)
    known[6:14, 5:13, 4:11] = 0
    return known


def test_infill_keeps_what_is_known_and_follows_a_ramp_into_the_hole() -> None:
    filled = infill(ramp(), hole())
    assert torch.equal(filled[0][hole() == 1], ramp()[0][hole() == 1])
    assert float((filled - ramp()).abs().max()) < 0.1 * float(ramp().max() - ramp().min())


def test_what_is_hidden_has_no_influence_on_the_infill() -> None:
    other = ramp()
    other[0][hole() == 0] = 1e6
    torch.testing.assert_close(infill(other, hole()), infill(ramp(), hole()))


def test_infill_of_a_constant_is_the_constant_and_of_nothing_known_zero() -> None:
    torch.testing.assert_close(infill(torch.full_like(ramp(), 3.0), hole()), torch.full_like(ramp(), 3.0))
    assert infill(ramp(), torch.zeros(20, 18, 15)).abs().max() == 0


def test_surroundings_fill_a_box_from_around_it_whatever_it_holds() -> None:
    volume = ramp()
    box = (slice(6, 14), slice(5, 13), slice(4, 11))
    everywhere = torch.ones(20, 18, 15, dtype=torch.bool)
    fill, changeable = baseline_for("surroundings", volume, everywhere, (3.0, 3.0, 3.0))
    assert callable(fill)
    assert changeable.all()
    first = fill(box, 1.0)
    assert first.shape == (1, 8, 8, 7)
    assert float((first - volume[(slice(None), *box)]).abs().max()) < 3
    volume[(slice(None), *box)] = 1e6
    torch.testing.assert_close(fill(box, 1.0), first)


@pytest.mark.parametrize("kind", BASELINES)
def test_air_around_the_body_stays_what_it_is(kind: Baseline, volume: Tensor, region: Tensor) -> None:
    body = torch.zeros(24, 20, 12, dtype=torch.bool)
    body[:12] = True
    baseline, changeable = baseline_for(kind, volume, region, SPACING, body)
    whole = tuple(slice(0, n) for n in body.shape)
    made = baseline(whole, 1.0) if callable(baseline) else baseline
    assert changeable[:15].all(), "the body and 6 mm, which are three voxels of 2 mm"
    assert not changeable[15:].any()
    assert torch.equal(made[:, 15:], volume[:, 15:])


@pytest.mark.parametrize("kind", BASELINES)
def test_held_channels_are_replaced_by_themselves(kind: Baseline) -> None:
    generator = torch.Generator().manual_seed(4)
    volume, held = torch.rand(1, 9, 8, 7, generator=generator), torch.rand(2, 9, 8, 7, generator=generator)
    region = torch.ones(9, 8, 7, dtype=torch.bool)
    replacement, _ = baseline_for(kind, volume, region, (3.0, 3.0, 3.0))
    assert with_held(replacement, None) is replacement
    both, box = with_held(replacement, held), (slice(2, 6), slice(1, 4), slice(3, 7))
    if isinstance(replacement, Tensor):
        assert isinstance(both, Tensor)
        assert torch.equal(both, torch.cat([replacement, held]))
    else:
        assert not isinstance(both, Tensor)
        assert torch.equal(both(box, 0.5), torch.cat([replacement(box, 0.5), held[(slice(None), *box)]]))
