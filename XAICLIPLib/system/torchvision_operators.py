"""Importing packages that import torchvision, where its compiled operators do not match torch."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

_kept_alive: list[Any] = []


def import_without_operators(name: str) -> ModuleType:
    """Import a module that needs none of torchvision's compiled operators, though torchvision insists on them.

    A torchvision built for CUDA beside a CPU torch (a frequent accident in Slicer) fails to import because its
    operators are not registered. For a module that uses none of them, it is enough to declare
    their schemas, which is done only after exactly that error.

    Parameters
    ----------
    name
        Absolute name of the module.
    """
    for operator in ("nms", "qnms"):
        try:
            return importlib.import_module(name)
        except RuntimeError as error:
            if f"torchvision::{operator}" not in str(error):
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _kept_alive.append(library)
    return importlib.import_module(name)
