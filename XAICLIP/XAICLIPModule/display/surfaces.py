"""Where a saliency is largest, and its surface beside the organ's in the 3D views."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from slicer.i18n import tr as _

from XAICLIPModule.display import saliency_display
from XAICLIPModule.live.map_place import placeOf
from XAICLIPModule.scene import export, results
from XAICLIPModule.scene.results import ExplanationNodes


def mostSalientPoint(saliencyNode: Any) -> tuple[float, float, float]:
    """World RAS (mm) of the voxel with the largest effect, of either sign."""
    peak, _bounds = placeOf(saliencyNode, slicer.util.arrayFromVolume(saliencyNode))
    r, a, s, _one = export.worldFromVolume(saliencyNode) @ [*peak, 1]
    return float(r), float(a), float(s)


def isInSight(saliencyNode: Any) -> bool:
    """Whether a slice view that shows a saliency cuts through the box of what has at least half of its largest effect.

    Without a slice view there is nothing to be moved: True.
    """
    _peak, bounds = placeOf(saliencyNode, slicer.util.arrayFromVolume(saliencyNode))
    corners = np.array([[i, j, k, 1.0] for i in bounds[0] for j in bounds[1] for k in bounds[2]])
    world = export.worldFromVolume(saliencyNode) @ corners.T
    shown = [view for view in slicer.util.getNodesByClass("vtkMRMLSliceNode") if _shows(view, saliencyNode)]
    return not shown or any(_cuts(view, world) for view in shown)


def _shows(view: Any, saliencyNode: Any) -> bool:
    logic = slicer.app.applicationLogic().GetSliceLogic(view) if view.IsMappedInLayout() else None
    composite = logic.GetSliceCompositeNode() if logic is not None else None
    return composite is not None and composite.GetForegroundVolumeID() == saliencyNode.GetID()


def _cuts(view: Any, world: NDArray[np.float64]) -> bool:
    """Whether the plane of a view goes through the box of these corners (4 × 8), within what the view shows of it."""
    toSlice = np.linalg.inv(slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS()))
    low, high = (toSlice @ world)[:3].min(axis=1), (toSlice @ world)[:3].max(axis=1)
    half = np.array([*view.GetFieldOfView()[:2], 0.0]) / 2
    return bool((low <= half).all() and (high >= -half).all())


def showIn3D(nodes: ExplanationNodes, shown: bool) -> Any:
    """Show or hide the target's surface and the surface where the saliency passes its threshold.

    Returns the model of the latter, or None where there is none to show.
    """
    if nodes.segmentation is not None:
        if shown:
            nodes.segmentation.CreateClosedSurfaceRepresentation()
            nodes.segmentation.GetDisplayNode().SetSegmentOpacity3D(results.TARGET_SEGMENT, 0.35)
        nodes.segmentation.GetDisplayNode().SetVisibility3D(shown)
    model = nodes.saliency.GetNodeReference(results.SURFACE_ROLE)
    if shown:
        model = _surface(nodes.saliency, model)
    if model is not None:
        model.CreateDefaultDisplayNodes()
        model.GetDisplayNode().SetVisibility(shown)
    return model


SURFACE_SHARE = 0.5
"""Of the window, at which the saliency's surface is drawn where the threshold is lower."""


def _surface(saliencyNode: Any, model: Any) -> Any:
    """The surface on which the saliency is half its largest value (or the threshold, where that is higher)."""
    level = max(SURFACE_SHARE, saliency_display.threshold(saliencyNode)) * float(
        np.abs(slicer.util.arrayFromVolume(saliencyNode)).max()
    )
    image = vtk.vtkImageData()
    image.ShallowCopy(saliencyNode.GetImageData())
    image.SetOrigin(0, 0, 0)
    image.SetSpacing(1, 1, 1)
    contour = vtk.vtkFlyingEdges3D()
    contour.SetInputData(image)
    contour.SetNumberOfContours(1)
    contour.SetValue(0, level)
    contour.ComputeNormalsOff()
    toRas = vtk.vtkTransform()
    matrix = vtk.vtkMatrix4x4()
    saliencyNode.GetIJKToRASMatrix(matrix)
    toRas.SetMatrix(matrix)
    moved = vtk.vtkTransformPolyDataFilter()
    moved.SetInputConnection(contour.GetOutputPort())
    moved.SetTransform(toRas)
    normals = vtk.vtkPolyDataNormals()  # after the transform, which may turn the surface inside out
    normals.SetInputConnection(moved.GetOutputPort())
    normals.ConsistencyOn()
    normals.AutoOrientNormalsOn()
    normals.Update()
    if normals.GetOutput().GetNumberOfPoints() == 0:
        return model
    if model is None:
        title = _("{name} surface").format(name=saliencyNode.GetName())
        model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", title)
        saliencyNode.SetNodeReferenceID(results.SURFACE_ROLE, model.GetID())
        model.CreateDefaultDisplayNodes()
        model.GetDisplayNode().SetColor(0.95, 0.5, 0.1)
        model.SetAndObserveTransformNodeID(saliencyNode.GetTransformNodeID())
        results.placeBeside(saliencyNode, None, [model])
    model.SetAndObservePolyData(normals.GetOutput())
    return model
