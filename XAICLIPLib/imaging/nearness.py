"""Which voxels lie near a mask, and its extent, in little memory: a distance map takes 50 bytes for each voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from XAICLIPLib.imaging.boxes import Box

VOXELS_AT_ONCE = 4_000_000
"""In a part of so many voxels distances are measured at once, in about 200 MB."""


def extent(mask: NDArray[np.bool_]) -> Box | None:
    """The smallest box around all voxels of a mask; None where it is empty."""
    axes = range(mask.ndim)
    sides = [np.flatnonzero(mask.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
    return tuple(slice(int(side[0]), int(side[-1]) + 1) for side in sides) if len(sides[0]) else None


def widened(box: Box, margin: Sequence[int], shape: Sequence[int]) -> Box:
    """A box with a margin of voxels along each axis, cut at the volume's border."""
    sides = zip(box, margin, shape, strict=True)
    return tuple(slice(max(0, side.start - m), min(n, side.stop + m)) for side, m, n in sides)


def within(mask: NDArray[np.bool_], distance_mm: float, spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
    """The voxels whose centres lie within a distance of a voxel of a mask: those of the mask, and a rim.

    Parameters
    ----------
    mask
        Along as many axes as ``spacing_mm`` has numbers.
    distance_mm
        Width of the rim; 0 gives the mask.
    spacing_mm
        Voxel size along each axis.

    Returns
    -------
    NDArray
        As ``scipy.ndimage.distance_transform_edt(~mask, sampling=spacing_mm) <= distance_mm``, and nothing near an
        empty mask. No voxel beyond the distance can change the answer, so that layers are measured one by one.
    """
    near = np.zeros_like(mask, dtype=bool)
    box = extent(mask)
    if box is None:
        return near
    margin = [int(distance_mm // size) + 1 for size in spacing_mm]
    around = widened(box, margin, mask.shape)
    layers = max(1, VOXELS_AT_ONCE // int(np.prod([side.stop - side.start for side in around[1:]], dtype=np.int64)))
    for first in range(around[0].start, around[0].stop, layers):
        layer = slice(first, min(first + layers, around[0].stop))
        wide = slice(max(0, layer.start - margin[0]), min(mask.shape[0], layer.stop + margin[0]))
        part = mask[(wide, *around[1:])]
        if part.any():
            close = np.asarray(distance_transform_edt(~part, sampling=spacing_mm)) <= distance_mm
            near[(layer, *around[1:])] = close[layer.start - wide.start : layer.stop - wide.start]
    return near
