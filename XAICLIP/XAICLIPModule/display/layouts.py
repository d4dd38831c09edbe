"""Two explanations side by side and back, and a table in a view of its own."""

from __future__ import annotations

from typing import Any

import slicer
import vtk

from XAICLIPModule.scene.results import SEGMENTATION_ROLE

LEFT, RIGHT = "Red", "Yellow"
"""Slice views of Slicer's side-by-side layout."""


def showTable(tableNode: Any) -> None:
    """Show a table in a table view; without a main window there is none."""
    manager = slicer.app.layoutManager()
    if manager is None:
        return
    # The layout makes the view, which would stay empty if the table were chosen before.
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpTableView)
    logic = slicer.app.applicationLogic()
    logic.GetSelectionNode().SetActiveTableID(tableNode.GetID())
    logic.PropagateTableSelection()


class SideBySide:
    """Shows two explanations in two axial slice views, linked, and gives back what was shown before."""

    def __init__(self) -> None:
        self._before: dict[str, Any] | None = None
        self._contours: list[tuple[Any, tuple[str, ...]]] = []  # display nodes, and the views they were limited to

    @property
    def isShown(self) -> bool:
        """Whether two explanations are shown side by side."""
        return self._before is not None

    def show(self, left: tuple[Any, Any], right: tuple[Any, Any], opacity: float) -> None:
        """Show (volume, saliency) on the left and on the right."""
        manager = slicer.app.layoutManager()
        self._release()
        if self._before is None:
            self._before = {"layout": manager.layout if manager is not None else None, "views": self._state()}
        if manager is not None:
            manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView)
        for name, (volumeNode, saliencyNode) in ((LEFT, left), (RIGHT, right)):
            composite, view = _composite(name), _slice(name)
            if composite is None or view is None:
                continue
            composite.SetLinkedControl(False)
            composite.SetBackgroundVolumeID(volumeNode.GetID() if volumeNode is not None else None)
            composite.SetForegroundVolumeID(saliencyNode.GetID())
            composite.SetForegroundOpacity(opacity)
            view.SetOrientationToAxial()
            self._limit(saliencyNode, view)
        first, second = _slice(LEFT), _slice(RIGHT)
        if first is not None and second is not None:
            second.SetFieldOfView(*first.GetFieldOfView())
            second.JumpSlice(*[first.GetSliceToRAS().GetElement(i, 3) for i in range(3)])
        # Only now, or the volumes of one would be given to the other.
        for name in (LEFT, RIGHT):
            if _composite(name) is not None:
                _composite(name).SetLinkedControl(True)

    def giveBack(self) -> None:
        """Show again what was shown before."""
        before, self._before = self._before, None
        self._release()
        if before is None:
            return
        for name, (background, foreground, opacity, linked, sliceToRas, fieldOfView) in before["views"].items():
            composite, view = _composite(name), _slice(name)
            if composite is None or view is None:
                continue
            composite.SetLinkedControl(False)
            composite.SetBackgroundVolumeID(_known(background))
            composite.SetForegroundVolumeID(_known(foreground))
            composite.SetForegroundOpacity(opacity)
            view.GetSliceToRAS().DeepCopy(sliceToRas)  # not the orientation by its name: an oblique one has none
            view.UpdateMatrices()
            view.SetFieldOfView(*fieldOfView)
            composite.SetLinkedControl(linked)
        manager = slicer.app.layoutManager()
        if manager is not None and before["layout"] is not None:
            manager.setLayout(before["layout"])

    def forget(self) -> None:
        """Take what is shown now for what the user wants."""
        self._before = None
        self._release()

    def _limit(self, saliencyNode: Any, view: Any) -> None:
        """Draw the contours of an explanation in its own view alone: those of the other are not about this map."""
        segmentation = saliencyNode.GetNodeReference(SEGMENTATION_ROLE)
        display = segmentation.GetDisplayNode() if segmentation is not None else None
        if display is not None:
            self._contours.append((display, tuple(display.GetViewNodeIDs() or ())))
            display.SetViewNodeIDs([view.GetID()])

    def _release(self) -> None:
        contours, self._contours = self._contours, []
        for display, views in contours:
            display.SetViewNodeIDs(list(views))

    def _state(self) -> dict[str, tuple[Any, ...]]:
        return {
            name: (
                composite.GetBackgroundVolumeID(),
                composite.GetForegroundVolumeID(),
                composite.GetForegroundOpacity(),
                composite.GetLinkedControl(),
                _copy(_slice(name).GetSliceToRAS()),
                tuple(_slice(name).GetFieldOfView()),
            )
            for name in (LEFT, RIGHT)
            if (composite := _composite(name)) is not None and _slice(name) is not None
        }


def _copy(matrix: Any) -> Any:
    copy = vtk.vtkMatrix4x4()
    copy.DeepCopy(matrix)
    return copy


def _known(nodeId: str | None) -> str | None:
    return nodeId if nodeId and slicer.mrmlScene.GetNodeByID(nodeId) else None


def _composite(name: str) -> Any:
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return next((node for node in composites if node.GetLayoutName() == name), None)


def _slice(name: str) -> Any:
    views = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    return next((node for node in views if node.GetLayoutName() == name), None)
