"""Grey-value windows of slices, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from XAICLIPLib.localization.slices import CT_WINDOW_HU, prepare_slices, window_ct, window_percentiles


def body(rows: int = 64, columns: int = 48, air: float = 0.0) -> NDArray[np.float32]:
    """A noisy disc in air: a gradient with a brighter spot."""
    y, x = np.mgrid[:rows, :columns]
    values = 100 + 2.0 * y + np.random.default_rng(0).normal(0, 5, (rows, columns))
    values[20:26, 20:26] += 80
    inside = ((y - rows / 2) / rows) ** 2 + ((x - columns / 2) / columns) ** 2 < 0.16
    return np.where(inside, values, air).astype(np.float32)


def test_the_ct_window_maps_its_ends_to_zero_and_one_and_cuts_off_beyond() -> None:
    low, high = CT_WINDOW_HU
    found = window_ct(np.array([[-1024.0, low, (low + high) / 2, 0.0, 40.0, high, 3071.0]]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0, 0, 0.5, 125 / 400, 165 / 400, 1, 1]], rtol=1e-6)


def test_whole_numbers_of_hu_are_windowed_like_real_ones() -> None:
    hu = np.arange(-300, 500, 8).reshape(2, 5, 10)
    np.testing.assert_allclose(window_ct(hu.astype(np.int16)), window_ct(hu.astype(np.float64)), atol=1e-7)


def test_percentiles_use_the_whole_range_and_keep_air_black() -> None:
    image = body()
    found = window_percentiles(image)
    assert found.shape == image.shape and found.dtype == np.float32
    assert found.min() == 0 and found.max() == 1
    assert found[image == 0].max() < 0.05


def test_air_around_the_patient_does_not_decide_the_window() -> None:
    image = body()
    padded = np.pad(image, 64)
    inside = window_percentiles(padded)[64:-64, 64:-64][image > 0]
    assert float(np.std(inside)) > 0.15  # with the air counted, the 5th and the 50th percentile would be the same
    assert stats.spearmanr(inside, image[image > 0]).statistic > 0.6


def test_brightness_and_contrast_of_the_scanner_do_not_matter() -> None:
    image = body()
    expected = window_percentiles(image)
    np.testing.assert_allclose(window_percentiles(3.5 * image - 200), expected, atol=2e-3)
    np.testing.assert_allclose(window_percentiles(image.astype(np.float64) * 1e-6), expected, atol=2e-3)


def test_the_contrast_is_equalised_locally() -> None:
    """A faint texture beside a strong one shows more than by windowing alone."""
    image = np.zeros((128, 128), np.float32)
    image[:, 64:] = 1000 + 20 * np.indices((128, 64)).sum(0) % 200
    image[:, :64] = 100 + 5 * (np.indices((128, 64)).sum(0) % 2)
    bottom, top = np.percentile(image[image > image.min()], (5, 95))
    plain = np.clip((image - bottom) / (top - bottom), 0, 1)
    assert window_percentiles(image)[:, :48].std() > 1.5 * plain[:, :48].std()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 32), np.float32),
        np.full((32, 32), -1024, np.int16),
        np.where(np.indices((32, 32))[0] > 8, 7.0, 0.0),
        np.eye(32),
        np.arange(4.0).reshape(2, 2),
        np.arange(36.0).reshape(6, 6),
        np.arange(17.0)[None],
        np.arange(40.0)[:, None],
        np.where(np.arange(1024).reshape(32, 32) == 500, 1e30, 1.0),
        np.full((32, 32), np.nan),
        np.where(np.indices((32, 32))[0] > 8, np.arange(32.0), np.nan),
    ],
    ids="flat,flat and negative,two values,a line,2x2,6x6,one row,one column,one bright,nan,some nan".split(","),
)
@pytest.mark.filterwarnings("error")
def test_slices_with_little_in_them_give_finite_grey_values(image: NDArray[np.floating]) -> None:
    found = window_percentiles(image)
    assert found.shape == image.shape and found.dtype == np.float32
    assert np.isfinite(found).all()
    assert found.min() >= 0 and found.max() <= 1


def test_a_flat_slice_is_black() -> None:
    assert not window_percentiles(np.full((32, 32), 5.0)).any()


def test_a_slice_with_a_few_bright_pixels_is_black() -> None:
    image = np.zeros((32, 32))
    image[10:13, 10:15] = np.arange(1, 16).reshape(3, 5)
    assert not window_percentiles(image).any()


def test_ct_is_windowed_in_hu_and_anything_else_by_its_own_percentiles() -> None:
    stack = np.stack([body(), 2 * body(), np.zeros((64, 48), np.float32)])
    np.testing.assert_array_equal(prepare_slices(stack, "CT"), window_ct(stack))
    each = [window_percentiles(image) for image in stack]
    for modality in ("MR", None):
        found = prepare_slices(stack, modality)
        assert found.shape == stack.shape and found.dtype == np.float32
        np.testing.assert_array_equal(found, each)


def test_the_input_is_left_as_it_was() -> None:
    for modality in ("CT", "MR", None):
        stack = body()[None]
        prepare_slices(stack, modality)
        np.testing.assert_array_equal(stack, body()[None])
