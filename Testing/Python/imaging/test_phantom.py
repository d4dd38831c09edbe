"""The torso phantom: plausible anatomy, Hounsfield units, geometry, the same for the same seed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.phantom import Phantom, torso_phantom, write_phantom

SEEDS = (0, 1, 5)

# Millilitres, wide enough for adults of either sex.
PLAUSIBLE_ML = {
    "spleen": (25, 700),
    "right kidney": (60, 300),
    "left kidney": (60, 300),
    "gallbladder": (5, 100),
    "esophagus": (5, 45),
    "liver": (900, 2900),
    "stomach": (150, 1200),
    "aorta": (40, 200),
    "inferior vena cava": (35, 180),
    "portal and splenic veins": (15, 80),
    "pancreas": (20, 160),
    "right adrenal gland": (1, 9),
    "left adrenal gland": (1, 9),
}

# Median HU in portal-venous phase, from late arterial to late.
PLAUSIBLE_HU = {
    "spleen": (70, 150),
    "right kidney": (110, 220),
    "left kidney": (110, 220),
    "gallbladder": (-20, 45),
    "esophagus": (10, 80),
    "liver": (60, 130),
    "aorta": (110, 300),
    "inferior vena cava": (50, 160),
    "portal and splenic veins": (90, 190),
    "pancreas": (60, 120),
}


@cache
def phantom(seed: int = 0, spacing: float = 3.0) -> Phantom:
    return torso_phantom(seed, spacing)


def arrays(made: Phantom) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    return sitk.GetArrayFromImage(made.image), sitk.GetArrayFromImage(made.labels)


def organs(made: Phantom) -> dict[str, tuple[float, NDArray[np.float64]]]:
    """Volume in ml and centroid in LPS mm of each organ, measured by SimpleITK."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(made.labels)
    return {made.names[k]: (shape.GetPhysicalSize(k) / 1000, np.array(shape.GetCentroid(k))) for k in shape.GetLabels()}


def test_label_numbers_are_those_of_the_real_scans() -> None:
    names = phantom().names
    assert list(names) == list(range(1, 14))
    assert [names[k] for k in (1, 2, 3, 6, 9, 13)] == [
        "spleen",
        "right kidney",
        "left kidney",
        "liver",
        "inferior vena cava",
        "left adrenal gland",
    ]


def test_same_seed_same_phantom_and_other_seed_another() -> None:
    first, again, other = phantom(0), torso_phantom(0), phantom(1)
    for a, b in zip(arrays(first), arrays(again), strict=True):
        assert np.array_equal(a, b)
    assert first.image.GetSize() != other.image.GetSize() or not np.array_equal(arrays(first)[1], arrays(other)[1])


def test_changing_the_names_of_one_phantom_leaves_the_next_alone() -> None:
    torso_phantom(0, 12.0).names.clear()
    assert len(torso_phantom(0, 12.0).names) == 13


@pytest.mark.parametrize("seed", SEEDS)
def test_every_organ_has_a_plausible_volume(seed: int) -> None:
    found = organs(phantom(seed))
    assert set(found) == set(PLAUSIBLE_ML)
    for organ, (least, most) in PLAUSIBLE_ML.items():
        assert least < found[organ][0] < most, (organ, found[organ][0])


@pytest.mark.parametrize("seed", SEEDS)
def test_organs_lie_on_their_side(seed: int) -> None:
    at = {organ: centroid for organ, (_, centroid) in organs(phantom(seed)).items()}
    for organ in ("liver", "gallbladder", "right kidney", "right adrenal gland"):
        assert at[organ][0] < -10, organ
    for organ in ("spleen", "stomach", "left kidney", "left adrenal gland"):
        assert at[organ][0] > 10, organ
    assert at["inferior vena cava"][0] < at["aorta"][0]
    assert at["spleen"][1] > at["stomach"][1] + 15  # posterior is +y
    assert at["esophagus"][2] > at["liver"][2] > at["right kidney"][2]  # superior is +z
    for side in ("right", "left"):
        assert at[f"{side} adrenal gland"][2] > at[f"{side} kidney"][2] + 15


@pytest.mark.parametrize("seed", SEEDS)
def test_organs_have_their_density(seed: int) -> None:
    image, labels = arrays(phantom(seed))
    for k, organ in phantom(seed).names.items():
        if organ in PLAUSIBLE_HU:
            least, most = PLAUSIBLE_HU[organ]
            assert least < np.median(image[labels == k]) < most, organ


def test_air_lung_fat_and_bone_are_real_hounsfield_units() -> None:
    image, labels = arrays(phantom())
    assert np.median(image[:, 0, :]) == pytest.approx(-1000, abs=5)
    body = np.stack([ndimage.binary_fill_holes(s) for s in ndimage.binary_opening(image > -300)])
    inside = ndimage.binary_erosion(body, iterations=3)
    lung = image[inside & (image < -700) & (image > -920)]
    fat = image[inside & (image < -60) & (image > -150)]
    bone = image[inside & (labels == 0) & (image > 300)]
    assert np.median(lung) == pytest.approx(-840, abs=25)
    assert np.median(fat) == pytest.approx(-100, abs=12)
    assert lung.size * 0.027 > 1000  # ml
    assert bone.size * 0.027 > 200


def test_every_large_organ_but_the_esophagus_is_in_one_piece() -> None:
    _, labels = arrays(phantom())
    for k in (1, 2, 3, 6, 7, 8, 9, 11):
        pieces, _ = ndimage.label(labels == k, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        assert sizes.max() / sizes.sum() > 0.97, phantom().names[k]


def test_images_are_lps_with_the_asked_types_and_geometry() -> None:
    made = torso_phantom(2, (4.0, 5.0, 6.0), size=(40, 30, 50))
    assert made.image.GetPixelID() == sitk.sitkInt16
    assert made.labels.GetPixelID() == sitk.sitkUInt8
    for image in (made.image, made.labels):
        assert image.GetSize() == (40, 30, 50)
        assert image.GetSpacing() == (4.0, 5.0, 6.0)
        assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
        assert image.GetOrigin() == made.image.GetOrigin()


def test_whole_torso_fits_in_by_default() -> None:
    for seed in SEEDS:
        image, _ = arrays(phantom(seed))
        assert image.shape[0] >= 120
        assert 95 <= image.shape[2] <= 150
        for border in (image[:, 0], image[:, :, 0], image[:, :, -1]):
            assert np.mean(border < -300) > 0.95  # nothing but the couch


def test_same_patient_at_any_spacing() -> None:
    coarse, fine = phantom(0, 3.0), phantom(0, 2.0)
    there, here = organs(coarse), organs(fine)
    for organ, (volume, centroid) in here.items():
        tolerance = 0.25 if volume < 12 else 0.08
        assert there[organ][0] == pytest.approx(volume, rel=tolerance), organ
        assert np.linalg.norm(there[organ][1] - centroid) < 3, organ
    resampled = sitk.Resample(fine.labels, coarse.labels, sitk.Transform(), sitk.sitkNearestNeighbor)
    a, b = sitk.GetArrayFromImage(resampled) == 6, arrays(coarse)[1] == 6
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.95


def test_crop_and_noise_leave_the_anatomy_alone() -> None:
    whole, quiet = phantom(0), torso_phantom(0, noise_hu=0.0)
    assert np.array_equal(arrays(whole)[1], arrays(quiet)[1])
    difference = arrays(whole)[0].astype(float) - arrays(quiet)[0]
    assert difference[arrays(whole)[1] == 6].std() == pytest.approx(12, rel=0.1)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"seed": -1}, "seed"),
        ({"spacing_mm": 0.0}, "spacing_mm"),
        ({"spacing_mm": (3.0, 3.0)}, "spacing_mm"),
        ({"spacing_mm": float("nan")}, "spacing_mm"),
        ({"size": (10, 0, 10)}, "size"),
        ({"noise_hu": -1.0}, "noise_hu"),
    ],
)
def test_bad_input_is_named(wrong: dict[str, object], name: str) -> None:
    with pytest.raises(InputError, match=name):
        torso_phantom(**wrong)  # type: ignore[arg-type]


def test_written_files_hold_the_phantom(tmp_path: Path) -> None:
    image, labels = write_phantom(tmp_path / "new", seed=0)
    assert (image.name, labels.name) == ("phantom.nii.gz", "phantom_labels.nii.gz")
    read, expected = sitk.ReadImage(str(image)), phantom(0).image
    assert np.array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(expected))
    assert np.allclose(read.GetOrigin(), expected.GetOrigin(), atol=1e-3)
    assert np.allclose(read.GetDirection(), expected.GetDirection())
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(labels))), arrays(phantom(0))[1])
