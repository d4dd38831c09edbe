"""NIfTI-1 files: their voxels as they are stored, and where the header says that they lie, if it says one thing.

ITK's reader replaces NaN and infinity by 0, believes one of sform, qform and pixdim where they contradict each other
(which one is decided by environment variables too), and refuses axes that are rounded to four digits. None of this can
be seen after it has read, so that the files are read here.

References
----------
NIfTI-1 data format, nifti1.h, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.geometry import (
    DIRECTION_TOLERANCE,
    corners,
    image_from_array,
    nearest_orthonormal,
    orthonormality_error,
)
from XAICLIPLib.imaging.scan import Scan

NOTEWORTHY = 0.1
"""Share of the shortest voxel edge by which two statements of a header may differ without a word: they are rounded."""

UNSEEN_MM = 0.005
"""Voxels may be moved so far without a word."""

_HEADER = 348
_BLOCK = 1 << 24
_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_COMPLEX = (32, 1792, 2048)
_COLOURS = {128: 3, 2304: 4}
_MM = {1: 1000.0, 3: 0.001}
"""Millimetres in the unit of ``xyzt_units``; none and any other code is mm."""


@dataclass(frozen=True)
class _Header:
    """What is used of a header, lengths in mm, RAS."""

    size: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    spacing: tuple[float, float, float]
    handedness: float
    qform_code: int
    sform_code: int
    quaternion: tuple[float, float, float]
    qform_origin: tuple[float, float, float]
    sform: NDArray[Any]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.size) * self.dtype.itemsize


def read(path: Path) -> Scan:
    """Read a file, compressed or not.

    Returns
    -------
    Scan
        Slope and intercept applied (then float32, or float64 where the stored type needs it), axes at right angles.

    Raises
    ------
    InputError
        The file is damaged or cut off, is no scalar 3D volume, or its header contradicts itself.
    """
    with _opened(path) as file:
        header = _read_header(file, path)
        _skip(file, header.offset - _HEADER)
        data = bytearray()
        while len(data) < header.n_bytes and (block := file.read(min(_BLOCK, header.n_bytes - len(data)))):
            data += block
        _to_the_end(file)
        if len(data) < header.n_bytes:
            raise EOFError
    affine, notes = _grid(header, path)
    array = np.frombuffer(data, header.dtype).reshape(header.size, order="F")
    if header.slope != 1 or header.intercept != 0:
        small = header.dtype.itemsize < 4 or header.dtype == np.float32
        array = (array.astype(np.float64) * header.slope + header.intercept).astype(np.float32 if small else np.float64)
    elif not header.dtype.isnative:
        array = array.astype(header.dtype.newbyteorder("="))
    return Scan(image_from_array(array, affine), tuple(notes), oriented=bool(header.qform_code or header.sform_code))


def check_complete(path: Path) -> None:
    """Raise an `InputError` where a file is damaged or cut off, without keeping its voxels."""
    with _opened(path) as file:
        header = _read_header(file, path)
        _skip(file, header.offset - _HEADER)
        if _to_the_end(file) < header.n_bytes:
            raise EOFError


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, decompressed where its contents say so, and what damage is called."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if compressed else path.open("rb") as stream:
            yield cast(BinaryIO, stream)
    except InputError:
        raise
    except (gzip.BadGzipFile, EOFError, zlib.error, struct.error, ValueError) as error:
        raise InputError(f"{path} is damaged or cut off: export or copy it again.") from error


def _skip(file: BinaryIO, count: int) -> None:
    while count > 0:
        block = file.read(min(_BLOCK, count))
        if not block:
            raise EOFError
        count -= len(block)


def _to_the_end(file: BinaryIO) -> int:
    """Bytes that were left; gzip compares its checksum at the end."""
    return sum(len(block) for block in iter(lambda: file.read(_BLOCK), b""))


def _read_header(file: BinaryIO, path: Path) -> _Header:
    """The header; a `ValueError` where this is none."""
    raw = file.read(_HEADER)
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    order = next((o for o in orders if raw[:4] == struct.pack(o + "i", _HEADER)), None)
    if order is None:
        if raw[:4] in (struct.pack("<i", 540), struct.pack(">i", 540)):
            raise InputError(f"{path} is a NIfTI-2 file, which cannot be read here: save it as NIfTI-1 or NRRD.")
        raise ValueError("no NIfTI header")

    def numbers(form: str, at: int) -> tuple[Any, ...]:
        assert order is not None
        return struct.unpack_from(order + form, raw, at)

    if raw[344:348] != b"n+1\0":
        raise InputError(f"{path} is no NIfTI-1 file in one piece (its magic is not n+1): save it as .nii.gz or NRRD.")
    dimension, *dims = numbers("8h", 40)
    if not 1 <= dimension <= 7 or min(dims[:dimension]) < 1:
        raise ValueError("no size")
    size = dims[:dimension]
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    if len(size) != 3:
        way = "choose one time point" if len(size) > 3 else "give the whole stack of slices"
        raise InputError(f"{path} is {len(size)}D, a 3D volume is needed: {way}.")
    (offset,) = numbers("f", 108)
    if not (math.isfinite(offset) and offset == int(offset) and offset >= _HEADER + 4):
        raise InputError(f"{path} says that its voxels begin at byte {offset:g} (vox_offset): save it again.")
    pixdim = numbers("8f", 76)
    (units,) = numbers("B", 123)
    mm = _MM.get(units & 7, 1.0)
    origin = numbers("3f", 268)
    sform = np.eye(4)
    sform[:3] = np.reshape(numbers("12f", 280), (3, 4))
    sform[:3] *= mm
    qform_code, sform_code = numbers("2h", 252)
    slope, intercept = _rescale(numbers("2f", 112), path)
    return _Header(
        size=tuple(size),
        dtype=_dtype(numbers("h", 70)[0], path).newbyteorder(order),
        offset=int(offset),
        slope=slope,
        intercept=intercept,
        spacing=(pixdim[1] * mm, pixdim[2] * mm, pixdim[3] * mm),
        handedness=pixdim[0],
        qform_code=qform_code,
        sform_code=sform_code,
        quaternion=numbers("3f", 256),
        qform_origin=(origin[0] * mm, origin[1] * mm, origin[2] * mm),
        sform=sform,
    )


def _dtype(code: int, path: Path) -> np.dtype[Any]:
    if code in _COMPLEX:
        raise InputError(f"{path} has complex values: give its magnitude.")
    if code in _COLOURS:
        raise InputError(
            f"{path} has {_COLOURS[code]} values per voxel (vector or colour), one is needed: give a scalar volume."
        )
    if code not in _TYPES:
        raise InputError(f"{path} has voxels of a type that is not read here (datatype {code}): save it as float32.")
    return np.dtype(_TYPES[code])


def _rescale(given: tuple[float, ...], path: Path) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN (as nibabel writes it) stands for none."""
    slope, intercept = given
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise InputError(
            f"{path} has a rescale slope of {slope:g} and an intercept of {intercept:g} (scl_slope, scl_inter): "
            f"correct them in its header."
        )
    return slope, intercept


# --- the grid -----------------------------------------------------------------------------------


def _grid(header: _Header, path: Path) -> tuple[NDArray[Any], list[str]]:
    """Voxel index to RAS mm with axes at right angles, and what the user should know; or a refusal."""
    spacing = np.array(header.spacing)
    if not (np.isfinite(spacing) & (spacing != 0)).all():
        raise InputError(f"{path} has a voxel spacing of {_mm(spacing)}: correct the spacing (pixdim) in its header.")
    if (spacing < 0).any():
        raise InputError(
            f"{path} has a negative voxel spacing of {_mm(spacing)}, by which some programs turn an axis round and "
            f"others do not: make it positive (pixdim) in its header."
        )
    for name, code in (("qform_code", header.qform_code), ("sform_code", header.sform_code)):
        if not 0 <= code <= 5:
            raise InputError(f"{path} has a {name} of {code}, which stands for nothing: correct it in its header.")
    if header.sform_code:
        affine, notes = _checked_sform(header, spacing, path)
    elif header.qform_code:
        affine, notes = _qform(header, spacing, path), []
    else:
        # As nibabel and the standard's "method 1" have it: rows run to the left, the volume lies around the origin.
        affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
        affine[:3, 3] = -affine[:3, :3] @ (np.array(header.size) - 1) / 2
        notes = [
            "does not say how it is oriented (neither sform nor qform), so that left, front and up are guessed: check "
            "them before you use the result"
        ]
    squared, moved = nearest_orthonormal(affine, header.size)
    return squared, [*notes, *straightened(moved)]


def straightened(moved_mm: float) -> list[str]:
    """What to say of axes that were made orthonormal."""
    if moved_mm < UNSEEN_MM:
        return []
    return [
        f"has axes that are off a right angle by rounding, and was read on the nearest grid with right angles, which "
        f"moves its voxels by up to {moved_mm:.2g} mm"
    ]


def _checked_sform(header: _Header, spacing: NDArray[Any], path: Path) -> tuple[NDArray[Any], list[str]]:
    """The sform, compared with all else that the header says of the grid."""
    affine, voxel, notes = header.sform, float(spacing.min()), []
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (edges > 0).all():
        raise InputError(f"{path} has an sform that describes no grid: correct its header.")
    stretched = float((np.abs(edges - spacing) * (np.array(header.size) - 1)).max())
    if stretched >= voxel:
        raise InputError(
            f"{path} contradicts itself: its voxels are {_mm(spacing)} by pixdim and {_mm(edges)} by the sform: "
            f"correct its header, or convert the original series again."
        )
    if stretched > NOTEWORTHY * voxel:
        notes.append(
            f"has two voxel spacings in its header, by which it is up to {stretched:.2f} mm longer or shorter: that of "
            f"the sform was taken"
        )
    if not orthonormality_error(affine) <= DIRECTION_TOLERANCE:
        raise InputError(
            f"{path} has axes that are not orthonormal (a sheared or degenerate orientation): "
            f"resample it to an orthogonal grid first."
        )
    if not header.qform_code:
        return affine, notes
    other = _qform(header, spacing, path)
    apart = float(np.linalg.norm(corners(header.size, affine) - corners(header.size, other), axis=1).max())
    mirrored = np.linalg.det(affine[:3, :3]) * np.linalg.det(other[:3, :3]) < 0
    # Unlike codes name two spaces on purpose, such as the scanner's and a template's.
    if mirrored or (apart >= voxel and header.qform_code == header.sform_code):
        raise InputError(
            f"{path} contradicts itself: its sform and its qform put a corner {apart:.1f} mm apart"
            f"{', one of them mirrored' if mirrored else ''}: correct its header, or convert the original series again."
        )
    if apart > NOTEWORTHY * voxel:
        notes.append(
            f"has two positions in its header, sform and qform, up to {apart:.2f} mm apart: that of the sform was taken"
        )
    return affine, notes


def _qform(header: _Header, spacing: NDArray[Any], path: Path) -> NDArray[Any]:
    b, c, d = header.quaternion
    squares = b * b + c * c + d * d
    # Rounded to float32, the squares of a half turn may come to a little more than 1.
    if not (np.isfinite(header.qform_origin).all() and squares <= 1 + 1e-5):
        raise InputError(f"{path} has a qform that describes no rotation: correct its header.")
    if header.handedness not in (-1, 0, 1):
        raise InputError(
            f"{path} has a pixdim[0] of {header.handedness:g}, which must be 1 or -1 where there is a qform: correct "
            f"its header."
        )
    # The root of what is left by the rounding of a half turn would be a turn of its own.
    a = 0.0 if 1 - squares <= 3 * np.finfo(np.float32).eps else math.sqrt(1 - squares)
    a, b, c, d = np.array([a, b, c, d]) / math.sqrt(a * a + squares)
    affine = np.eye(4)
    affine[:3, :3] = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
    ]
    affine[:3, :3] *= spacing * [1, 1, header.handedness or 1]
    affine[:3, 3] = header.qform_origin
    return affine


def _mm(lengths: NDArray[Any]) -> str:
    return " × ".join(f"{length:.4g}" for length in lengths) + " mm"
