"""What lies near a mask, layer by layer, against a distance map of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from XAICLIPLib.imaging import nearness
from XAICLIPLib.imaging.nearness import extent, widened, within


@pytest.mark.parametrize("at_once", [1, 500, 4_000_000])
@pytest.mark.parametrize("share", [0.002, 0.3, 1.0])
def test_within_is_the_distance_map_of_the_whole(at_once: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearness, "VOXELS_AT_ONCE", at_once)
    draws = np.random.default_rng(round(1000 * share))
    for _ in range(6):
        mask = draws.random(tuple(draws.integers(1, 18, 3))) < share
        mask[tuple(n // 2 for n in mask.shape)] = True
        spacing = tuple(draws.uniform(0.4, 3, 3))
        for distance in (0.0, spacing[0], 2.5, 40.0):
            expected = distance_transform_edt(~mask, sampling=spacing) <= distance
            assert np.array_equal(within(mask, distance, spacing), expected)


def test_nothing_is_near_an_empty_mask() -> None:
    assert not within(np.zeros((4, 5, 6), bool), 3.0, (1, 1, 1)).any()
    assert extent(np.zeros((4, 5, 6), bool)) is None


def test_the_extent_holds_all_voxels_and_a_margin_ends_at_the_border() -> None:
    mask = np.zeros((9, 8, 7), bool)
    mask[2, 3, 1] = mask[6, 3, 5] = True
    box = (slice(2, 7), slice(3, 4), slice(1, 6))
    assert extent(mask) == box
    assert widened(box, (1, 0, 4), mask.shape) == (slice(1, 8), slice(3, 4), slice(0, 7))
