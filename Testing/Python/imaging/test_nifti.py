"""NIfTI files whose headers contradict themselves, are rounded, or leave out where the voxels lie. Oracle: nibabel."""

from __future__ import annotations

import math
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging import nifti
from XAICLIPLib.imaging.geometry import corners

SIZE = (9, 11, 13)
DATA = np.random.default_rng(0).integers(-1000, 1000, SIZE).astype(np.int16)
STRAIGHT = np.array([[-3.0, 0, 0, 20], [0, 3, 0, -40], [0, 0, 3, 7], [0, 0, 0, 1]])
PIXDIM, QOFFSET, SLOPE, VOX_OFFSET, UNITS = 76, 268, 112, 108, 123


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    turn = sitk.Euler3DTransform((0, 0, 0), *np.radians(degrees))
    return np.reshape(turn.GetMatrix(), (3, 3))


def write(
    path: Path,
    sform: np.ndarray = STRAIGHT,
    qform: np.ndarray | None = None,
    codes: tuple[int, int] = (1, 1),
    data: np.ndarray = DATA,
    floats: dict[int, float] | None = None,
) -> Path:
    """A file with a sform and a qform (by default the same) of these codes, then single floats put into its header."""
    image = nib.Nifti1Image(data, sform)
    image.set_sform(sform, codes[0])
    image.set_qform(sform if qform is None else qform, codes[1])
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    for at, value in (floats or {}).items():
        struct.pack_into("<f", raw, at, value)
    path.write_bytes(raw)
    return path


def apart(path: Path, affine: np.ndarray, image: sitk.Image) -> float:
    """The farthest that a corner lies from where an affine puts it, in mm."""
    return float(np.linalg.norm(corners(SIZE, affine) - corners(SIZE, imaging.ras_affine(image)), axis=1).max())


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        imaging.read_volume(path)
    text = str(error.value)
    assert text.startswith(str(path))
    assert text.endswith(".") and "\n" not in text and ". " not in text.removeprefix(str(path))
    return text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scan.nii"


@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1), (2, 1), (4, 4)])
@pytest.mark.parametrize("degrees", [(0, 0, 0), (11.3, 3.7, -6.1), (90, 0, 180), (-170, 20, 60)])
@pytest.mark.parametrize("mirrored", [1, -1])
def test_a_file_lies_where_nibabel_puts_it(
    path: Path, codes: tuple[int, int], degrees: tuple[float, float, float], mirrored: int
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) * [0.7, 1.1, 2.5 * mirrored]
    affine[:3, 3] = (-12.5, 40.25, 3.75)
    write(path, affine, codes=codes)
    scan = imaging.read_scan(path)
    assert apart(path, nib.load(path).affine, scan.image) < 1e-4
    assert np.array_equal(sitk.GetArrayFromImage(scan.image).T, DATA)
    assert scan.notes == ()


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_values_are_those_of_nibabel(path: Path, dtype: str, scaled: bool, order: str) -> None:
    data = (DATA if dtype[0] != "u" else np.abs(DATA) % 256).astype(dtype)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(dtype)
    header.set_data_shape(SIZE)
    if scaled:
        header["scl_slope"], header["scl_inter"] = 0.5, -1024
    else:
        header["scl_slope"], header["scl_inter"] = math.nan, math.nan
    header.set_sform(STRAIGHT, 1)
    header["pixdim"][1:4] = 3
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(header.binaryblock + bytes(4) + data.astype(order + dtype).tobytes(order="F"))
    expected = nib.load(path).get_fdata()
    assert np.ptp(expected) > 0
    assert np.allclose(sitk.GetArrayFromImage(imaging.read_volume(path)).T, expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nan_and_infinity_are_refused_with_their_number(tmp_path: Path, bad: float, dtype: Any, ending: str) -> None:
    data = DATA.astype(dtype)
    data[:2, 0, 0] = bad
    nib.save(nib.Nifti1Image(data, STRAIGHT), tmp_path / f"scan{ending}")
    with pytest.raises(InputError, match=r"has 2 voxels of 1287 that are NaN or infinite"):
        imaging.read_volume(tmp_path / f"scan{ending}")


def test_a_spacing_that_contradicts_the_sform_is_refused(path: Path) -> None:
    write(path, codes=(1, 0), floats={PIXDIM + 12: 5.0})
    assert "its voxels are 3 × 3 × 5 mm by pixdim and 3 × 3 × 3 mm by the sform" in refusal(path)


def test_a_spacing_that_differs_by_less_than_a_voxel_is_told(path: Path) -> None:
    write(path, codes=(1, 0), floats={PIXDIM + 12: 3.1})
    scan = imaging.read_scan(path)
    assert apart(path, STRAIGHT, scan.image) < 1e-4
    assert scan.notes == (
        "has two voxel spacings in its header, by which it is up to 1.20 mm longer or shorter: that of the sform was "
        "taken",
    )


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1)])
def test_a_negative_spacing_is_refused(path: Path, axis: int, codes: tuple[int, int]) -> None:
    write(path, codes=codes, floats={PIXDIM + 4 * axis: -3.0})
    assert "has a negative voxel spacing of " in refusal(path)


def test_a_tilt_in_the_sform_alone_is_refused(path: Path) -> None:
    tilted = STRAIGHT.copy()
    tilted[1, 2] = 3 * math.tan(math.radians(12))
    write(path, tilted, STRAIGHT)
    assert "axes that are not orthonormal" in refusal(path) or "contradicts itself" in refusal(path)


def test_a_turn_in_the_sform_alone_is_refused(path: Path) -> None:
    turned = STRAIGHT.copy()
    turned[:3, :3] = rotation((12, 0, 0)) @ turned[:3, :3]
    write(path, turned, STRAIGHT)
    assert "its sform and its qform put a corner 9.8 mm apart" in refusal(path)


@pytest.mark.parametrize(("mm", "word"), [(100.0, "refused"), (3.1, "refused"), (1.0, "told"), (0.1, "")])
def test_sform_and_qform_are_compared(path: Path, mm: float, word: str) -> None:
    moved = STRAIGHT.copy()
    moved[2, 3] += mm
    write(path, moved, STRAIGHT)
    if word == "refused":
        assert f"its sform and its qform put a corner {mm:.1f} mm apart" in refusal(path)
        return
    scan = imaging.read_scan(path)
    assert apart(path, moved, scan.image) < 1e-4
    assert scan.warnings() == (
        ["The scan has two positions in its header, sform and qform, up to 1.00 mm apart: that of the sform was taken."]
        if word
        else []
    )


def test_two_spaces_by_their_codes_are_told_of_not_refused(path: Path) -> None:
    """The sform of a template's space (code 4) beside the scanner's qform (code 1) is what registration writes."""
    moved = STRAIGHT.copy()
    moved[2, 3] += 100
    scan = imaging.read_scan(write(path, moved, STRAIGHT, codes=(4, 1)))
    assert apart(path, nib.load(path).affine, scan.image) < 1e-4
    assert "up to 100.00 mm apart" in scan.notes[0]


def test_a_mirrored_qform_is_refused_whatever_the_codes(path: Path) -> None:
    write(path, STRAIGHT, STRAIGHT @ np.diag([-1, 1, 1, 1]), codes=(4, 1))
    assert "one of them mirrored" in refusal(path)


def test_no_orientation_at_all_is_read_as_nibabel_does_and_told(path: Path) -> None:
    scan = imaging.read_scan(write(path, codes=(0, 0)))
    assert apart(path, nib.load(path).affine, scan.image) < 1e-4
    assert not scan.oriented
    (warning,) = scan.warnings()
    assert "does not say how it is oriented (neither sform nor qform)" in warning
    with pytest.warns(UserWarning, match="does not say how it is oriented"):
        imaging.read_volume(path)


def test_a_mask_without_orientation_is_refused(path: Path, tmp_path: Path) -> None:
    mask = write(tmp_path / "mask.nii", codes=(0, 0), data=(DATA > 0).astype(np.uint8))
    with pytest.raises(InputError, match=r"The mask .* does not say how it is oriented"):
        imaging.read_mask(mask, imaging.read_volume(write(path)))


@pytest.mark.parametrize("permissive", [False, True])
@pytest.mark.parametrize("shear", [1e-4, 3e-4, 9e-4])
def test_a_shear_by_rounding_is_made_straight_and_told_in_mm(
    path: Path, shear: float, permissive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheared = STRAIGHT.copy()
    sheared[1, 2] += shear * 3
    write(path, sheared, codes=(1, 0), data=np.pad(DATA, 60, mode="wrap"))
    if permissive:
        monkeypatch.setenv("ITK_NIFTI_SFORM_PERMISSIVE", "1")
    scan = imaging.read_scan(path)
    affine, size = imaging.ras_affine(scan.image), scan.image.GetSize()
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    moved = float(np.linalg.norm(corners(size, affine) - corners(size, sheared), axis=1).max())
    # Half of what the shear moves the far side by, and that half to either side of the middle.
    assert moved <= 0.75 * shear * 3 * max(size)
    (warning,) = scan.warnings()
    assert f"moves its voxels by up to {moved:.2g} mm" in warning


@pytest.mark.parametrize("permissive", [False, True])
def test_a_shear_beyond_rounding_is_refused(path: Path, permissive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sheared = STRAIGHT.copy()
    sheared[1, 2] += 1.2e-3 * 3
    if permissive:
        monkeypatch.setenv("ITK_NIFTI_SFORM_PERMISSIVE", "1")
    write(path, sheared, codes=(1, 0))
    assert "axes that are not orthonormal" in refusal(path)


@pytest.mark.parametrize("digits", [3, 4, 5])
def test_directions_written_with_few_digits_are_read(path: Path, digits: int) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.round(rotation((11.3, 3.7, -6.1)), digits) * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = imaging.read_volume(write(path, affine, codes=(1, 0)))
    assert apart(path, affine, image) < 3 * 10.0**-digits * max(SIZE) * 3


@pytest.mark.parametrize(
    ("at", "value", "sentence"),
    [
        (PIXDIM + 4, math.nan, "voxel spacing of nan × 3 × 3 mm"),
        (PIXDIM + 4, math.inf, "voxel spacing of inf × 3 × 3 mm"),
        (PIXDIM, 7.0, r"has a pixdim[0] of 7"),
        (256, 2.0, "has a qform that describes no rotation"),
        (QOFFSET, math.nan, "has a qform that describes no rotation"),
        (280, math.nan, "has an sform that describes no grid"),
        (SLOPE, math.inf, "has a rescale slope of inf"),
        (VOX_OFFSET, 100.0, "says that its voxels begin at byte 100"),
    ],
)
def test_what_is_no_number_is_refused(path: Path, at: int, value: float, sentence: str) -> None:
    assert sentence in refusal(write(path, floats={at: value}))


@pytest.mark.parametrize(("code", "factor"), [(1, 1e-3), (3, 1e3)])
def test_metres_and_micrometres_become_millimetres(path: Path, code: int, factor: float) -> None:
    scaled = STRAIGHT.copy()
    scaled[:3] *= factor
    write(path, scaled)
    raw = bytearray(path.read_bytes())
    raw[UNITS] = code
    path.write_bytes(raw)
    assert apart(path, STRAIGHT, imaging.read_volume(path)) < 1e-3


def test_other_types_of_voxels_are_refused(path: Path) -> None:
    for dtype, sentence in ((np.complex64, "has complex values"), ([(c, "u1") for c in "RGB"], "has 3 values per")):
        nib.save(nib.Nifti1Image(np.zeros(SIZE, dtype), STRAIGHT), path)
        assert sentence in refusal(path)


def test_many_frames_are_refused_before_they_are_read(path: Path) -> None:
    header = nib.Nifti1Image(np.zeros((8, 8, 8, 2), np.float32), STRAIGHT).header
    header["dim"][4] = 30000
    path.write_bytes(header.binaryblock[:344] + b"n+1\0" + bytes(4))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<f", raw, VOX_OFFSET, 352)
    path.write_bytes(raw)
    assert "is 4D" in refusal(path)


def test_a_file_is_read_alike_in_every_environment(path: Path) -> None:
    """The kind, not one case: no variable of ITK's is asked."""
    assert "ReadImage" not in Path(nifti.__file__).read_text(encoding="utf-8")
    write(path)
    before = imaging.ras_affine(imaging.read_volume(path))
    for name in ("ITK_NIFTI_SFORM_PERMISSIVE", "ITK_NIFTI_SFORM_PERMISSIVE_DEFAULT"):
        os.environ[name] = "ON"
        try:
            assert np.array_equal(imaging.ras_affine(imaging.read_volume(path)), before)
        finally:
            del os.environ[name]
