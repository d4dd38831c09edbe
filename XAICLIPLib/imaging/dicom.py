"""Reading a folder of DICOM slices as one volume, or saying why it is none.

The slices are ordered by their position along the normal of the image plane, never by file name or
instance number. What would give a volume with a wrong geometry is refused. Messages carry counts,
sizes and positions in mm and file names, never any other DICOM value.

References
----------
DICOM PS3.3, C.7.6.2 (Image Plane Module: position, orientation, pixel spacing).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from XAICLIPLib.errors import InputError

MIN_SLICES = 4
"""A series of fewer slices is a scout view or a report, not a volume."""

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Objects that lie beside the images: waveforms, presentation states, registrations, segmentations,
# surfaces, reports, documents, radiotherapy structures, doses and plans (DICOM PS3.4, B.5).
_NOT_SLICES = tuple(_STORAGE + kind for kind in ("9.", "11.", "66", "67", "68.", "88.", "104.", "30", "481."))
_NOT_SLICES_MODALITIES = frozenset(
    ["RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "SEG", "SR", "PR", "KO", "REG", "FID", "DOC"]
)

_SERIES = "0020|000e"
_SERIES_NUMBER = "0020|0011"
_MODALITY = "0008|0060"
_POSITION = "0020|0032"
_ORIENTATION = "0020|0037"


@dataclass(frozen=True)
class _Slice:
    """One DICOM file's image plane, lengths in mm, LPS."""

    path: Path
    series: tuple[int, str]
    size: tuple[int, ...]
    spacing: tuple[float, float]
    position: tuple[float, float, float]
    row: tuple[float, float, float]
    column: tuple[float, float, float]
    pixel_type: int
    components: int
    placed: bool


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


def read_series(folder: Path, series: int | None = None) -> sitk.Image:
    """Read the one image series in a folder, with rescale slope and intercept applied.

    Parameters
    ----------
    folder : Path
        Holds the slices themselves; file names and extensions do not matter. Files that are not
        DICOM and DICOM objects that are no images (RTSTRUCT, SEG, reports) are passed over, and so
        are series of fewer than four slices when a larger one is there (scout views).
    series : int, optional
        Which series to read where there are several: the index given by the error that lists them.

    Returns
    -------
    SimpleITK.Image
        Scalar, 3D, LPS, in the order of the positions along the normal, without metadata.

    Raises
    ------
    InputError
        No or several series; slices that are missing, doubled, unevenly spaced, of several sizes
        or orientations, sheared (gantry tilt); multi-frame files; unreadable files.
    """
    return _load(*_choose(folder, series), folder)


def series_files(folder: Path, series: int | None = None) -> list[Path]:
    """Files of the slices that `read_series` reads, in the order of the volume's slices; raises as it does."""
    ordered, _ = _choose(folder, series)
    return [item.path for item in ordered]


def _choose(folder: Path, series: int | None) -> tuple[list[_Slice], _Geometry]:
    """Read the headers in a folder and put the slices of one series in order."""
    every = _read_slices(folder)
    groups: dict[tuple[int, str], list[_Slice]] = {}
    for item in every:
        groups.setdefault(item.series, []).append(item)
    candidates = [groups[key] for key in sorted(groups)]
    usable = [g for g in candidates if len(g) >= MIN_SLICES or len(g[0].size) == 3]
    candidates = usable or candidates
    if series is None:
        if len(candidates) > 1:
            listing = "; ".join(f"{i}: {_describe(g)}" for i, g in enumerate(candidates))
            raise InputError(
                f"The folder {folder} holds {len(candidates)} image series ({listing}): "
                f"choose one by its number (series=0) or give a folder with one series."
            )
        series = 0
    if not 0 <= series < len(candidates):
        raise InputError(
            f"There is no series {series} in the folder {folder}: it holds {len(candidates)}, numbered from 0."
        )
    return _arrange(candidates[series], folder)


def _describe(group: list[_Slice]) -> str:
    width, height = group[0].size[:2]
    return f"{len(group)} slice{'s' if len(group) > 1 else ''} of {width}×{height}"


def _read_slices(folder: Path) -> list[_Slice]:
    """Read the headers of all DICOM images directly in a folder."""
    found = []
    beside = 0
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file() or not is_dicom(path):
            continue
        kind = _media_class(path)
        # What is stored under no public storage class is a directory or a vendor's own object.
        if kind and (not kind.startswith(_STORAGE) or kind.startswith(_NOT_SLICES)):
            beside += 1
            continue
        item = _read_header(path)
        if item is None:
            beside += 1
        else:
            found.append(item)
    if not found:
        holds = f"{beside} DICOM objects but no images" if beside else "no DICOM images"
        raise InputError(
            f"The folder {folder} holds {holds}: give the folder that holds the slices of one series themselves."
        )
    return found


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


def _read_header(path: Path) -> _Slice | None:
    """Read one file's geometry, or None when its modality says that it is no image."""
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
        return reader.GetMetaData(tag).strip("\0 ") if reader.HasMetaDataKey(tag) else ""

    if text(_MODALITY) in _NOT_SLICES_MODALITIES:
        return None
    number = text(_SERIES_NUMBER)
    size = reader.GetSize()
    if len(size) == 3 and size[2] == 1:
        size = size[:2]
    direction = np.reshape(reader.GetDirection(), (len(reader.GetSize()), -1))
    x, y, z = (*reader.GetOrigin(), 0.0)[:3]
    row, column = np.zeros(3), np.zeros(3)
    row[: len(direction)], column[: len(direction)] = direction[:, 0], direction[:, 1]
    return _Slice(
        path=path,
        series=(int(number) if number.lstrip("-").isdigit() else 0, text(_SERIES)),
        size=size,
        spacing=reader.GetSpacing()[:2],
        position=(x, y, z),
        row=(row[0], row[1], row[2]),
        column=(column[0], column[1], column[2]),
        pixel_type=reader.GetPixelIDValue(),
        components=reader.GetNumberOfComponents(),
        placed=bool(text(_POSITION)) and bool(text(_ORIENTATION)),
    )


@dataclass(frozen=True)
class _Geometry:
    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...]


def _arrange(group: list[_Slice], folder: Path) -> tuple[list[_Slice], _Geometry]:
    """Order the slices along their normal and derive the volume's geometry, or refuse."""
    first = group[0]
    where = f"The DICOM series in {folder}"
    if any(len(s.size) > 2 for s in group):
        raise InputError(
            f"{where} is in multi-frame (enhanced) format, which is not read here: convert it to "
            f"NIfTI or to a series of single slices (dcm2niix, 3D Slicer)."
        )
    if any(s.components != 1 for s in group):
        raise InputError(f"{where} is in colour: a scalar CT or MR series is needed.")
    if not all(s.placed for s in group):
        raise InputError(
            f"{where} does not say where its slices lie (image position or orientation is "
            f"missing): export the original series, or convert it to NIfTI."
        )
    if len(group) < MIN_SLICES:
        raise InputError(f"{where} has only {_describe(group)}: at least {MIN_SLICES} are needed for a volume.")
    sizes = {s.size for s in group}
    if len(sizes) > 1:
        listing = ", ".join(f"{w}×{h}" for w, h in sorted(sizes))
        raise InputError(f"{where} mixes slices of different sizes ({listing}): keep one kind in the folder.")
    if _differ([s.spacing for s in group], 1e-3 * min(first.spacing)):
        raise InputError(f"{where} mixes slices of different pixel spacing: keep one kind in the folder.")
    if _differ([(*s.row, *s.column) for s in group], 1e-3):
        raise InputError(f"{where} mixes slices of different orientations: keep one orientation in the folder.")
    normal = np.cross(first.row, first.column)
    axes = np.stack([first.row, first.column, normal], axis=1)
    # In the frame of the image plane: along the row, the column and the normal.
    placed = np.array([s.position for s in group]) @ axes
    order = np.argsort(placed[:, 2], kind="stable")
    placed = placed[order]
    ordered = [group[i] for i in order]
    step = _even_step(placed[:, 2], where)
    sideways = np.abs(placed[:, :2] - placed[0, :2]).max()
    if sideways > 0.5 * min(first.spacing):
        shift = np.linalg.norm(placed[-1, :2] - placed[0, :2])
        angle = np.degrees(np.arctan2(shift, placed[-1, 2] - placed[0, 2]))
        raise InputError(
            f"{where} is sheared, its slices are shifted sideways by up to {sideways:.1f} mm "
            f"(gantry tilt of about {angle:.1f}°): correct the tilt first (dcm2niix and 3D Slicer "
            f"do) and give the corrected volume."
        )
    geometry = _Geometry(
        origin=ordered[0].position,
        spacing=(*first.spacing, step),
        direction=tuple(float(v) for v in axes.ravel()),
    )
    return ordered, geometry


def _differ(rows: list[tuple[float, ...]], tolerance: float) -> bool:
    values = np.array(rows)
    return bool(np.abs(values - values[0]).max() > tolerance)


def _even_step(along: NDArray[Any], where: str) -> float:
    """Distance of neighbouring slices in mm, from their sorted positions along the normal."""
    gaps = np.diff(along)
    doubled = int((gaps < 1e-2).sum())
    if doubled:
        raise InputError(
            f"{where} has {doubled} slices at a position where another one lies (several phases, "
            f"echoes or copies in one series): keep one per position."
        )
    usual = float(np.median(gaps))
    wide = np.flatnonzero(np.abs(gaps - usual) > 0.1 * usual)
    if len(wide):
        listing = ", ".join(f"{along[i]:.1f} to {along[i + 1]:.1f} mm" for i in wide[:5])
        more = f" and {len(wide) - 5} more" if len(wide) > 5 else ""
        raise InputError(
            f"{where} has missing or unevenly spaced slices (usually {usual:.2f} mm apart, but "
            f"not from {listing}{more} along the normal): complete the series and try again."
        )
    return float((along[-1] - along[0]) / (len(along) - 1))


def _load(ordered: list[_Slice], geometry: _Geometry, folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(s.path) for s in ordered])
    types = {s.pixel_type for s in ordered}
    # With a rescale of its own each slice may come in another type; the first one's would cut them.
    if len(types) > 1 or types == {sitk.sitkFloat64}:
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"The pixels of the DICOM series in {folder} cannot be read (damaged file or "
            f"unsupported compression): export it again or convert it to NIfTI."
        ) from error
    image.SetOrigin(geometry.origin)
    image.SetSpacing(geometry.spacing)
    image.SetDirection(geometry.direction)
    return image
