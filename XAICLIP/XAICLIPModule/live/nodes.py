"""Nodes that may have left the scene since they were chosen."""

from __future__ import annotations

import math
from typing import Any

import slicer


def isInScene(node: Any) -> bool:
    """Whether there is a node, and it is still in the scene."""
    return node is not None and slicer.mrmlScene.GetNodeByID(node.GetID() or "") is node


def numberOf(node: Any, attribute: str) -> float | None:
    """An attribute that holds a number; None where it is missing, or is none: scenes come from strangers too."""
    try:
        number = float(node.GetAttribute(attribute) or "nan")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
