"""Maps that know nothing: what they look at, and what they do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.controls import CONTROLS, centre_map, controls, edge_map, random_map, smooth_noise

SHAPE = (30, 24, 20)
SPACING = (1.0, 2.0, 4.0)


def test_random_map_is_constant_within_cubes_of_the_grain() -> None:
    found = random_map(SHAPE, SPACING, seed=3, grain_mm=8)
    for axis, edge in enumerate((8, 4, 2)):
        steps = (found.diff(dim=axis).abs().sum(dim=tuple(a for a in range(3) if a != axis)) > 0).nonzero().flatten()
        assert set(steps.diff().tolist()) == {edge}
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


def test_a_grain_of_zero_gives_each_voxel_a_value_of_its_own() -> None:
    assert len(random_map(SHAPE, SPACING, grain_mm=0).unique()) > 0.99 * np.prod(SHAPE)


@pytest.mark.parametrize("make", [random_map, smooth_noise])
def test_noise_follows_its_seed(make: object) -> None:
    assert callable(make)
    assert torch.equal(make(SHAPE, SPACING, 1), make(SHAPE, SPACING, 1))
    assert not torch.equal(make(SHAPE, SPACING, 1), make(SHAPE, SPACING, 2))


def test_smooth_noise_varies_little_around_one_half() -> None:
    found = smooth_noise((40, 40, 40), (1.0, 1.0, 1.0))
    assert float(found.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(found.std()) < 0.05
    assert float(found.diff(dim=0).abs().max()) < 0.02


def test_centre_map_is_the_depth_in_mm() -> None:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[5:15, 6:16, 4:14] = True
    found = centre_map(mask, SPACING).numpy()
    expected = distance_transform_edt(mask.numpy(), sampling=SPACING)
    assert np.allclose(found[mask], expected[mask])
    assert (found[~mask.numpy()] < 0).all()
    whole = centre_map(torch.ones(9, 9, 9, dtype=torch.bool), (1.0, 1.0, 1.0))
    assert whole.argmax() == whole.numel() // 2, "the middle of the volume, where all of it is the region"


def test_centre_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="region is empty"):
        centre_map(torch.zeros(SHAPE, dtype=torch.bool), SPACING)


def test_edge_map_is_highest_at_the_steepest_border_of_any_channel() -> None:
    volume = torch.zeros((2, 60, 12, 12))
    volume[0, :20] = 1
    volume[1, 40:] = 5
    found = edge_map(volume, (1.0, 1.0, 1.0))
    profile = found[:, 6, 6]
    assert int(profile.argmax()) in (39, 40)
    assert profile[20] > 10 * profile[30], "the weaker border of the other channel counts as well"


def test_controls_are_all_there() -> None:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[5:15, 6:16, 4:14] = True
    found = controls(torch.rand((1, *SHAPE)), mask, SPACING)
    assert tuple(found) == CONTROLS
    assert all(m.shape == SHAPE and m.dtype == torch.float32 and bool(m.isfinite().all()) for m in found.values())
