"""Validators for values from outside: from a message of `XAICLIPLib.worker.protocol`, or from a model's configuration.

Each validator takes a value as JSON gives it, and returns it in the type that the reader uses. Its ValueError says what
to give instead.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

LARGEST = 2**53 - 1
"""The largest whole number that a JSON reader which keeps numbers as doubles does not change."""

Validator = Callable[[Any], Any]
"""Takes a value, and returns it or raises a ValueError."""


def text(value: Any) -> str:
    """Text that can be written as UTF-8. JSON can also escape halves of characters, which are refused."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("some text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("text that is valid Unicode") from None
    return value


def path(value: Any) -> str:
    """The path of a file or folder, or the name of a model; it need not exist."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("a path")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise ValueError("a path that this system can have") from None
    return value


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def whole_number(least: int, most: int = LARGEST) -> Validator:
    """A validator for whole numbers from ``least`` to ``most``, both included."""

    def validate(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value

    return validate


def number(least: float, most: float = math.inf) -> Validator:
    """A validator for finite numbers from ``least`` to ``most``, both included."""
    bounds = "" if least == -math.inf else f" from {least:g}"
    bounds += "" if most == math.inf else f" to {most:g}"

    def validate(value: Any) -> float:
        try:
            valid = not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
        except OverflowError:  # a whole number larger than any float
            valid = False
        if not valid or not least <= value <= most:
            raise ValueError(f"a number{bounds}")
        return float(value)

    return validate


def choice(*names: str) -> Validator:
    """A validator for one of some words."""

    def validate(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return value

    return validate


def optional(validate: Validator) -> Validator:
    """A validator for null, or for what another validator allows."""
    return lambda value: None if value is None else validate(value)


def either(first: Validator, second: Validator) -> Validator:
    """A validator for what at least one of two validators allows."""

    def validate(value: Any) -> Any:
        try:
            return first(value)
        except ValueError as error:
            try:
                return second(value)
            except ValueError as other:
                raise ValueError(f"{error}, or {other}") from None

    return validate


def list_of(item: Validator, least: int, most: int) -> Validator:
    """A validator for a list of ``least`` to ``most`` values, each of which another validator allows."""

    def validate(value: Any) -> list[Any]:
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= most:
            raise ValueError(f"a list of {least}" if least == most else f"a list of {least} to {most}")
        return [item(inner) for inner in value]

    return validate


def keys(allowed: Mapping[str, Validator], others: Literal["refused", "left out"] = "refused") -> Validator:
    """A validator for an object of which each key has a validator of its own.

    The ValueError names the key; for a key of an object within an object, it names the keys that lead there.
    """

    def validate(value: Any) -> dict[str, Any]:
        content = mapping(value)
        if others == "refused" and (unknown := sorted(set(content) - set(allowed))):
            raise ValueError(f"nothing under {unknown[0][:40]!r}, which is not known here")
        kept = {}
        for key in allowed.keys() & content.keys():
            try:
                kept[key] = allowed[key](content[key])
            except ValueError as error:
                raise ValueError(f"under {key} {str(error).removeprefix('under ')}") from None
        return kept

    return validate


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object of any contents."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError("an object")
    return dict(value)


def files(value: Any) -> dict[str, str]:
    """An object of paths, by the kind of each file."""
    return {key: path(item) for key, item in mapping(value).items()}


def paths(value: Any) -> tuple[str, ...]:
    """A list of paths."""
    if not isinstance(value, (list, tuple)):
        raise ValueError("a list of paths")
    return tuple(path(item) for item in value)


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(value, (list, tuple)):
        raise ValueError("a list of texts")
    return tuple(text(item) for item in value)


def objects(value: Any) -> tuple[dict[str, Any], ...]:
    """A list of JSON objects."""
    if not isinstance(value, (list, tuple)):
        raise ValueError("a list of objects")
    return tuple(mapping(item) for item in value)


@dataclass(frozen=True)
class Mask:
    """A mask: the voxels of a file that are not 0."""

    mask: str


@dataclass(frozen=True)
class Box:
    """A box in space: R0, R1, A0, A1, S0, S1 in mm."""

    box_ras_mm: tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class NamedStructure:
    """A structure of the network, by name."""

    structure: str


def mask(value: Any) -> Mask:
    """The file of a mask."""
    return Mask(path(value))


def box(value: Any) -> Box:
    """Six numbers, each pair from low to high."""
    if not isinstance(value, (list, tuple)) or len(value) != 6:
        raise ValueError("a box of six numbers")
    r0, r1, a0, a1, s0, s1 = (number(-math.inf)(end) for end in value)
    if not (r0 < r1 and a0 < a1 and s0 < s1):
        raise ValueError("a box whose low ends lie below its high ends")
    return Box((r0, r1, a0, a1, s0, s1))


def structure_name(value: Any) -> NamedStructure:
    """The name of a structure."""
    return NamedStructure(text(value))


def location(words: tuple[str, ...], **kinds: Callable[[Any], Mask | Box | NamedStructure]) -> Validator:
    """A validator for one of some words, or for an object with exactly one of some keys."""
    allowed = ", ".join([*words, *(f"{{{kind}: ...}}" for kind in kinds)])

    def validate(value: Any) -> str | Mask | Box | NamedStructure:
        if isinstance(value, (Mask, Box, NamedStructure)):
            value = asdict(value)
        if isinstance(value, str) and value in words:
            return value
        if not isinstance(value, Mapping) or len(value) != 1 or not set(value) <= set(kinds):
            raise ValueError(f"one of {allowed}")
        ((kind, inner),) = value.items()
        return kinds[kind](inner)

    return validate
