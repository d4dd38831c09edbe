"""Folders of DICOM slices. The files are written here byte by byte, without GDCM, which reads them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging import dicom

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
SIEMENS_RAW = "1.3.12.2.1107.5.9.1"
SECRET = "Doe^Jane"

STEP = 2.5
ROW, COLUMN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
STACK = np.random.default_rng(0).integers(0, 3000, (6, 12, 10)).astype(np.int16)
"""Stored values, by slice, row and column."""


def element(group: int, number: int, vr: str, value: bytes | str) -> bytes:
    """One data element, explicit VR little endian (DICOM PS3.5, 7.1.2)."""
    data = value.encode() if isinstance(value, str) else value
    if len(data) % 2:
        data += b"\0" if vr in ("UI", "OB") else b" "
    tag = struct.pack("<HH", group, number) + vr.encode()
    if vr in ("OB", "OW", "SQ"):
        return tag + struct.pack("<HI", 0, len(data)) + data
    return tag + struct.pack("<H", len(data)) + data


def numbers(*values: float) -> str:
    return "\\".join(f"{v:.10g}" for v in values)


def write(
    path: Path,
    pixels: np.ndarray | None = None,
    position: tuple[float, ...] | None = (0, 0, 0),
    *,
    kind: str = CT,
    modality: str = "CT",
    series: str = "1.2.3",
    number: int = 1,
    rows: tuple[float, ...] = (*ROW, *COLUMN),
    spacing: tuple[float, float] = (0.8, 0.7),
    slope: float = 1,
    intercept: float = -1024,
    preamble: bool = True,
) -> None:
    """Write one DICOM object; `spacing` is between rows, then between columns, as in DICOM."""
    uid = "1.2.3.4." + str(abs(hash(path.name)) % 10**9)
    meta = element(2, 1, "OB", b"\0\1") + element(2, 2, "UI", kind) + element(2, 3, "UI", uid)
    meta += element(2, 0x10, "UI", "1.2.840.10008.1.2.1") + element(2, 0x12, "UI", "1.2.3.9")
    meta = element(2, 0, "UL", struct.pack("<I", len(meta))) + meta
    body = element(8, 0x16, "UI", kind) + element(8, 0x18, "UI", uid)
    body += element(8, 0x60, "CS", modality)
    body += element(0x10, 0x10, "PN", SECRET) + element(0x10, 0x20, "LO", SECRET)
    body += element(0x20, 0xD, "UI", "1.2") + element(0x20, 0xE, "UI", series)
    body += element(0x20, 0x11, "IS", str(number))
    if position is not None:
        body += element(0x20, 0x32, "DS", numbers(*position))
        body += element(0x20, 0x37, "DS", numbers(*rows))
    if pixels is not None:
        colour = pixels.dtype == np.uint8
        frames = len(pixels) if pixels.ndim == 3 and not colour else 0
        height, width = pixels.shape[-2:] if not colour else pixels.shape[:2]
        bits = 8 * pixels.dtype.itemsize
        body += element(0x28, 2, "US", struct.pack("<H", 3 if colour else 1))
        body += element(0x28, 4, "CS", "RGB" if colour else "MONOCHROME2")
        if colour:
            body += element(0x28, 6, "US", struct.pack("<H", 0))
        if frames:
            body += element(0x28, 8, "IS", str(frames))
        body += element(0x28, 0x10, "US", struct.pack("<H", height))
        body += element(0x28, 0x11, "US", struct.pack("<H", width))
        body += element(0x28, 0x30, "DS", numbers(*spacing))
        for item, value in ((0x100, bits), (0x101, bits), (0x102, bits - 1), (0x103, not colour)):
            body += element(0x28, item, "US", struct.pack("<H", value))
        body += element(0x28, 0x1052, "DS", numbers(intercept))
        body += element(0x28, 0x1053, "DS", numbers(slope))
        body += element(0x7FE0, 0x10, "OW", pixels.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((bytes(128) + b"DICM" if preamble else b"") + meta + body)


def stack(folder: Path, skip: tuple[int, ...] = (), prefix: str = "", **options: object) -> Path:
    """Write STACK from the feet up, under names in no order."""
    for k in np.random.default_rng(1).permutation(len(STACK)):
        if k not in skip:
            name = f"{prefix}{(k * 7919) % 101:03d}"
            write(folder / name, STACK[k], (-5, 7, 100 + STEP * k), **options)  # type: ignore[arg-type]
    return folder


def refusal(folder: Path, sentence: str, series: int | None = None) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        imaging.read_volume(folder, series)
    text = str(error.value)
    assert str(folder) in text
    assert text.endswith(".")
    assert "\n" not in text
    assert SECRET not in text
    assert "1.2.3" not in text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "series"


def test_slices_are_ordered_by_position_and_rescaled(folder: Path) -> None:
    image = imaging.read_volume(stack(folder))
    assert np.array_equal(sitk.GetArrayFromImage(image), STACK.astype(int) - 1024)
    assert image.GetOrigin() == (-5, 7, 100)
    assert np.allclose(image.GetSpacing(), (0.7, 0.8, STEP))
    assert np.allclose(image.GetDirection(), np.eye(3).ravel())
    assert image.GetMetaDataKeys() == ()


def test_a_slope_of_its_own_in_each_slice_is_kept(folder: Path) -> None:
    for k, pixels in enumerate(STACK):
        write(folder / f"{k}", pixels, (0, 0, STEP * k), slope=1 if k == 0 else 0.25 * k, intercept=-k)
    slopes = np.array([1, *(0.25 * np.arange(1, len(STACK)))])[:, None, None]
    expected = STACK * slopes - np.arange(len(STACK))[:, None, None]
    image = imaging.read_volume(folder)
    assert np.allclose(sitk.GetArrayFromImage(image), expected, atol=1e-3)


@pytest.mark.parametrize("upward", [1, -1])
def test_an_oblique_series_lies_where_each_slice_says(folder: Path, upward: int) -> None:
    turn = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.4, -0.3, 0.2).GetMatrix(), (3, 3))
    row, column = turn[:, 0], turn[:, 1]
    corners = [np.array((10.0, -20, 30)) + upward * STEP * k * turn[:, 2] for k in range(6)]
    for k, (pixels, corner) in enumerate(zip(STACK, corners, strict=True)):
        write(folder / f"{k}.dcm", pixels, tuple(corner), rows=(*row, *column))
    image = imaging.read_volume(folder)
    order = range(6) if upward == 1 else range(5, -1, -1)
    for z, k in enumerate(order):
        for i, j in ((0, 0), (9, 0), (3, 11)):
            expected = corners[k] + i * 0.7 * row + j * 0.8 * column
            assert np.allclose(image.TransformIndexToPhysicalPoint((i, j, z)), expected, atol=1e-5)
            assert image[i, j, z] == STACK[k, j, i] - 1024


def test_files_of_a_series_are_in_the_order_of_its_slices(folder: Path) -> None:
    stack(folder)
    write(folder / "scout", STACK[0], (0, 0, 0), rows=(*ROW, 0, 0, -1), series="1.2.3.5", number=0)
    image = imaging.read_volume(folder)
    files = dicom.series_files(folder)
    assert len(files) == len(STACK)
    for z, file in enumerate(files):
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[0], sitk.GetArrayFromImage(image)[z])


def test_slices_without_preamble_are_read(folder: Path) -> None:
    image = imaging.read_volume(stack(folder, preamble=False))
    assert np.array_equal(sitk.GetArrayFromImage(image), STACK.astype(int) - 1024)


def test_what_lies_beside_the_slices_is_passed_over(folder: Path) -> None:
    stack(folder)
    write(folder / "structures", kind=STRUCTURES, modality="RTSTRUCT", position=None)
    write(folder / "segments", STACK, kind=SEGMENTATION, modality="SEG", series="1.2.3.7")
    write(folder / "raw", kind=SIEMENS_RAW, position=None)
    write(folder / "scout", STACK[0], (0, 0, 0), rows=(*ROW, 0, 0, -1), series="1.2.3.5", number=0)
    (folder / "notes.txt").write_text("nothing")
    (folder / ".hidden").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "subfolder").mkdir()
    image = imaging.read_volume(folder)
    assert np.array_equal(sitk.GetArrayFromImage(image), STACK.astype(int) - 1024)


def test_of_several_series_one_is_chosen_by_number(folder: Path) -> None:
    stack(folder, prefix="b", series="1.2.3.6", number=3, intercept=5)
    stack(folder, prefix="a", skip=(5,), series="1.2.3.5", number=2)
    refusal(folder, r"2 image series \(0: 5 slices of 10×12; 1: 6 slices of 10×12\).*series=0")
    first, second = (imaging.read_volume(folder, series=k) for k in (0, 1))
    assert np.array_equal(sitk.GetArrayFromImage(first), STACK[:5].astype(int) - 1024)
    assert np.array_equal(sitk.GetArrayFromImage(second), STACK.astype(int) + 5)
    refusal(folder, "no series 2 in the folder .* it holds 2", series=2)
    refusal(folder, "no series -1", series=-1)


def test_a_missing_slice_is_named_by_its_place(folder: Path) -> None:
    stack(folder, skip=(3,))
    refusal(folder, r"missing.*usually 2\.50 mm apart, but not from 105\.0 to 110\.0 mm")


def test_many_gaps_are_counted(folder: Path) -> None:
    z = np.cumsum([1.0 if k % 4 else 3.0 for k in range(40)])
    for k, at in enumerate(z):
        write(folder / f"{k}", STACK[0], (0, 0, at))
    refusal(folder, "and 4 more along the normal")


def test_two_phases_in_one_series_are_refused(folder: Path) -> None:
    stack(folder, prefix="a")
    stack(folder, prefix="b")
    refusal(folder, "has 6 slices at a position where another one lies")


def test_mixed_sizes_are_refused(folder: Path) -> None:
    stack(folder)
    write(folder / "other", STACK[0, :8, :8], (-5, 7, 200))
    refusal(folder, "different sizes .8×8, 10×12.")


def test_mixed_orientations_are_refused(folder: Path) -> None:
    stack(folder)
    write(folder / "other", STACK[0], (-5, 7, 200), rows=(*ROW, 0, 0, -1))
    refusal(folder, "different orientations")


def test_mixed_pixel_spacings_are_refused(folder: Path) -> None:
    stack(folder)
    write(folder / "other", STACK[0], (-5, 7, 200), spacing=(0.9, 0.7))
    refusal(folder, "different pixel spacing")


def test_gantry_tilt_is_refused_with_its_angle(folder: Path) -> None:
    for k, pixels in enumerate(STACK):
        write(folder / f"{k}", pixels, (0, STEP * k * np.tan(np.radians(15)), STEP * k))
    refusal(folder, r"shifted sideways by up to 3\.3 mm \(gantry tilt of about 15\.0°\)")


def test_rounded_positions_are_no_tilt_and_no_gap(folder: Path) -> None:
    for k, pixels in enumerate(STACK):
        write(folder / f"{k}", pixels, (0.01 * (k % 2), 0, round(1.2345 * k, 2)))
    assert imaging.read_volume(folder).GetSpacing()[2] == pytest.approx(1.2345, abs=0.01)


def test_slices_without_a_place_are_refused(folder: Path) -> None:
    for k, pixels in enumerate(STACK):
        write(folder / f"{k}", pixels, None, kind=SECONDARY_CAPTURE, modality="OT")
    refusal(folder, "does not say where its slices lie")


def test_colour_is_refused(folder: Path) -> None:
    for k in range(5):
        write(folder / f"{k}", np.zeros((8, 8, 3), np.uint8), (0, 0, k), kind=SECONDARY_CAPTURE)
    refusal(folder, "is in colour")


def test_multi_frame_is_refused(folder: Path) -> None:
    write(folder / "all", STACK, kind=ENHANCED_CT)
    refusal(folder, "multi-frame .enhanced. format.*convert it")


def test_few_slices_are_refused(folder: Path) -> None:
    write(folder / "one", STACK[0])
    refusal(folder, "has only 1 slice of 10×12")


def test_a_single_file_is_refused_with_the_way_out(folder: Path) -> None:
    stack(folder)
    for name in ("000", "slice.dcm"):
        path = folder / name
        write(path, STACK[0])
        with pytest.raises(InputError, match=f"{name} is a single DICOM file: give the folder"):
            imaging.read_volume(path)


def test_folders_without_images_are_refused(folder: Path) -> None:
    folder.mkdir()
    refusal(folder, "holds no DICOM images")
    write(folder / "structures", kind=STRUCTURES, modality="RTSTRUCT", position=None)
    refusal(folder, "holds 1 DICOM objects? but no images")


def test_a_damaged_slice_is_named_not_left_out(folder: Path) -> None:
    stack(folder)
    write(folder / "zz-last", STACK[0], (-5, 7, 100 + STEP * 6))
    whole = (folder / "zz-last").read_bytes()
    (folder / "zz-last").write_bytes(whole[:300])
    refusal(folder, "zz-last|pixels of the DICOM series")
    (folder / "zz-last").write_bytes(whole[:-100])
    refusal(folder, "zz-last|pixels of the DICOM series")


def test_a_real_series_lies_on_its_labels(shared_data: Path) -> None:
    folder = shared_data / "totalseg" / "example_ct_dicom"
    image = imaging.read_volume(folder)
    labels = sitk.ReadImage(str(shared_data / "totalseg" / "example_seg_dicom.nii.gz"))
    assert imaging.same_geometry(image, sitk.DICOMOrient(labels, "LPS"))
    hu = sitk.GetArrayFromImage(image)
    of = sitk.GetArrayFromImage(sitk.DICOMOrient(labels, "LPS"))
    # Labelled organs hold soft tissue, contrast and bone, bowel gas apart; what is outside is air.
    assert 0 < np.median(hu[of > 0]) < 200
    assert hu.min() <= -1000
    assert dicom.is_dicom(next(folder.iterdir()))
