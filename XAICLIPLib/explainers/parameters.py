"""How the parameters of a method are declared, checked and described. Nothing here needs PyTorch."""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from XAICLIPLib.errors import InputError


def parameter(default: Any, help: str, least: float | None = None, most: float | None = None, unit: str = "") -> Any:
    """A field of a method with what a person needs to know of it.

    Parameters
    ----------
    default
        None where it is worked out for the case at hand.
    help
        For the command line and the panel, without a full stop.
    least, most
        Bounds of a number, allowed values themselves.
    unit
        Of a number, such as "mm".
    """
    return field(default=default, metadata={"help": help, "least": least, "most": most, "unit": unit})


def checked(kind: type, values: dict[str, Any], name: str) -> dict[str, Any]:
    """The values parameters of a method, a dataclass, as its fields take them; those that are None are left out.

    Raises
    ------
    InputError
        There is no such parameter, or a value is out of bounds.
    """
    known = {f.name: f for f in fields(kind)}
    types = get_type_hints(kind)
    result = {}
    for key, value in values.items():
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"The method {name} has no parameter {key}: {has}.")
        if value is not None:
            result[key] = _checked_value(known[key], types[key], value)
    return result


def described(kind: type) -> list[dict[str, Any]]:
    """The parameters of a method as plain data; `XAICLIPLib.explainers.methods.describe` says what each row holds."""
    types = get_type_hints(kind)
    return [_described(f, types[f.name]) for f in fields(kind)]


def _described(parameter: Field[Any], hint: Any) -> dict[str, Any]:
    kind, choices = _kind_of(hint)
    names = {bool: "flag", int: "integer", float: "number", str: "text"}
    assert parameter.default is not MISSING
    return {
        "name": parameter.name,
        "type": "choice" if choices else names[kind],
        "default": parameter.default,
        "choices": list(choices),
        **parameter.metadata,
    }


def _kind_of(hint: Any) -> tuple[type, tuple[str, ...]]:
    """The type that a parameter takes besides None, and its choices where it has any."""
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    return next((kind for kind in get_args(hint) if kind is not type(None)), hint), ()


def _checked_value(parameter: Field[Any], hint: Any, value: Any) -> Any:
    """The value as the parameter takes it."""
    kind, choices = _kind_of(hint)
    least, most, name = parameter.metadata["least"], parameter.metadata["most"], parameter.name
    if choices:
        if value not in choices:
            raise InputError(f"There is no {name} {value!r}: choose one of {', '.join(choices)}.")
        return value
    if kind in (bool, str):
        if not isinstance(value, kind):
            raise InputError(f"{name} is {value!r}: give {'true or false' if kind is bool else 'a name'}.")
        return value
    unit = parameter.metadata["unit"]
    what = "a whole number" if kind is int else f"a number{' in ' + unit if unit else ''}"
    try:
        number = kind(value)
        right = not isinstance(value, (bool, str)) and number == value and math.isfinite(number)
    except (TypeError, ValueError, OverflowError):
        right = False
    if not right or not least <= number <= most:
        raise InputError(f"{name} is {value}: give {what} from {least:g} to {most:g}.")
    return number
