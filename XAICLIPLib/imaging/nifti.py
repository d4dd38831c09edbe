"""Reading NIfTI-1 files: the voxels as they are stored, and the grid of the header unless it contradicts itself.

ITK's reader replaces NaN and infinity by 0, chooses one of sform, qform and pixdim where they contradict each other
(environment variables too decide which), and refuses axes that are rounded to four digits. After it has read a file,
this can no longer be seen. So the files are read here, without ITK.

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

ROUNDING_SHARE = 0.1
"""Share of the shortest voxel edge up to which differences within a header are taken for rounding: no warning."""

NEGLIGIBLE_MM = 0.005
"""Shift of the voxels up to which there is no warning."""

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
"""Millimetres in each unit of ``xyzt_units``; no unit and any other code mean mm."""


@dataclass(frozen=True)
class _Header:
    """The fields of a header that are used here; lengths in mm, RAS."""

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
    with _open(path) as file:
        header = _read_header(file, path)
        _skip(file, header.offset - _HEADER)
        data = bytearray()
        while len(data) < header.n_bytes and (block := file.read(min(_BLOCK, header.n_bytes - len(data)))):
            data += block
        _read_to_end(file)
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
    with _open(path) as file:
        header = _read_header(file, path)
        _skip(file, header.offset - _HEADER)
        if _read_to_end(file) < header.n_bytes:
            raise EOFError


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a file, decompressed where its contents are gzip; errors of damaged files become an `InputError`."""
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


def _read_to_end(file: BinaryIO) -> int:
    """Read to the end, where gzip compares its checksum, and return the number of bytes."""
    return sum(len(block) for block in iter(lambda: file.read(_BLOCK), b""))


def _read_header(file: BinaryIO, path: Path) -> _Header:
    """Read the header; a `ValueError` if it is no NIfTI header."""
    raw = file.read(_HEADER)
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    order = next((o for o in orders if raw[:4] == struct.pack(o + "i", _HEADER)), None)
    if order is None:
        if raw[:4] in (struct.pack("<i", 540), struct.pack(">i", 540)):
            raise InputError(f"{path} is a NIfTI-2 file, which cannot be read here: save it as NIfTI-1 or NRRD.")
        raise ValueError("no NIfTI header")

    def numbers(format_: str, byte: int) -> tuple[Any, ...]:
        assert order is not None
        return struct.unpack_from(order + format_, raw, byte)

    if raw[344:348] != b"n+1\0":
        raise InputError(f"{path} is no NIfTI-1 file in one piece (its magic is not n+1): save it as .nii.gz or NRRD.")
    dimension, *dims = numbers("8h", 40)
    if not 1 <= dimension <= 7 or min(dims[:dimension]) < 1:
        raise ValueError("no size")
    size = dims[:dimension]
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    if len(size) != 3:
        advice = "choose one time point" if len(size) > 3 else "give the whole stack of slices"
        raise InputError(f"{path} is {len(size)}D, a 3D volume is needed: {advice}.")
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


def _rescale(stored: tuple[float, ...], path: Path) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN (as nibabel writes it) means that there is no rescale."""
    slope, intercept = stored
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
    """Affine from voxel index to RAS mm, with axes at right angles, and warnings for the user."""
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
        # As in nibabel and the standard's "method 1": rows run to the left, the volume is centred at the origin.
        affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
        affine[:3, 3] = -affine[:3, :3] @ (np.array(header.size) - 1) / 2
        notes = [
            "does not say how it is oriented (neither sform nor qform), so that left, front and up are guessed: check "
            "them before you use the result"
        ]
    orthonormal, moved_mm = nearest_orthonormal(affine, header.size)
    return orthonormal, [*notes, *straightening_notes(moved_mm)]


def straightening_notes(moved_mm: float) -> list[str]:
    """The warning about axes that were made orthonormal; empty where that is negligible."""
    if moved_mm < NEGLIGIBLE_MM:
        return []
    return [
        f"has axes that are off a right angle by rounding, and was read on the nearest grid with right angles, which "
        f"moves its voxels by up to {moved_mm:.2g} mm"
    ]


def _checked_sform(header: _Header, spacing: NDArray[Any], path: Path) -> tuple[NDArray[Any], list[str]]:
    """The sform, compared with everything else that the header says about the grid."""
    affine, voxel, notes = header.sform, float(spacing.min()), []
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (lengths > 0).all():
        raise InputError(f"{path} has an sform that describes no grid: correct its header.")
    mismatch = float((np.abs(lengths - spacing) * (np.array(header.size) - 1)).max())
    if mismatch >= voxel:
        raise InputError(
            f"{path} contradicts itself: its voxels are {_mm(spacing)} by pixdim and {_mm(lengths)} by the sform: "
            f"correct its header, or convert the original series again."
        )
    if mismatch > ROUNDING_SHARE * voxel:
        notes.append(
            f"has two voxel spacings in its header, by which it is up to {mismatch:.2f} mm longer or shorter: that of "
            f"the sform was taken"
        )
    if not orthonormality_error(affine) <= DIRECTION_TOLERANCE:
        raise InputError(
            f"{path} has axes that are not orthonormal (a sheared or degenerate orientation): "
            f"resample it to an orthogonal grid first."
        )
    if not header.qform_code:
        return affine, notes
    qform = _qform(header, spacing, path)
    gap = float(np.linalg.norm(corners(header.size, affine) - corners(header.size, qform), axis=1).max())
    mirrored = np.linalg.det(affine[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
    # Different codes mean two spaces on purpose, such as the scanner's and a template's.
    if mirrored or (gap >= voxel and header.qform_code == header.sform_code):
        raise InputError(
            f"{path} contradicts itself: its sform and its qform put a corner {gap:.1f} mm apart"
            f"{', one of them mirrored' if mirrored else ''}: correct its header, or convert the original series again."
        )
    if gap > ROUNDING_SHARE * voxel:
        notes.append(
            f"has two positions in its header, sform and qform, up to {gap:.2f} mm apart: that of the sform was taken"
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
    # At a half turn, the root of the rounding error would be a rotation that is not in the file.
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
