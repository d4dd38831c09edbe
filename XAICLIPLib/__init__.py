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
    from XAICLIPLib.explainers.base import final
    from XAICLIPLib.explainers.lime import lime
    from XAICLIPLib.explainers.occlusion import occlusion
    from XAICLIPLib.explainers.rise import rise
    from XAICLIPLib.explanation import Explanation
    from XAICLIPLib.imaging import read_volume
    from XAICLIPLib.pipeline import explain
    from XAICLIPLib.scoring.scorer import Scorer
    from XAICLIPLib.scoring.target import Target
    from XAICLIPLib.segmentation.sliding_window import SlidingWindow, Tiling, predict_logits
    from XAICLIPLib.several.explain_each import explain_each

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "InputError",
    "Scorer",
    "SlidingWindow",
    "Target",
    "Tiling",
    "__version__",
    "explain",
    "explain_each",
    "final",
    "lime",
    "occlusion",
    "predict_logits",
    "read_volume",
    "rise",
]

_HOME = {
    # From files, names and words
    "explain": "pipeline",
    "explain_each": "several.explain_each",
    "Explanation": "explanation",
    "read_volume": "imaging",
    "InputError": "errors",
    # From tensors and a network of one's own
    "SlidingWindow": "segmentation.sliding_window",
    "Tiling": "segmentation.sliding_window",
    "predict_logits": "segmentation.sliding_window",
    "Target": "scoring.target",
    "Scorer": "scoring.scorer",
    "occlusion": "explainers.occlusion",
    "rise": "explainers.rise",
    "lime": "explainers.lime",
    "final": "explainers.base",
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
