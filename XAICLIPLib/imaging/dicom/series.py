"""Reading a series of DICOM slices as one volume, or saying why that is not possible.

The slices are ordered by their position along the normal of the image plane, never by file name or
instance number. A series that would give a wrong geometry is refused. Messages contain counts,
sizes and positions in mm and file names, never any other DICOM value but the modality.

References
----------
DICOM PS3.3, C.7.6.2 (Image Plane Module: position, orientation, pixel spacing).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.dicom.slices import Slice, is_dicom, read_slices
from XAICLIPLib.imaging.dicom.source import DicomSource
from XAICLIPLib.imaging.geometry import DIRECTION_TOLERANCE, without_metadata
from XAICLIPLib.imaging.scan import Scan

__all__ = ["MIN_SLICES", "is_dicom", "read_series", "series_files", "series_source", "source_of"]

MIN_SLICES = 4
"""A series of fewer slices is a scout view or a report, not a volume."""

MAX_FILES = 50_000
"""Files that are examined in a folder and below it: a folder with more is no export of a scan."""

MAX_LISTED_SERIES = 5
"""Number of series that a message lists."""

STRAIGHT_PIXELS = 0.5
"""Sideways shift of the slices, in pixels, up to which a series counts as straight."""

ROUNDING_PIXELS = 0.1
"""Sideways shift, in pixels, up to which there is no warning, because positions are rounded."""

_UNKNOWN_MODALITIES = ("", "OT")
"""Modalities without information: OT is "other", which screenshots and anonymised files have."""


def read_series(source: Path, series: int | str | None = None, name: str | None = None) -> Scan:
    """Read the one image series in a folder, with rescale slope and intercept applied.

    Parameters
    ----------
    source : Path
        Holds the slices themselves, or folders with them; or is a single file with many frames. File names and
        extensions do not matter. Files that are not DICOM and DICOM objects that are no images (RTSTRUCT, SEG,
        reports) are passed over, and so are series of fewer than four slices when a larger one is there (scout views).
    series : int or str, optional
        Which series to read where there are several: the number given by the error that lists them, or its
        SeriesInstanceUID.
    name : str, optional
        The name of the source in messages, where the source is a temporary copy.

    Returns
    -------
    Scan
        Scalar, 3D, LPS, in the order of the positions along the normal, without metadata. Its notes tell of slices of
        another kind that were left out, and of a gantry tilt that was resampled.

    Raises
    ------
    InputError
        No or several series; slices that are missing, doubled, unevenly spaced, without a position or a spacing, of
        several sizes or orientations; unreadable files.
    """
    with _named(source, name):
        return _read_series(source, series)


@contextmanager
def _named(source: Path, name: str | None) -> Iterator[None]:
    """Let errors name the source by another name than its path."""
    try:
        yield
    except InputError as error:
        if name is None:
            raise
        message = str(error).replace(f"The folder {source}", name).replace(f"the folder {source}", name)
        raise InputError(message.replace(str(source), name)) from error


def _read_series(source: Path, series: int | str | None) -> Scan:
    slices, notes = _choose(source, series)
    ordered, grid = _arrange(slices, f"The DICOM series in {source}")
    image = _load(ordered, grid, source)
    if any(item.inverted for item in ordered):
        notes.append("is stored to be shown with dark and bright inverted (MONOCHROME1): its values are as stored")
    if grid.shift is None and grid.sideways > ROUNDING_PIXELS * min(grid.spacing[:2]):
        notes.append(
            f"has slices that are shifted sideways by up to {grid.sideways:.2g} mm, less than half a pixel: they were "
            f"taken as straight"
        )
    if grid.shift is not None:
        image = _without_tilt(image, grid)
        notes.append(
            f"has slices that are shifted sideways by up to {grid.sideways:.1f} mm (gantry tilt of about "
            f"{grid.angle:.1f}°): it was resampled to a straight grid"
        )
    modality = next((item.modality for item in ordered if item.modality not in _UNKNOWN_MODALITIES), "")
    known = None if modality in _UNKNOWN_MODALITIES else modality
    return Scan(image, tuple(notes), known, source=_source_of(ordered, grid))


def series_source(source: Path, series: int | str | None = None, name: str | None = None) -> DicomSource:
    """What `read_series` says of where a scan comes from, by the headers alone; raises as it does for these."""
    with _named(source, name):
        return _source_of(*_arrange(_choose(source, series)[0], f"The DICOM series in {source}"))


def source_of(files: Sequence[Path]) -> DicomSource:
    """Where a volume comes from that was made of just these files; raises `InputError` where they form none."""
    slices, _ = read_slices(files)
    if not slices:
        raise InputError("The DICOM files of the scan hold no images: load the scan again.")
    return _source_of(*_arrange(slices, "The DICOM series of the scan"))


def series_files(source: Path, series: int | str | None = None) -> list[Path]:
    """Files of the slices that `read_series` reads, in the order of the volume's slices; raises as it does."""
    ordered, _ = _arrange(_choose(source, series)[0], f"The DICOM series in {source}")
    return [item.path for item in ordered]


# --- which slices -------------------------------------------------------------------------------


def _choose(source: Path, series: int | str | None) -> tuple[list[Slice], list[str]]:
    """The slices of one series, without those of another kind, and warnings for the user."""
    groups = _groups(_read_below(source))
    if isinstance(series, str) and not series.lstrip("-").isdigit():
        chosen = [group for group in groups if any(item.series == series for item in group)]
        if len(chosen) != 1:
            raise InputError(f"There is no series of this UID in {source}: leave it out to have the series listed.")
        return _without_scouts(chosen[0])
    usable = [
        g for g in groups if len(g) >= MIN_SLICES and any(item.has_position and item.components == 1 for item in g)
    ]
    candidates = usable or groups
    if series is None:
        if len(candidates) > 1:
            listing = "; ".join(f"{i}: {_describe(group)}" for i, group in enumerate(candidates[:MAX_LISTED_SERIES]))
            more = f"; and {len(candidates) - MAX_LISTED_SERIES} more" if len(candidates) > MAX_LISTED_SERIES else ""
            raise InputError(
                f"The folder {source} holds {len(candidates)} image series ({listing}{more}): "
                f"choose one by its number (--series 0, in Python series=0) or give a folder with one series."
            )
        series = 0
    if not 0 <= int(series) < len(candidates):
        raise InputError(
            f"There is no series {series} in the folder {source}: it holds {len(candidates)}, numbered from 0."
        )
    slices, notes = _without_scouts(candidates[int(series)])
    left_out = [item for group in groups if len(group) < MIN_SLICES for item in group if _fit_together(item, slices[0])]
    if n_left_out := sum(item not in slices for item in left_out):
        notes.append(
            f"leaves out {n_left_out} image{'s' if n_left_out > 1 else ''} of another series, which would fit into it"
        )
    return slices, notes


def _read_below(source: Path) -> list[Slice]:
    """The slices of a file, or of the files directly in a folder; if it has none, of the files in its subfolders."""
    if source.is_file():
        slices, n_without_image = read_slices([source])
        if len(slices) == 1:
            raise InputError(f"{source} is a single DICOM file: give the folder that holds the whole series.")
    else:
        slices, n_without_image = read_slices(_dicom_files(sorted(source.iterdir()), source))
        if not slices:
            slices, n_below = read_slices(_dicom_files(_walk(source), source))
            n_without_image = max(n_without_image, n_below)
    if not slices:
        holds = f"{n_without_image} DICOM objects but no images" if n_without_image else "no DICOM images"
        what = "file" if source.is_file() else "folder"
        raise InputError(f"The {what} {source} holds {holds}: give the folder that holds the slices of one series.")
    return slices


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):  # follows no links, which may form a circle
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(names))


def _dicom_files(paths: Any, source: Path) -> list[Path]:
    files = []
    for count, path in enumerate(paths):
        if count == MAX_FILES:
            raise InputError(f"The folder {source} holds more than {MAX_FILES} files: give the folder of one series.")
        if not path.name.startswith(".") and path.is_file() and is_dicom(path):
            files.append(path)
    return files


def _groups(slices: list[Slice]) -> list[list[Slice]]:
    """Slices by series, in the order of the series' numbers.

    Some scanners give each slice a series of its own: single slices of one study and one kind are one series.
    """
    by_series: dict[tuple[int, str], list[Slice]] = {}
    numbers = {item.series: min(o.number for o in slices if o.series == item.series) for item in slices}
    for item in slices:
        by_series.setdefault((numbers[item.series], item.series), []).append(item)
    groups: dict[Any, list[Slice]] = {}
    for key in sorted(by_series):
        group = by_series[key]
        groups.setdefault((group[0].study, _grouping_key(group[0])) if len(group) == 1 else key, []).extend(group)
    return list(groups.values())


def _grouping_key(item: Slice) -> tuple[Any, ...]:
    """What slices of one volume have in common, rounded because files round these values differently."""
    orientation = (*(item.row or ()), *(item.column or ()))
    spacing = item.spacing and tuple(round(length, 2) for length in item.spacing)
    return (
        item.modality,
        item.size,
        item.components,
        item.has_position,
        spacing,
        tuple(round(v, 2) + 0.0 for v in orientation),
    )


def _describe(group: list[Slice]) -> str:
    """What distinguishes a series from others, without any text that the scanner or a person wrote."""
    first = group[0]
    listing = _count_and_size(group)
    if first.spacing:
        listing += f" at {first.spacing[0]:.2f}×{first.spacing[1]:.2f}"
        if len(group) > 1 and all(item.has_position for item in group):
            step = np.median(np.diff(np.sort(_along_normal(group))))
            listing += f"×{step:.2f}"
        listing += " mm"
    return f"{first.modality}, {listing}" if first.modality.isalnum() and len(first.modality) < 9 else listing


def _count_and_size(group: list[Slice]) -> str:
    width, height = group[0].size
    return f"{len(group)} slice{'s' if len(group) > 1 else ''} of {width}×{height}"


def _without_scouts(group: list[Slice]) -> tuple[list[Slice], list[str]]:
    """Leave out a scout view or screenshot within a series; a series of several large parts is kept, to be refused."""
    notes = []
    if len(group) > 1 and len({item.series for item in group}) == len(group):
        notes.append("has a series of its own for each slice: they were put together by their place")
    parts: list[list[Slice]] = []
    for item in group:
        part = next((p for p in parts if _fit_together(item, p[0])), None)
        parts.append([item]) if part is None else part.append(item)
    parts.sort(key=len, reverse=True)
    largest, others = parts[0], parts[1:]
    n_others = sum(map(len, others))
    if not n_others or len(largest) < max(MIN_SLICES, n_others) or any(len(part) >= MIN_SLICES for part in others):
        return group, notes
    notes.append(
        f"has {n_others} image{'s' if n_others > 1 else ''} of another size, spacing or orientation in its series (a "
        f"scout view or a screenshot), which {'were' if n_others > 1 else 'was'} left out"
    )
    return largest, notes


def _fit_together(a: Slice, b: Slice) -> bool:
    """Whether two slices can belong to one volume."""
    if (a.size, a.components, a.has_position, a.spacing is None) != (
        b.size,
        b.components,
        b.has_position,
        b.spacing is None,
    ):
        return False
    if a.spacing and b.spacing and _differ([a.spacing, b.spacing], 1e-3 * min(b.spacing)):
        return False
    return not a.has_position or not _differ([_orientation(a), _orientation(b)], 1e-3)


def _orientation(item: Slice) -> tuple[float, ...]:
    return (*(item.row or ()), *(item.column or ()))


# --- from slices to a volume --------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """A volume's grid. ``shift`` is the sideways step from each slice to the next, in mm; None where it is straight."""

    origin: tuple[float, ...]
    spacing: tuple[float, float, float]
    axes: NDArray[Any]
    sideways: float = 0.0
    shift: NDArray[Any] | None = None

    @property
    def angle(self) -> float:
        """Tilt in degrees."""
        return 0.0 if self.shift is None else float(np.degrees(np.arctan2(np.linalg.norm(self.shift), self.spacing[2])))


def _along_normal(group: list[Slice]) -> NDArray[Any]:
    normal = np.cross(np.array(group[0].row), np.array(group[0].column))
    return np.array([item.position for item in group]) @ normal


def _arrange(group: list[Slice], name: str) -> tuple[list[Slice], _Grid]:
    """Order the slices along their normal and derive the volume's geometry, or refuse the series."""
    first = group[0]
    _check_consistent(group, name)
    assert first.spacing is not None and first.row is not None and first.column is not None
    axes = np.stack([first.row, first.column, np.cross(first.row, first.column)], axis=1)
    if not np.abs(axes.T @ axes - np.eye(3)).max() <= DIRECTION_TOLERANCE:
        raise InputError(
            f"{name} has an image orientation whose axes are not at right angles (ImageOrientationPatient): "
            f"export the original series again."
        )
    # In the frame of the image plane: along the row, the column and the normal.
    in_plane_frame = np.array([item.position for item in group]) @ axes
    order = np.argsort(in_plane_frame[:, 2], kind="stable")
    in_plane_frame = in_plane_frame[order]
    ordered = [group[i] for i in order]
    step = _slice_distance(in_plane_frame[:, 2], name)
    origin = ordered[0].position
    assert origin is not None
    shift = (in_plane_frame[-1, :2] - in_plane_frame[0, :2]) / (len(in_plane_frame) - 1)
    sideways = float(np.linalg.norm(in_plane_frame[:, :2] - in_plane_frame[0, :2], axis=1).max())
    pixel_mm = min(first.spacing)
    if sideways <= STRAIGHT_PIXELS * pixel_mm:
        return ordered, _Grid(origin, (*first.spacing, step), axes, sideways)
    largest_deviation = np.abs(
        in_plane_frame[:, :2] - in_plane_frame[0, :2] - np.arange(len(in_plane_frame))[:, None] * shift
    ).max()
    if largest_deviation > STRAIGHT_PIXELS * pixel_mm:
        raise InputError(
            f"{name} has slices that are shifted sideways by up to {sideways:.1f} mm, and not evenly: keep the slices "
            f"of one acquisition."
        )
    return ordered, _Grid(origin, (*first.spacing, step), axes, sideways, shift)


def _check_consistent(group: list[Slice], name: str) -> None:
    """Refuse slices that do not form one volume, or that lack values that a volume needs."""
    first = group[0]
    if len({item.modality for item in group if item.modality not in _UNKNOWN_MODALITIES}) > 1:
        raise InputError(f"{name} mixes slices of different modalities: keep one kind in the folder.")
    if any(item.components != 1 for item in group):
        raise InputError(f"{name} is in colour: a scalar CT or MR series is needed.")
    if not all(item.has_position for item in group):
        raise InputError(
            f"{name} does not say where its slices lie (image position or orientation is "
            f"missing): export the original series, or convert it to NIfTI."
        )
    if len(group) < MIN_SLICES:
        raise InputError(f"{name} has only {_count_and_size(group)}: at least {MIN_SLICES} are needed for a volume.")
    sizes = {item.size for item in group}
    if len(sizes) > 1:
        listing = ", ".join(f"{w}×{h}" for w, h in sorted(sizes))
        raise InputError(f"{name} mixes slices of different sizes ({listing}): keep one kind in the folder.")
    if any(item.spacing is None for item in group):
        only = ", only ImagerPixelSpacing, which is that at the detector" if first.at_detector else ""
        raise InputError(
            f"{name} does not say how large its pixels are (PixelSpacing is missing or no number{only}): "
            f"export the original series."
        )
    spacings = [item.spacing for item in group if item.spacing]
    if _differ(spacings, 1e-3 * min(spacings[0])):
        raise InputError(f"{name} mixes slices of different pixel spacing: keep one kind in the folder.")
    if _differ([_orientation(item) for item in group], 1e-3):
        raise InputError(f"{name} mixes slices of different orientations: keep one orientation in the folder.")


def _differ(rows: list[Any], tolerance: float) -> bool:
    values = np.array(rows)
    return bool(np.abs(values - values[0]).max() > tolerance)


def _slice_distance(positions: NDArray[Any], name: str) -> float:
    """Distance of neighbouring slices in mm, from their sorted positions along the normal; refuses uneven ones."""
    gaps = np.diff(positions)
    n_doubled = int((gaps < 1e-2).sum())
    if n_doubled:
        raise InputError(
            f"{name} has {n_doubled} slices at a position where another one lies (several phases, "
            f"echoes or copies in one series): keep one per position."
        )
    usual = float(np.median(gaps))
    wide = np.flatnonzero(np.abs(gaps - usual) > 0.1 * usual)
    if len(wide):
        listing = ", ".join(f"{positions[i]:.1f} to {positions[i + 1]:.1f} mm" for i in wide[:5])
        more = f" and {len(wide) - 5} more" if len(wide) > 5 else ""
        raise InputError(
            f"{name} has missing or unevenly spaced slices (usually {usual:.2f} mm apart, but "
            f"not from {listing}{more} along the normal): complete the series and try again."
        )
    return float((positions[-1] - positions[0]) / (len(positions) - 1))


def _load(ordered: list[Slice], grid: _Grid, source: Path) -> sitk.Image:
    try:
        image = _read_frames(ordered) if any(item.frame is not None for item in ordered) else _read_files(ordered)
    except RuntimeError as error:
        if "-valued spacing" in str(error):
            raise InputError(
                f"The DICOM series in {source} says that its slices are 0 mm apart or thick (SpacingBetweenSlices, "
                f"SliceThickness): export the original series again."
            ) from error
        raise InputError(
            f"The pixels of the DICOM series in {source} cannot be read (damaged file or "
            f"unsupported compression): export it again or convert it to NIfTI."
        ) from error
    image.SetOrigin(grid.origin)
    image.SetSpacing(grid.spacing)
    image.SetDirection(grid.axes.ravel().tolist())
    return without_metadata(image)


def _read_files(ordered: list[Slice]) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(item.path) for item in ordered])
    # Slices with different rescales may need different types; the first slice's type would clip the others.
    whole = all(number == int(number) for number in ordered[0].rescale)
    if len({(item.rescale, item.highest_storable) for item in ordered}) > 1 or not whole:
        reader.SetOutputPixelType(sitk.sitkFloat32)
    image = reader.Execute()
    if any(item.inverted for item in ordered):
        image = _as_stored(image, ordered)
    return image


def _as_stored(image: sitk.Image, ordered: list[Slice]) -> sitk.Image:
    """Undo what GDCM does to MONOCHROME1 for display: it subtracts the stored values from the highest one.

    The rescale to HU, or to any other unit of the scanner, is defined for the values as stored (PS3.3, C.11.1).
    """
    array = sitk.GetArrayFromImage(image)
    for plane, item in zip(array, ordered, strict=True):
        if item.inverted:
            slope, intercept = item.rescale
            np.subtract(array.dtype.type(2 * intercept + slope * item.highest_storable), plane, out=plane)
    result = sitk.GetImageFromArray(array)
    result.CopyInformation(image)
    return result


def _read_frames(ordered: list[Slice]) -> sitk.Image:
    """Read files with many frames, in the order of the slices.

    GDCM rescales all frames of a file like the first one. Where the rescales differ, each slice's own is applied.
    """
    planes: dict[Path, NDArray[Any]] = {}
    for item in ordered:
        if item.path not in planes:
            frames = sitk.GetArrayFromImage(sitk.ReadImage(str(item.path), imageIO="GDCMImageIO"))
            planes[item.path] = frames[None] if frames.ndim == 2 else frames
    array = np.stack([planes[item.path][item.frame or 0] for item in ordered])
    if any(item.inverted or item.rescale != item.applied_rescale for item in ordered):
        array = array.astype(np.float32)
        for plane, item in zip(array, ordered, strict=True):
            stored = (plane - item.applied_rescale[1]) / item.applied_rescale[0]
            stored = item.highest_storable - stored if item.inverted else stored
            plane[...] = stored * item.rescale[0] + item.rescale[1]
    return sitk.GetImageFromArray(array)


def _without_tilt(image: sitk.Image, grid: _Grid) -> sitk.Image:
    """Resample slices that are shifted sideways to a straight grid that holds all of them, as float32."""
    assert grid.shift is not None
    step = grid.spacing[2]
    tilted = sitk.Cast(image, sitk.sitkFloat32)
    third = grid.axes @ np.array([*grid.shift, step])
    tilted.SetSpacing((*grid.spacing[:2], float(np.linalg.norm(third))))
    tilted.SetDirection(np.stack([*grid.axes.T[:2], third / np.linalg.norm(third)], axis=1).ravel().tolist())
    size, origin = _straight_box(grid, image.GetSize())
    straight = sitk.Image(size, sitk.sitkUInt8)
    straight.SetSpacing(grid.spacing)
    straight.SetDirection(grid.axes.ravel().tolist())
    straight.SetOrigin(origin)
    air = float(sitk.GetArrayViewFromImage(tilted).min())
    return sitk.Resample(tilted, straight, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear, air, sitk.sitkFloat32)


def _straight_box(grid: _Grid, size: tuple[int, int, int]) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Size and origin of the straight grid that holds all slices of a tilted one."""
    assert grid.shift is not None
    reach = grid.shift * (size[2] - 1)
    pixels = np.ceil(np.abs(reach) / grid.spacing[:2] - 1e-6).astype(int)
    corner = np.where(reach < 0, -pixels * grid.spacing[:2], 0.0)
    x, y, z = (np.array(grid.origin) + grid.axes[:, :2] @ corner).tolist()
    return (size[0] + int(pixels[0]), size[1] + int(pixels[1]), size[2]), (x, y, z)


def _source_of(ordered: list[Slice], grid: _Grid) -> DicomSource:
    size, origin = (*ordered[0].size, len(ordered)), tuple(map(float, grid.origin))
    if grid.shift is not None:
        size, origin = _straight_box(grid, size)
    return DicomSource(
        tuple(ordered),
        size,
        (origin[0], origin[1], origin[2]),
        grid.spacing,
        np.asarray(grid.axes, dtype=np.float64),
        grid.shift is not None,
    )
