"""The headers of DICOM files: what each image plane is, and where it lies.

A file with several frames gives as many slices. Positions, orientations and spacings are taken from the header as it
stands: GDCM puts 0, straight axes and 1 mm where they are missing.

References
----------
DICOM PS3.3: C.7.6.2 (Image Plane Module), C.7.6.3 (photometric interpretation), C.7.6.16 (functional groups of frames).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from XAICLIPLib.errors import InputError

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Objects that lie beside the images: waveforms, presentation states, registrations, segmentations,
# surfaces, reports, documents, radiotherapy structures, doses and plans (DICOM PS3.4, B.5).
_NOT_SLICES = tuple(_STORAGE + kind for kind in ("9.", "11.", "66", "67", "68.", "88.", "104.", "30", "481."))
_NOT_SLICES_MODALITIES = frozenset(
    ["RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "SEG", "SR", "PR", "KO", "REG", "FID", "DOC"]
)


@dataclass(frozen=True)
class Slice:
    """One image plane, lengths in mm, LPS.

    Attributes
    ----------
    path, frame
        The file, and which of its frames; None where it has one.
    number, series, study
        Series number, and the identifiers by which slices are grouped; those go into no message.
    modality
        DICOM's code, "" where there is none.
    size
        Columns and rows.
    spacing
        Between columns, between rows; None where the header has none.
    position, row, column
        None where the header does not place the slice.
    at_detector
        Whether the only spacing is that of a detector (ImagerPixelSpacing).
    inverted
        MONOCHROME1: the lowest value is shown white.
    rescale
        Slope and intercept of this frame.
    applied
        Slope and intercept that GDCM applies to it, those of the file's first frame.
    highest
        The highest value that can be stored, from which GDCM takes those of MONOCHROME1; -1 for signed values.
    """

    path: Path
    frame: int | None
    number: int
    series: str = field(repr=False)
    study: str = field(repr=False)
    modality: str
    size: tuple[int, int]
    spacing: tuple[float, float] | None
    position: tuple[float, ...] | None
    row: tuple[float, ...] | None
    column: tuple[float, ...] | None
    pixel_type: int
    components: int
    at_detector: bool = False
    inverted: bool = False
    rescale: tuple[float, float] = (1.0, 0.0)
    applied: tuple[float, float] = (1.0, 0.0)
    highest: int = -1

    @property
    def placed(self) -> bool:
        """Whether the header says where the slice lies."""
        return self.position is not None and self.row is not None


def is_dicom(path: Path) -> bool:
    """Whether a file starts as DICOM does, with the preamble or without it (old exports)."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    # Without the preamble the first element is (0002,0000) or one of group 8 up to (0008,0008).
    bare = head[:2] in (b"\x02\0", b"\x08\0") and head[2:4] in (
        b"\0\0",
        b"\1\0",
        b"\5\0",
        b"\x08\0",
    )
    return head[128:] == b"DICM" or bare


def read_slices(files: Sequence[Path]) -> tuple[list[Slice], int]:
    """The image planes of DICOM files, and how many of the files are DICOM but hold no image.

    Raises
    ------
    InputError
        A file cannot be read.
    """
    slices: list[Slice] = []
    beside = 0
    for path in files:
        kind = _media_class(path)
        # What is stored under no public storage class is a directory or a vendor's own object.
        planes = [] if kind and (not kind.startswith(_STORAGE) or kind.startswith(_NOT_SLICES)) else _read_header(path)
        slices += planes
        beside += not planes
    return slices, beside


def _media_class(path: Path) -> str:
    """SOP class from the file meta group, which is always explicit little endian; "" if none."""
    with path.open("rb") as file:
        data = file.read(2048)
    at = 132
    while data[128:132] == b"DICM" and at + 12 <= len(data) and data[at : at + 2] == b"\x02\x00":
        element, vr, length = struct.unpack_from("<H2sH", data, at + 2)
        at += 8
        if vr in (b"OB", b"UN", b"OW", b"UT", b"SQ"):
            (length,) = struct.unpack_from("<I", data, at)
            at += 4
        if element == 2:
            return data[at : at + length].decode("ascii", "replace").strip("\0 ")
        at += length
    return ""


def _read_header(path: Path) -> list[Slice]:
    """The planes of one file; none when its modality says that it is no image."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(
            f"The DICOM file {path.name} in {path.parent} cannot be read (damaged or in an "
            f"unsupported compression): export the series again or convert it to NIfTI."
        ) from error

    def text(tag: str) -> str:
        return str(reader.GetMetaData(tag)).strip("\0 ") if reader.HasMetaDataKey(tag) else ""

    modality = text("0008|0060")
    if modality in _NOT_SLICES_MODALITIES:
        return []
    number, bits = text("0020|0011"), text("0028|0101")
    orientation = _numbers(text("0020|0037"), 6)
    plane = Slice(
        path=path,
        frame=None,
        number=int(number) if number.lstrip("-").isdigit() else 0,
        series=text("0020|000e"),
        study=text("0020|000d"),
        modality=modality,
        size=(reader.GetSize()[0], reader.GetSize()[1]),
        spacing=_spacing(text("0028|0030")),
        position=_numbers(text("0020|0032"), 3),
        row=orientation and orientation[:3],
        column=orientation and orientation[3:],
        pixel_type=reader.GetPixelIDValue(),
        components=reader.GetNumberOfComponents(),
        at_detector=bool(text("0018|1164")),
        inverted=text("0028|0004") == "MONOCHROME1",
        rescale=((_numbers(text("0028|1053"), 1) or (1.0,))[0], (_numbers(text("0028|1052"), 1) or (0.0,))[0]),
        highest=-1 if text("0028|0103") == "1" else 2 ** int(bits if bits.isdigit() else 16) - 1,
    )
    frames = text("0028|0008")
    if not (frames.isdigit() and int(frames) > 1):
        return [plane]
    return _frames(plane)


def _frames(plane: Slice) -> list[Slice]:
    """A slice for each frame of a file, where its functional groups say that it lies."""
    import pydicom  # for these files alone: GDCM hands out no sequences

    try:
        dataset = pydicom.dcmread(plane.path, stop_before_pixels=True, force=True)
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
        own = dataset.get("PerFrameFunctionalGroupsSequence") or []
        count = int(dataset.NumberOfFrames)
        if own and len(own) != count:
            raise ValueError("frames without a description")

        def value(frame: int, sequence: str, name: str) -> Any:
            for group in (own[frame] if own else pydicom.Dataset(), shared):
                if (items := group.get(sequence)) and name in items[0]:
                    return items[0].get(name)
            return None

        def rescale(frame: int) -> tuple[float, float]:
            slope = value(frame, "PixelValueTransformationSequence", "RescaleSlope")
            intercept = value(frame, "PixelValueTransformationSequence", "RescaleIntercept")
            return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)

        slices = []
        for frame in range(count):
            orientation = _floats(value(frame, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
            slices.append(
                replace(
                    plane,
                    frame=frame,
                    position=_floats(value(frame, "PlanePositionSequence", "ImagePositionPatient"), 3),
                    row=orientation and orientation[:3],
                    column=orientation and orientation[3:],
                    spacing=_swapped(_floats(value(frame, "PixelMeasuresSequence", "PixelSpacing"), 2)),
                    rescale=rescale(frame),
                    applied=rescale(0),
                )
            )
        return slices
    except Exception as error:  # pydicom's own, and whatever a damaged value leads to
        raise InputError(
            f"The DICOM file {plane.path.name} in {plane.path.parent} does not describe its frames in a way that can "
            f"be read: convert it to NIfTI or to a series of single slices (dcm2niix, 3D Slicer)."
        ) from error


def _spacing(text: str) -> tuple[float, float] | None:
    """PixelSpacing, which is between rows and then between columns, the other way round."""
    return _swapped(_numbers(text, 2))


def _swapped(numbers: tuple[float, ...] | None) -> tuple[float, float] | None:
    return (numbers[1], numbers[0]) if numbers and min(numbers) > 0 else None


def _numbers(text: str, count: int) -> tuple[float, ...] | None:
    return _floats(text.split("\\"), count)


def _floats(values: Any, count: int) -> tuple[float, ...] | None:
    """As many finite numbers as there must be, or None."""
    try:
        numbers = tuple(float(value) for value in values)
    except (ValueError, TypeError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None
