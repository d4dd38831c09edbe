"""Loading open_clip, and image-text models from a name, a Hugging Face id or a folder."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

_kept_alive: list[Any] = []


def import_open_clip() -> ModuleType:
    """Import open_clip, also where torchvision's compiled operators do not match torch.

    A torchvision built for CUDA beside a CPU torch (a frequent accident in Slicer) fails to import because its
    operators are not registered. open_clip uses none of them, so declaring their schemas is enough; it is done only
    after that very error.
    """
    for operator in ("nms", "qnms"):
        try:
            return importlib.import_module("open_clip")
        except RuntimeError as error:
            if f"torchvision::{operator}" not in str(error):
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _kept_alive.append(library)
    return importlib.import_module("open_clip")
