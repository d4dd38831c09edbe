"""CHAOS, in small copies of the published layout: DICOM by pydicom, masks by Pillow.

The planted organs lie off every plane of symmetry, and the image is brightest where an organ is, so that a mask on the
wrong slice or side is seen in the voxels and in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from XAICLIPLib.errors import InputError
from XAICLIPLib.experiment.datasets import chaos
from XAICLIPLib.experiment.datasets.published import read_dataset

pydicom = pytest.importorskip("pydicom", reason="pydicom writes the DICOM files")
from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid  # noqa: E402

SECRET = "Doe^Jane"
SLICES, ROWS, COLUMNS = 9, 14, 18
ORIGIN, SPACING, STEP = (-40.0, -25.0, 110.0), (1.25, 1.5), 3.0
STRAIGHT = np.eye(3)
OBLIQUE = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.1).GetMatrix(), (3, 3))

# Organs by label: first and last slice (from the feet), row and column, greys as published and at the ends of ranges.
ORGANS = {
    1: ((5, 7), (3, 8), (2, 8)),
    2: ((1, 3), (9, 11), (4, 6)),
    3: ((2, 4), (8, 11), (12, 14)),
    4: ((6, 6), (9, 12), (14, 16)),
}
PUBLISHED = {1: 63, 2: 126, 3: 189, 4: 252}
NAMES = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}


def planted(labels: Sequence[int] = tuple(ORGANS)) -> np.ndarray:
    """Label by slice (from the feet), row and column."""
    volume = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    for label in labels:
        volume[tuple(slice(low, high + 1) for low, high in ORGANS[label])] = label
    return volume


def stored(labels: np.ndarray) -> np.ndarray:
    """Pixels of the image: of the organ, plus the slice's number."""
    return (100 * labels.astype(np.int16) + np.arange(SLICES, dtype=np.int16)[:, None, None] + 1).astype(np.int16)


def place(i: float, j: float, k: float, axes: np.ndarray = STRAIGHT) -> np.ndarray:
    """Voxel (column, row, slice from the feet) in LPS mm."""
    return np.array(ORIGIN) + axes @ np.array([i * SPACING[1], j * SPACING[0], k * STEP])


def write_slice(
    path: Path, pixels: np.ndarray, k: int, number: int, series: str, modality: str, axes: np.ndarray
) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.826.0.1.7", series
    data.PatientName = data.PatientID = SECRET
    data.Modality, data.SeriesNumber, data.InstanceNumber = modality, 4, number
    data.ImagePositionPatient = [f"{v:.6f}" for v in place(0, 0, k, axes)]
    data.ImageOrientationPatient = [f"{v:.9f}" for v in (*axes[:, 0], *axes[:, 1])]
    data.PixelSpacing, data.SliceThickness = list(SPACING), STEP
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.RescaleSlope, data.RescaleIntercept = 1, -1024 if modality == "CT" else 0
    data.PixelData = pixels.astype("<i2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def write_series(
    folder: Path,
    names: Sequence[str],
    numbers: Sequence[int],
    labels: np.ndarray | None = None,
    modality: str = "CT",
    axes: np.ndarray = STRAIGHT,
    series: str = "1.2.826.0.1.7.1",
) -> None:
    """Write the slices under these names and instance numbers, both from the feet up."""
    pixels = stored(planted() if labels is None else labels)
    for k, (name, number) in enumerate(zip(names, numbers, strict=True)):
        write_slice(folder / name, pixels[k], k, number, series, modality, axes)


def write_masks(folder: Path, names: Sequence[str], labels: np.ndarray, greys: dict[int, int] | None = None) -> None:
    """Write the masks under these names, from the feet up: one bit a pixel without greys, as those of CT are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in zip(names, labels, strict=True):
        if greys is None:
            Image.fromarray(mask > 0).save(folder / name)
        else:
            Image.fromarray(np.array([0, *(greys[v] for v in sorted(greys))], np.uint8)[mask]).save(folder / name)


UP = list(range(SLICES))
DOWN = UP[::-1]


def ct_patient(
    root: Path, patient: str, files: Sequence[int], numbers: Sequence[int] | None = None, axes: np.ndarray = STRAIGHT
) -> Path:
    """A CT of the liver whose files, and masks with them, are numbered so from the feet up."""
    folder = root / "Train_Sets" / "CT" / patient
    labels = planted([1])
    write_series(folder / "DICOM_anon", [f"i{n:04d},0000b.dcm" for n in files], numbers or files, labels, "CT", axes)
    write_masks(folder / "Ground", [f"liver_GT_{n:03d}.png" for n in files], labels)
    return folder


def mr_patient(root: Path, patient: str, files: Sequence[int], greys: dict[int, int] = PUBLISHED) -> Path:
    """Both sequences of an MR; odd files of T1-DUAL are out of phase, even ones, as the masks are called, in phase."""
    folder = root / "Train_Sets" / "MR" / patient
    dual = folder / "T1DUAL"
    inside, outside = [2 * n + 2 for n in files], [2 * n + 1 for n in files]
    write_series(dual / "DICOM_anon" / "InPhase", [f"IMG-0004-{n:05d}.dcm" for n in inside], inside, modality="MR")
    write_series(dual / "DICOM_anon" / "OutPhase", [f"IMG-0004-{n:05d}.dcm" for n in outside], outside, modality="MR")
    write_masks(dual / "Ground", [f"IMG-0004-{n:05d}.png" for n in inside], planted(), greys)
    names = [f"IMG-0002-{n + 1:05d}" for n in files]
    write_series(folder / "T2SPIR" / "DICOM_anon", [f"{n}.dcm" for n in names], files, planted([2, 4]), "MR")
    write_masks(folder / "T2SPIR" / "Ground", [f"{n}.png" for n in names], planted([2, 4]), greys)
    return folder


def assert_planted(image: sitk.Image, labels: sitk.Image, expected: np.ndarray, axes: np.ndarray = STRAIGHT) -> None:
    """The organs are where they were planted, in the image's voxels and in mm."""
    found, pixels = sitk.GetArrayFromImage(labels), sitk.GetArrayFromImage(image)
    assert sorted(np.unique(found)) == sorted(np.unique(expected))
    pixels = pixels - pixels.min()
    assert np.array_equal(found, pixels // 100)
    for label in np.unique(expected[expected > 0]):
        here = np.argwhere(found == label)[:, ::-1]
        places = [labels.TransformIndexToPhysicalPoint(index) for index in here.tolist()]
        (z0, z1), (y0, y1), (x0, x1) = ORGANS[label]
        assert np.allclose(np.mean(places, axis=0), place((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2, axes), atol=1e-3)
    for point in ((0, 0, 0), (COLUMNS - 1, 2, 5)):
        assert labels.TransformIndexToPhysicalPoint(point) == image.TransformIndexToPhysicalPoint(point)


@pytest.mark.parametrize("axes", [STRAIGHT, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("files", [UP, DOWN], ids=["feet first", "head first"])
@pytest.mark.parametrize("numbers", [UP, DOWN, [1] * SLICES], ids=["numbers up", "numbers down", "one number"])
def test_ct_masks_lie_on_the_slices_they_are_numbered_with(
    tmp_path: Path, files: list[int], numbers: list[int], axes: np.ndarray
) -> None:
    ct_patient(tmp_path, "1", files, numbers, axes)
    (case,) = read_dataset("chaos", tmp_path)
    assert (case.identifier, case.modality, case.sequence) == ("CT-1", "CT", None)
    assert case.structures == {1: "liver"}
    assert_planted(case.image(), case.labels(), planted([1]), axes)


@pytest.mark.parametrize("numbers", [UP, DOWN], ids=["feet first", "head first"])
def test_instance_numbers_tell_the_order_where_file_names_were_lost(tmp_path: Path, numbers: list[int]) -> None:
    folder = ct_patient(tmp_path, "1", numbers)
    for file in (folder / "DICOM_anon").iterdir():
        file.unlink()
    names = [f"{n:04d}.dcm" for n in np.random.default_rng(0).permutation(SLICES)]
    write_series(folder / "DICOM_anon", names, numbers, planted([1]))
    (case,) = read_dataset("chaos", tmp_path)
    assert_planted(case.image(), case.labels(), planted([1]))


def test_numbers_in_names_are_ordered_by_value(tmp_path: Path) -> None:
    folder = tmp_path / "CT" / "1"
    write_series(folder / "DICOM_anon", [f"i{n + 5}.dcm" for n in DOWN], DOWN, planted([1]))
    write_masks(folder / "Ground", [f"liver_{n + 5}.png" for n in DOWN], planted([1]))
    (case,) = read_dataset("chaos", tmp_path)
    assert_planted(case.image(), case.labels(), planted([1]))


@pytest.mark.parametrize("files", [UP, DOWN], ids=["feet first", "head first"])
def test_both_phases_of_an_mr_share_one_set_of_masks(tmp_path: Path, files: list[int]) -> None:
    mr_patient(tmp_path, "3", files)
    cases = read_dataset("chaos", tmp_path)
    assert not cases.problems
    assert [(c.identifier, c.sequence) for c in cases] == [
        ("MR-3-T1-in", "T1-DUAL in phase"),
        ("MR-3-T1-out", "T1-DUAL out of phase"),
        ("MR-3-T2", "T2-SPIR"),
    ]
    for case, labels in zip(cases, ([1, 2, 3, 4], [1, 2, 3, 4], [2, 4]), strict=True):
        assert case.modality == "MR"
        assert case.structures == NAMES
        assert_planted(case.image(), case.labels(), planted(labels))


@pytest.mark.parametrize("end", [0, 1], ids=["low", "high"])
def test_greys_mean_organs_up_to_the_ends_of_their_ranges(tmp_path: Path, end: int) -> None:
    mr_patient(tmp_path, "1", UP, {label: ends[end] for label, ends in chaos.GREYS.items()})
    for case, labels in zip(read_dataset("chaos", tmp_path), ([1, 2, 3, 4], [1, 2, 3, 4], [2, 4]), strict=True):
        assert_planted(case.image(), case.labels(), planted(labels))


@pytest.mark.parametrize("grey", [1, 54, 71, 109, 136, 174, 201, 239])
def test_another_grey_is_named_with_its_file(tmp_path: Path, grey: int) -> None:
    folder = mr_patient(tmp_path, "1", UP)
    path = folder / "T2SPIR" / "Ground" / "IMG-0002-00003.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0] = grey
    Image.fromarray(pixels).save(path)
    cases = {case.identifier: case for case in read_dataset("chaos", tmp_path)}
    refused(lambda: cases["MR-1-T2"].labels(), f"IMG-0002-00003.png has the grey value {grey},")
    assert cases["MR-1-T1-in"].labels() is not None


def test_patients_are_in_the_order_of_their_numbers_from_any_folder_above(tmp_path: Path) -> None:
    for patient in ("10", "2"):
        ct_patient(tmp_path / "CHAOS_Train_Sets", patient, UP)
    ct_patient(tmp_path / "CHAOS_Train_Sets", "7", DOWN)
    for root in (tmp_path, tmp_path / "CHAOS_Train_Sets", tmp_path / "CHAOS_Train_Sets" / "Train_Sets"):
        assert [c.identifier for c in read_dataset("chaos", root)] == ["CT-2", "CT-7", "CT-10"]


def test_nothing_of_a_patient_leaves_the_headers(tmp_path: Path) -> None:
    ct_patient(tmp_path, "1", UP)
    (case,) = read_dataset("chaos", tmp_path)
    assert case.image().GetMetaDataKeys() == case.labels().GetMetaDataKeys() == ()
    assert SECRET not in repr(case)


def refused(act: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        act()  # type: ignore[operator]
    one_sentence(str(error.value))


def one_sentence(text: str) -> None:
    assert text.endswith(".")
    assert "\n" not in text
    assert SECRET not in text


def broken(folder: Path, how: str) -> str:
    """Break a patient's CT; what its problem says."""
    slices, masks = folder / "DICOM_anon", folder / "Ground"
    if how == "a mask less":
        (masks / "liver_GT_004.png").unlink()
        return f"holds {SLICES - 1} PNG masks for the {SLICES} slices"
    if how == "no masks":
        for file in masks.iterdir():
            file.unlink()
        return "holds no PNG masks"
    if how == "empty series":
        for file in slices.iterdir():
            file.unlink()
        return "holds no DICOM images"
    if how == "no folder of slices":
        slices.rename(folder / "elsewhere")
        return "DICOM_anon with the DICOM slices is missing"
    if how == "mixed series":
        other = [f"x{n}.dcm" for n in UP]
        write_series(slices, other, UP, series="1.2.826.0.1.7.2")
        return "2 image series"
    if how == "a slice less":
        (slices / "i0004,0000b.dcm").unlink()
        return "missing or unevenly spaced slices"
    for file in slices.iterdir():
        file.unlink()
    names = [f"{n:04d}.dcm" for n in np.random.default_rng(0).permutation(SLICES)]
    write_series(slices, names, [1] * SLICES)
    return "order of the slices in .* is unknown"


@pytest.mark.parametrize(
    "how",
    ["a mask less", "no masks", "empty series", "no folder of slices", "mixed series", "a slice less", "no order"],
)
def test_one_broken_patient_does_not_lose_the_others(tmp_path: Path, how: str) -> None:
    for patient in ("1", "2", "3"):
        folder = ct_patient(tmp_path, patient, UP)
        if patient == "2":
            sentence = broken(folder, how)
    cases = read_dataset("chaos", tmp_path)
    assert [c.identifier for c in cases] == ["CT-1", "CT-3"]
    (problem,) = cases.problems
    refused(lambda: chaos.pair(tmp_path / "Train_Sets/CT/2/DICOM_anon", tmp_path / "Train_Sets/CT/2/Ground"), sentence)
    one_sentence(problem)
    assert str(tmp_path / "Train_Sets" / "CT" / "2") in problem
    for case in cases:
        assert_planted(case.image(), case.labels(), planted([1]))


def test_half_an_mr_sequence_is_named_and_a_sequence_that_is_not_there_is_not(tmp_path: Path) -> None:
    folder = mr_patient(tmp_path, "1", UP)
    (folder / "T1DUAL" / "DICOM_anon" / "OutPhase").rename(tmp_path / "away")
    (folder / "T2SPIR").rename(tmp_path / "gone")
    cases = read_dataset("chaos", tmp_path)
    assert [c.identifier for c in cases] == ["MR-1-T1-in"]
    (problem,) = cases.problems
    assert "OutPhase with the DICOM slices is missing" in problem


def test_masks_of_another_kind_are_named(tmp_path: Path) -> None:
    folder = ct_patient(tmp_path, "1", UP) / "Ground"
    (case,) = read_dataset("chaos", tmp_path)
    path = folder / "liver_GT_003.png"
    Image.new("RGB", (COLUMNS, ROWS)).save(path)
    refused(case.labels, "liver_GT_003.png is in colour")
    Image.new("L", (ROWS, COLUMNS)).save(path)
    refused(case.labels, "liver_GT_003.png has 14×18 pixels, its slice 18×14")
    path.write_bytes(path.read_bytes()[:40])
    refused(case.labels, "liver_GT_003.png cannot be read")
    for file in folder.iterdir():
        Image.new("1", (COLUMNS, ROWS)).save(file)
    refused(case.labels, "masks in .* are empty")


def test_files_of_a_mac_are_passed_over(tmp_path: Path) -> None:
    folder = ct_patient(tmp_path, "1", UP)
    (folder / "Ground" / "._liver_GT_000.png").write_bytes(b"\0")
    (folder / "DICOM_anon" / "._i0000,0000b.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (case,) = read_dataset("chaos", tmp_path)
    assert_planted(case.image(), case.labels(), planted([1]))


def test_a_folder_without_chaos_is_refused(tmp_path: Path) -> None:
    refused(lambda: read_dataset("chaos", tmp_path), "no copy of CHAOS")
