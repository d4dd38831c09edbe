"""Modules that are imported when an attribute of them is first used.

The parameters of an explanation method must be known at once, also where PyTorch is not installed; yet a method is one
file. So such a file imports the heavy packages lazily::

    if TYPE_CHECKING:
        import torch
    else:
        torch = lazy("torch")
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _Lazy:
    """Stands for a module until an attribute of it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


def lazy(name: str) -> Any:
    """A stand-in for a module, imported when an attribute of it is first asked for.

    Unlike `importlib.util.LazyLoader` it leaves ``sys.modules`` alone, so that no other code sees a partly
    initialised module. A module that is missing raises its `ImportError` at the first use.
    """
    return _Lazy(name)
