"""A result leaves the scene with all that only it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import slicer
import vtk

from XAICLIPModule.display import saliency_display
from XAICLIPModule.display.saliency_display import SALIENCY_ATTRIBUTE
from XAICLIPModule.live.nodes import isInScene
from XAICLIPModule.scene.results import (
    ERROR_ROLE,
    MEASUREMENTS_ROLE,
    SEGMENTATION_ROLE,
    STRUCTURES_ROLE,
    SURFACE_ROLE,
)

ROLES = (
    SEGMENTATION_ROLE,
    MEASUREMENTS_ROLE,
    STRUCTURES_ROLE,
    ERROR_ROLE,
    SURFACE_ROLE,
    saliency_display.COLOURS_ROLE,
)


@dataclass(frozen=True)
class Belongings:
    """What belongs to one result alone: nodes, and its folder in the subject hierarchy (0 for none)."""

    nodes: tuple[Any, ...]
    folder: int

    def remove(self) -> None:
        """Remove them, as far as they are still in the scene; the folder where nothing else is in it."""
        for node in self.nodes:
            if isInScene(node):
                slicer.mrmlScene.RemoveNode(node)
        _removeFolder(self.folder)


def belongingsOf(saliencyNode: Any) -> Belongings:
    """What belongs to a saliency volume that is still in the scene; what a copy of it needs too does not."""
    others = [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        if node is not saliencyNode and node.GetAttribute(SALIENCY_ATTRIBUTE)
    ]
    needed = {other.GetNodeReferenceID(role) for other in others for role in ROLES}
    own = [saliencyNode.GetNodeReference(role) for role in ROLES]
    nodes = [node for node in own if node is not None and node.GetID() not in needed]
    displays = [
        node.GetNthDisplayNode(index)
        for node in (saliencyNode, *nodes)
        if node.IsA("vtkMRMLDisplayableNode")
        for index in range(node.GetNumberOfDisplayNodes())
    ]  # the legend is one of them
    return Belongings((*(node for node in displays if node is not None), *nodes), _folderOf(saliencyNode))


def remove(saliencyNode: Any) -> None:
    """Remove a result, or a map that came to nothing, with its belongings."""
    belongings = belongingsOf(saliencyNode)
    slicer.mrmlScene.RemoveNode(saliencyNode)
    belongings.remove()


def _folderOf(saliencyNode: Any) -> int:
    """The folder of the subject hierarchy that was made for a result; 0 where it lies elsewhere."""
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    if hierarchy is None:
        return 0
    parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(saliencyNode))
    folder = slicer.vtkMRMLSubjectHierarchyConstants.GetSubjectHierarchyLevelFolder()
    isFolder = parent and hierarchy.GetItemLevel(parent) == folder
    return int(parent) if isFolder and hierarchy.GetItemName(parent) == saliencyNode.GetName() else 0


def _removeFolder(folder: int) -> None:
    """Remove a folder of the subject hierarchy, where it still exists and nothing that exists is in it."""
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    if hierarchy is None or folder not in _children(hierarchy, hierarchy.GetSceneItemID(), deep=True):
        return
    left = _children(hierarchy, folder)
    if any(isInScene(hierarchy.GetItemDataNode(item)) or _children(hierarchy, item) for item in left):
        return
    for item in (*left, folder):
        hierarchy.RemoveItem(item, False, False)


def _children(hierarchy: Any, item: int, deep: bool = False) -> list[int]:
    ids = vtk.vtkIdList()
    hierarchy.GetItemChildren(item, ids, deep)
    return [ids.GetId(index) for index in range(ids.GetNumberOfIds())]
