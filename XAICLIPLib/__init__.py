"""XAI-CLIP: why a segmentation network drew an organ where it did.

>>> import XAICLIPLib
>>> explanation = XAICLIPLib.explain("scan.nii.gz", prompt="liver")  # doctest: +SKIP

The names below are loaded when first used, so that importing the package costs nothing: 3D Slicer
imports it in its own Python, where PyTorch may not even be installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from XAICLIPLib.errors import InputError
    from XAICLIPLib.explanation import Explanation
    from XAICLIPLib.imaging import read_volume
    from XAICLIPLib.pipeline import explain

__version__ = "0.1.0"

__all__ = ["Explanation", "InputError", "__version__", "explain", "read_volume"]

_HOME = {
    "Explanation": "explanation",
    "InputError": "errors",
    "explain": "pipeline",
    "read_volume": "imaging",
}
"""The module in which each public name lives."""


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(set(globals()) | set(__all__))
