"""Several images at once: on one grid, in order, and of one place."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.channels import read_images, stack, warnings_of

INPUTS = ("T1", "FLAIR")


def ramp(size: tuple[int, int, int] = (10, 8, 6), spacing: float = 2.0, origin: float = 0.0) -> sitk.Image:
    """The position along x in mm as intensity, so that any resampling shows."""
    array = np.zeros(size[::-1], np.float32)
    array[:] = origin + spacing * np.arange(size[0])
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([spacing] * 3)
    image.SetOrigin([origin, 0, 0])
    return image


def test_images_on_one_grid_become_the_components_of_one() -> None:
    first, second = ramp(), ramp() * 3
    joined, told = stack([first, second], INPUTS, "net")
    assert told == [] and imaging.same_geometry(joined, first)
    channels = imaging.as_metatensor(joined)
    assert channels.shape == (2, 10, 8, 6)
    assert np.allclose(channels[1], channels[0] * 3)
    np.testing.assert_allclose(channels[0], sitk.GetArrayFromImage(first).transpose(2, 1, 0))


def test_an_image_on_another_grid_is_resampled_and_said_so() -> None:
    joined, told = stack([ramp(), ramp((22, 17, 13), 1.0, -1.0)], INPUTS, "net")
    channels = np.asarray(imaging.as_metatensor(joined))
    np.testing.assert_allclose(channels[1], channels[0], atol=1e-4)
    assert len(told) == 1 and "FLAIR" in told[0] and "registered" in told[0]


def test_images_of_different_places_are_refused() -> None:
    with pytest.raises(InputError, match=r"FLAIR covers only \d% of the image T1"):
        stack([ramp(), ramp(origin=500.0)], INPUTS, "net")


@pytest.mark.parametrize(
    ("count", "inputs", "complaint"),
    [
        (1, INPUTS, r"2 images .*\(T1, FLAIR, in this order\), and one was given"),
        (3, ("image",), "takes one image, and 3"),
    ],
)
def test_the_number_of_images_is_the_networks(count: int, inputs: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        stack([ramp()] * count, inputs, "net")


def test_one_image_stays_what_it_is() -> None:
    image = ramp()
    assert stack([image], ("image",), "net") == (image, [])


def test_files_and_images_are_read_alike(tmp_path: Path) -> None:
    path = imaging.write_volume(ramp(), tmp_path / "t1.nrrd")
    for given in (path, str(path), [path], [ramp()], ramp()):
        (read,) = read_images(given)
        assert imaging.same_geometry(read.image, ramp())
    assert len(read_images([path, ramp()])) == 2


def test_what_files_say_is_told_by_the_number_of_the_scan(tmp_path: Path) -> None:
    path = tmp_path / "t1.nii"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32), None), path)
    (one,) = warnings_of(read_images(path))
    assert one.startswith("The scan does not say how it is oriented")
    (second,) = warnings_of(read_images([ramp(), path]))
    assert second.startswith("The scan 2 does not say how it is oriented")
    assert str(tmp_path) not in second, "it goes into the record"


def test_a_volume_that_cannot_be_used_is_told_by_its_number() -> None:
    flat = ramp() * 0
    with pytest.raises(InputError, match="The volume 2 is constant"):
        read_images([ramp(), flat])
    with pytest.raises(InputError, match="No volume is given"):
        read_images([])


def test_one_image_in_place_of_several_is_refused() -> None:
    with pytest.raises(InputError, match=r"^The images T1 and FLAIR are the same: give each of the images"):
        stack([ramp(), ramp()], INPUTS, "net")
    with pytest.raises(InputError, match=r"^The images T1 and T2 are the same"):
        stack([ramp(), ramp() * 2, ramp()], ("T1", "FLAIR", "T2"), "net")
    stack([ramp(), ramp() + 1], INPUTS, "net")
