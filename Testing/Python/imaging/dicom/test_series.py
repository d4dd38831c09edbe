"""Folders of DICOM slices. The files are written here byte by byte, without GDCM, which reads them."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_writer import COLUMN, ROW, SECRET, write
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_rescale
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.dicom import series

ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
SIEMENS_RAW = "1.3.12.2.1107.5.9.1"

STEP = 2.5
STACK = np.random.default_rng(0).integers(0, 3000, (6, 12, 10)).astype(np.int16)
"""Stored values, by slice, row and column."""


def stack(folder: Path, skip: tuple[int, ...] = (), prefix: str = "", **options: object) -> Path:
    """Write STACK from the feet up, under names in no order."""
    for k in np.random.default_rng(1).permutation(len(STACK)):
        if k not in skip:
            name = f"{prefix}{(k * 7919) % 101:03d}"
            write(folder / name, STACK[k], (-5, 7, 100 + STEP * k), **options)  # type: ignore[arg-type]
    return folder


def refusal(folder: Path, sentence: str, series: int | str | None = None) -> None:
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
    files = series.series_files(folder)
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
    refusal(
        folder,
        r"2 image series \(0: CT, 5 slices of 10×12 at 0\.70×0\.80×2\.50 mm; 1: CT, 6 slices of .* mm\): choose one by "
        r"its number \(--series 0, in Python series=0\)",
    )
    first, second = (imaging.read_volume(folder, series=k) for k in (0, "1"))
    by_uid = imaging.read_volume(folder, series="1.2.3.6")
    assert np.array_equal(sitk.GetArrayFromImage(by_uid), sitk.GetArrayFromImage(second))
    refusal(folder, "no series of this UID in", series="1.2.3.66")
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


OTHERS = {
    "different sizes .8×8, 10×12.": {"pixels": STACK[0, :8, :8]},
    "different orientations": {"rows": (*ROW, 0, 0, -1)},
    "different pixel spacing": {"spacing": (0.9, 0.7)},
}


@pytest.mark.parametrize(("sentence", "other"), OTHERS.items(), ids=["size", "orientation", "spacing"])
def test_two_volumes_in_one_series_are_refused(folder: Path, sentence: str, other: dict[str, Any]) -> None:
    stack(folder)
    for k in range(4):
        write(folder / f"other{k}", **{"pixels": STACK[0], "position": (-5, 7, 200 + k), **other})
    refusal(folder, sentence)


SCREENSHOT = {"pixels": np.zeros((8, 8, 3), np.uint8), "position": None, "kind": SECONDARY_CAPTURE}


@pytest.mark.parametrize("other", [*OTHERS.values(), SCREENSHOT], ids=["size", "orientation", "spacing", "colour"])
def test_a_scout_or_screenshot_within_the_series_is_left_out_and_told(folder: Path, other: dict[str, Any]) -> None:
    stack(folder)
    write(folder / "other", **{"pixels": STACK[0], "position": (-5, 7, 200), **other})
    scan = imaging.read_scan(folder)
    assert np.array_equal(sitk.GetArrayFromImage(scan.image), STACK.astype(int) - 1024)
    assert scan.image.GetOrigin() == (-5, 7, 100)
    (warning,) = scan.warnings()
    assert "has 1 image of another size, spacing or orientation in its series" in warning and "left out" in warning


def test_a_slice_of_another_size_in_the_middle_leaves_a_gap_that_is_refused(folder: Path) -> None:
    stack(folder, skip=(3,))
    write(folder / "other", STACK[3, :8, :8], (-5, 7, 100 + 3 * STEP))
    refusal(folder, "missing or unevenly spaced slices")


@pytest.mark.parametrize("degrees", [15, -20])
def test_gantry_tilt_is_resampled_to_where_each_voxel_lay(folder: Path, degrees: float) -> None:
    """Oracle: stored values that are linear in the place in mm, which linear interpolation gives back exactly."""
    shift = STEP * np.tan(np.radians(degrees))
    rows, columns = np.mgrid[:12, :10]
    for k in range(6):
        x, y, z = -5 + 0.7 * columns, 7 + 0.8 * rows + shift * k, 100 + STEP * k
        pixels = np.round(10 * (20 * x + 30 * y + 10 * z)).astype(np.int16)
        write(folder / f"{k}", pixels, (-5, 7 + shift * k, z), slope=0.1, intercept=0)
    scan = imaging.read_scan(folder)
    image = scan.image
    assert np.allclose(image.GetDirection(), np.eye(3).ravel())
    assert np.allclose(image.GetSpacing(), (0.7, 0.8, STEP))
    (warning,) = scan.warnings()
    assert f"shifted sideways by up to {5 * abs(shift):.1f} mm (gantry tilt of about {abs(degrees):.1f}°)" in warning
    array, n_inside = sitk.GetArrayFromImage(image), 0
    for k, j, i in np.ndindex(array.shape):
        x, y, z = image.TransformIndexToPhysicalPoint((i, j, k))
        row = (y - 7 - shift * k) / 0.8
        if 0 <= row <= 11:
            n_inside += 1
            assert array[k, j, i] == pytest.approx(20 * x + 30 * y + 10 * z, abs=0.2)
        elif not -1 < row < 12:
            assert array[k, j, i] == array.min()
    assert n_inside >= 6 * 11 * 10, "no slice lost a row but to rounding"


def test_slices_shifted_unevenly_are_refused(folder: Path) -> None:
    for k, pixels in enumerate(STACK):
        write(folder / f"{k}", pixels, (3 * (k % 2), 0, STEP * k))
    refusal(folder, r"shifted sideways by up to 3\.0 mm, and not evenly")


def test_a_series_for_each_slice_is_put_together(folder: Path) -> None:
    for k, pixels in enumerate(STACK):
        write(folder / f"{k}", pixels, (-5, 7, 100 + STEP * k), series=f"1.2.3.{k}", number=k)
    write(folder / "scout", STACK[0], (0, 0, 0), rows=(*ROW, 0, 0, -1), series="1.2.3.50", number=50)
    scan = imaging.read_scan(folder)
    assert np.array_equal(sitk.GetArrayFromImage(scan.image), STACK.astype(int) - 1024)
    assert scan.warnings() == [
        "The scan has a series of its own for each slice: they were put together by their place."
    ]


def test_a_list_of_many_series_is_cut(folder: Path) -> None:
    for number in range(9):
        stack(folder, prefix=f"{number}-", series=f"1.2.3.{number}", number=number)
    refusal(folder, r"holds 9 image series \(0: .*; 4: [^;]* mm; and 4 more\)")


def test_folders_with_one_series_below_are_read(folder: Path) -> None:
    stack(folder / "study" / "a", skip=(0, 1))
    stack(folder / "study" / "b", skip=(2, 3, 4, 5))
    write(folder / "study" / "scout" / "1", STACK[0], (0, 0, 0), rows=(*ROW, 0, 0, -1), series="1.2.3.5", number=0)
    assert np.array_equal(sitk.GetArrayFromImage(imaging.read_volume(folder)), STACK.astype(int) - 1024)
    stack(folder / "other", series="1.2.3.6", number=9)
    refusal(folder, "holds 2 image series")


def test_a_zip_file_of_dicom_is_read_and_nothing_of_it_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    stack(folder / "inner")
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in (folder / "inner").iterdir():
            packed.write(file, f"DICOM/{file.name}")
    assert np.array_equal(sitk.GetArrayFromImage(imaging.read_volume(archive)), STACK.astype(int) - 1024)
    with zipfile.ZipFile(archive, "a") as packed:
        packed.write(folder / "inner" / "000", "DICOM/again")
    with pytest.raises(InputError, match=r"export\.zip has 1 slices? at a position where") as error:
        imaging.read_volume(archive)
    assert str(private) not in str(error.value)
    assert list(private.iterdir()) == []


@pytest.mark.parametrize("detector", [False, True])
@pytest.mark.parametrize("spacing", [None, "0.8", "0.8\\nan", "0\\0.7", "0.8\\-0.7", ""])
def test_a_missing_pixel_spacing_is_refused_by_its_name(folder: Path, spacing: str | None, detector: bool) -> None:
    for k, pixels in enumerate(STACK):
        write(folder / f"{k}", pixels, (-5, 7, 100 + STEP * k), spacing=spacing, detector=detector)
    refusal(folder, "PixelSpacing is missing or no number" + (", only ImagerPixelSpacing" if detector else r"\)"))


@pytest.mark.parametrize(("tag", "modality"), [("CT", "CT"), ("MR", "MR"), ("PT", "PT"), ("OT", None), ("", None)])
def test_the_modality_is_that_of_the_header(folder: Path, tag: str, modality: str | None) -> None:
    assert imaging.read_scan(stack(folder, modality=tag)).modality == modality


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2, -1000), (0.5, 3), (1, 0)])
def test_values_of_monochrome1_are_as_stored(folder: Path, signed: bool, slope: float, intercept: float) -> None:
    """Oracle: pydicom. HU are HU, whether they are shown white on black or black on white."""
    stored = STACK if signed else STACK.astype(np.uint16)
    for k, pixels in enumerate(stored):
        options = {"slope": slope, "intercept": intercept, "photometric": "MONOCHROME1", "modality": "CT"}
        write(folder / f"{k}", pixels, (-5, 7, 100 + STEP * k), **options)
    scan = imaging.read_scan(folder)
    assert "MONOCHROME1" in scan.warnings()[0]
    for k, plane in enumerate(sitk.GetArrayFromImage(scan.image)):
        dataset = pydicom.dcmread(folder / f"{k}")
        assert np.array_equal(plane, apply_rescale(dataset.pixel_array, dataset))


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


def test_multi_frame_without_places_is_refused(folder: Path) -> None:
    write(folder / "all", STACK, kind=ENHANCED_CT)
    refusal(folder, "does not say where its slices lie")


RESCALES = {
    "shared": [(2, -1000)] * 6,
    "alike": [(1, -1024)] * 6,
    "of their own": [(k + 1, -10 * k) for k in range(6)],
}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("rescale", RESCALES)
@pytest.mark.parametrize("alone", [True, False])
def test_a_file_with_many_frames_is_read(folder: Path, rescale: str, photometric: str, alone: bool) -> None:
    """Frames in no order, as scanners write them; values and places are those that went into the file."""
    order, rescales = [3, 1, 4, 0, 5, 2], RESCALES[rescale]
    path = enhanced(folder / "all.dcm", STACK, order, rescales, rescale == "shared", photometric)
    image = imaging.read_volume(path if alone else folder)
    expected = np.stack([plane * slope + intercept for plane, (slope, intercept) in zip(STACK, rescales, strict=True)])
    assert np.allclose(sitk.GetArrayFromImage(image), expected)
    assert np.allclose(image.GetOrigin(), (-5, 7, 100))
    assert np.allclose(image.GetSpacing(), (0.7, 0.8, STEP))


def test_two_phases_in_a_file_with_many_frames_are_refused(folder: Path) -> None:
    enhanced(folder / "all.dcm", STACK, [0, 1, 2, 0, 1, 2], RESCALES["alike"], False)
    refusal(folder, "has 3 slices at a position where another one lies")


def enhanced(
    path: Path,
    planes: np.ndarray,
    order: list[int],
    rescales: list[tuple[float, float]],
    shared: bool,
    photometric: str = "MONOCHROME2",
) -> Path:
    """Write an enhanced CT by pydicom, its frames in the given order of the planes."""

    def item(**attributes: Any) -> Sequence:
        dataset = Dataset()
        for name, value in attributes.items():
            setattr(dataset, name, value)
        return Sequence([dataset])

    def rescale(k: int) -> Sequence:
        return item(RescaleSlope=rescales[k][0], RescaleIntercept=rescales[k][1], RescaleType="HU")

    whole = item(
        SOPClassUID=ENHANCED_CT,
        SOPInstanceUID="1.2.3.4.5",
        Modality="CT",
        PatientName=SECRET,
        StudyInstanceUID="1.2",
        SeriesInstanceUID="1.2.3",
        Rows=12,
        Columns=10,
        NumberOfFrames=len(order),
        SamplesPerPixel=1,
        PhotometricInterpretation=photometric,
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=1,
        PixelData=np.ascontiguousarray(planes[order]).tobytes(),
        SharedFunctionalGroupsSequence=item(
            PlaneOrientationSequence=item(ImageOrientationPatient=[*ROW, *COLUMN]),
            PixelMeasuresSequence=item(PixelSpacing=[0.8, 0.7], SliceThickness=STEP),
            **({"PixelValueTransformationSequence": rescale(0)} if shared else {}),
        ),
        PerFrameFunctionalGroupsSequence=Sequence(
            item(
                PlanePositionSequence=item(ImagePositionPatient=[-5, 7, 100 + STEP * k]),
                **({} if shared else {"PixelValueTransformationSequence": rescale(k)}),
            )[0]
            for k in order
        ),
    )[0]
    whole.file_meta = FileMetaDataset()
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save_as(path, enforce_file_format=True)
    return path


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
    assert series.is_dicom(next(folder.iterdir()))
