"""Checking the header of an NRRD or MetaImage file, where ITK would assume what is missing.

ITK assumes 1 mm where a spacing is missing or no number, and takes the file's axes for left, back and up where no space
is named. Here a missing spacing is refused, with the name of the field, and a missing orientation gives a warning.

References
----------
Definition of the NRRD file format, https://teem.sourceforge.net/nrrd/format.html; MetaIO,
https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path

from XAICLIPLib.errors import InputError

_MAX_BYTES = 1 << 20
"""Largest size of a header."""

_ANATOMICAL = re.compile(r"(left|right)-(anterior|posterior)-(superior|inferior)(-time)?|[lr][ap][si]t?", re.IGNORECASE)
_MILLIMETRES = {"", "mm", "millimeter", "millimeters", "millimetre", "millimetres"}
_NOT_ORIENTED = "so that left, front and up are guessed: check them before you use the result"


def check_nrrd(path: Path) -> tuple[list[str], bool]:
    """Look at the header of a NRRD file, attached or detached.

    Returns
    -------
    list of str
        Warnings for the user, each the rest of a sentence about the scan.
    bool
        Whether it says how its axes are oriented.

    Raises
    ------
    InputError
        A voxel spacing is missing or no number, is not in mm, or the detached data file is not there.
    """
    fields = _nrrd_fields(path)
    if fields is None:
        return [], True  # no NRRD header: reading it will say so
    _check_data_file(path, fields.get("data file", fields.get("datafile", "")))
    dimension = fields.get("dimension", "")
    n_axes = int(dimension) if dimension.isdecimal() else 0
    n_space = 3
    if "space directions" in fields:
        directions = re.findall(r"none|\([^)]*\)", fields["space directions"], re.IGNORECASE)
        vectors = [direction.strip("()").split(",") for direction in directions if direction.lower() != "none"]
        n_space = len(vectors[0]) if vectors else 0
        for vector in vectors:
            _check_numbers(path, "space directions", vector, n_space)
    elif "spacings" in fields:
        kinds = fields.get("kinds", "").lower().split()
        spatial = ["domain", "space", "???", "none"]
        for axis, text in enumerate(fields["spacings"].split()):
            # An axis of colours or time points has no spacing.
            if axis >= len(kinds) or kinds[axis] in spatial:
                if n_axes > 3 and not kinds and text.lower() == "nan":
                    continue
                _check_numbers(path, "spacings", [text], 1)
    else:
        raise InputError(f"{path} has no voxel spacing (neither space directions nor spacings): add it to its header.")
    if "space origin" in fields:
        _check_numbers(path, "space origin", fields["space origin"].strip("() ").split(","), n_space)
    for field in ("space units", "units"):
        units = [unit.strip() for unit in re.findall(r'"([^"]*)"', fields.get(field, ""))]
        if not_mm := [u for u in units[-3:] if u.lower() not in _MILLIMETRES and u != "???"]:
            raise InputError(
                f'{path} has lengths in "{not_mm[0]}" ({field}), mm are needed: convert them in its header.'
            )
    if "space directions" in fields and _ANATOMICAL.fullmatch(fields.get("space", "")):
        return [], True
    missing = "no anatomical space" if "space directions" in fields else "no space directions"
    return [f"does not say how it is oriented ({missing}), {_NOT_ORIENTED}"], False


def _nrrd_fields(path: Path) -> dict[str, str] | None:
    """The fields of a NRRD header by their names in lower case; None if the file has no such header."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        if not file.readline(100).startswith(b"NRRD"):
            return None
        while file.tell() < _MAX_BYTES and (line := file.readline(_MAX_BYTES).strip(b"\r\n")):
            name, separator, value = line.decode("utf-8", "replace").partition(": ")
            if separator and not line.startswith(b"#") and ":=" not in name:
                fields[name.strip().lower()] = value.strip()
                if name.strip().lower() in ("data file", "datafile") and value.strip().lower().startswith("list"):
                    break  # names of files follow to the end
    return fields


_META_BYTES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_LONG": 4,
    "MET_ULONG": 4,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
"""Bytes per value of each type."""

_SYNONYMS = {"Position": "Offset", "Origin": "Offset", "Rotation": "TransformMatrix", "Orientation": "TransformMatrix"}
_LOGICAL = ("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData")


def check_metaimage(path: Path) -> tuple[list[str], bool]:
    """Look at the header of a MetaImage file, attached or detached; as `check_nrrd`.

    Everything that ITK's reader relies on is checked: where a field has too few values, or the voxels are not
    compressed although the header says so, that reader reads foreign memory or crashes.
    """
    fields, begin = _meta_fields(path)
    if "ElementDataFile" not in fields or "NDims" not in fields:
        raise InputError(f"{path} is damaged or no MetaImage file: export or copy it again.")
    has_voxels = fields["ElementDataFile"].upper() == "LOCAL"
    _check_data_file(path, "" if has_voxels else fields["ElementDataFile"])
    dimension = _whole_number(path, "NDims", fields["NDims"])
    if not 1 <= dimension <= 4:
        raise InputError(f"{path} has {dimension} axes (NDims), a 3D volume is needed: give one volume.")
    size = [_whole_number(path, "DimSize", text) for text in fields.get("DimSize", "").split()]
    if len(size) != dimension:
        raise InputError(f"{path} has {len(size)} numbers for {dimension} axes in DimSize: correct its header.")
    if fields.get("ObjectType", "Image") != "Image" or fields.get("ElementType") not in _META_BYTES:
        raise InputError(f"{path} holds no voxels that can be read here (ObjectType, ElementType): save it as NRRD.")
    for field in _LOGICAL:
        if fields.get(field, "True").lower() not in ("true", "false", "1", "0"):
            raise InputError(f"{path} has {fields[field]} for True or False in {field}: correct its header.")
    channels = _whole_number(path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"))
    spacing = next((field for field in ("ElementSpacing", "ElementSize") if field in fields), None)
    if spacing is None:
        raise InputError(f"{path} has no voxel spacing (ElementSpacing): add it to its header.")
    counts = dict.fromkeys(("Offset", "CenterOfRotation", "ElementSpacing", "ElementSize"), dimension)
    counts["TransformMatrix"] = dimension**2
    for field, text in fields.items():
        if count := counts.get(_SYNONYMS.get(field, field)):
            _check_numbers(path, field, text.split(), count)
    if min(float(text) for text in fields[spacing].split()) <= 0:
        raise InputError(f"{path} has a voxel spacing of zero or below ({spacing}): correct the spacing in its header.")
    if fields.get("DistanceUnits", "mm").lower() not in ("mm", "?"):
        raise InputError(f"{path} has lengths in {fields['DistanceUnits']} (DistanceUnits): convert them to mm.")
    if len({_SYNONYMS.get(field, field) for field in fields}) < len(fields):
        raise InputError(f"{path} says twice where it lies (Offset, TransformMatrix): correct its header.")
    n_bytes = math.prod(size) * channels * _META_BYTES[fields["ElementType"]]
    if has_voxels and fields.get("BinaryData", "True").lower() in ("true", "1"):
        _check_voxels(path, begin, n_bytes, fields.get("CompressedData", "False").lower() in ("true", "1"))
    if "TransformMatrix" not in {_SYNONYMS.get(field, field) for field in fields}:
        return [f"does not say how it is oriented (no TransformMatrix), {_NOT_ORIENTED}"], False
    return [], True


def _meta_fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields of a MetaImage header, and the byte at which the voxels begin."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while file.tell() < _MAX_BYTES and (line := file.readline(_MAX_BYTES)):
            name, separator, value = line.decode("utf-8", "replace").partition("=")
            if not separator:
                break
            if name.strip() in fields:
                raise InputError(f"{path} has the field {name.strip()[:40]} twice: correct its header.")
            fields[name.strip()] = value.strip()
            if name.strip() == "ElementDataFile":  # what follows are the voxels
                break
        return fields, file.tell()


def _check_voxels(path: Path, begin: int, n_bytes: int, compressed: bool) -> None:
    """Refuse a file that holds fewer voxels than its header says."""
    with path.open("rb") as file:
        file.seek(begin)
        if compressed:
            n_unpacked, decompressor = 0, zlib.decompressobj()
            try:
                while n_unpacked <= n_bytes and (block := file.read(1 << 20)):
                    n_unpacked += len(decompressor.decompress(block))
            except zlib.error:
                n_unpacked = -1
            complete = n_unpacked == n_bytes
        else:
            complete = path.stat().st_size - begin >= n_bytes
    if not complete:
        raise InputError(f"{path} is damaged or cut off: export or copy it again.")


def _whole_number(path: Path, field: str, text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 2**31):
        raise InputError(f"{path} has {text or 'nothing'} for a number in {field}: correct its header.")
    return int(text)


def _check_numbers(path: Path, field: str, texts: list[str], count: int) -> None:
    """Refuse a field with a wrong count of values (0: any count is right), or with a value that is no number."""
    if count and len(texts) != count:
        raise InputError(f"{path} has {len(texts)} numbers in {field} and needs {count}: correct its header.")
    for text in texts:
        try:
            valid = math.isfinite(float(text))
        except ValueError:
            valid = False
        if not valid:
            raise InputError(
                f"{path} has {text.strip()[:20] or 'nothing'} for a number in {field}: correct its header."
            )


def _check_data_file(path: Path, name: str) -> None:
    """Refuse a header whose voxels lie in another file that is missing; lists and patterns are left to ITK."""
    if not name or name.upper().startswith("LIST") or "%" in name:
        return
    if not (path.parent / name).is_file():
        raise InputError(
            f"{path} is a header alone, and its data file {Path(name).name} is not there: put it into the same folder."
        )
