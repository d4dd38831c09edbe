"""Of several explanations in a scene, those that are shown."""

from __future__ import annotations

from typing import Any

import slicer

from XAICLIPModule.display import saliency_display
from XAICLIPModule.display.saliency_display import SALIENCY_ATTRIBUTE
from XAICLIPModule.scene.results import SEGMENTATION_ROLE, SURFACE_ROLE


def showOnly(*chosen: Any) -> None:
    """Show the contours, segments and surfaces of some saliency volumes, and hide those of all others.

    Surfaces come back where they were shown before. Where a legend was shown, the first one's is shown now.
    """
    legendWasShown = False
    for saliency in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        if not saliency.GetAttribute(SALIENCY_ATTRIBUTE):
            continue
        isChosen = any(node is saliency for node in chosen)
        contours = _display(saliency, SEGMENTATION_ROLE)
        if contours is not None:
            contours.SetVisibility(isChosen)
        surface = _display(saliency, SURFACE_ROLE)
        if surface is not None:
            surface.SetVisibility(isChosen and (contours is None or bool(contours.GetVisibility3D())))
        legend = saliency_display.legend(saliency) if saliency.GetDisplayNode() is not None else None
        if legend is not None and legend.GetVisibility() and not isChosen:
            legendWasShown = True
            legend.SetVisibility(False)
    if legendWasShown and chosen and chosen[0].GetDisplayNode() is not None:
        saliency_display.showLegend(chosen[0], True)


def _display(saliencyNode: Any, role: str) -> Any:
    """The display node of one of a saliency's companions, or None."""
    node = saliencyNode.GetNodeReference(role)
    return node.GetDisplayNode() if node is not None else None
