"""What the header of an NRRD or MetaImage file has to say, and ITK would make up where it does not.

ITK takes 1 mm for a spacing that is absent or no number, and the file's own axes for left, back and up where no space
is named. Here such files are refused by the field that is missing, or told of.

References
----------
Definition of the NRRD file format, https://teem.sourceforge.net/nrrd/format.html; MetaIO,
https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from XAICLIPLib.errors import InputError

_LONGEST = 1 << 20
"""Bytes that a header may have."""

_ANATOMICAL = re.compile(r"(left|right)-(anterior|posterior)-(superior|inferior)(-time)?|[lr][ap][si]t?", re.IGNORECASE)
_MILLIMETRES = {"", "mm", "millimeter", "millimeters", "millimetre", "millimetres"}
_NOT_ORIENTED = "so that left, front and up are guessed: check them before you use the result"


def check_nrrd(path: Path) -> tuple[list[str], bool]:
    """Look at the header of a NRRD file, attached or detached.

    Returns
    -------
    list of str
        What the user should know, each the rest of a sentence about the scan.
    bool
        Whether it says which way its axes point.

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
    if "space directions" in fields:
        directions = re.findall(r"none|\([^)]*\)", fields["space directions"], re.IGNORECASE)
        for vector in (d for d in directions if d.lower() != "none"):
            _check_numbers(path, "space directions", vector.strip("()").split(","), 0)
    elif "spacings" in fields:
        kinds = fields.get("kinds", "").lower().split()
        spatial = ["domain", "space", "???", "none"]
        for axis, text in enumerate(fields["spacings"].split()):
            # The axis of colours or time points has none.
            if axis >= len(kinds) or kinds[axis] in spatial:
                if n_axes > 3 and not kinds and text.lower() == "nan":
                    continue
                _check_numbers(path, "spacings", [text], 1)
    else:
        raise InputError(f"{path} has no voxel spacing (neither space directions nor spacings): add it to its header.")
    if "space origin" in fields:
        _check_numbers(path, "space origin", fields["space origin"].strip("() ").split(","), 3)
    for field in ("space units", "units"):
        given = [unit.strip() for unit in re.findall(r'"([^"]*)"', fields.get(field, ""))]
        if odd := [u for u in given[-3:] if u.lower() not in _MILLIMETRES and u != "???"]:
            raise InputError(f'{path} has lengths in "{odd[0]}" ({field}), mm are needed: convert them in its header.')
    if "space directions" in fields and _ANATOMICAL.fullmatch(fields.get("space", "")):
        return [], True
    missing = "no anatomical space" if "space directions" in fields else "no space directions"
    return [f"does not say how it is oriented ({missing}), {_NOT_ORIENTED}"], False


def _nrrd_fields(path: Path) -> dict[str, str] | None:
    """The fields of a NRRD header by their names in lower case; None where it is none."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        if not file.readline(100).startswith(b"NRRD"):
            return None
        while file.tell() < _LONGEST and (line := file.readline(_LONGEST).strip(b"\r\n")):
            name, separator, value = line.decode("utf-8", "replace").partition(": ")
            if separator and not line.startswith(b"#") and ":=" not in name:
                fields[name.strip().lower()] = value.strip()
                if name.strip().lower() in ("data file", "datafile") and value.strip().lower().startswith("list"):
                    break  # names of files follow to the end
    return fields


def check_metaimage(path: Path) -> tuple[list[str], bool]:
    """Look at the header of a MetaImage file, attached or detached; as `check_nrrd`."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while file.tell() < _LONGEST and (line := file.readline(_LONGEST)):
            name, separator, value = line.decode("utf-8", "replace").partition("=")
            if not separator:
                break
            fields[name.strip()] = value.strip()
            if name.strip() == "ElementDataFile":  # what follows are the voxels
                break
    if "NDims" not in fields:
        return [], True
    _check_data_file(path, "" if fields.get("ElementDataFile", "").upper() == "LOCAL" else fields["ElementDataFile"])
    spacing = next((field for field in ("ElementSpacing", "ElementSize") if field in fields), None)
    if spacing is None:
        raise InputError(f"{path} has no voxel spacing (ElementSpacing): add it to its header.")
    _check_numbers(path, spacing, fields[spacing].split(), int(fields["NDims"]) if fields["NDims"].isdecimal() else 1)
    for field in ("Offset", "Position", "Origin"):
        if field in fields:
            _check_numbers(path, field, fields[field].split(), 1)
    axes = next((field for field in ("TransformMatrix", "Rotation", "Orientation") if field in fields), None)
    if axes is None:
        return [f"does not say how it is oriented (no TransformMatrix), {_NOT_ORIENTED}"], False
    _check_numbers(path, axes, fields[axes].split(), 1)
    return [], True


def _check_numbers(path: Path, field: str, texts: list[str], least: int) -> None:
    """Refuse a field that has fewer values than it must, or one that is no number."""
    for text in texts if len(texts) >= least else ["nothing"]:
        try:
            good = math.isfinite(float(text))
        except ValueError:
            good = False
        if not good:
            raise InputError(f"{path} has {text.strip() or 'nothing'} for a number in {field}: correct its header.")


def _check_data_file(path: Path, name: str) -> None:
    """Refuse a header whose voxels lie in another file that is not there; lists and patterns are left to ITK."""
    if not name or name.upper().startswith("LIST") or "%" in name:
        return
    if not (path.parent / name).is_file():
        raise InputError(
            f"{path} is a header alone, and its data file {Path(name).name} is not there: put it into the same folder."
        )
