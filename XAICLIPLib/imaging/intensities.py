"""What can be derived from the intensities of a volume: its modality, and the mask of the body.

Used through `XAICLIPLib.imaging`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import SimpleITK as sitk

from XAICLIPLib.imaging.geometry import resample_like

_FAT_HU = -300.0


def guess_modality(image: sitk.Image) -> Literal["CT", "MR"] | None:
    """Guess from its intensities whether a volume is a CT in HU or an MR.

    CT: it reaches clearly below zero (the 0.5th percentile is −50 or less) and at least a tenth of
    the voxels above its lowest value lie in −200..200, where fat, water and soft tissue are.
    MR: (almost) nothing below zero, at most 0.5% of the voxels at the maximum (a CT window saved
    as 0..n saturates in bone), and not a CT in HU plus an offset: at most 40% of the voxels
    above zero in 900..1200, where its soft tissue would be.

    Returns
    -------
    {"CT", "MR"} or None
        None when neither holds: normalised intensities, CT in other units.
    """
    array = sitk.GetArrayViewFromImage(image)
    # A sample of about a million voxels is enough.
    step = max(1, round((array.size / 1e6) ** (1 / 3)))
    values = array[::step, ::step, ::step].ravel().astype(np.float64)
    low, high = np.percentile(values, [0.5, 99.5])
    if low <= -50 and low <= -0.05 * high:
        above = values[values > values.min()]
        soft = np.abs(above) <= 200
        return "CT" if len(above) and soft.mean() >= 0.1 else None
    if low < -0.05 * high or (values == values.max()).mean() > 0.005:
        return None
    positive = values[values > 0]
    if not len(positive) or ((positive >= 900) & (positive <= 1200)).mean() > 0.4:
        return None
    return "MR"


def body_mask(image: sitk.Image) -> sitk.Image:
    """Mask of the body: everything but the air around the patient.

    The largest connected part above a threshold, holes filled axial slice by axial slice, so that
    lungs and bowel count. The threshold is −300 HU for CT, or just above the lowest
    value where the HU are clipped above that (air then reads exactly the lowest value); for
    anything else 0.4 of Otsu's threshold, which would separate bright from dark tissue. Computed at
    voxels of about 3 mm.

    Returns
    -------
    SimpleITK.Image
        uint8, 1 inside, in the grid of `image`. All 1 when nothing is found. Lungs that the edge of
        a cropped volume cuts open are left out: they cannot be told from the air outside.
    """
    shrink = [
        min(max(1, int(3.0 // s)), max(1, n // 8)) for s, n in zip(image.GetSpacing(), image.GetSize(), strict=True)
    ]
    small = sitk.Cast(sitk.Shrink(image, shrink), sitk.sitkFloat32)
    mask = sitk.Cast(small > _air_ends_at(small), sitk.sitkUInt8)
    upward = int(np.argmax(np.abs(np.reshape(image.GetDirection(), (3, 3))[2])))
    # Filled before it is opened: a scalp is thin, and apart from the brain by the dark skull.
    mask = sitk.BinaryMorphologicalOpening(_fill_slices(mask, upward), [1, 1, 1])
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(mask), sortByObjectSize=True)
    mask = _fill_slices(sitk.BinaryMorphologicalClosing(parts == 1, [2, 2, 2]), upward)
    if not sitk.GetArrayViewFromImage(mask).any():
        mask = mask == 0
    # One more voxel all around, so that resampling finds a value up to the edge of the finer grid.
    return resample_like(sitk.ZeroFluxNeumannPad(mask, [1] * 3, [1] * 3), image, "nearest")


def _air_ends_at(image: sitk.Image) -> float:
    values = sitk.GetArrayViewFromImage(image)
    lowest = float(values.min())
    if guess_modality(image) == "CT":
        return _FAT_HU if lowest < _FAT_HU else lowest + 0.5
    low, high = np.percentile(values, [0.5, 99.5])
    otsu = sitk.OtsuThresholdImageFilter()
    # Without the few brightest voxels, which would stretch the histogram.
    otsu.Execute(sitk.Clamp(image, sitk.sitkFloat32, float(low), float(max(high, low))))
    return float(low + 0.4 * (otsu.GetThreshold() - low))


def _fill_slices(mask: sitk.Image, axis: int) -> sitk.Image:
    """Fill the holes of a mask in each slice across an index axis."""
    array = sitk.GetArrayFromImage(mask)
    slices = np.moveaxis(array, 2 - axis, 0)
    for i, plane in enumerate(slices):
        filled = sitk.BinaryFillhole(sitk.GetImageFromArray(np.ascontiguousarray(plane)))
        slices[i] = sitk.GetArrayViewFromImage(filled)
    result = sitk.GetImageFromArray(array)
    result.CopyInformation(mask)
    return result
