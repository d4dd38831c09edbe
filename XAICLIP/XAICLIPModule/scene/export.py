"""MRML nodes → images for the worker: the scan, and what the user drew on it, in the scan's own space.

A volume keeps its voxels in its own RAS space; a parent transform moves that space in the world. The worker gets the
own space and never hears of the transform, and what it returns is put under the same transform (`results`). So nothing
is resampled, and results lie exactly on the scan. Segments and boxes may be under other transforms: they are brought
into the scan's grid here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from numpy.typing import NDArray
from slicer.i18n import tr as _

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPModule.live import nrrd
from XAICLIPModule.live.nodes import isInScene
from XAICLIPModule.live.turns import Work, slabs

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def imageFromVolume(volumeNode: Any, beside: Any = None) -> sitk.Image:
    """The voxels of a scalar volume in its own space (LPS, mm), checked; parent transforms are not applied.

    Parameters
    ----------
    volumeNode
        vtkMRMLScalarVolumeNode.
    beside
        Another one, whose own space is taken instead: the two lie to each other as they do in the world.

    Raises
    ------
    InputError
        The volume is empty, no scalar 3D volume, or under a transform that bends or shears it.
    """
    grid = _gridOf(volumeNode, beside)
    array = slicer.util.arrayFromVolume(volumeNode)
    image = sitk.GetImageFromArray(array, isVector=array.ndim > 3)  # copies
    image.SetSpacing(grid.GetSpacing())
    image.SetOrigin(grid.GetOrigin())
    image.SetDirection(grid.GetDirection())
    imaging.check_volume(image, _("the volume {name}").format(name=volumeNode.GetName()))
    return image


def writeVolume(volumeNode: Any, path: Path, beside: Any = None) -> Work:
    """Write the voxels of a scalar volume for the worker, as `imageFromVolume` gives them; the path is what it returns.

    Raises
    ------
    InputError
        As of `imageFromVolume` and `writeImage`, or the volume was removed meanwhile.
    """
    name = _("the volume {name}").format(name=volumeNode.GetName())
    grid = _gridOf(volumeNode, beside)
    array = slicer.util.arrayFromVolume(volumeNode)
    imaging.check_grid(grid, name, volumeNode.GetImageData().GetDimensions())
    low, high, bad = np.inf, -np.inf, 0
    try:
        with path.open("wb") as file:
            nrrd.begin(file, array.dtype, grid, volumeNode.GetImageData().GetDimensions())
            for at in slabs(array):
                if not isInScene(volumeNode):
                    raise InputError(_("No volume is chosen: load a scan and choose it."))
                part = array[at]
                low, high = min(low, float(part.min())), max(high, float(part.max()))
                if array.dtype.kind == "f":
                    bad += part.size - int(np.count_nonzero(np.isfinite(part)))
                file.write(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).data)
                if at.stop < len(array):
                    yield
    except OSError as error:
        raise InputError(_notWritable(path.parent)) from error
    imaging.check_intensities(low, high, bad, array.size, name)
    return path


def _gridOf(volumeNode: Any, beside: Any = None) -> sitk.Image:
    """A small image of the kind and in the own space (LPS, mm) of a volume, or in that of another beside it."""
    if volumeNode.GetImageData() is None or volumeNode.GetImageData().GetNumberOfPoints() == 0:
        raise InputError(_("The volume {name} has no voxels: choose another one.").format(name=volumeNode.GetName()))
    checkTransform(volumeNode)
    array = slicer.util.arrayFromVolume(volumeNode)
    small = sitk.GetImageFromArray(np.zeros((2, 2, 2, *array.shape[3:]), array.dtype), isVector=array.ndim > 3)
    toRas = matrixFromVolume(volumeNode)
    if beside is not None and beside.GetParentTransformNode() is not volumeNode.GetParentTransformNode():
        checkTransform(beside)
        toRas = np.linalg.inv(worldFromOwn(beside)) @ worldFromOwn(volumeNode) @ toRas
        checkAxes(toRas, volumeNode)
    toLps = LPS_RAS @ toRas
    spacing = np.linalg.norm(toLps[:3, :3], axis=0)
    small.SetSpacing([float(s) for s in spacing])
    small.SetOrigin([float(v) for v in toLps[:3, 3]])
    small.SetDirection([float(v) for v in (toLps[:3, :3] / spacing).ravel()])
    return small


def _notWritable(folder: Path) -> str:
    return _("The temporary folder {folder} cannot be written: free some space on that disk.").format(folder=folder)


def matrixFromVolume(volumeNode: Any) -> NDArray[np.float64]:
    """4 × 4 matrix from voxel indices (i, j, k) to the volume's own RAS space in mm."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return np.asarray(slicer.util.arrayFromVTKMatrix(matrix), dtype=float)


def worldFromOwn(volumeNode: Any) -> NDArray[np.float64]:
    """4 × 4 matrix from a volume's own RAS space to the world; its parent transform is linear, or there is none."""
    matrix = vtk.vtkMatrix4x4()
    parent = volumeNode.GetParentTransformNode()
    if parent is not None:
        parent.GetMatrixTransformToWorld(matrix)
    return np.asarray(slicer.util.arrayFromVTKMatrix(matrix), dtype=float)


def checkAxes(toRas: NDArray[np.float64], volumeNode: Any) -> None:
    """Refuse a grid whose axes are not at right angles, which a transform has sheared.

    Raises
    ------
    InputError
        With the way out.
    """
    axes = toRas[:3, :3] / np.linalg.norm(toRas[:3, :3], axis=0)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        raise InputError(
            _(
                "The volume {name} is sheared against the scan by a transform: resample it to the scan first (Resample "
                "Scalar/Vector/DWI Volume)."
            ).format(name=volumeNode.GetName())
        )


def checkTransform(volumeNode: Any) -> None:
    """Refuse a volume under a transform that is not linear: results could not be laid over it.

    Raises
    ------
    InputError
        With the way out.
    """
    parent = volumeNode.GetParentTransformNode()
    if parent is not None and not parent.IsTransformToWorldLinear():
        raise InputError(
            _(
                "The volume {name} is under the non-linear transform {transform}: harden the transform (Transforms "
                "module) or take the volume out of it first."
            ).format(name=volumeNode.GetName(), transform=parent.GetName())
        )


def writeImage(image: sitk.Image, path: Path) -> Path:
    """Write an image for the worker, uncompressed: it is read once, on the same machine.

    Raises
    ------
    InputError
        The disk is full or not writable.
    """
    try:
        sitk.WriteImage(image, str(path), useCompression=False)
    except RuntimeError as error:
        raise InputError(_notWritable(path.parent)) from error
    return path


def maskFromSegment(segmentationNode: Any, segmentId: str, volumeNode: Any) -> sitk.Image:
    """A segment as a uint8 mask in the grid of a volume.

    Raises
    ------
    InputError
        There is no such segment, or nothing of it lies inside the volume.
    """
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId) if segmentId else None
    if segment is None:
        raise InputError(
            _("The segmentation {name} has no segment to use: draw one, or choose another.").format(
                name=segmentationNode.GetName()
            )
        )
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentationNode, segmentId, volumeNode)
    return _mask(mask != 0, volumeNode, _("the segment {name}").format(name=segment.GetName()))


def maskFromBox(roiNode: Any, volumeNode: Any) -> sitk.Image:
    """The voxels whose centres lie in a markups ROI, as a uint8 mask in the grid of a volume.

    The ROI may be turned and either may be under linear transforms.

    Raises
    ------
    InputError
        The ROI has no size yet, or nothing of it lies inside the volume.
    """
    name = _("the box {name}").format(name=roiNode.GetName())
    size = np.asarray(roiNode.GetSize(), dtype=float)
    if roiNode.GetNumberOfControlPoints() == 0 or not (size > 0).all():
        raise InputError(_("The box {name} is not placed yet: draw it around a part of the scan.").format(name=name))
    checkTransform(volumeNode)
    toBox = _inverse(roiNode.GetObjectToWorldMatrix()) @ worldFromVolume(volumeNode)
    shape = tuple(reversed(volumeNode.GetImageData().GetDimensions()))
    mask = np.zeros(shape, dtype=bool)
    corners = np.array([[sx, sy, sz, 1.0] for sx in (-1, 1) for sy in (-1, 1) for sz in (-1, 1)])
    corners[:, :3] *= size / 2
    indices = (corners @ np.linalg.inv(toBox).T)[:, :3]
    low = np.maximum(np.floor(indices.min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(indices.max(axis=0)) + 1, shape[::-1]).astype(int)
    if (low < high).all():
        i, j, k = (np.arange(a, b) for a, b in zip(low, high, strict=True))
        inside = np.ones((len(k), len(j), len(i)), dtype=bool)
        for axis in range(3):
            a, b, c, d = toBox[axis]
            place = (c * k)[:, None, None] + (b * j)[None, :, None] + (a * i)[None, None, :] + d
            inside &= np.abs(place) <= size[axis] / 2
        mask[low[2] : high[2], low[1] : high[1], low[0] : high[0]] = inside
    return _mask(mask, volumeNode, name)


def worldFromVolume(volumeNode: Any) -> NDArray[np.float64]:
    """4 × 4 matrix from voxel indices to world RAS, linear parent transforms included."""
    toWorld = np.eye(4)
    parent = volumeNode.GetParentTransformNode()
    if parent is not None:
        matrix = vtk.vtkMatrix4x4()
        parent.GetMatrixTransformToWorld(matrix)
        toWorld = np.asarray(slicer.util.arrayFromVTKMatrix(matrix), dtype=float)
    product: NDArray[np.float64] = toWorld @ matrixFromVolume(volumeNode)
    return product


def _inverse(matrix: Any) -> NDArray[np.float64]:
    inverse: NDArray[np.float64] = np.linalg.inv(np.asarray(slicer.util.arrayFromVTKMatrix(matrix), dtype=float))
    return inverse


def _mask(mask: NDArray[np.bool_], volumeNode: Any, name: str) -> sitk.Image:
    if not mask.any():
        raise InputError(
            _("Nothing of {mask} lies inside the volume {volume}: draw it on that volume.").format(
                mask=name, volume=volumeNode.GetName()
            )
        )
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.CopyInformation(grid(volumeNode))
    return image


def grid(volumeNode: Any) -> sitk.Image:
    """An image without content in the grid of a volume."""
    toLps = LPS_RAS @ matrixFromVolume(volumeNode)
    spacing = np.linalg.norm(toLps[:3, :3], axis=0)
    grid = sitk.Image(volumeNode.GetImageData().GetDimensions(), sitk.sitkUInt8)
    grid.SetSpacing([float(s) for s in spacing])
    grid.SetOrigin([float(v) for v in toLps[:3, 3]])
    grid.SetDirection([float(v) for v in (toLps[:3, :3] / spacing).ravel()])
    return grid
