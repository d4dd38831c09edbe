"""The cases of `Testing.fuzz.headers`: making a file with a changed header, and judging what was read of it."""

from __future__ import annotations

import copy
import gzip
import math
import re
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError

SIZE = (9, 8, 7)
SECRET = "Doe^Jane"
LONGEST_SENTENCE = 700
SAME_MM = 2e-3
"""Grids that differ by less are the same but for float32 and for numbers written with five digits."""

Generator = np.random.Generator


@dataclass
class Case:
    """A file or folder, and how its header was changed."""

    kind: str
    path: Path
    changes: list[str] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)
    harmless: bool = True


def make(number: int, seed: int, folder: Path) -> Case:
    """Write one case; equal numbers and seeds give equal files."""
    random = np.random.default_rng([seed, number])
    makers: list[Callable[[Generator, Path], Case]] = [_nifti, _nrrd, _metaimage, _dicom]
    return makers[number % len(makers)](random, folder)


def judge(case: Case) -> tuple[str, str]:
    """Read a case, and say what came of it and why."""
    try:
        scan = imaging.read_scan(case.path)
    except InputError as error:
        return _judge_refusal(str(error), case)
    except Exception:  # whatever it is, the user would see it
        return "traceback", traceback.format_exc(limit=-3)
    judges = {"NIfTI": _judge_nifti, "NRRD": _judge_text, "MetaImage": _judge_text, "DICOM": _judge_dicom}
    problem = judges[case.kind](case, scan)
    if problem:
        return "elsewhere", f"{problem}; noted: {scan.notes}"
    return ("noted" if scan.notes else "read"), "; ".join(scan.notes)


def _judge_refusal(text: str, case: Case) -> tuple[str, str]:
    sentence = text.replace(str(case.path), "PATH")
    good = sentence.endswith(".") and "\n" not in sentence and not re.search(r"\. [A-Z]", sentence)
    if not good or len(sentence) > LONGEST_SENTENCE or SECRET in text:
        return "no sentence", text
    return ("refused over nothing" if case.harmless else "refused"), text


def _array(random: Generator) -> NDArray[Any]:
    return random.integers(0, 2000, SIZE[::-1]).astype(random.choice(["i2", "u2", "i4", "f4"]))


def _grid(random: Generator) -> sitk.Image:
    """The grid of a scan as it may lie: straight, turned by whole axes, or oblique."""
    image = sitk.Image(SIZE, sitk.sitkUInt8)
    image.SetSpacing([float(s) for s in random.choice([0.7, 1.0, 1.5, 3.0], 3)])
    image.SetOrigin([float(o) for o in np.round(random.uniform(-200, 200, 3), 2)])
    if random.random() < 0.5:
        axes = np.eye(3)[:, random.permutation(3)] * random.choice([-1, 1], 3)
    else:
        axes = np.reshape(sitk.Euler3DTransform((0, 0, 0), *random.uniform(-3, 3, 3)).GetMatrix(), (3, 3))
    image.SetDirection(axes.ravel().tolist())
    return image


def _apart(size: tuple[int, ...], a: NDArray[Any], b: NDArray[Any]) -> float:
    ends = np.array([[i, j, k, 1] for i in (0, size[0] - 1) for j in (0, size[1] - 1) for k in (0, size[2] - 1)]).T
    return float(np.linalg.norm(((a - b) @ ends)[:3], axis=0).max())


def _allowed(scan: imaging.Scan) -> float:
    """How far the voxels may lie from where the header puts them: as far as the notes say."""
    told = re.search(r"moves its voxels by up to ([\d.e-]+) mm", " ".join(scan.notes))
    return SAME_MM + 0.005 + (1.06 * float(told[1]) if told else 0.0)


# --- changes of numbers -------------------------------------------------------------------------


def _other_float(value: float, random: Generator) -> float:
    """Another number in the place of one: not one at all, one of the other sign, a little or much larger."""
    factors = [-1, 0, 1 + 1e-6, 1 + 1e-4, 1 + 1e-3, 1.02, 1.5, 10, -0.5]
    others = [math.nan, math.inf, -math.inf, 1e30, 1e-30, float(random.normal()), *(value * f for f in factors)]
    return float(others[random.integers(len(others))])


def _other_text(text: str, random: Generator) -> str:
    """Another text in the place of one of numbers."""
    numbers = re.findall(r"[-+.\deE]*\d[-+.\deE]*|nan", text)
    way = random.integers(6)
    if way == 0 or not numbers:
        return str(random.choice(["", "x", "nan nan nan", "1e999", "0", "-1"]))
    at = int(random.integers(len(numbers)))
    spans = list(re.finditer(r"[-+.\deE]*\d[-+.\deE]*|nan", text))[at].span()
    if way == 1:
        return text[: spans[0]] + text[spans[1] :]
    if way == 2:
        return text + " " + numbers[at]
    try:
        other = f"{_other_float(float(numbers[at]), random):.7g}"
    except ValueError:
        other = "x"
    return text[: spans[0]] + other + text[spans[1] :]


# --- NIfTI --------------------------------------------------------------------------------------

_NIFTI: dict[str, tuple[str, int, int]] = {
    "dim_info": ("B", 39, 1),
    "dim": ("h", 40, 8),
    "intent_code": ("h", 68, 1),
    "datatype": ("h", 70, 1),
    "bitpix": ("h", 72, 1),
    "slice_start": ("h", 74, 1),
    "pixdim": ("f", 76, 8),
    "vox_offset": ("f", 108, 1),
    "scl_slope": ("f", 112, 1),
    "scl_inter": ("f", 116, 1),
    "slice_code": ("B", 122, 1),
    "xyzt_units": ("B", 123, 1),
    "cal_max": ("f", 124, 1),
    "slice_duration": ("f", 132, 1),
    "toffset": ("f", 136, 1),
    "qform_code": ("h", 252, 1),
    "sform_code": ("h", 254, 1),
    "quatern": ("f", 256, 3),
    "qoffset": ("f", 268, 3),
    "srow_x": ("f", 280, 4),
    "srow_y": ("f", 296, 4),
    "srow_z": ("f", 312, 4),
    "magic": ("B", 344, 4),
    "sizeof_hdr": ("i", 0, 1),
}
_NIFTI_HARMLESS = {"dim_info", "intent_code", "bitpix", "slice_start", "slice_code", "cal_max", "slice_duration"}
_NIFTI_HARMLESS |= {"toffset"}
_INTEGERS = {
    "dim": [0, -1, 1, 2, 3, 4, 8, 9, 32767],
    "datatype": [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 2304, 9],
    "xyzt_units": [0, 1, 2, 3, 4, 8, 10, 16, 255],
    "qform_code": [0, 1, 2, 3, 4, 5, -1, 200],
    "sform_code": [0, 1, 2, 3, 4, 5, -1, 200],
    "bitpix": [0, 1, 8, 16, 32, 64],
    "sizeof_hdr": [0, 348, 540, 1543569408],
}


def _nifti(random: Generator, folder: Path) -> Case:
    array, grid = _array(random), _grid(random)
    affine = imaging.ras_affine(grid)
    nifti = nib.Nifti1Image(array.transpose(2, 1, 0), affine)
    codes = ((1, 1), (1, 0), (0, 1), (2, 1))[random.integers(4)]
    nifti.set_sform(affine, codes[0])
    nifti.set_qform(affine, codes[1])
    plain = folder / "scan.nii"
    nib.save(nifti, plain)
    raw = bytearray(plain.read_bytes())
    case = Case("NIfTI", plain)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        name = str(random.choice([*_NIFTI, "pixdim", "srow_x", "srow_y", "srow_z", "quatern", "dim"]))
        form, at, count = _NIFTI[name]
        place = int(random.integers(count))
        at += place * struct.calcsize(form)
        (value,) = struct.unpack_from("<" + form, raw, at)
        if form == "f":
            other: Any = _other_float(value, random)
            other = float(np.clip(other, -3e38, 3e38)) if math.isfinite(other) else other
        elif name in _INTEGERS:
            other = int(random.choice(_INTEGERS[name]))
        else:
            other = int(random.integers(0, 2 ** (8 * struct.calcsize(form) - 1)))
        struct.pack_into("<" + form, raw, at, other)
        case.changes.append(f"{name}[{place}] {value:.4g} -> {other:.7g}")
        case.harmless &= name in _NIFTI_HARMLESS or other == value
    plain.write_bytes(raw)
    if random.random() < 0.3:
        case.path = folder / "scan.nii.gz"
        case.path.write_bytes(gzip.compress(bytes(raw)))
    return case


def _judge_nifti(case: Case, scan: imaging.Scan) -> str:
    """Compare with nibabel, and where nothing was noted with ITK too, where they read the file."""
    affine, array = imaging.ras_affine(scan.image), sitk.GetArrayFromImage(scan.image).transpose(2, 1, 0)
    read_by = 0
    try:
        other = nib.load(case.path)
        values = np.asarray(other.dataobj)
    except Exception:  # an oracle that refuses says nothing
        pass
    else:
        read_by += 1
        mm = {1: 1000.0, 3: 0.001}.get(int(other.header["xyzt_units"]) & 7, 1.0)
        expected = np.diag([mm, mm, mm, 1.0]) @ other.affine
        problem = _compare("nibabel", scan, affine, array, expected, values)
        if problem:
            return problem
    if scan.notes:
        return "" if read_by else "noted, but no oracle reads it"
    try:
        second = sitk.ReadImage(str(case.path), imageIO="NiftiImageIO")
    except RuntimeError:
        return "" if read_by else "no oracle reads it"
    if second.GetDimension() == 4:
        second = second[..., 0]
    # Of values nibabel is the better oracle: ITK takes a small slope for none, and NaN for 0.
    return _compare("ITK", scan, affine, array, imaging.ras_affine(second), array, 0.1 * min(scan.image.GetSpacing()))


def _compare(
    who: str,
    scan: imaging.Scan,
    affine: NDArray[Any],
    array: NDArray[Any],
    expected: NDArray[Any],
    values: NDArray[Any],
    besides_mm: float = 0.0,
) -> str:
    values = values.reshape(values.shape[:3]) if values.size == array.size else values
    if values.shape != array.shape:
        return f"{who} reads {values.shape}, we {array.shape}"
    if not np.allclose(values, array, rtol=1e-5, atol=1e-3 * max(1.0, float(np.abs(array).max()) * 1e-3)):
        return f"{who} reads other values"
    apart = _apart(array.shape, affine, expected)
    if not apart <= _allowed(scan) + besides_mm + 1e-6 * float(np.abs(affine).max()):
        return f"{apart:.4g} mm from where {who} puts it"
    return ""


# --- NRRD and MetaImage -------------------------------------------------------------------------

_NRRD_TYPES = {"i2": "short", "u2": "ushort", "i4": "int", "f4": "float"}
_META_TYPES = {"i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT", "f4": "MET_FLOAT"}


def _nrrd(random: Generator, folder: Path) -> Case:
    array, grid = _array(random), _grid(random)
    axes = np.reshape(grid.GetDirection(), (3, 3)) * grid.GetSpacing()
    fields = {
        "type": _NRRD_TYPES[array.dtype.str[1:]],
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, SIZE)),
        "space directions": " ".join("(" + ",".join(f"{v:.12g}" for v in axis) + ")" for axis in axes.T),
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(" + ",".join(f"{v:.12g}" for v in grid.GetOrigin()) + ")",
    }
    choices = {
        "space": [
            "RAS",
            "right-anterior-superior",
            "LAS",
            "left-anterior-superior",
            "scanner-xyz",
            "3D-left-handed",
            "",
        ],
        "encoding": ["gzip", "ascii", "hex", "bzip2", "x"],
        "endian": ["big", "x"],
        "kinds": ["space space space", "domain domain time", "vector domain domain", "x", "??? ??? ???"],
        "type": ["uchar", "short", "double", "block", "x"],
        "dimension": ["2", "4", "0", "-1", "x", "17"],
    }
    added = {
        "spacings": ["1 1 1", "nan nan nan"],
        "space units": ['"mm" "mm" "mm"', '"cm" "cm" "cm"', '"um" "um" "um"', '"" "" ""'],
        "content": ["what a scan"],
        "byte skip": ["0", "-1", "10"],
        "line skip": ["0", "3"],
        "centers": ["cell cell cell", "node node node"],
        "thicknesses": ["1 1 1", "nan nan nan"],
        "measurement frame": ["(1,0,0) (0,1,0) (0,0,1)", "(0,1,0) (1,0,0) (0,0,1)"],
        "space dimension": ["3"],
        "data file": ["other.raw"],
        "sample units": ["HU"],
    }
    harmless = {"content", "sample units", "measurement frame"}
    case = _changed("NRRD", folder / "scan.nrrd", fields, choices, added, harmless, random)
    head = "".join(f"{name}: {value}\n" for name, value in case.fields.items())
    case.path.write_bytes(f"NRRD0005\n{head}\n".encode() + array.tobytes())
    return case


def _metaimage(random: Generator, folder: Path) -> Case:
    array, grid = _array(random), _grid(random)
    axes = np.reshape(grid.GetDirection(), (3, 3))
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": " ".join(f"{v:.12g}" for v in axes.T.ravel()),
        "Offset": " ".join(f"{v:.12g}" for v in grid.GetOrigin()),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": " ".join(f"{v:.12g}" for v in grid.GetSpacing()),
        "DimSize": " ".join(map(str, SIZE)),
        "ElementType": _META_TYPES[array.dtype.str[1:]],
    }
    choices = {
        "ObjectType": ["Scene", "Tube", "x"],
        "BinaryData": ["False", "x"],
        "BinaryDataByteOrderMSB": ["True", "x"],
        "CompressedData": ["True", "x"],
        "AnatomicalOrientation": ["LPS", "???", "RAS", "x"],
        "ElementType": ["MET_UCHAR", "MET_DOUBLE", "MET_SHORT", "MET_FLOAT_ARRAY", "x"],
        "NDims": ["2", "4", "0", "-1", "x", "11"],
    }
    added = {
        "ElementSize": ["1 1 1", "nan nan nan"],
        "HeaderSize": ["-1", "0", "10"],
        "ElementNumberOfChannels": ["1", "3", "0"],
        "DistanceUnits": ["mm", "um", "cm", "?"],
        "Comment": ["a comment"],
        "Modality": ["MET_MOD_CT", "x"],
        "ElementMin": ["0"],
        "ElementByteOrderMSB": ["False", "True"],
        "Position": ["1 2 3"],
    }
    harmless = {"Comment", "AnatomicalOrientation", "Modality", "ElementMin"}
    case = _changed("MetaImage", folder / "scan.mha", fields, choices, added, harmless, random)
    case.fields["ElementDataFile"] = "LOCAL"
    head = "".join(f"{name} = {value}\n" for name, value in case.fields.items())
    case.path.write_bytes(head.encode() + array.tobytes())
    return case


def _changed(
    kind: str,
    path: Path,
    fields: dict[str, str],
    choices: dict[str, list[str]],
    added: dict[str, list[str]],
    harmless: set[str],
    random: Generator,
) -> Case:
    """Change, add or leave out one to three fields of a header of text."""
    case = Case(kind, path, fields=dict(fields))
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        way = random.random()
        if way < 0.25:
            name = str(random.choice(list(added)))
            case.fields[name] = str(random.choice(added[name]))
            case.changes.append(f"{name} added: {case.fields[name]}")
        else:
            name = str(random.choice([name for name in case.fields if name in fields]))
            if way < 0.45:
                del case.fields[name]
                case.changes.append(f"{name} left out")
            else:
                before = case.fields[name]
                other = str(random.choice(choices[name])) if name in choices else _other_text(before, random)
                case.fields[name] = other
                case.changes.append(f"{name}: {before} -> {other}")
        case.harmless &= name in harmless
    return case


def _spelled(case: Case) -> NDArray[Any] | None:
    """The RAS affine that the fields of a header spell out, by the format's definition; None where they do not."""
    fields = case.fields
    try:
        if case.kind == "NRRD":
            signs = {"left-posterior-superior": (-1, -1), "lps": (-1, -1), "right-anterior-superior": (1, 1)}
            signs |= {"ras": (1, 1), "left-anterior-superior": (-1, 1), "las": (-1, 1)}
            x, y = signs[fields["space"].lower()]
            vectors = re.findall(r"\(([^)]*)\)", fields["space directions"])
            columns = np.array([[float(v) for v in vector.split(",")] for vector in vectors]).T
            text = fields.get("space origin", "(0,0,0)").strip("()")
            origin = np.array([float(v) for v in text.split(",")])
            turn = np.diag([x, y, 1.0])
        else:
            matrix = np.array([float(v) for v in fields["TransformMatrix"].split()][:9]).reshape(3, 3).T
            spacing = fields["ElementSpacing"] if "ElementSpacing" in fields else fields["ElementSize"]
            columns = matrix * [float(v) for v in spacing.split()][:3]
            text = fields.get("Offset", fields.get("Position", "0 0 0"))
            origin = np.array([float(v) for v in text.split()][:3])
            turn = np.diag([-1.0, -1.0, 1.0])
    except (KeyError, ValueError):
        return None
    if columns.shape != (3, 3) or origin.shape != (3,):
        return None
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ columns, turn @ origin
    return affine if np.isfinite(affine).all() else None


def _judge_text(case: Case, scan: imaging.Scan) -> str:
    """Compare values with ITK and the grid with the fields themselves; with ITK's where the file names no space."""
    image = sitk.ReadImage(str(case.path))
    if image.GetDimension() == 4:
        image = image[..., 0]
    affine, array = imaging.ras_affine(scan.image), sitk.GetArrayFromImage(scan.image).transpose(2, 1, 0)
    others = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    if problem := _compare("ITK", scan, affine, array, imaging.ras_affine(image), others):
        return problem
    expected = _spelled(case)
    if expected is None:
        return "" if scan.notes else "the fields spell out no grid"
    apart = _apart(array.shape, affine, expected)
    return "" if apart <= _allowed(scan) else f"{apart:.4g} mm from where the fields put it"


# --- DICOM --------------------------------------------------------------------------------------


def _dicom(random: Generator, folder: Path) -> Case:
    datasets = _series(random)
    case = Case("DICOM", folder / "series")
    case.path.mkdir()
    for _ in range(random.choice([1, 1, 1, 2])):
        keyword = str(random.choice(list(_DICOM)))
        some = datasets if random.random() < 0.5 else [datasets[random.integers(len(datasets))]]
        case.changes.append(f"{keyword} of {'all' if len(some) > 1 else 'one'}: {_change(keyword, some, random)}")
        case.harmless &= keyword in _DICOM_HARMLESS
    for dataset in datasets:
        if dataset.file_meta.TransferSyntaxUID.is_compressed and dataset.get("PixelData"):
            dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
            dataset["PixelData"].is_undefined_length = True
    for k in random.permutation(len(datasets)):
        datasets[k].save_as(case.path / f"{random.integers(10**6):06d}-{k}", enforce_file_format=True)
    return case


def _series(random: Generator) -> list[Dataset]:
    array, grid = random.integers(0, 2000, SIZE[::-1]).astype(np.int16), _grid(random)
    axes = np.reshape(grid.GetDirection(), (3, 3))
    datasets = []
    for k, plane in enumerate(array):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = random.choice([ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.4.{k + 1}"
        dataset.Modality, dataset.PatientName, dataset.PatientID = "CT", SECRET, SECRET
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
        dataset.SeriesNumber, dataset.InstanceNumber = 3, k + 1
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ImagePositionPatient = [f"{v:.8g}"[:16] for v in grid.TransformIndexToPhysicalPoint((0, 0, k))]
        dataset.ImageOrientationPatient = [f"{v:.8f}"[:16] for v in (*axes[:, 0], *axes[:, 1])]
        dataset.PixelSpacing = [grid.GetSpacing()[1], grid.GetSpacing()[0]]
        dataset.SliceThickness = dataset.SpacingBetweenSlices = grid.GetSpacing()[2]
        dataset.Rows, dataset.Columns = plane.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = plane.tobytes()
        datasets.append(dataset)
    return datasets


_GONE: Any = object()
_SEG = "1.2.840.10008.5.1.4.1.1.66.4"
_DICOM: dict[str, list[Any]] = {
    "PixelSpacing": [_GONE, "", "0\\0", "-1\\1", "nan\\nan", "1", "1\\1\\1", "x\\1", "*"],
    "ImagePositionPatient": [_GONE, "", "0\\0", "0\\0\\0", "nan\\0\\0", "*", "*"],
    "ImageOrientationPatient": [
        _GONE,
        "",
        "1\\0\\0",
        "1\\0\\0\\0\\1\\0",
        "1\\0\\0\\1\\0\\0",
        "0\\0\\0\\0\\0\\0",
        "*",
        "*",
    ],
    "Rows": [4, 7, 9, 0, 65535],
    "Columns": [4, 8, 10, 0, 65535],
    "BitsAllocated": [8, 32, 12, 0],
    "BitsStored": [8, 12, 0, 17],
    "HighBit": [7, 11, 14, 0, 31],
    "PixelRepresentation": [0, 1, 7],
    "SamplesPerPixel": [3, 0, 2],
    "PhotometricInterpretation": ["MONOCHROME1", "RGB", "PALETTE COLOR", "x", _GONE],
    "RescaleSlope": [_GONE, "0", "-1", "2", "0.5", "nan", "inf", "x", ""],
    "RescaleIntercept": [_GONE, "0", "-2000", "0.5", "nan", "1e30", "x", ""],
    "Modality": ["PT", "MR", "OT", "", "RTDOSE", "SEG", "x", _GONE],
    "SeriesInstanceUID": ["1.2.3.4.9", "", _GONE],
    "SeriesNumber": ["7", "", "-1", _GONE],
    "NumberOfFrames": ["1", "2", "0", "7", "x"],
    "SliceThickness": ["9", "0", "nan", _GONE],
    "SpacingBetweenSlices": ["9", "0", "-1", _GONE],
    "InstanceNumber": ["5", "x", _GONE],
    "ImageType": ["DERIVED\\SECONDARY\\LOCALIZER", _GONE],
    "SOPClassUID": ["1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.4", _SEG, "x"],
    "StudyInstanceUID": ["9.9", _GONE],
    "TransferSyntaxUID": [JPEGBaseline8Bit, "1.2.840.10008.1.2.4.90"],
    "PixelData": ["half", "empty", _GONE],
    "SmallestImagePixelValue": [5],
    "WindowCenter": ["40", "x"],
    "ContentDate": ["x"],
}
_DICOM_HARMLESS = {
    "InstanceNumber",
    "ImageType",
    "WindowCenter",
    "ContentDate",
}


def _change(keyword: str, datasets: list[Dataset], random: Generator) -> str:
    other = _DICOM[keyword][random.integers(len(_DICOM[keyword]))]
    told = str(other)
    for dataset in datasets:
        if other is _GONE:
            told = "left out"
            if keyword in dataset:
                del dataset[keyword]
        elif keyword == "TransferSyntaxUID":
            dataset.file_meta.TransferSyntaxUID = other
        elif keyword == "PixelData":
            whole = dataset.get("PixelData", b"")
            dataset.PixelData = whole[: len(whole) // 2] if other == "half" else b""
        elif other == "*":
            numbers = [float(v) for v in dataset[keyword].value] if keyword in dataset else [0.0]
            at = int(random.integers(len(numbers)))
            before = numbers[at]
            numbers[at] = _other_float(before, random)
            told = f"{before:.6g} -> {numbers[at]:.6g}"
            _put(dataset, keyword, "\\".join(f"{v:.10g}"[:16] for v in numbers))
        else:
            _put(dataset, keyword, other)
    return told


def _put(dataset: Dataset, keyword: str, value: Any) -> None:
    """Set an element to a text that pydicom would not take for its type."""
    vr = pydicom.datadict.dictionary_VR(keyword)
    dataset[keyword] = pydicom.DataElement(pydicom.tag.Tag(keyword), vr if isinstance(value, int) else "UN", b"")
    if isinstance(value, int):
        dataset[keyword] = pydicom.DataElement(pydicom.tag.Tag(keyword), "US", value)
        return
    raw = value.encode() + (b" " if len(value) % 2 else b"")
    element = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(keyword), vr, len(raw), raw, 0, False, True)
    dataset._dict[element.tag] = element


def _judge_dicom(case: Case, scan: imaging.Scan) -> str:
    """Each slice as pydicom reads it must lie in the volume where its header says, with its values."""
    image = scan.image
    left_out = sum(map(int, re.findall(r"(?:has|leaves out) (\d+) images? of another", " ".join(scan.notes))))
    tilted = "gantry tilt" in " ".join(scan.notes)
    elsewhere = []
    array = sitk.GetArrayFromImage(image)
    used: set[int] = set()
    modalities = set()
    for path in sorted(case.path.iterdir()):
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        if str(dataset.get("Modality")) in ("SEG", "RTDOSE") or str(dataset.file_meta.MediaStorageSOPClassUID) == _SEG:
            continue  # no slice, as it says
        problem, place = _placed(path, image, array, tilted)
        if problem:
            elsewhere.append(problem)
        else:
            used.add(place)
            modalities.add(str(pydicom.dcmread(path).get("Modality", "")))
    if not tilted and used != set(range(array.shape[0])):
        return f"slices {sorted(set(range(array.shape[0])) - used)} are of no file: {elsewhere}"
    if len(elsewhere) > left_out:
        return "; ".join(elsewhere)
    if scan.modality is not None and scan.modality not in modalities:
        return f"modality {scan.modality}, not {modalities}"
    return ""


def _placed(path: Path, image: sitk.Image, array: NDArray[Any], tilted: bool) -> tuple[str, int]:
    """What is wrong with a slice of the volume, and which it is."""
    try:
        dataset = pydicom.dcmread(path)
        position = [float(v) for v in dataset.ImagePositionPatient]
        orientation = [float(v) for v in dataset.ImageOrientationPatient]
        between_rows, between_columns = (float(v) for v in dataset.PixelSpacing)
        if len(position) != 3 or len(orientation) != 6:
            raise ValueError("no place")
        values = pydicom.pixels.apply_rescale(copy.deepcopy(dataset).pixel_array, dataset)
    except Exception as error:  # what pydicom does not read must not be in the volume
        return f"pydicom does not read {path.name} ({type(error).__name__}: {error})", -1
    rows, columns = values.shape[-2:]
    right = np.array(position) + np.array(orientation[:3]) * between_columns * (columns - 1)
    down = np.array(position) + np.array(orientation[3:]) * between_rows * (rows - 1)
    corners = [
        np.array(image.TransformPhysicalPointToContinuousIndex(p.tolist())) for p in (np.array(position), right, down)
    ]
    k = round(float(corners[0][2]))
    if tilted:
        return "", k
    expected = [np.array([0, 0, k]), np.array([columns - 1, 0, k]), np.array([0, rows - 1, k])]
    off = max(float(np.abs(a - b).max()) for a, b in zip(corners, expected, strict=True))
    if off > 0.6 or not 0 <= k < len(array):
        return f"{path.name} is {off:.2f} voxels from its place", -1
    if array[k].shape != values.shape or not np.allclose(array[k], values, rtol=1e-5, atol=1e-3):
        return f"{path.name} has other values", -1
    return "", k
