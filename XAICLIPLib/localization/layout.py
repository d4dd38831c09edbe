"""How the axial slices that a localizer sees are laid out around the body, also where the volume shows a part of it.

A localizer knows organs at the size that they have in slices which show the whole width of a body. Where the sides of a
volume cut through the body, the visible part is therefore not stretched over the slice: it is put where it would be in
a body of usual size.
"""

from __future__ import annotations

import math

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from XAICLIPLib import imaging

COARSE_MM = 4.0

CUT_SHARE = 0.5
"""Share of a side of the volume, within the body's height and width, that the body must fill for that side to be a cut
through it. Cuts through the trunk give 0.7 to 1, less where they open the lungs; a field of view that grazes the flanks
gives 0 to 0.5."""

DEPTH_OF_WIDTH = 0.82
"""A usual body's extent from front to back, as a share of its width (mean of the training subjects)."""


def slices_around_body(
    image: sitk.Image, side: int, slice_mm: float, margin: float, usual_width_mm: float = 0.0
) -> sitk.Image:
    """Square axial slices around the body, ``side`` pixels wide, along the whole height of the volume.

    The pixel size depends on the body, so that a child and a heavy adult fill the slice equally. Float32, index axes
    nearest to left, posterior, superior; outside the volume its lowest value.

    Parameters
    ----------
    image
        A volume of any orientation.
    side
        Rows and columns.
    slice_mm
        Distance of the slices.
    margin
        Edge of the slices over the larger extent of the body.
    usual_width_mm
        Width of a usual body. Where sides of the volume cut through the body, this is taken for its width if less is
        visible, and the body is thought to go on beyond the cuts. 0: what is visible is taken for the whole body.
    """
    coarse = imaging.standard_axial(image, (COARSE_MM, COARSE_MM, slice_mm))
    # A copy, because a view does not keep the image alive.
    low, high = body_extent(sitk.GetArrayFromImage(imaging.body_mask(coarse)) != 0, usual_width_mm / COARSE_MM)
    pixel = float((high - low).max()) * COARSE_MM * margin / side
    along = (coarse.GetSize()[2] - 1) / 2
    middle = coarse.TransformContinuousIndexToPhysicalPoint([*((low + high - 1) / 2).tolist(), along])
    axes = np.reshape(coarse.GetDirection(), (3, 3))
    turned = sitk.DICOMOrient(image, "LPS")
    # Enough slices to reach both ends: a voxel beyond the last slice could never belong to a region.
    count = math.ceil(turned.GetSize()[2] * turned.GetSpacing()[2] / slice_mm - 1e-6)
    grid = sitk.Image([side, side, count], sitk.sitkUInt8)
    grid.SetSpacing([pixel, pixel, slice_mm])
    grid.SetDirection(coarse.GetDirection())
    half = (np.array([side, side, count]) - 1) / 2 * [pixel, pixel, slice_mm]
    grid.SetOrigin((np.array(middle) - axes @ half).tolist())
    lowest = float(sitk.GetArrayViewFromImage(image).min())
    return imaging.resample_like(image, grid, "linear", lowest, antialias=True)


def body_extent(body: NDArray[np.bool_], usual_width: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the body begins and ends along x and y, beyond the volume where its sides cut through the body.

    Parameters
    ----------
    body
        (Z, Y, X), pixels of equal size along y and x; not empty.
    usual_width
        In pixels; 0: only what is visible counts.

    Returns
    -------
    low, high
        (2,), x and y of the first pixel and of the one after the last. A body that is cut on one side is as long as
        usual from its visible border on; one that is cut on both is centred on what is visible. A body that is not cut,
        or shows more than is usual, stays as it is.
    """
    inside = np.argwhere(body.any(axis=0))
    (y0, x0), (y1, x1) = inside.min(0), inside.max(0) + 1
    low, high = np.array([x0, y0], dtype=float), np.array([x1, y1], dtype=float)
    box = body[:, y0:y1, x0:x1]
    box = box[box.any(axis=(1, 2))]  # slices above a head show no body
    sides = ((box[:, :, 0], box[:, :, -1]), (box[:, 0], box[:, -1]))
    at_edge = ((x0 <= 1, x1 >= body.shape[2] - 1), (y0 <= 1, y1 >= body.shape[1] - 1))
    for axis, usual in enumerate((usual_width, usual_width * DEPTH_OF_WIDTH)):
        missing = usual - (high[axis] - low[axis])
        cut = [
            touches and float(face.mean()) >= CUT_SHARE
            for touches, face in zip(at_edge[axis], sides[axis], strict=True)
        ]
        if missing > 0 and any(cut):
            low[axis] -= missing * cut[0] / sum(cut)
            high[axis] += missing * cut[1] / sum(cut)
    return low, high
