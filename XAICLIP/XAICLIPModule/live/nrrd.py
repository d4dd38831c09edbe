"""Volumes between Slicer and the worker: uncompressed NRRD files on the same machine, a part at a time.

SimpleITK would read or write all of a file at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from slicer.i18n import tr as _

from XAICLIPLib.errors import InputError

TYPES = {
    "signed char": "i1", "int8": "i1", "int8_t": "i1", "unsigned char": "u1", "uchar": "u1", "uint8": "u1",
    "short": "<i2", "int16": "<i2", "unsigned short": "<u2", "ushort": "<u2", "uint16": "<u2",
    "int": "<i4", "int32": "<i4", "unsigned int": "<u4", "uint": "<u4", "uint32": "<u4",
    "long long int": "<i8", "int64": "<i8", "unsigned long long int": "<u8", "uint64": "<u8",
    "float": "<f4", "double": "<f8",
}  # fmt: skip
"""Types of NRRD by their names, as numpy's."""

NAMES = {"i1": "int8", "u1": "uint8", "f4": "float", "f8": "double"} | {
    f"{kind}{size}": f"{'u' if kind == 'u' else ''}int{8 * size}" for kind in "iu" for size in (2, 4, 8)
}
"""The types that are written, by numpy's names."""


def mapped(path: str | Path) -> NDArray[Any]:
    """The voxels (k, j, i) of a file of the worker, from the disk as they are needed where it is uncompressed.

    Raises
    ------
    InputError
        It is not there, damaged or cut off.
    """
    header: dict[str, str] = {}
    broken = _("The result {file} cannot be read: click Apply to compute it again.").format(file=Path(path).name)
    try:
        with Path(path).open("rb") as file:
            while (line := file.readline(10_000).strip()) and len(header) < 100:
                key, _separator, value = line.decode("ascii", "replace").partition(": ")
                header[key] = value
            offset = file.tell()
    except OSError as error:
        raise InputError(broken) from error
    kind = TYPES.get(header.get("type", ""))
    little = header.get("endian", "little") == "little"
    sizes = header.get("sizes", "").split()
    if kind is None or header.get("encoding") != "raw" or "data file" in header or not little or len(sizes) != 3:
        try:
            array: NDArray[Any] = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        except RuntimeError as error:
            raise InputError(broken) from error
        return array
    try:
        return np.memmap(path, kind, "r", offset, tuple(int(size) for size in reversed(sizes)))
    except (OSError, ValueError) as error:  # shorter than it says
        raise InputError(broken) from error


def begin(file: BinaryIO, kind: np.dtype[Any], grid: sitk.Image, size: tuple[int, int, int]) -> None:
    """Write the header of an uncompressed file; the voxels (k, j, i) follow in little endian.

    Parameters
    ----------
    file
        Open for writing.
    kind
        Type of the voxels.
    grid
        Has spacing, origin and direction (LPS, mm); its size does not matter.
    size
        Voxels along i, j, k.
    """
    axes = np.reshape(grid.GetDirection(), (3, 3)) * grid.GetSpacing()
    lines = [
        "NRRD0004",
        f"type: {NAMES[kind.str[1:]]}",
        "dimension: 3",
        "space: left-posterior-superior",
        "sizes: {} {} {}".format(*size),
        "space directions: " + " ".join(_vector(axes[:, axis]) for axis in range(3)),
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
        f"space origin: {_vector(grid.GetOrigin())}",
    ]
    file.write(("\n".join(lines) + "\n\n").encode("ascii"))


def _vector(values: Any) -> str:
    return "({})".format(",".join(repr(float(value)) for value in values))
