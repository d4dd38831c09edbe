"""Pictures of Slicer's views without a window: slice and 3D views, drawn by Slicer's own displayable managers.

slicer-core has all of Slicer's drawing but the Qt widgets around it, so this is what a user would see in the views:
volumes blended with their colours, segments, legends, markups. Needs OpenGL off screen, which Mesa gives through EGL.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

ORIENTATIONS = ("Axial", "Coronal", "Sagittal")
SLICE_MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLColorLegendDisplayableManager",
)
VIEW_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLColorLegendDisplayableManager",
)


class _Window:
    """A render window off screen with the displayable managers of one kind of view."""

    def __init__(self, size: tuple[int, int], factory: Any, managers: Sequence[str]) -> None:
        self.renderer = vtk.vtkRenderer()
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(True)
        self.window.SetSize(*size)
        self.window.SetMultiSamples(0)
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.interactor.Initialize()
        factory.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        for name in managers:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self.group = factory.InstantiateDisplayableManagers(self.renderer)
        self.group.UnRegister(None)

    def picture(self) -> vtk.vtkImageData:
        """What the window shows, RGB."""
        self.window.Render()
        grabber = vtk.vtkWindowToImageFilter()
        grabber.SetInput(self.window)
        grabber.ReadFrontBufferOff()
        grabber.Update()
        return grabber.GetOutput()

    def close(self) -> None:
        """Let the scene's observers go before the window does."""
        self.group.SetMRMLDisplayableNode(None)
        self.window.Finalize()


def slice_view(name: str, orientation: str, size: tuple[int, int] = (500, 500), offset: float | None = None) -> Any:
    """A picture of one slice view.

    Parameters
    ----------
    name
        Of the view, such as "Red". Its composite node says which volumes are shown: `slicer.util.setSliceViewerLayers`.
    orientation
        "Axial", "Coronal" or "Sagittal".
    size
        Width and height, pixels.
    offset
        Position of the slice along its normal, RAS mm; None for the centre of the background volume.

    Returns
    -------
    vtkImageData
        RGB.
    """
    logic = slicer.app.applicationLogic().GetSliceLogicByLayoutName(name)
    if logic is None:
        raise ValueError(f"There is no slice view named '{name}': the layout manager makes Red, Green and Yellow.")
    factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
    shown = _Window(size, factory, SLICE_MANAGERS)
    node = logic.GetSliceNode()
    node.SetOrientation(orientation)
    shown.renderer.GetActiveCamera().ParallelProjectionOn()
    logic.ResizeSliceNode(*size)
    logic.FitSliceToBackground()
    logic.SnapSliceOffsetToIJK()
    if offset is not None:
        logic.SetSliceOffset(offset)
    shown.group.SetMRMLDisplayableNode(node)
    _notice_legends(logic.GetSliceCompositeNode())
    # The blended layers come as 8 bit colours: the mapper leaves them as they are.
    mapper, actor = vtk.vtkImageMapper(), vtk.vtkActor2D()
    mapper.SetColorWindow(255)
    mapper.SetColorLevel(127.5)
    connection = logic.GetImageDataConnection()
    if connection is not None:
        mapper.SetInputConnection(connection)
        actor.SetMapper(mapper)
        actor.GetProperty().SetDisplayLocationToBackground()
        shown.renderer.AddViewProp(actor)
    picture = shown.picture()
    shown.close()
    return picture


def _notice_legends(composite: Any) -> None:
    """Tell a new view of legends older than itself: it would hear of them when the user changes a layer."""
    before = composite.GetInteractionFlags()
    composite.SetInteractionFlags(composite.ForegroundVolumeFlag)
    composite.Modified()
    composite.SetInteractionFlags(before)
    for legend in slicer.util.getNodesByClass("vtkMRMLColorLegendDisplayNode"):
        legend.Modified()


def view_3d(size: tuple[int, int] = (500, 500)) -> Any:
    """A picture of the 3D view, from the front: models, segments shown in 3D, markups; RGB."""
    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLViewNode")
    if node is None:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLViewNode")
        node.SetBoxVisible(False)
        node.SetAxisLabelsVisible(False)
    shown = _Window(size, slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(), VIEW_MANAGERS)
    shown.group.SetMRMLDisplayableNode(node)
    shown.window.Render()
    bounds = shown.renderer.ComputeVisiblePropBounds()
    camera = shown.renderer.GetActiveCamera()
    centre = [(bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3)]
    camera.SetFocalPoint(*centre)
    camera.SetPosition(centre[0], centre[1] + 500.0, centre[2])
    camera.SetViewUp(0.0, 0.0, 1.0)
    shown.renderer.ResetCamera(bounds)
    picture = shown.picture()
    shown.close()
    return picture


def write(path: Path, pictures: Sequence[Any]) -> None:
    """Write pictures of equal height beside each other as one PNG."""
    beside = vtk.vtkImageAppend()
    beside.SetAppendAxis(0)
    for picture in pictures:
        beside.AddInputData(picture)
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetInputConnection(beside.GetOutputPort())
    writer.Write()


def pixels(picture: Any) -> Any:
    """A picture as an array of uint8, shape (height, width, 3), first row on top."""
    width, height, _ = picture.GetDimensions()
    return vtk_to_numpy(picture.GetPointData().GetScalars()).reshape(height, width, -1)[::-1]
