"""What a value must be that others wrote: in a message of `XAICLIPLib.worker.protocol`, or in a model's configuration.

Each check takes what JSON gave and returns it as its reader holds it; its ValueError says what to give instead.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

LARGEST = 2**53 - 1
"""Beyond it a JSON reader that keeps numbers as doubles would change a whole number."""

Check = Callable[[Any], Any]


def text(value: Any) -> str:
    """Words that can be written as UTF-8: JSON can also escape halves of characters."""
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
    """Yes or no."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def whole(least: int, most: int = LARGEST) -> Check:
    """A check for whole numbers within bounds, which are allowed themselves."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value

    return check


def number(least: float, most: float = math.inf) -> Check:
    """A check for finite numbers within bounds, which are allowed themselves."""
    bounds = "" if least == -math.inf else f" from {least:g}"
    bounds += "" if most == math.inf else f" to {most:g}"

    def check(value: Any) -> float:
        try:
            right = not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
        except OverflowError:  # a whole number larger than any float
            right = False
        if not right or not least <= value <= most:
            raise ValueError(f"a number{bounds}")
        return float(value)

    return check


def choice(*names: str) -> Check:
    """A check for one of some words."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return value

    return check


def optional(check: Check) -> Check:
    """A check for nothing at all, or for what another check allows."""
    return lambda value: None if value is None else check(value)


def either(first: Check, second: Check) -> Check:
    """A check for what one of two checks allows."""

    def check(value: Any) -> Any:
        try:
            return first(value)
        except ValueError as error:
            try:
                return second(value)
            except ValueError as other:
                raise ValueError(f"{error}, or {other}") from None

    return check


def several(item: Check, least: int, most: int) -> Check:
    """A check for a list of between ``least`` and ``most`` values, each of which another check allows."""

    def check(value: Any) -> list[Any]:
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= most:
            raise ValueError(f"a list of {least}" if least == most else f"a list of {least} to {most}")
        return [item(inner) for inner in value]

    return check


def keys(allowed: Mapping[str, Check], others: Literal["refused", "left out"] = "refused") -> Check:
    """A check for an object of which each key has a check of its own.

    The ValueError names the key, and for an object within an object the way to it.
    """

    def check(value: Any) -> dict[str, Any]:
        given = mapping(value)
        if others == "refused" and (unknown := sorted(set(given) - set(allowed))):
            raise ValueError(f"nothing under {unknown[0][:40]!r}, which is not known here")
        kept = {}
        for key in allowed.keys() & given.keys():
            try:
                kept[key] = allowed[key](given[key])
            except ValueError as error:
                raise ValueError(f"under {key} {str(error).removeprefix('under ')}") from None
        return kept

    return check


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object of any contents."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError("an object")
    return dict(value)


def files(value: Any) -> dict[str, str]:
    """Paths by what each file is."""
    return {key: path(place) for key, place in mapping(value).items()}


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
    """The voxels that are not 0 in a file."""

    mask: str


@dataclass(frozen=True)
class Box:
    """A box in space: R0, R1, A0, A1, S0, S1 in mm."""

    box_ras_mm: tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Named:
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


def named(value: Any) -> Named:
    """The name of a structure."""
    return Named(text(value))


def place(words: tuple[str, ...], **kinds: Callable[[Any], Mask | Box | Named]) -> Check:
    """One of some words, or an object with exactly one of some keys."""
    allowed = ", ".join([*words, *(f"{{{kind}: ...}}" for kind in kinds)])

    def check(value: Any) -> str | Mask | Box | Named:
        if isinstance(value, (Mask, Box, Named)):
            value = asdict(value)
        if isinstance(value, str) and value in words:
            return value
        if not isinstance(value, Mapping) or len(value) != 1 or not set(value) <= set(kinds):
            raise ValueError(f"one of {allowed}")
        ((kind, inner),) = value.items()
        return kinds[kind](inner)

    return check
