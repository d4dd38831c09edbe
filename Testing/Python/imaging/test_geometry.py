"""Label maps on another grid; the rest of the module is tested in test_volumes.py."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from XAICLIPLib import imaging

OBLIQUE = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5).GetMatrix()
STRAIGHT = (1, 0, 0, 0, 1, 0, 0, 0, 1)
FLIPPED = (-1, 0, 0, 0, 1, 0, 0, 0, -1)


def grid(
    size: tuple[int, int, int],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    direction: tuple[float, ...] = STRAIGHT,
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> sitk.Image:
    """An empty volume around a point (LPS mm)."""
    image = sitk.Image(size, sitk.sitkUInt8)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    half = np.reshape(direction, (3, 3)) @ (np.array(spacing) * (np.array(size) - 1) / 2)
    image.SetOrigin((np.array(centre) - half).tolist())
    return image


def points(image: sitk.Image) -> np.ndarray:
    """Position (LPS mm) of every voxel, (z, y, x, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, image.GetSize()[::-1]), indexing="ij"), -1)[..., ::-1]
    axes = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    return np.asarray(index @ axes.T + image.GetOrigin())


def like(image: sitk.Image, values: np.ndarray) -> sitk.Image:
    made = sitk.GetImageFromArray(values)
    made.CopyInformation(image)
    return made


def ball(image: sitk.Image, radius: float = 10.0) -> sitk.Image:
    return like(image, (np.linalg.norm(points(image), axis=-1) <= radius).astype(np.uint8))


def values(image: sitk.Image) -> np.ndarray:
    return np.asarray(sitk.GetArrayFromImage(image))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * np.count_nonzero((a != 0) & (b != 0)) / (np.count_nonzero(a) + np.count_nonzero(b)))


@pytest.mark.parametrize("pixel", [np.uint8, np.uint16, np.int32])
def test_on_its_own_grid_a_label_map_stays_as_it_is(pixel: type) -> None:
    image = grid((5, 6, 7), (0.7, 1.1, 2.5), OBLIQUE)
    labels = like(image, np.random.default_rng(0).integers(0, 200, (7, 6, 5)).astype(pixel))
    labels.SetMetaData("PatientName", "DOE^JOHN")
    same = imaging.resample_labels(labels, image)
    assert np.array_equal(values(same), values(labels))
    assert same.GetPixelID() == labels.GetPixelID()
    assert not same.GetMetaDataKeys()


def test_a_grid_that_is_rounded_differently_gives_its_own_origin() -> None:
    image = grid((5, 6, 7))
    labels = like(image, np.ones((7, 6, 5), np.uint8))
    image.SetOrigin((np.array(image.GetOrigin()) + 1e-5).tolist())
    assert imaging.resample_labels(labels, image).GetOrigin() == image.GetOrigin()


@pytest.mark.parametrize("direction", [STRAIGHT, FLIPPED, OBLIQUE], ids=["straight", "flipped", "oblique"])
def test_a_ball_of_coarse_voxels_is_drawn_rounder_than_by_nearest_neighbour(direction: tuple[float, ...]) -> None:
    coarse, fine = ball(grid((12, 12, 12), (3.1, 3.1, 3.1))), grid((40, 38, 20), (0.8, 0.9, 1.7), direction)
    smooth = imaging.resample_labels(coarse, fine)
    stairs = imaging.resample_like(coarse, fine, "nearest")
    truth = values(ball(fine))
    assert imaging.same_geometry(smooth, fine, 1e-9)
    assert dice(values(smooth), truth) > 0.93
    assert dice(values(smooth), truth) > dice(values(stairs), truth) + 0.005


def test_labels_that_touch_leave_no_gap_between_them() -> None:
    coarse = grid((6, 6, 6), (3.0, 3.0, 3.0))
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[1:5, 1:5, 1:3], labels[1:5, 1:3, 3:5], labels[1:5, 3:5, 3:5] = 1, 2, 7
    fine = grid((18, 18, 18))
    found = values(imaging.resample_labels(like(coarse, labels), fine))
    inner = (np.abs(points(fine)) <= 4.4).all(-1)
    assert set(np.unique(found)) == {0, 1, 2, 7}
    assert (found[inner] > 0).all()
    together = imaging.resample_labels(like(coarse, (labels > 0).astype(np.uint8)), fine)
    assert np.array_equal(found > 0, values(together) > 0)


def test_the_label_with_the_largest_share_wins_where_labels_have_more_than_half() -> None:
    coarse, fine = grid((7, 6, 5), (2.0, 3.0, 4.0)), grid((13, 14, 15), (1.1, 1.2, 1.3), OBLIQUE, (1.0, 0.5, -0.7))
    labels = np.random.default_rng(1).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    found = values(imaging.resample_labels(like(coarse, labels), fine))
    one_hot = [imaging.resample_like(like(coarse, (labels == n).astype(np.float32)), fine) for n in range(4)]
    shares = np.stack([values(share) for share in one_hot])
    top = np.sort(shares[1:], axis=0)
    clear = (top[-1] - top[-2] > 1e-4) & (np.abs(shares[0] - 0.5) > 1e-4) & (shares.sum(0) > 0.999)
    assert clear.mean() > 0.3
    expected = np.where(shares[0] < 0.5, shares[1:].argmax(0) + 1, 0)
    assert np.array_equal(found[clear], expected[clear])


def test_what_reaches_beyond_the_label_map_is_background() -> None:
    labels = like(grid((4, 4, 4)), np.full((4, 4, 4), 3, np.uint8))
    wide = grid((10, 8, 6), centre=(2.0, 0.0, 0.0))
    found = values(imaging.resample_labels(labels, wide))
    expected = np.where((np.abs(points(wide)) <= 2).all(-1), 3, 0)
    assert np.array_equal(found, expected)
    assert 0 < np.count_nonzero(found) < found.size


def test_a_label_map_elsewhere_gives_nothing() -> None:
    labels = like(grid((4, 4, 4)), np.ones((4, 4, 4), np.uint8))
    found = imaging.resample_labels(labels, grid((4, 4, 4), (2.0, 2.0, 2.0), centre=(500.0, 0.0, 0.0)))
    assert not values(found).any()


def test_labels_above_255_keep_their_values() -> None:
    labels = like(grid((4, 4, 4), (2.0, 2.0, 2.0)), np.full((4, 4, 4), 70_000, np.int32))
    found = imaging.resample_labels(labels, grid((6, 6, 6)))
    assert found.GetPixelID() == sitk.sitkInt32
    assert set(np.unique(values(found))) == {70_000}


def test_volume_counts_voxels_above_zero_in_ml() -> None:
    image = grid((10, 10, 10), (2.0, 1.0, 0.5))
    array = np.zeros((10, 10, 10), np.uint8)
    array[0, 0, :4] = 5
    assert imaging.volume_ml(like(image, array)) == pytest.approx(0.004)
