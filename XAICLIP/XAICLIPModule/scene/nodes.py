"""Nodes that may have left the scene since they were chosen."""

from __future__ import annotations

from typing import Any

import slicer


def isInScene(node: Any) -> bool:
    """Whether there is a node, and it is still in the scene."""
    return node is not None and slicer.mrmlScene.GetNodeByID(node.GetID() or "") is node
