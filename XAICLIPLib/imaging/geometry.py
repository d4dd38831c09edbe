"""Grids: where the voxels of a volume lie, and moving a volume to another grid.

`SimpleITK.Image` is LPS in mm; affines are RAS in mm, as in nibabel and MONAI. Used through
`XAICLIPLib.imaging`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from XAICLIPLib.errors import InputError

if TYPE_CHECKING:
    from monai.data.meta_tensor import MetaTensor

VOXELS_AT_ONCE = 2**24
"""So many voxels of a label map are resampled at once: what every label has of each is a float."""

DIRECTION_TOLERANCE = 1e-3
"""How far the axes may be from orthonormal: files round them to four digits or more."""


def same_geometry(a: sitk.Image, b: sitk.Image, tolerance_mm: float = 1e-3) -> bool:
    """Whether two volumes have the same size, and their corners lie within ``tolerance_mm`` of each other."""
    if a.GetDimension() != b.GetDimension() or a.GetSize() != b.GetSize():
        return False
    ends = [(0, n - 1) for n in a.GetSize()]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, len(ends))
    distances = [
        math.dist(
            a.TransformContinuousIndexToPhysicalPoint(corner),
            b.TransformContinuousIndexToPhysicalPoint(corner),
        )
        for corner in corners.astype(float).tolist()
    ]
    return max(distances) <= tolerance_mm


def corners(size: Sequence[int], affine: NDArray[Any]) -> NDArray[Any]:
    """Positions of the centres of a grid's eight corner voxels, in mm: (8, 3)."""
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij"), -1).reshape(-1, 3)
    return np.asarray(ends @ affine[:3, :3].T + affine[:3, 3])


def orthonormality_error(affine: NDArray[Any]) -> float:
    """How far the axes of an affine are from right angles: the largest cosine between two of them."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / np.where(lengths > 0, lengths, 1.0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def nearest_orthonormal(affine: NDArray[Any], size: Sequence[int]) -> tuple[NDArray[Any], float]:
    """The nearest affine whose axes are at right angles [1]_, and how far it moves a voxel of a grid at most, in mm.

    The lengths of the axes and the middle of the grid stay the same. An affine whose axes are at right angles within
    the precision of float32 is returned unchanged.

    References
    ----------
    .. [1] Higham, Computing the polar decomposition, SIAM J. Sci. Stat. Comput. 7, 1986.
    """
    if orthonormality_error(affine) <= 1e-6:
        return affine, 0.0
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / lengths)
    orthonormal = affine.copy()
    orthonormal[:3, :3] = left @ right * lengths
    orthonormal[:3, 3] += (affine[:3, :3] - orthonormal[:3, :3]) @ (np.array(size[:3]) - 1) / 2
    moved_mm = np.linalg.norm(corners(size[:3], affine) - corners(size[:3], orthonormal), axis=1)
    return orthonormal, float(moved_mm.max())


def volume_ml(mask: sitk.Image) -> float:
    """Volume of a mask's voxels that are not 0, in ml."""
    return float(np.count_nonzero(sitk.GetArrayViewFromImage(mask)) * np.prod(mask.GetSpacing()) / 1000)


def ras_affine(image: sitk.Image) -> NDArray[Any]:
    """Voxel index (x, y, z) to RAS mm as a 4×4 float64 matrix: nibabel's and MONAI's affine."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1  # LPS to RAS
    return affine


def box_mask(image: sitk.Image, bounds_ras_mm: Sequence[float]) -> sitk.Image:
    """The voxels of a volume whose centres lie in a box.

    Parameters
    ----------
    image : SimpleITK.Image
        3D volume of any orientation.
    bounds_ras_mm : six floats
        From and to along right, anterior and superior, in mm: as 3D Slicer shows positions and ROIs.

    Returns
    -------
    SimpleITK.Image
        uint8, in the grid of `image`.
    """
    affine = ras_affine(image)
    x, y, z = (np.arange(n, dtype=np.float64) for n in image.GetSize())
    inside = np.ones(image.GetSize()[::-1], dtype=bool)
    for row, (low, high) in zip(affine[:3], zip(bounds_ras_mm[::2], bounds_ras_mm[1::2], strict=True), strict=True):
        position = (row[2] * z)[:, None, None] + (row[1] * y)[:, None] + row[0] * x + row[3]
        inside &= (position >= low) & (position <= high)
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    mask.CopyInformation(image)
    return mask


def as_metatensor(image: sitk.Image) -> MetaTensor:
    """Convert a volume to a tensor of MONAI.

    Parameters
    ----------
    image : SimpleITK.Image
        3D, with one or several components per pixel.

    Returns
    -------
    monai.data.MetaTensor
        float32 of shape (C, X, Y, Z), a channel for each component, with an RAS affine, as ``LoadImage`` gives it.
    """
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.utils.enums import MetaKeys, SpaceKeys

    array = sitk.GetArrayViewFromImage(image)
    channels = array.transpose(3, 2, 1, 0) if array.ndim == 4 else array.transpose(2, 1, 0)[None]
    affine = torch.from_numpy(ras_affine(image))
    meta: dict[Any, Any] = {
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_AFFINE: affine.clone(),
        MetaKeys.SPATIAL_SHAPE: np.array(image.GetSize()),
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
    }
    return MetaTensor(torch.from_numpy(np.array(channels, np.float32, order="C")), affine=affine, meta=meta)


def image_from_array(array_xyz: NDArray[Any], affine_ras: NDArray[Any]) -> sitk.Image:
    """Make a volume from an array (X, Y, Z) and its RAS affine (4×4, mm): the inverse of `ras_affine`.

    Booleans become uint8 and half precision float32.

    Raises
    ------
    InputError
        The array is not 3D or the affine is sheared or degenerate.
    """
    array = np.asarray(array_xyz)
    if array.ndim != 3:
        raise InputError(f"The array has {array.ndim} axes, a volume has 3 (X, Y, Z).")
    if array.dtype.kind in "bf" and array.dtype.itemsize < 4:
        array = array.astype(np.uint8 if array.dtype.kind == "b" else np.float32)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine_ras, dtype=float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / np.where(spacing > 0, spacing, 1.0)
    if not orthonormality_error(affine) <= DIRECTION_TOLERANCE:
        raise InputError("The affine is sheared or degenerate: its axes are not at right angles.")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetDirection(axes.ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def resample_like(
    image: sitk.Image,
    reference: sitk.Image,
    interpolation: Literal["linear", "nearest"] = "linear",
    outside: float = 0.0,
    antialias: bool = False,
) -> sitk.Image:
    """Resample a volume into exactly the grid of another.

    Parameters
    ----------
    image, reference : SimpleITK.Image
        3D volumes; of `reference` only the grid is used.
    interpolation : {"linear", "nearest"}
        Linear gives float32; nearest keeps the type of `image`.
    outside : float
        Value where `reference` reaches beyond `image`.
    antialias : bool
        Blur first along the axes of `image` where the grid of `reference` is coarser (linear only):
        a Gaussian of variance (coarse² − fine²) / (2 √(2 ln 2))² [1]_.

    References
    ----------
    .. [1] Cardoso et al., Scale factor point spread function matching, MICCAI 2015.
    """
    linear = interpolation == "linear"
    if linear and antialias:  # cast for the blur alone: the interpolation reads any type, and a whole body is large
        image = _blurred(sitk.Cast(image, sitk.sitkFloat32), reference)
    resampled = sitk.Resample(
        image,
        reference,
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkLinear if linear else sitk.sitkNearestNeighbor,
        outside,
        sitk.sitkFloat32 if linear else image.GetPixelID(),
    )
    return without_metadata(resampled)


def resample_labels(label_map: sitk.Image, reference: sitk.Image) -> sitk.Image:
    """Resample a label map into exactly the grid of another volume, with smooth borders.

    Each label's membership is interpolated linearly. Where the memberships of all labels sum to more than half, the
    label with the largest one is taken, so that there is no gap of background between labels that touch. (Nearest
    neighbour would give the labels of a coarse network borders like stairs.) The result has the type of `label_map`,
    and is 0 outside it.
    """
    if same_geometry(label_map, reference):
        same = sitk.Image(label_map)
        same.CopyInformation(reference)
        return without_metadata(same)
    from scipy.ndimage import find_objects  # here alone: Slicer's own Python need not have it

    labels = sitk.GetArrayViewFromImage(label_map)
    own = {value + 1: box for value, box in enumerate(find_objects(labels)) if box is not None}
    near = {value: _box_around(box, label_map, reference) for value, box in own.items()}
    across, along = int(np.prod(reference.GetSize()[:2])), reference.GetSize()[2]
    result = np.zeros((along, *reference.GetSize()[1::-1]), labels.dtype)
    slices = max(1, VOXELS_AT_ONCE // across)
    for first in range(0, along, slices):
        slab = np.array([0, 0, first]), np.array([*reference.GetSize()[:2], min(first + slices, along)])
        shape = (int(slab[1][2]) - first, *result.shape[1:])
        best, total = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        part = result[first : first + slices]
        for value, (low, high) in near.items():
            low, high = np.maximum(low, slab[0]), np.minimum(high, slab[1])
            if not (low < high).all():
                continue
            part_grid = sitk.RegionOfInterest(reference, (high - low).tolist(), low.tolist())
            membership = sitk.GetArrayFromImage(resample_like(_membership(label_map, value, own[value]), part_grid))
            voxels = tuple(slice(a, b) for a, b in zip((low - slab[0])[::-1], (high - slab[0])[::-1], strict=True))
            stronger = membership > best[voxels]
            part[voxels][stronger] = value
            best[voxels][stronger] = membership[stronger]
            total[voxels] += membership
        part[total <= 0.5] = 0
    image = sitk.GetImageFromArray(result)
    image.CopyInformation(reference)
    return image


def _membership(label_map: sitk.Image, value: int, box: tuple[slice, ...]) -> sitk.Image:
    """1 where a label map has a value, in the box (z, y, x) that holds it and two voxels around it."""
    sides = zip(box[::-1], label_map.GetSize(), strict=True)
    low, high = zip(*((max(0, side.start - 2), min(size, side.stop + 2)) for side, size in sides), strict=True)
    return sitk.RegionOfInterest(label_map, [b - a for a, b in zip(low, high, strict=True)], low) == value


def _box_around(
    box: tuple[slice, ...], image: sitk.Image, reference: sitk.Image
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Box (x, y, z from, to) of the reference's voxels within one voxel of a box (z, y, x) of the image."""
    ends = [(side.start - 1, side.stop) for side in box[::-1]]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3).astype(float).tolist()
    positions = [
        reference.TransformPhysicalPointToContinuousIndex(image.TransformContinuousIndexToPhysicalPoint(c))
        for c in corners
    ]
    low = np.maximum(np.floor(np.min(positions, axis=0)).astype(np.int64), 0)
    high = np.minimum(np.ceil(np.max(positions, axis=0)).astype(np.int64) + 1, reference.GetSize())
    return low, high


def _blurred(image: sitk.Image, reference: sitk.Image) -> sitk.Image:
    fine = np.array(image.GetSpacing())
    rotation = np.reshape(image.GetDirection(), (3, 3)).T @ np.reshape(reference.GetDirection(), (3, 3))
    coarse = np.abs(rotation) @ np.array(reference.GetSpacing())
    variance = np.maximum(coarse**2 - fine**2, 0) / (8 * math.log(2))
    # A blur of less than a tenth of a voxel would only add rounding errors.
    variance[variance < (0.1 * fine) ** 2] = 0
    if not variance.any():
        return image
    return sitk.DiscreteGaussian(image, variance.tolist(), 64, 0.001, True)


def standard_axial(image: sitk.Image, spacing_mm: float | tuple[float, float, float]) -> sitk.Image:
    """Resample a copy of a volume to axial slices in the radiologists' orientation.

    Parameters
    ----------
    image : SimpleITK.Image
        3D volume of any orientation.
    spacing_mm : float or (float, float, float)
        New spacing along left, posterior and superior.

    Returns
    -------
    SimpleITK.Image
        float32, index axes nearest to L, P, S (an oblique volume stays oblique), covering the same
        box; anti-aliased where it gets coarser.
    """
    turned = sitk.DICOMOrient(image, "LPS")
    old = np.array(turned.GetSpacing())
    new = np.broadcast_to(np.asarray(spacing_mm, dtype=float), (3,))
    size = np.maximum(np.round(np.array(turned.GetSize()) * old / new), 1).astype(int)
    grid = sitk.Image(size.tolist(), sitk.sitkUInt8)
    grid.SetSpacing(new.tolist())
    grid.SetDirection(turned.GetDirection())
    # Both boxes have the same centre.
    shift = (np.array(turned.GetSize()) - 1) * old / 2 - (size - 1) * new / 2
    axes = np.reshape(turned.GetDirection(), (3, 3))
    grid.SetOrigin((np.array(turned.GetOrigin()) + axes @ shift).tolist())
    outside = float(sitk.GetArrayViewFromImage(turned).min())
    return resample_like(turned, grid, "linear", outside, antialias=True)


def without_metadata(image: sitk.Image) -> sitk.Image:
    """Copy an image without its metadata, where file formats may keep patient identifiers."""
    clean = sitk.Image(image)
    for key in clean.GetMetaDataKeys():
        clean.EraseMetaData(key)
    return clean
