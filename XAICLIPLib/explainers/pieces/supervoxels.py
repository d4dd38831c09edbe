"""Supervoxels: a region cut into pieces of about one size that follow the borders seen in the volume.

References
----------
R. Achanta et al. "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", TPAMI 2012.
B. Irving. "maskSLIC: Regional Superpixel Generation with Application to Local Pathology Characterisation in Medical
Images", arXiv 1606.09518.
P. F. Felzenszwalb, D. P. Huttenlocher. "Efficient Graph-Based Image Segmentation", IJCV 2004.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects
from skimage.measure import label as connected_components
from skimage.segmentation import felzenszwalb, relabel_sequential, slic
from torch import Tensor

COMPACTNESS = 0.1
"""Of SLIC: a step of a tenth of the region's intensity range weighs as much as the distance between two seeds, so that
noise is ignored and the border of an organ is not."""

CONTRAST = 0.005
"""Of Felzenszwalb's graph: pieces of the wanted size are kept apart by a step that exceeds those within them by this
share of the intensity range. On abdominal CTs (two training subjects) that gives about as many pieces as SLIC has."""

FRAGMENT = 0.1
"""Pieces below this share of the wanted volume are given to their neighbours: their effect would drown."""


def supervoxels(
    volume: Tensor,
    region: Tensor,
    spacing_mm: tuple[float, float, float],
    size_mm: float,
    kind: Literal["slic", "felzenszwalb"] = "slic",
) -> Tensor:
    """Cut a region into supervoxels.

    Parameters
    ----------
    volume
        (C, X, Y, Z), in any range: it is judged by its range inside the region.
    region
        (X, Y, Z) bool.
    spacing_mm
        Voxel size along X, Y and Z.
    size_mm
        Edge of a cube of the wanted volume.
    kind
        ``slic``: compact pieces in 3D, as many as such cubes fit into the region. ``felzenszwalb``: as in the XAI-CLIP
        paper in slices, here slabs along Z as thick as the wanted size; the pieces are as large as the region is even.

    Returns
    -------
    Tensor
        (X, Y, Z) int32, on the CPU: 0 outside the region, and every voxel of the region in one of 1 ... n. Pieces are
        connected, but for fragments that lie alone.
    """
    inside = region.cpu().numpy()
    pieces = np.zeros(inside.shape, np.int32)
    if inside.any():
        (bounds,) = find_objects(inside.astype(np.uint8))
        image = _normalised(volume.detach().cpu().numpy(), inside)[(slice(None), *bounds)]
        cut = _slic if kind == "slic" else _felzenszwalb
        raw = np.where(inside[bounds], cut(image, inside[bounds], spacing_mm, size_mm), 0)
        least = FRAGMENT * size_mm**3 / math.prod(spacing_mm)
        pieces[bounds] = _without_fragments(raw, inside[bounds], spacing_mm, least)
    return torch.from_numpy(pieces)


def _normalised(volume: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Every channel as 0 to 1 over its 1st to 99th percentile inside the region, clipped: metal shall not rule."""
    low, high = np.percentile(volume[:, inside].astype(np.float64), [1, 99], axis=1)[..., None, None, None]
    range_ = np.where(high > low, high - low, 1)
    return np.clip((volume - low) / range_, 0, 1)


def _slic(
    image: NDArray[np.float64], inside: NDArray[np.bool_], spacing_mm: tuple[float, ...], size_mm: float
) -> NDArray[np.int64]:
    count = max(1, round(int(inside.sum()) * math.prod(spacing_mm) / size_mm**3))
    if count == 1:
        return inside.astype(np.int64)
    labels: NDArray[np.int64] = slic(
        np.moveaxis(image, 0, -1),
        n_segments=count,
        compactness=COMPACTNESS * math.sqrt(len(image)),  # distances grow so with the channels
        spacing=spacing_mm,
        mask=inside,
        channel_axis=-1,
        convert2lab=False,
        start_label=1,
    )
    return labels


def _felzenszwalb(
    image: NDArray[np.float64], inside: NDArray[np.bool_], spacing_mm: tuple[float, ...], size_mm: float
) -> NDArray[np.int64]:
    thickness = max(1, round(size_mm / spacing_mm[2]))
    slice_voxels = max(1, round(size_mm**2 / (spacing_mm[0] * spacing_mm[1])))
    labels = np.zeros(inside.shape, np.int64)
    for start in range(0, inside.shape[2], thickness):
        slab = image[..., start : start + thickness]
        channels = np.moveaxis(slab, 0, -1).reshape(*slab.shape[1:3], -1)
        channels = channels / math.sqrt(channels.shape[-1])  # distances grow so with the channels
        with warnings.catch_warnings():  # that this many channels may not be meant: they are
            warnings.filterwarnings("ignore", message="Got image with third dimension", category=RuntimeWarning)
            # Pieces are joined while their step exceeds those within by less than scale / 255 / slice_voxels.
            pieces = felzenszwalb(channels, scale=255 * CONTRAST * slice_voxels, sigma=0.5, min_size=slice_voxels // 2)
        labels[..., start : start + thickness] = pieces[..., None] + labels.max() + 1
    return labels


def _without_fragments(
    pieces: NDArray[np.int64], inside: NDArray[np.bool_], spacing_mm: tuple[float, ...], least: float
) -> NDArray[np.int32]:
    """Connected pieces 1 ... n; voxels of those below ``least`` voxels, and of none, go to the nearest large piece."""
    parts = connected_components(np.where(inside, pieces, 0), background=0, connectivity=1)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    large = sizes >= min(least, sizes.max())  # of a region smaller than one piece, its largest part is kept
    nearest = distance_transform_edt(~large[parts], sampling=spacing_mm, return_distances=False, return_indices=True)
    merged = np.where(inside, parts[tuple(nearest)], 0)
    labels: NDArray[np.int32] = relabel_sequential(merged)[0].astype(np.int32)
    return labels
