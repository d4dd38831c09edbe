"""Sample data: the library's synthetic torso, which belongs to nobody and needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from slicer.i18n import tr as _

from XAICLIPModule.scene.export import LPS_RAS

CATEGORY, SAMPLE = "XAI-CLIP", "XAICLIPPhantom"


def register(icons: Path) -> None:
    """Offer the torso in Slicer's Sample Data module, once: after a reload it would be there a second time."""
    import SampleData

    offered = getattr(slicer.modules, "sampleDataSources", {}).get(CATEGORY, [])
    if any(source.sampleName == SAMPLE for source in offered):
        return

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=SAMPLE,
        # Nothing is downloaded; the entries are there because every source has as many of each.
        uris="",
        fileNames=f"{SAMPLE}.nrrd",
        nodeNames=SAMPLE,
        customDownloader=lambda _source: [loadPhantom()],
        thumbnailFileName=str(icons / f"{SAMPLE}.png"),
    )


def loadPhantom(spacingMm: float = 3.0, size: tuple[int, int, int] | None = None) -> Any:
    """The synthetic torso as a new volume, shown in the slice views; takes some seconds.

    Parameters
    ----------
    spacingMm
        Edge of its voxels in mm.
    size
        Voxels along x, y and z around its middle; by default all of it.
    """
    from XAICLIPLib.imaging.phantom import torso_phantom  # only here: it takes SciPy, which is slow to import

    with slicer.util.WaitCursor():
        image = torso_phantom(spacing_mm=spacingMm, size=size).image
        node = volumeFromImage(image, _("Synthetic torso"))
    node.GetScalarVolumeDisplayNode().SetAutoWindowLevel(False)
    node.GetScalarVolumeDisplayNode().SetWindowLevel(400, 40)
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node


def volumeFromImage(image: sitk.Image, name: str) -> Any:
    """An image as a new volume node."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    toLps = np.eye(4)
    toLps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    toLps[:3, 3] = image.GetOrigin()
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy((LPS_RAS @ toLps).ravel().tolist())
    node.SetIJKToRASMatrix(matrix)
    slicer.util.updateVolumeFromArray(node, sitk.GetArrayFromImage(image))
    node.CreateDefaultDisplayNodes()
    return node
