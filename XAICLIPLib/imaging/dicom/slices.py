"""Reading the headers of DICOM files: the properties of each image plane, and its position.

A file with several frames gives as many slices. Positions, orientations and spacings are read from the header itself,
because GDCM assumes 0, straight axes and 1 mm where they are missing.

References
----------
DICOM PS3.3: C.7.6.2 (Image Plane Module), C.7.6.3 (photometric interpretation), C.7.6.16 (functional groups of frames).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from XAICLIPLib.errors import InputError

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Objects that are stored with the images but are none: waveforms, presentation states, registrations, segmentations,
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
        The file, and the number of the frame in it; None where it has a single frame.
    number, series, study
        Series number, and the identifiers by which slices are grouped; no message contains the identifiers.
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
    applied_rescale
        Slope and intercept that GDCM applies to it, those of the file's first frame.
    highest_storable
        The highest value that can be stored, from which GDCM subtracts those of MONOCHROME1; -1 for signed values.
    kind, instance, frame_of_reference
        UIDs of the kind of object, of the object, and of the space that its position is in; "" where there is none.
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
    components: int
    at_detector: bool = False
    inverted: bool = False
    rescale: tuple[float, float] = (1.0, 0.0)
    applied_rescale: tuple[float, float] = (1.0, 0.0)
    highest_storable: int = -1
    kind: str = field(default="", repr=False)
    instance: str = field(default="", repr=False)
    frame_of_reference: str = field(default="", repr=False)

    @property
    def has_position(self) -> bool:
        """Whether the header gives the position and orientation of the slice."""
        return self.position is not None and self.row is not None


_VALUES_UNHEARD: ContextVar[bool] = ContextVar("values_unheard", default=False)


def _is_heard(message: logging.LogRecord) -> bool:
    return not _VALUES_UNHEARD.get()


@contextmanager
def values_unheard() -> Iterator[None]:
    """Within the block, pydicom neither warns of unusual values nor logs them: it quotes them."""
    logging.getLogger("pydicom").addFilter(_is_heard)  # the same function is added once
    token = _VALUES_UNHEARD.set(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _VALUES_UNHEARD.reset(token)


def is_dicom(path: Path) -> bool:
    """Whether a file begins like a DICOM file, with the preamble or without it (old exports)."""
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
    """The image planes of DICOM files, and the number of the files without an image.

    Raises
    ------
    InputError
        A file cannot be read.
    """
    slices: list[Slice] = []
    n_without_image = 0
    for path in files:
        planes = _read_header(path)
        slices += planes
        n_without_image += not planes
    return slices, n_without_image


_TAGS = [
    *("SOPClassUID", "Modality", "SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber", "NumberOfFrames"),
    *("SOPInstanceUID", "FrameOfReferenceUID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation"),
    *("BitsAllocated", "BitsStored", "HighBit", "RescaleSlope", "RescaleIntercept", "PixelData"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
"""Elements of a header that are read: none of them names the patient."""

_UNDEFINED = 0xFFFFFFFF
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
"""Transfer syntaxes without compression: rows, columns and bits give the length of the pixel data."""


def _read_header(path: Path) -> list[Slice]:
    """The planes of one file; an empty list where it is no image."""
    import pydicom  # not needed for any other format

    try:
        with values_unheard():
            dataset = pydicom.dcmread(path, force=True, defer_size=1024, specific_tags=_TAGS)
            return _planes(path, dataset)
    except InputError:
        raise
    except Exception as error:  # pydicom's own errors, and any error that a damaged value causes
        raise InputError(
            f"The DICOM file {path.name} in {path.parent} cannot be read (damaged, or a value in its header is no "
            f"number where one must be): export the series again or convert it to NIfTI."
        ) from error


def _planes(path: Path, dataset: Any) -> list[Slice]:
    kind = str(dataset.file_meta.get("MediaStorageSOPClassUID", "") or dataset.get("SOPClassUID", ""))
    modality = str(dataset.get("Modality") or "")
    # An object without a public storage class is a directory or a vendor's private object.
    if (kind and (not kind.startswith(_STORAGE) or kind.startswith(_NOT_SLICES))) or modality in _NOT_SLICES_MODALITIES:
        return []
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise ValueError("no size")
    orientation = _floats(dataset.get("ImageOrientationPatient"), 6)
    number = str(dataset.get("SeriesNumber") or "")
    signed, stored = dataset.get("PixelRepresentation", 0), dataset.get("BitsStored", 16)
    rescale = _rescale(dataset)
    frames = int(dataset.get("NumberOfFrames") or 1)
    plane = Slice(
        path=path,
        frame=None,
        number=int(number) if number.lstrip("-").isdigit() else 0,
        series=str(dataset.get("SeriesInstanceUID") or ""),
        study=str(dataset.get("StudyInstanceUID") or ""),
        modality=modality,
        size=(int(dataset.Columns), int(dataset.Rows)),
        spacing=_column_row_spacing(_floats(dataset.get("PixelSpacing"), 2)),
        position=_floats(dataset.get("ImagePositionPatient"), 3),
        row=orientation and orientation[:3],
        column=orientation and orientation[3:],
        components=int(dataset.get("SamplesPerPixel") or 1),
        at_detector=bool(dataset.get("ImagerPixelSpacing")),
        inverted=str(dataset.get("PhotometricInterpretation")) == "MONOCHROME1",
        rescale=rescale,
        applied_rescale=rescale,
        highest_storable=-1 if signed else 2**stored - 1,
        kind=kind,
        instance=str(dataset.get("SOPInstanceUID") or ""),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
    )
    _check_pixels(plane, dataset, frames)
    return [plane] if frames == 1 else _frames(plane, dataset, frames)


def _rescale(dataset: Any) -> tuple[float, float]:
    """Slope and intercept; a `ValueError` where only one of them is present, or one is no number."""
    present = [name for name in ("RescaleSlope", "RescaleIntercept") if name in dataset]
    if not present:
        return 1.0, 0.0
    if len(present) == 1:
        raise ValueError("half a rescale")
    slope, intercept = float(dataset["RescaleSlope"].value), float(dataset["RescaleIntercept"].value)
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0 or max(abs(slope), abs(intercept)) > 1e9:
        raise ValueError("no rescale")
    return slope, intercept


def _check_pixels(plane: Slice, dataset: Any, frames: int) -> None:
    """Refuse pixels that GDCM would read wrongly: too few of them, or a header that contradicts itself."""
    allocated, stored = dataset.get("BitsAllocated"), dataset.get("BitsStored")
    consistent = (
        allocated in (8, 16, 32)
        and 1 <= stored <= allocated
        and dataset.get("HighBit", stored - 1) == stored - 1
        and dataset.get("PixelRepresentation") in (0, 1)
        and plane.components in (1, 3)
        and (plane.components == 3 or str(dataset.get("PhotometricInterpretation")).startswith("MONOCHROME"))
    )
    element = dataset.get_item("PixelData") if "PixelData" in dataset else None
    length = getattr(element, "length", None)
    if element is not None and length is None:
        length = len(element.value)
    expected = math.prod(plane.size) * plane.components * frames * (allocated or 0) // 8
    uncompressed = str(dataset.file_meta.get("TransferSyntaxUID", _UNCOMPRESSED[0])) in _UNCOMPRESSED
    complete = length is not None and (length in (expected, expected + 1) if uncompressed else length > 0)
    if not (consistent and complete):
        raise InputError(
            f"The DICOM file {plane.path.name} in {plane.path.parent} is damaged: its pixels are not stored as its "
            f"header says (Rows, Columns, Bits..., PhotometricInterpretation, PixelData), so export the series again."
        )


def _frames(plane: Slice, dataset: Any, count: int) -> list[Slice]:
    """A slice for each frame of a file, with the position that its functional groups give."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if per_frame and len(per_frame) != count:
        raise ValueError("frames without a description")

    def value(frame: int, sequence: str, name: str) -> Any:
        for group in (per_frame[frame] if per_frame else {}, shared):
            if (items := group.get(sequence)) and name in items[0]:
                return items[0].get(name)
        return None

    def rescale(frame: int) -> tuple[float, float]:
        for group in (per_frame[frame] if per_frame else {}, shared):
            if items := group.get("PixelValueTransformationSequence"):
                return _rescale(items[0])
        return plane.rescale

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
                spacing=_column_row_spacing(_floats(value(frame, "PixelMeasuresSequence", "PixelSpacing"), 2)),
                rescale=rescale(frame),
                applied_rescale=rescale(0),
            )
        )
    return slices


def _column_row_spacing(numbers: tuple[float, ...] | None) -> tuple[float, float] | None:
    return (numbers[1], numbers[0]) if numbers and min(numbers) > 0 else None


def _floats(values: Any, count: int) -> tuple[float, ...] | None:
    """Exactly ``count`` finite numbers; None for anything else."""
    try:
        numbers = tuple(float(value) for value in values or ())
    except (ValueError, TypeError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None
