"""Volumes: reading, checking and writing files."""

from __future__ import annotations

import errno
import gzip
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging import headers, nifti
from XAICLIPLib.imaging.dicom import zipped
from XAICLIPLib.imaging.dicom.series import read_series, series_source, source_of
from XAICLIPLib.imaging.dicom.slices import is_dicom
from XAICLIPLib.imaging.dicom.source import DicomSource
from XAICLIPLib.imaging.geometry import (
    DIRECTION_TOLERANCE,
    nearest_orthonormal,
    orthonormality_error,
    ras_affine,
    resample_like,
    same_geometry,
    without_metadata,
)
from XAICLIPLib.imaging.scan import Scan
from XAICLIPLib.system.files import atomic_file, check_exists

_READERS = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
_WRITABLE = (".nii", ".nii.gz", ".nrrd", ".mha")
_NIFTI = (".nii", ".nii.gz")
_FORMATS = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), a DICOM folder or a zip file of one"

MIN_SIZE = 4
"""Voxels along the shortest axis of a usable volume."""

SPACING_RANGE = (0.005, 50.0)
"""Voxel edges in mm that a scan can have; outside this range the unit is wrong (metres, micrometres)."""


# Reading


def read_volume(path: str | Path, series: int | str | None = None) -> sitk.Image:
    """Read a scalar 3D volume and check it.

    The notes of `read_scan` become Python warnings.

    Parameters
    ----------
    path : str or Path
        A NIfTI, NRRD or MetaImage file; a folder with the slices of a DICOM series, or with folders of them; a zip
        file of those; a DICOM file with many frames.
    series : int or str, optional
        Which series of a DICOM folder that holds several (see `read_volume`).

    Returns
    -------
    SimpleITK.Image
        The volume in its own grid (LPS, mm), intensities with the file's rescale applied, without
        any metadata. One frame of a 4D file with one frame.

    Raises
    ------
    InputError
        The file is absent, of an unknown kind or damaged, its header contradicts itself or lacks what it must say, or
        `check_volume` refuses it.
    """
    scan = read_scan(path, series)
    for warning in scan.warnings(f"The volume {path}"):
        warnings.warn(warning, stacklevel=2)
    return scan.image


def read_scan(path: str | Path, series: int | str | None = None) -> Scan:
    """Read a volume as `read_volume` does, with what its file says about it and warnings for the user."""
    scan = _read(Path(path), series)
    check_volume(scan.image, f"the volume {path}")
    return scan


def read_dicom_source(path: str | Path, series: int | str | None = None) -> DicomSource:
    """Where the scan comes from that `read_scan` would read of a DICOM series, by the headers of its images alone.

    Raises
    ------
    InputError
        As of `read_scan`; it is no DICOM, or nothing can refer to its images.
    """
    path = Path(path)
    try:
        check_exists(path)
        if path.is_file() and _suffix(path) == ".zip":
            with zipped.unpacked(path) as folder:
                source = replace(series_source(folder, series, name=str(path)), archive=path)
        elif path.is_dir() or is_dicom(path):
            source = series_source(path, series)
        else:
            raise InputError(
                f"{path} is no DICOM series, so that no DICOM object can refer to it: give the folder or the zip file "
                "of the series, or leave the DICOM objects out."
            )
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened ({error.strerror or 'unknown reason'}): check its access rights."
        ) from error
    source.check(f"The DICOM series in {path}")
    return source


def dicom_source_of(files: Sequence[Path]) -> DicomSource:
    """Where a volume comes from that was made of just these DICOM files, each of one slice or of many frames.

    Raises
    ------
    InputError
        They cannot be read, form no volume, or nothing can refer to them.
    """
    try:
        source = source_of(files)
    except OSError as error:
        raise InputError(
            f"The DICOM files of the scan cannot be opened ({error.strerror or 'unknown reason'}): load the scan again."
        ) from error
    source.check("The DICOM series of the scan")
    return source


def read_mask(path: str | Path, reference: sitk.Image) -> sitk.Image:
    """Read a mask or label map into the grid of a volume.

    Parameters
    ----------
    path : str or Path
        A file of a kind that `read_volume` reads.
    reference : SimpleITK.Image
        The volume whose grid the mask gets, by nearest neighbour where it lies on another.

    Returns
    -------
    SimpleITK.Image
        In the grid of `reference`: uint8 with 0 and 1 where the file has one value besides 0, else
        the labels as they are, in the smallest of uint8, uint16 and uint32 that holds them.

    Raises
    ------
    InputError
        Besides unreadable files: values that are no labels, a mask that is empty, or none of which
        lies inside the volume.
    """
    name = f"The mask {path}"
    scan = _read(Path(path), None)
    image = scan.image
    _check_kind(image, name)
    if not scan.oriented:
        raise InputError(f"{name} does not say how it is oriented: save it with the geometry of the scan.")
    _check_geometry(image, name)
    values = np.unique(sitk.GetArrayViewFromImage(image))
    if not np.isfinite(values).all() or (values != np.floor(values)).any() or values[0] < 0:
        raise InputError(
            f"{name} holds values that are no labels ({values[0]:g} to {values[-1]:g}): "
            f"give a volume of whole numbers from 0."
        )
    if values[-1] == 0:
        raise InputError(f"{name} is empty: it has no voxel above 0.")
    if values[-1] >= 2**32:
        raise InputError(f"{name} has a label of {values[-1]:g}: labels go up to 2³²−1.")
    if np.count_nonzero(values) == 1:
        image = image != 0
    else:
        types = {8: sitk.sitkUInt8, 16: sitk.sitkUInt16, 32: sitk.sitkUInt32}
        image = sitk.Cast(image, next(t for bits, t in types.items() if values[-1] < 2**bits))
    if same_geometry(image, reference):
        image.CopyInformation(reference)
        return image
    image = resample_like(image, reference, "nearest")
    if not sitk.GetArrayViewFromImage(image).any():
        raise InputError(
            f"{name} and the volume do not overlap: nothing of the mask lies inside the volume; "
            f"give a mask that was drawn on this scan."
        )
    return image


def _read(path: Path, series: int | str | None) -> Scan:
    """Read a file or a DICOM series without checking its contents."""
    try:
        check_exists(path)
        with _without_itk_warnings():
            scan = _read_any(path, series)
    except OSError as error:
        reason = error.strerror or "unknown reason"
        raise InputError(f"{path} cannot be opened ({reason}): check its access rights.") from error
    image = scan.image
    while image.GetDimension() > 3 and image.GetSize()[-1] == 1:
        size = image.GetSize()
        image = sitk.Extract(image, [*size[:-1], 0], [0] * len(size))
    return replace(scan, image=without_metadata(image))


def _read_any(path: Path, series: int | str | None) -> Scan:
    suffix = _suffix(path)
    if path.is_dir():
        return read_series(path, series)
    if suffix in (*_NIFTI, *_READERS):
        if series is not None:
            raise InputError(f"{path} is no DICOM series, so that there is none to choose: leave the series out.")
        return nifti.read(path) if suffix in _NIFTI else _read_file(path, suffix)
    if suffix in (".dcm", ".ima") or is_dicom(path):
        return read_series(path, series)
    if suffix == ".zip":
        with zipped.unpacked(path) as folder:
            scan = read_series(folder, series, name=str(path))
        return replace(scan, source=scan.source and replace(scan.source, archive=path))
    raise InputError(f"{path} is of a kind that is not read here: give {_FORMATS}.")


def _read_file(path: Path, suffix: str) -> Scan:
    """Read a NRRD or MetaImage file."""
    check_header = headers.check_nrrd if suffix in (".nrrd", ".nhdr") else headers.check_metaimage
    notes, oriented = check_header(path)
    if suffix == ".nrrd":
        _check_nrrd(path)
    try:
        image = sitk.ReadImage(str(path), imageIO=_READERS[suffix])
    except RuntimeError as error:
        reason = str(error)
        if "-valued spacing" in reason:
            raise InputError(
                f"{path} has a voxel spacing of zero or below: correct the spacing in its header."
            ) from error
        raise InputError(
            f"{path} cannot be read, it is damaged, cut off or not what its name says: export or copy it again."
        ) from error
    return _with_right_angles(image, notes, oriented)


def _with_right_angles(image: sitk.Image, notes: list[str], oriented: bool) -> Scan:
    """A scan with its axes made exactly orthogonal, where only rounding made them differ from right angles."""
    if image.GetDimension() != 3 or not orthonormality_error(ras_affine(image)) <= DIRECTION_TOLERANCE:
        return Scan(image, tuple(notes), oriented=oriented)  # `check_volume` refuses it
    affine, moved_mm = nearest_orthonormal(ras_affine(image), image.GetSize())
    if moved_mm:
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        image.SetDirection((lps[:3, :3] / image.GetSpacing()).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
    return Scan(image, (*notes, *nifti.straightening_notes(moved_mm)), oriented=oriented)


@contextmanager
def _without_itk_warnings() -> Iterator[None]:
    """Hide ITK's warnings about unusual headers: the checks here refuse what matters."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _check_nrrd(path: Path) -> None:
    """Refuse a compressed NRRD file whose data are cut off or changed: ITK does not compare the checksum."""
    with path.open("rb") as file:
        header = b""
        while (line := file.readline(10_000)).strip(b"\r\n"):
            header += line.lower()
        if b"encoding: gz" not in header or b"data file:" in header or b"datafile:" in header:
            return
        try:
            with gzip.open(file) as data:
                while data.read(1 << 24):
                    pass
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path} is damaged or cut off: export or copy it again.") from error


# Checking


def check_volume(image: sitk.Image, name: str = "the volume") -> None:
    """Refuse an image that is not a scalar 3D volume with a usable grid and finite, varying intensities.

    Parameters
    ----------
    image : SimpleITK.Image
        Any image.
    name : str
        The volume's name in the message.

    Raises
    ------
    InputError
        2D, 4D, vector or colour, complex, too thin, spacing that no scan has, axes that are not at
        right angles, NaN or infinite voxels (how many), one single value.
    """
    check_grid(image, name)
    array = sitk.GetArrayViewFromImage(image)
    n_invalid = array.size - int(np.count_nonzero(np.isfinite(array))) if array.dtype.kind == "f" else 0
    check_intensities(float(array.min()), float(array.max()), n_invalid, array.size, name)


def check_grid(image: sitk.Image, name: str = "the volume", size: tuple[int, ...] | None = None) -> None:
    """Refuse an image that is not a scalar 3D volume with a usable grid. Its intensities are not checked.

    Parameters
    ----------
    image : SimpleITK.Image
        Any image.
    name : str
        The volume's name in the message.
    size : tuple of int, optional
        Voxels along each axis, where ``image`` stands for a larger one of the same kind and geometry.

    Raises
    ------
    InputError
        As of `check_volume`.
    """
    name = _as_subject(name)
    _check_kind(image, name)
    size = size or image.GetSize()
    if min(size) < MIN_SIZE:
        listing = "×".join(str(n) for n in size)
        raise InputError(f"{name} is too thin ({listing} voxels): at least {MIN_SIZE} along each axis are needed.")
    _check_geometry(image, name)


def check_intensities(low: float, high: float, n_invalid: int, count: int, name: str = "the volume") -> None:
    """Refuse intensities that are not finite, or all equal.

    Parameters
    ----------
    low, high : float
        The smallest and the largest intensity.
    n_invalid, count : int
        Number of voxels that are NaN or infinite, and of all voxels.
    name : str
        The volume's name in the message.

    Raises
    ------
    InputError
        As of `check_volume`.
    """
    name = _as_subject(name)
    if n_invalid:
        raise InputError(
            f"{name} has {n_invalid} voxel{'s' if n_invalid > 1 else ''} of {count} that "
            f"{'are' if n_invalid > 1 else 'is'} NaN or infinite: replace them with numbers first."
        )
    if low == high:
        raise InputError(f"{name} is constant (every voxel is {low:g}): give a scan with something in it.")


def _as_subject(name: str) -> str:
    """A name as the first words of a sentence."""
    return "T" + name[1:] if name.startswith("the ") else name


def _check_kind(image: sitk.Image, name: str) -> None:
    dimension = image.GetDimension()
    if dimension != 3:
        advice = "choose one time point" if dimension > 3 else "give the whole stack of slices"
        raise InputError(f"{name} is {dimension}D, a 3D volume is needed: {advice}.")
    kind = image.GetPixelIDTypeAsString()
    if "complex" in kind:
        raise InputError(f"{name} has complex values: give its magnitude.")
    components = image.GetNumberOfComponentsPerPixel()
    if components > 1 or "vector" in kind:
        raise InputError(
            f"{name} has {components} values per voxel (vector or colour), one is needed: give a scalar volume."
        )
    if min(image.GetSize()) == 0:
        raise InputError(f"{name} is empty: it has no voxels.")


def _check_geometry(image: sitk.Image, name: str) -> None:
    spacing = image.GetSpacing()
    low, high = SPACING_RANGE
    if not all(low <= s <= high for s in spacing):
        listing = " × ".join(f"{s:g}" for s in spacing)
        raise InputError(
            f"{name} has a voxel spacing of {listing} mm, each must be between {low:g} and "
            f"{high:g} mm: correct the spacing or its unit."
        )
    if not np.isfinite(image.GetOrigin()).all():
        raise InputError(f"{name} has an origin that is no number: correct its geometry.")
    axes = np.reshape(image.GetDirection(), (3, 3))
    if not np.abs(axes.T @ axes - np.eye(3)).max() <= DIRECTION_TOLERANCE:
        raise InputError(
            f"{name} has a direction matrix that is not orthonormal (sheared axes): "
            f"resample it to an orthogonal grid first."
        )


# Writing


def write_volume(image: sitk.Image, path: str | Path, compress: bool = True) -> Path:
    """Write a volume without metadata, completely or not at all.

    Parameters
    ----------
    image : SimpleITK.Image
        The volume; it is not changed.
    path : str or Path
        Ends in .nii, .nii.gz, .nrrd or .mha; missing folders are made, an old file is replaced.
    compress : bool
        Compress the file where its format can; this slows down writing more than reading.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    InputError
        Another ending, or the disk is full or not writable.
    """
    path = Path(path)
    suffix = _suffix(path)
    if suffix not in _WRITABLE:
        raise InputError(f"{path} cannot be written: the name must end in {', '.join(_WRITABLE)}.")
    try:
        with atomic_file(path) as temporary:
            sitk.WriteImage(without_metadata(image), str(temporary), useCompression=compress and suffix != ".nii")
            if suffix in _NIFTI:
                nifti.check_complete(temporary)  # ITK does not notice that the disk was full
            elif suffix == ".nrrd":
                _check_nrrd(temporary)
            if not _holds_image(temporary, suffix, image):
                raise OSError(errno.EIO, "it does not hold what was written")
    except (OSError, RuntimeError, InputError) as error:
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise InputError(f"{path} cannot be written ({reason}): free some space or choose another folder.") from error
    return path


def _holds_image(path: Path, suffix: str, image: sitk.Image) -> bool:
    """Whether a file has exactly the voxels of an image."""
    # A NIfTI of our own has a header that ITK reads as it wrote it, so that no other reader is needed.
    read = sitk.ReadImage(str(path), imageIO="NiftiImageIO" if suffix in _NIFTI else _READERS[suffix])
    written = sitk.GetArrayViewFromImage(image)
    read_back = sitk.GetArrayViewFromImage(read)
    return read_back.dtype == written.dtype and np.array_equal(read_back, written, equal_nan=written.dtype.kind == "f")
