"""Reading, checking, geometry and writing of volumes; DICOM is in test_dicom.py."""

from __future__ import annotations

import gzip
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import convolve1d
from scipy.special import ive

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError

nib = pytest.importorskip("nibabel", reason="nibabel is the oracle for orientation")

SIZE = (9, 11, 13)
OBLIQUE = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5).GetMatrix()
DIRECTIONS = {
    "LPS": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "RAS": (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    "PLI": (0, 1, 0, 1, 0, 0, 0, 0, -1),
    "oblique": OBLIQUE,
    "left-handed": (1, 0, 0, 0, -1, 0, 0, 0, 1),
}
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


def volume(direction: tuple[float, ...] = OBLIQUE, dtype: type = np.float32) -> sitk.Image:
    """A small volume of distinct values on an anisotropic grid away from the origin."""
    noise = np.random.default_rng(0).integers(-1000, 1000, SIZE[::-1]).astype(dtype)
    image = sitk.GetImageFromArray(noise)
    image.SetSpacing((0.7, 1.1, 2.5))
    image.SetOrigin((-12.5, 40.25, 3.75))
    image.SetDirection(direction)
    return image


def values(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


def is_one_sentence(error: pytest.ExceptionInfo[InputError]) -> bool:
    """A capital or a path first, one full stop, at the end."""
    text = str(error.value)
    return text.endswith(".") and "\n" not in text and ". " not in text


# Reading


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str, direction: tuple[float, ...]) -> None:
    image = volume(direction)
    path = imaging.write_volume(image, tmp_path / f"scan{suffix}")
    again = imaging.read_volume(path)
    assert np.array_equal(values(again), values(image))
    assert imaging.same_geometry(again, image, 1e-4)


@pytest.mark.parametrize("header", [".nhdr", ".mhd"])
def test_detached_headers_are_read(tmp_path: Path, header: str) -> None:
    sitk.WriteImage(volume(), str(tmp_path / f"scan{header}"))
    assert np.array_equal(values(imaging.read_volume(tmp_path / f"scan{header}")), values(volume()))


def test_names_in_capitals_and_other_alphabets_are_read(tmp_path: Path) -> None:
    path = tmp_path / "Überblick 肝 Scan.NRRD"
    path.write_bytes(imaging.write_volume(volume(), tmp_path / "a.nrrd").read_bytes())
    assert np.array_equal(values(imaging.read_volume(str(path))), values(volume()))


def test_nifti_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    stored = np.random.default_rng(1).integers(0, 2000, SIZE).astype(np.int16)
    nifti = nib.Nifti1Image(stored, np.eye(4))
    nifti.header.set_slope_inter(0.5, -1024)
    nib.save(nifti, tmp_path / "scaled.nii.gz")
    expected = nib.load(tmp_path / "scaled.nii.gz").get_fdata()
    assert np.ptp(expected) > 0
    assert np.allclose(values(imaging.read_volume(tmp_path / "scaled.nii.gz")).T, expected)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_single_frame_is_squeezed(tmp_path: Path, suffix: str) -> None:
    image = volume()
    path = tmp_path / f"frame{suffix}"
    if suffix == ".nii.gz":
        nib.save(nib.Nifti1Image(values(image).T[..., None], imaging.ras_affine(image)), path)
    else:
        sitk.WriteImage(sitk.JoinSeries([image]), str(path))
    read = imaging.read_volume(path)
    assert np.array_equal(values(read), values(image))
    assert imaging.same_geometry(read, image, 1e-4)


def test_several_frames_are_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 3), np.float32), np.eye(4)), tmp_path / "4d.nii")
    with pytest.raises(InputError, match=r"4d\.nii is 4D.*choose one time point") as error:
        imaging.read_volume(tmp_path / "4d.nii")
    assert is_one_sentence(error)


def test_identifiers_are_dropped_on_reading(tmp_path: Path) -> None:
    image = volume()
    image.SetMetaData("0010|0010", "Doe^Jane")
    sitk.WriteImage(image, str(tmp_path / "named.nrrd"))
    assert b"Doe^Jane" in (tmp_path / "named.nrrd").read_bytes()
    assert imaging.read_volume(tmp_path / "named.nrrd").GetMetaDataKeys() == ()


def test_what_is_absent_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file or folder .*nosuch\.nii") as error:
        imaging.read_volume(tmp_path / "nosuch.nii")
    assert is_one_sentence(error)


def test_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "scan.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"scan\.png is of a kind that is not read.*NIfTI") as error:
        imaging.read_volume(tmp_path / "scan.png")
    assert is_one_sentence(error)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b\x08 no gzip", b"\0" * 600])
@pytest.mark.parametrize("suffix", [*SUFFIXES, ".nhdr", ".mhd"])
def test_junk_is_said_to_be_damaged(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"junk{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=rf"junk{suffix}.* damaged") as error:
        imaging.read_volume(tmp_path / f"junk{suffix}")
    assert is_one_sentence(error)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.999])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_cut_off_is_not_filled_with_zeros(tmp_path: Path, suffix: str, kept: float) -> None:
    path = imaging.write_volume(volume(), tmp_path / f"cut{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=r"cut.* damaged") as error:
        imaging.read_volume(path)
    assert is_one_sentence(error)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_damaged_compressed_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = imaging.write_volume(volume(), tmp_path / f"bad{suffix}")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 30] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad.* damaged"):
        imaging.read_volume(path)


def test_nifti_of_both_byte_orders_is_read(tmp_path: Path) -> None:
    data = np.random.default_rng(2).normal(size=SIZE).astype(np.float32)
    for order in "<>":
        header = nib.Nifti1Image.header_class(endianness=order)
        header.set_data_dtype(np.float32)
        nib.save(nib.Nifti1Image(data, np.eye(4), header), tmp_path / "order.nii")
        assert np.array_equal(values(imaging.read_volume(tmp_path / "order.nii")).T, data)


def test_nifti_2_is_refused_by_its_name(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(np.zeros(SIZE, np.float32), np.eye(4)), tmp_path / "two.nii.gz")
    with pytest.raises(InputError, match=r"two\.nii\.gz is a NIfTI-2 file.*save it as NIfTI-1") as error:
        imaging.read_volume(tmp_path / "two.nii.gz")
    assert is_one_sentence(error)


def test_a_gzip_file_of_several_members_is_read(tmp_path: Path) -> None:
    plain = imaging.write_volume(volume(), tmp_path / "plain.nii").read_bytes()
    parts = gzip.compress(plain[:1000]) + gzip.compress(plain[1000:])
    (tmp_path / "parts.nii.gz").write_bytes(parts)
    assert np.array_equal(values(imaging.read_volume(tmp_path / "parts.nii.gz")), values(volume()))


def test_a_sheared_nifti_is_refused(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 2] = 0.3
    nifti = nib.Nifti1Image(np.random.default_rng(0).normal(size=SIZE), affine)
    nifti.set_qform(None, 0)
    nib.save(nifti, tmp_path / "sheared.nii")
    with pytest.raises(InputError, match=r"sheared\.nii has axes that are not orthonormal") as error:
        imaging.read_volume(tmp_path / "sheared.nii")
    assert is_one_sentence(error)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_other_sheared_files_are_refused(tmp_path: Path, suffix: str) -> None:
    axes = "(1,0,0) (0,1,0) (0.3,0,1)"
    head = {
        ".nrrd": "NRRD0004\ntype: float\ndimension: 3\nspace: left-posterior-superior\n"
        f"sizes: 9 11 13\nspace directions: {axes}\nendian: little\nencoding: raw\n\n",
        ".mha": "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        "TransformMatrix = 1 0 0 0 1 0 0.3 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\n"
        "DimSize = 9 11 13\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n",
    }[suffix]
    path = tmp_path / f"sheared{suffix}"
    path.write_bytes(head.encode() + values(volume()).tobytes())
    with pytest.raises(InputError, match=r"sheared\..* not orthonormal"):
        imaging.read_volume(path)


@pytest.mark.parametrize("spacing", [0.0, math.nan])
def test_a_nifti_spacing_of_nothing_is_refused(tmp_path: Path, spacing: float) -> None:
    path = imaging.write_volume(volume(DIRECTIONS["LPS"]), tmp_path / "flat.nii")
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 84, spacing)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"flat\.nii has a voxel spacing of 0\.7 × (0|nan) × 2\.5"):
        imaging.read_volume(path)


def test_a_metaimage_spacing_of_zero_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(volume(), str(tmp_path / "flat.mha"))
    content = (tmp_path / "flat.mha").read_bytes()
    head = content.index(b"ElementSpacing = ")
    end = content.index(b"\n", head)
    (tmp_path / "flat.mha").write_bytes(content[:head] + b"ElementSpacing = 1 0 1" + content[end:])
    with pytest.raises(InputError, match=r"flat\.mha has a voxel spacing of zero"):
        imaging.read_volume(tmp_path / "flat.mha")


# Checking


def shaped(array: np.ndarray, spacing: float = 1.0, vector: bool = False) -> sitk.Image:
    image = sitk.GetImageFromArray(array, isVector=vector)
    image.SetSpacing([spacing] * image.GetDimension())
    return image


def sheared() -> sitk.Image:
    image = volume()
    image.SetDirection((1, 0, 0.3, 0, 1, 0, 0, 0, 1))
    return image


def with_bad(*bad: float) -> sitk.Image:
    array = np.arange(512, dtype=np.float32).reshape(8, 8, 8)
    array.ravel()[: len(bad)] = bad
    return shaped(array)


RAMP = np.arange(4096, dtype=np.float32)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (shaped(RAMP.reshape(64, 64)), "The scan is 2D.*whole stack"),
        (shaped(RAMP.reshape(8, 8, 8, 8)), "The scan is 4D.*one time point"),
        (shaped(RAMP.reshape(16, 16, 4, 4), vector=True), "The scan has 4 values per voxel"),
        (shaped(RAMP.astype(np.uint8).reshape(-1, 8, 8, 1), vector=True), "1 values? per voxel"),
        (shaped(RAMP.reshape(16, 16, 16).astype(np.complex64)), "The scan has complex values"),
        (sitk.Image([0, 0, 0], sitk.sitkFloat32), "The scan is empty"),
        (shaped(RAMP.reshape(1, 64, 64)), "The scan is too thin.*64×64×1"),
        (shaped(RAMP[:3072].reshape(32, 3, 32)), "The scan is too thin.*32×3×32"),
        (shaped(RAMP.reshape(16, 16, 16), 1e-6), "The scan has a voxel spacing of 1e-06 × 1e-06"),
        (shaped(RAMP.reshape(16, 16, 16), 3000), "The scan has a voxel spacing of 3000 × 3000"),
        (sheared(), "The scan has a direction matrix that is not orthonormal"),
        (with_bad(math.nan), "The scan has 1 voxel of 512 that is NaN or infinite"),
        (with_bad(math.nan, math.inf, -math.inf), "The scan has 3 voxels of 512 that are NaN"),
        (shaped(np.full((8, 8, 8), -1024, np.int16)), "The scan is constant .*-1024"),
    ],
)
def test_what_cannot_be_explained_is_refused(image: sitk.Image, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        imaging.check_volume(image, "the scan")
    assert is_one_sentence(error)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_scalar_volumes_of_any_orientation_pass(direction: tuple[float, ...], dtype: type) -> None:
    imaging.check_volume(volume(direction, dtype))


def test_a_direction_rounded_to_four_digits_passes() -> None:
    image = volume()
    image.SetDirection(np.round(OBLIQUE, 4).tolist())
    imaging.check_volume(image)


# Masks


def ball(image: sitk.Image, label: int = 1) -> sitk.Image:
    array = np.zeros(values(image).shape, np.uint8)
    array[4:9, 3:8, 2:7] = label
    mask = sitk.GetImageFromArray(array)
    mask.CopyInformation(image)
    return mask


@pytest.mark.parametrize("pixel", [sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkFloat64])
@pytest.mark.parametrize("label", [1, 6, 120])
def test_a_mask_of_one_label_becomes_zero_and_one(tmp_path: Path, label: int, pixel: int) -> None:
    image = volume()
    path = imaging.write_volume(sitk.Cast(ball(image, label), pixel), tmp_path / "mask.nii.gz")
    mask = imaging.read_mask(path, image)
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(values(mask), values(ball(image)))
    assert imaging.same_geometry(mask, image, 0)


def test_a_label_map_keeps_its_labels(tmp_path: Path) -> None:
    image = volume()
    labels = sitk.Cast(ball(image), sitk.sitkFloat32) * 1000
    labels[3, 4, 5] = 7
    mask = imaging.read_mask(imaging.write_volume(labels, tmp_path / "labels.nrrd"), image)
    assert mask.GetPixelID() == sitk.sitkUInt16
    assert np.array_equal(values(mask), values(labels))


def test_a_mask_on_another_grid_lands_where_it_lay(tmp_path: Path) -> None:
    image = volume(DIRECTIONS["RAS"])
    box = sitk.Image([30, 30, 30], sitk.sitkUInt8) + 1
    # The mask's grid: finer, turned, around the physical box of the voxels 2..6 × 3..7 × 4..8.
    box.SetSpacing((0.2, 0.2, 0.45))
    centre = np.array(image.TransformContinuousIndexToPhysicalPoint((4.0, 5.0, 6.0)))
    box.SetOrigin((centre - np.array(box.GetSpacing()) * 14.5).tolist())
    mask = imaging.read_mask(imaging.write_volume(box, tmp_path / "box.mha"), image)
    extent = np.array(box.GetSize()) * box.GetSpacing() / 2
    expected = np.zeros(SIZE, np.uint8)
    for index in np.ndindex(SIZE):
        point = np.array(image.TransformIndexToPhysicalPoint(index))
        expected[index] = bool((np.abs(point - centre) <= extent).all())
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(values(mask).T, expected)


def test_a_mask_elsewhere_is_refused(tmp_path: Path) -> None:
    image = volume()
    far = ball(image)
    far.SetOrigin((500, 500, 500))
    with pytest.raises(InputError, match=r"far\.nrrd and the volume do not overlap") as error:
        imaging.read_mask(imaging.write_volume(far, tmp_path / "far.nrrd"), image)
    assert is_one_sentence(error)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((5, 5, 5)), "is empty"),
        (np.linspace(0, 1, 125).reshape(5, 5, 5), "values that are no labels .0 to 1."),
        (np.arange(-1, 124).reshape(5, 5, 5), "values that are no labels .-1 to 123."),
        (np.full((5, 5, 5), math.nan), "values that are no labels"),
        (np.zeros((5, 5, 5, 2)), "is 4D"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path: Path, array: np.ndarray, sentence: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.float32), isVector=False), str(tmp_path / "m.mha"))
    with pytest.raises(InputError, match=rf"The mask .*m\.mha {sentence}|holds {sentence}") as error:
        imaging.read_mask(tmp_path / "m.mha", volume())
    assert is_one_sentence(error)


def test_a_real_mask_on_another_grid(shared_data: Path) -> None:
    folder = shared_data / "totalseg" / "pulmonary"
    scan = imaging.read_volume(folder / "ct_cropped.nii.gz")
    heart = imaging.read_mask(folder / "heart.nii.gz", scan)
    assert imaging.same_geometry(heart, scan, 0)
    # The grids differ by whole voxels, so that indices alone tell where each voxel must go.
    given = nib.load(folder / "heart.nii.gz")
    affine = np.linalg.inv(given.affine) @ nib.load(folder / "ct_cropped.nii.gz").affine
    shift = np.round(affine[:3, 3]).astype(int)
    assert np.allclose(affine[:3, :3], np.eye(3), atol=1e-5)
    assert np.allclose(affine[:3, 3], shift, atol=1e-3)
    assert shift.any()
    data = np.asarray(given.dataobj)
    expected = np.zeros(scan.GetSize(), np.uint8)
    for index in np.argwhere(data):
        at = index - shift
        if (at >= 0).all() and (at < expected.shape).all():
            expected[tuple(at)] = 1
    assert expected.sum() > 10_000
    assert np.array_equal(values(heart).T, expected)


# Geometry


def test_same_geometry_sees_a_shift_a_turn_and_a_size() -> None:
    image = volume()
    assert imaging.same_geometry(image, volume())
    for change in ("origin", "spacing", "direction", "size"):
        other = volume()
        if change == "origin":
            other.SetOrigin((-12.49, 40.25, 3.75))
        elif change == "spacing":
            other.SetSpacing((0.701, 1.1, 2.5))
        elif change == "direction":
            other.SetDirection(sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.501).GetMatrix())
        else:
            other = other[:-1, :, :]
        assert not imaging.same_geometry(image, other), change
    nudged = volume()
    nudged.SetOrigin((-12.5 + 5e-4, 40.25, 3.75))
    assert imaging.same_geometry(image, nudged)
    assert not imaging.same_geometry(image, nudged, tolerance_mm=1e-4)


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_the_affine_is_nibabels(tmp_path: Path, direction: tuple[float, ...]) -> None:
    image = volume(direction)
    path = imaging.write_volume(image, tmp_path / "scan.nii.gz")
    assert np.allclose(imaging.ras_affine(image), nib.load(path).affine, atol=1e-5)
    assert np.array_equal(values(image).T, np.asarray(nib.load(path).dataobj))


@pytest.mark.parametrize("reader", ["ITKReader", "NibabelReader"])
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_the_metatensor_is_what_monai_loads(tmp_path: Path, direction: tuple[float, ...], reader: str) -> None:
    transforms = pytest.importorskip("monai.transforms")
    if reader == "ITKReader":
        pytest.importorskip("itk", reason="MONAI's ITKReader needs itk")
    image = volume(direction)
    path = imaging.write_volume(image, tmp_path / "scan.nii.gz")
    loaded = transforms.LoadImage(reader=reader, ensure_channel_first=True)(path)
    ours = imaging.as_metatensor(image)
    assert ours.dtype.is_floating_point
    assert ours.shape == (1, *SIZE)
    assert np.array_equal(ours.numpy(), loaded.numpy())
    assert np.allclose(ours.affine.numpy(), loaded.affine.numpy(), atol=1e-5)
    assert ours.meta["space"] == loaded.meta["space"]
    turned = transforms.Orientation("PIR", labels=None)
    assert np.array_equal(turned(ours).numpy(), turned(loaded).numpy())
    assert transforms.EnsureChannelFirst()(ours).shape == ours.shape


def test_the_metatensor_of_several_images_has_them_as_channels() -> None:
    image = volume()
    other = sitk.Cast(image, sitk.sitkFloat32) * 2 + 1
    both = imaging.as_metatensor(sitk.Compose(sitk.Cast(image, sitk.sitkFloat32), other))
    for channel, alone in enumerate((image, other)):
        assert np.array_equal(both[channel].numpy(), imaging.as_metatensor(alone)[0].numpy())
    assert both.shape == (2, *SIZE)
    assert np.array_equal(both.affine.numpy(), imaging.as_metatensor(image).affine.numpy())


def test_the_metatensor_does_not_share_the_images_memory() -> None:
    image = volume()
    imaging.as_metatensor(image)[:] = 0
    assert np.array_equal(values(image), values(volume()))


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_an_array_and_its_affine_make_the_image_again(direction: tuple[float, ...]) -> None:
    image = volume(direction, np.int16)
    again = imaging.image_from_array(values(image).T, imaging.ras_affine(image))
    assert np.array_equal(values(again), values(image))
    assert again.GetPixelID() == image.GetPixelID()
    assert imaging.same_geometry(again, image, 1e-9)


def test_booleans_and_half_floats_become_what_itk_has() -> None:
    mask = imaging.image_from_array(np.ones(SIZE, bool), np.eye(4))
    assert mask.GetPixelID() == sitk.sitkUInt8
    half = imaging.image_from_array(np.ones(SIZE, np.float16), np.eye(4))
    assert half.GetPixelID() == sitk.sitkFloat32


@pytest.mark.parametrize("wrong", ["sheared", "degenerate", "2D"])
def test_a_wrong_array_or_affine_is_refused(wrong: str) -> None:
    affine = np.eye(4)
    if wrong == "sheared":
        affine[0, 1] = 0.3
    elif wrong == "degenerate":
        affine[:3, 2] = 0
    array = np.zeros((4, 4) if wrong == "2D" else (4, 4, 4))
    with pytest.raises(InputError, match="2 axes" if wrong == "2D" else "affine is sheared"):
        imaging.image_from_array(array, affine)


def linear_field(image: sitk.Image) -> sitk.Image:
    """A volume whose value is a linear function of the physical point: interpolation is exact."""
    index = np.stack(np.meshgrid(*map(np.arange, image.GetSize()), indexing="ij"), -1)
    affine = imaging.ras_affine(image)
    point = index @ affine[:3, :3].T + affine[:3, 3]
    return imaging.image_from_array(point @ [1.0, -2.0, 0.5], affine)


def test_resampling_keeps_places_and_takes_the_grid_exactly() -> None:
    source = linear_field(volume(DIRECTIONS["PLI"]))
    target = volume()
    target.SetSpacing((0.4, 0.6, 0.5))
    target.SetOrigin(source.TransformContinuousIndexToPhysicalPoint((3.0, 3.0, 4.0)))
    result = imaging.resample_like(source, target, outside=1e6)
    assert result.GetPixelID() == sitk.sitkFloat32
    assert imaging.same_geometry(result, target, 0)
    inside = values(result) != 1e6
    assert 0.2 < inside.mean() < 1
    assert np.abs((values(result) - values(linear_field(target)))[inside]).max() < 0.5 * 2.5 * 2
    # Half a voxel beyond the last centres ITK repeats the border; within them it is exact.
    edge = np.abs((values(result) - values(linear_field(target)))[inside]) > 1e-3
    assert edge.mean() < 0.35


def test_nearest_keeps_type_and_labels() -> None:
    image = ball(volume(), 6)
    fine = volume()
    fine.SetSpacing((0.35, 0.55, 1.25))
    result = imaging.resample_like(image, fine, "nearest")
    assert result.GetPixelID() == sitk.sitkUInt8
    assert set(np.unique(values(result))) == {0, 6}


def test_antialiasing_is_the_gaussian_it_says() -> None:
    rng = np.random.default_rng(3)
    array = rng.normal(size=(40, 12, 12)).astype(np.float32)
    image = shaped(array)
    coarse = sitk.Image([12, 12, 10], sitk.sitkUInt8)
    coarse.SetSpacing((1, 1, 4))
    coarse.SetOrigin((0, 0, 2))
    sharp = imaging.resample_like(image, coarse)
    assert np.allclose(values(sharp), array[2::4], atol=1e-5)
    smooth = imaging.resample_like(image, coarse, antialias=True)
    variance = (4**2 - 1) / (8 * math.log(2))
    kernel = ive(np.abs(np.arange(-15, 16)), variance)  # the Gaussian of discrete scale space
    expected = convolve1d(array, kernel / kernel.sum(), axis=0, mode="nearest")[2::4]
    assert np.abs(values(smooth) - expected).max() < 0.003
    assert values(smooth).std() < 0.6 * values(sharp).std()


def test_antialiasing_follows_the_axes_of_a_turned_grid() -> None:
    image = linear_field(volume(DIRECTIONS["LPS"]))
    turned = sitk.DICOMOrient(image, "SAR")
    assert np.allclose(values(imaging.resample_like(image, turned, antialias=True)), values(turned), atol=1e-4)


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_standard_axial_is_lps_and_covers_the_same_box(direction: tuple[float, ...]) -> None:
    image = linear_field(volume(direction))
    before = values(image)
    axial = imaging.standard_axial(image, (1.4, 1.0, 1.25))
    assert np.allclose(axial.GetSpacing(), (1.4, 1.0, 1.25))
    axes = np.reshape(axial.GetDirection(), (3, 3))
    assert (np.argmax(np.abs(axes), axis=0) == [0, 1, 2]).all()
    assert (np.diag(axes) > 0).all()
    for corner in (0.0, 1.0):
        ends = [corner * (n - 1) for n in axial.GetSize()]
        index = image.TransformPhysicalPointToContinuousIndex(axial.TransformContinuousIndexToPhysicalPoint(ends))
        for value, n in zip(index, image.GetSize(), strict=True):
            assert min(abs(value), abs(value - n + 1)) < 1.5
    middle = [n // 2 for n in axial.GetSize()]
    exact = values(linear_field(axial))[tuple(middle[::-1])]
    assert axial[middle] == pytest.approx(exact, abs=1e-3)
    assert np.array_equal(values(image), before)


# Writing


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_identifiers_do_not_survive_writing(tmp_path: Path, suffix: str) -> None:
    image = volume()
    for key in ("0010|0010", "PatientName", "ITK_FileNotes", "descrip", "aux_file"):
        image.SetMetaData(key, "Doe^Jane")
    path = imaging.write_volume(image, tmp_path / f"out{suffix}")
    content = path.read_bytes()
    content += gzip.decompress(content) if suffix == ".nii.gz" else b""
    assert b"Doe" not in content
    assert image.GetMetaData("PatientName") == "Doe^Jane"


def test_writing_makes_folders_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "saliency.nrrd"
    for _ in range(2):
        assert imaging.write_volume(volume(), str(path)) == path
    assert [p.name for p in path.parent.iterdir()] == ["saliency.nrrd"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_writing_compresses(tmp_path: Path, suffix: str) -> None:
    image = sitk.Image([60, 60, 60], sitk.sitkFloat32)
    path = imaging.write_volume(image, tmp_path / f"zeros{suffix}")
    assert path.stat().st_size < 60**3 / 10


def test_writing_without_compression_keeps_the_voxels(tmp_path: Path) -> None:
    image = sitk.Image(64, 64, 64, sitk.sitkInt16)
    written = imaging.write_volume(image, tmp_path / "raw.nrrd", compress=False)
    assert written.stat().st_size > 2 * 64**3
    assert b"encoding: raw" in written.read_bytes()[:1000]


def test_a_written_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    path = imaging.write_volume(volume(), tmp_path / "out.nrrd")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("name", ["out.nhdr", "out.png", "out"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} cannot be written.*\.nrrd") as error:
        imaging.write_volume(volume(), tmp_path / name)
    assert is_one_sentence(error)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"out\.nrrd cannot be written \(.*\)") as error:
        imaging.write_volume(volume(), tmp_path / "file" / "out.nrrd")
    assert is_one_sentence(error)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files")
@pytest.mark.parametrize("missing", [1, 9, 1000])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_lacks_its_last_bytes_does_not_count_as_written(tmp_path: Path, suffix: str, missing: int) -> None:
    array = np.zeros(64**3, np.uint8)
    array[:18_000] = np.random.default_rng(0).integers(0, 255, 18_000)
    image = sitk.GetImageFromArray(array.reshape(64, 64, 64))
    size = imaging.write_volume(image, tmp_path / f"whole{suffix}").stat().st_size
    sitk.WriteImage(image, str(tmp_path / f"image{suffix}"), suffix != ".nii")
    path = tmp_path / f"out{suffix}"
    code = (
        "import resource, signal, sys, SimpleITK as sitk\n"
        "from XAICLIPLib import imaging\nfrom XAICLIPLib.errors import InputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "image = sitk.ReadImage(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)\n"
        "try: imaging.write_volume(image, sys.argv[1])\n"
        "except InputError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / f"image{suffix}"), str(size - missing)],
        cwd=Path(imaging.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cannot be written" in result.stdout, result.stderr
    assert not path.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_noticed_and_the_old_file_stays(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys, SimpleITK as sitk\n"
        "from XAICLIPLib import imaging; from XAICLIPLib.errors import InputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "image = sitk.AdditiveGaussianNoise(sitk.Image([40, 40, 40], sitk.sitkFloat32))\n"
        "try: imaging.write_volume(image, sys.argv[1])\n"
        "except InputError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=Path(imaging.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cannot be written" in result.stdout, result.stderr
    assert "Traceback" not in result.stderr
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# Content


def torso(low: float = -1000.0) -> sitk.Image:
    """A CT of an ellipse with two lungs on a table, HU, clipped below at `low`."""
    z, y, x = np.mgrid[:20, :80, :100].astype(float)
    hu = np.full(z.shape, -1000.0)
    hu[((x - 50) / 40) ** 2 + ((y - 38) / 28) ** 2 < 1] = 40
    for centre in (35, 65):
        hu[((x - centre) / 10) ** 2 + ((y - 38) / 14) ** 2 < 1] = -850
    hu[:, 74:76] = 100
    hu += np.random.default_rng(4).normal(0, 10, hu.shape)
    image = sitk.GetImageFromArray(np.clip(hu, low, None).astype(np.int16))
    image.SetSpacing((4, 4, 5))
    return image


@pytest.mark.parametrize("low", [-1024, -125])
@pytest.mark.parametrize("orientation", ["LPS", "ASR", "RIP"])
def test_the_body_includes_the_lungs_and_not_the_table(low: float, orientation: str) -> None:
    image = sitk.DICOMOrient(torso(low), orientation)
    assert imaging.guess_modality(image) == "CT"
    mask = imaging.body_mask(image)
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert imaging.same_geometry(mask, image, 0)
    _, y, x = np.mgrid[:20, :80, :100].astype(float)
    body = ((x - 50) / 40) ** 2 + ((y - 38) / 28) ** 2 < 1
    found = values(sitk.DICOMOrient(mask, "LPS")) > 0
    assert 2 * (found & body).sum() / (found.sum() + body.sum()) > 0.98


def test_the_body_of_a_fine_volume_reaches_its_last_voxels() -> None:
    image = sitk.Expand(torso(), [3, 3, 5], sitk.sitkNearestNeighbor)
    mask = values(imaging.body_mask(image))
    assert mask.shape == values(image).shape
    assert mask[0, 114, 150] == mask[-1, 114, 150] == 1


def test_without_background_everything_is_body() -> None:
    image = shaped(np.random.default_rng(5).normal(500, 1, (20, 20, 20)).astype(np.float32))
    assert values(imaging.body_mask(image)).mean() > 0.9


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("mr", "MR"),
        ("mr with ringing below zero", "MR"),
        ("normalised", None),
        ("ct with an offset", None),
        ("ct window saved as 0..255", None),
    ],
)
def test_modality_from_intensities(change: str, expected: str | None) -> None:
    hu = values(torso()).astype(float)
    rng = np.random.default_rng(6)
    mr = np.where(hu > -500, rng.gamma(4, 100, hu.shape), np.abs(rng.normal(0, 8, hu.shape)))
    array = {
        "mr": mr,
        "mr with ringing below zero": mr - 20,
        "normalised": (mr - mr.mean()) / mr.std(),
        "ct with an offset": np.clip(hu + 1024, 0, None) * (hu > -500),
        "ct window saved as 0..255": np.clip((hu + 160) / 200, 0, 1) * 255,
    }[change]
    assert imaging.guess_modality(shaped(array.astype(np.float32))) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("abdomen_ct/abdomen_0[0-9]_image.nii.gz", {"CT"}),
        ("totalseg/example_ct*.nii.gz", {"CT"}),
        ("totalseg/*/ct_cropped.nii.gz", {"CT"}),
        ("totalseg/example_mr_sm.nii.gz", {"MR"}),
        ("brain_mr/t1_crop.nii.gz", {"MR"}),
        ("hippocampus_mr/*_image.nii.gz", {"MR"}),
        ("openkbp/pt_1*_ct.nii.gz", {None}),
    ],
)
def test_modality_of_real_scans(shared_data: Path, pattern: str, expected: set[str | None]) -> None:
    paths = sorted(shared_data.glob(pattern))
    assert paths
    assert {imaging.guess_modality(imaging.read_volume(p)) for p in paths} == expected


@pytest.mark.parametrize("subject", ["18", "19"])
def test_the_body_of_a_real_clipped_ct(shared_data: Path, subject: str) -> None:
    folder = shared_data / "abdomen_ct"
    image = imaging.read_volume(folder / f"abdomen_{subject}_image.nii.gz")
    body = values(imaging.body_mask(image)) > 0
    labels = sitk.ReadImage(str(folder / f"abdomen_{subject}_label.nii.gz"))
    assert body[values(labels) > 0].mean() > 0.999
    assert 0.4 < body.mean() < 0.6
