"""Every method by its name, and what it can be told. Nothing here needs PyTorch.

To add a method, write its file (`XAICLIPLib.explainers.base` says what it holds) and name the file in `FILES`.

>>> method("rise", samples=500)
Rise(cell_mm=None, samples=500, keep=0.5, estimator='ridge', wanted_error=0.05)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from importlib import import_module
from typing import Any

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers.base import Method
from XAICLIPLib.explainers.parameters import checked, described

FILES = (
    "owen_gradients",
    "occlusion",
    "rise",
    "lime",
    "structures",
    "integrated_gradients",
    "seg_grad_cam",
)
"""The methods in the order in which they are offered; the first is the default."""

FALLBACK = "occlusion"
"""What is taken where the default cannot work: it needs no gradients, and any baseline will do."""

METHODS: dict[str, type[Method]] = {}
"""Every method by its name."""


def register(kind: type[Method]) -> type[Method]:
    """Offer a method under its name: in Python, on the command line and in the panel."""
    METHODS[kind.name] = kind
    return kind


for _file in FILES:
    _module = import_module(f"XAICLIPLib.explainers.{_file}")
    for _kind in vars(_module).values():
        if isinstance(_kind, type) and issubclass(_kind, Method) and _kind.__module__ == _module.__name__:
            register(_kind)


def method(name: str, /, **parameters: Any) -> Method:
    """A method with its parameters, checked; those that are not given, or None, keep their default.

    Raises
    ------
    InputError
        There is no such method or parameter, or a value is out of bounds.
    """
    if name not in METHODS:
        raise InputError(f"There is no method {name!r}: choose one of {', '.join(METHODS)}.")
    kind = METHODS[name]
    chosen = kind(**checked(kind, parameters, name))
    chosen.check()
    return chosen


def default() -> str:
    """The method where none is named (`Testing/benchmarks/EXPLAINERS.md` tells why this one)."""
    return next(iter(METHODS))


def implied(parameters: Iterable[str]) -> str:
    """The method that is meant where none is named: the fallback where parameters of its own are given."""
    names = {kind: {field.name for field in fields(METHODS[kind])} for kind in (default(), FALLBACK)}  # type: ignore[arg-type]
    given = set(parameters)
    return FALLBACK if given - names[default()] and given <= names[FALLBACK] else default()


def describe() -> dict[str, dict[str, Any]]:
    """Every method with its parameters, as plain data for a panel or JSON.

    ``{"rise": {"summary": ..., "parameters": [{"name", "help", "type": "number" | "integer" | "flag" | "choice" |
    "text", "default", "least", "most", "unit", "choices"}]}}``. A default of None means that it is worked out.
    """
    return {
        name: {
            "summary": " ".join((kind.__doc__ or "").strip().split("\n\n")[0].split()),
            "parameters": described(kind),
        }
        for name, kind in METHODS.items()
    }
