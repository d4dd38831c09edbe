"""Where the slices lie that a localizer sees, of whole scans and of cropped ones."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from XAICLIPLib.localization.layout import DEPTH_OF_WIDTH, body_extent, slices_around_body

WIDTH, DEPTH = 340.0, 340.0 * DEPTH_OF_WIDTH
BALL_MM = np.array([95.0, 30.0, 5.0])
"""Of the ball's middle from the body's: left, posterior, superior."""


def trunk() -> sitk.Image:
    """A CT of a trunk of 340 mm, its middle at the origin, with a bright ball of 50 mm on the left; air around it."""
    size, spacing_mm = [110, 100, 20], 4.0
    x, y, z = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * spacing_mm for n in size), indexing="ij")
    inside = (np.abs(x) / (WIDTH / 2)) ** 4 + (np.abs(y) / (DEPTH / 2)) ** 4 < 1
    hu = np.where(inside, 40, -1000)
    hu[inside & (np.random.default_rng(0).random(hu.shape) < 0.05)] = -110  # some fat
    hu[np.linalg.norm(np.stack([x, y, z], -1) - BALL_MM, axis=-1) < 25] = 250
    image = sitk.GetImageFromArray(hu.transpose(2, 1, 0).astype(np.int16))
    image.SetSpacing([spacing_mm] * 3)
    image.SetOrigin([-(n - 1) / 2 * spacing_mm for n in size])
    return image


def box(image: sitk.Image, left: tuple[float, float], posterior: tuple[float, float]) -> sitk.Image:
    """The part of the trunk between these places (mm)."""
    bounds = []
    for axis, (low, high) in enumerate((left, posterior)):
        origin, step, size = image.GetOrigin()[axis], image.GetSpacing()[axis], image.GetSize()[axis]
        bounds.append(slice(max(0, round((low - origin) / step)), min(size, round((high - origin) / step) + 1)))
    return image[bounds[0], bounds[1], :]


def ball(slices: sitk.Image) -> tuple[NDArray[np.float64], float]:
    """The ball's middle (column, row) and its diameter, in pixels of the slices."""
    bright = sitk.GetArrayFromImage(slices)[slices.GetSize()[2] // 2] > 145
    middle = np.argwhere(bright).mean(0)[::-1]
    return middle, 2 * float(np.sqrt(bright.sum() / np.pi))


def test_a_crop_shows_the_organ_where_and_as_large_as_the_whole_scan_does() -> None:
    at, size = ball(slices_around_body(trunk(), 160, 5.0, 1.1, WIDTH))
    # The left flank and the back are visible: only the other two sides are cut.
    part = box(trunk(), (40.0, 400.0), (-30.0, 300.0))
    at_in_part, size_in_part = ball(slices_around_body(part, 160, 5.0, 1.1, WIDTH))
    assert size_in_part == pytest.approx(size, rel=0.06)
    assert np.abs(at_in_part - at).max() < 5  # of 160 pixels
    _, stretched = ball(slices_around_body(part, 160, 5.0, 1.1))
    assert stretched > 1.5 * size  # what a layout by the visible part gave


def test_a_crop_that_is_cut_on_all_sides_is_shown_in_the_middle_at_its_usual_size() -> None:
    _, size = ball(slices_around_body(trunk(), 160, 5.0, 1.1, WIDTH))
    part = box(trunk(), (BALL_MM[0] - 55, BALL_MM[0] + 55), (BALL_MM[1] - 55, BALL_MM[1] + 55))
    at_in_part, size_in_part = ball(slices_around_body(part, 160, 5.0, 1.1, WIDTH))
    assert size_in_part == pytest.approx(size, rel=0.06)
    assert np.abs(at_in_part - 79.5).max() < 3


def test_a_whole_body_of_any_size_fills_the_slice() -> None:
    child, adult = trunk(), trunk()
    child.SetSpacing([2.0] * 3)  # half as large
    assert ball(slices_around_body(child, 160, 5.0, 1.1, WIDTH))[1] == pytest.approx(
        ball(slices_around_body(adult, 160, 5.0, 1.1, WIDTH))[1], rel=0.06
    )


def trunk_mask() -> NDArray[np.bool_]:
    """(5, 60, 80): a box of 50 by 70 within air."""
    mask = np.zeros((5, 60, 80), bool)
    mask[:, 5:55, 5:75] = True
    return mask


def test_a_body_that_ends_in_air_is_not_cut_however_flat_its_sides() -> None:
    low, high = body_extent(trunk_mask(), 200.0)
    assert (low.tolist(), high.tolist()) == ([5, 5], [75, 55])


def test_sides_that_a_field_of_view_only_grazes_are_no_cuts() -> None:
    grazed = trunk_mask()[:, 5:55, 5:75].copy()
    grazed[:, [0, -1], :40] = grazed[:, :30, [0, -1]] = False
    low, high = body_extent(grazed, 200.0)
    assert (low.tolist(), high.tolist()) == ([0, 0], [70, 50])


def test_a_cut_body_goes_on_beyond_its_cuts_alone() -> None:
    cut_on_the_right = trunk_mask()[:, :, 30:]
    low, high = body_extent(cut_on_the_right, 100.0)
    assert (low.tolist(), high.tolist()) == ([-55, 5], [45, 55])
    cut_in_front = trunk_mask()[:, 20:, :]
    low, high = body_extent(cut_in_front, 100.0)
    assert (low.tolist(), high.tolist()) == ([5, 35 - 100 * DEPTH_OF_WIDTH], [75, 35])
    cut_on_both = trunk_mask()[:, :, 30:50]
    low, high = body_extent(cut_on_both, 100.0)
    assert (low[0], high[0]) == (-40, 60)


def test_slices_without_a_body_hide_no_cut() -> None:
    mask = np.concatenate([trunk_mask(), np.zeros((50, 60, 80), bool)])[:, :, 30:]
    assert body_extent(mask, 100.0)[0][0] == -55


def test_a_cut_body_that_shows_more_than_is_usual_stays_as_it_is() -> None:
    low, high = body_extent(trunk_mask()[:, :, 30:], 40.0)
    assert (low.tolist(), high.tolist()) == ([0, 5], [45, 55])
