"""The region of interest: a probability volume cleaned into a mask, and how well it agrees with a prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.nearness import extent, widened

RegionSource = Literal["guided", "whole", "prediction", "file", "prediction box", "guided and prediction"]

MARGIN_MM = 8.0
"""Margin around the region: the surroundings of an organ matter, and patches blur borders."""

KEEP_MASS = 0.25
"""A component stays when it holds at least this share of the largest component's probability mass."""

SMALLEST_ML, LARGEST_SHARE = 1.0, 0.6
"""A region of less than this volume (without its margin), or more than this share of the body, is not plausible."""

ANOTHER_PLACE = 0.5
"""Region and prediction disagree if less than this share of the prediction lies in the region. The region has a margin,
so that even a shifted one holds most of the organ; if it holds less than half, the two models mean different places."""

HOLDS_THE_ORGAN = 0.9
"""A region that is right holds at least this share of the prediction: the shipped localizer's hold 0.93 or more of
each liver, spleen, kidney and pancreas of the test patients (its model card). Of a stomach, which it finds in part,
they hold 0.77 and more."""

ROUNDING_MM = 1e-3
"""Distances are float32: without this tolerance, ten voxels of 0.8 mm would be more than 8 mm."""


@dataclass(frozen=True)
class Agreement:
    """How well a region agrees with the network's prediction of the target.

    Attributes
    ----------
    dice
        Overlap of region and prediction, 0 to 1. A region with its margin is larger than the organ, so that the
        value is well below 1 even for a perfect region.
    recall
        Share of the prediction that lies inside the region.
    centroid_distance_mm
        Distance of their centres.
    """

    dice: float
    recall: float
    centroid_distance_mm: float


@dataclass(frozen=True)
class Region:
    """The region in which perturbations are made.

    Attributes
    ----------
    mask
        uint8, in the input's geometry.
    source
        ``guided``: by the localizer; ``prediction box``: the localizer's region was unusable, or is another place;
        ``guided and prediction``: the localizer's region and what of the prediction lies outside it, with a margin;
        ``whole``: everywhere; ``prediction``: the network's own prediction; ``file``: the user's mask.
    probability
        float32 in the input's geometry, for ``guided``; else None.
    volume_ml, share_of_body
        Size of the mask, and its share of the body in the volume.
    agreement
        With the prediction; None for ``whole``.
    warnings
        For the user.
    localizer_agreement
        Of the localizer's region with the prediction, where that was replaced or extended; else None.
    """

    mask: sitk.Image
    source: RegionSource
    volume_ml: float
    share_of_body: float
    probability: sitk.Image | None = None
    agreement: Agreement | None = None
    warnings: list[str] = field(default_factory=list)
    localizer_agreement: Agreement | None = None


def clean(
    probability: sitk.Image, threshold: float, margin_mm: float = MARGIN_MM, keep_mass: float = KEEP_MASS
) -> sitk.Image:
    """Turn a probability volume into a mask (uint8, same grid).

    Voxels of at least ``threshold`` are grouped into connected components; those with less than ``keep_mass`` of the
    largest one's probability mass are dropped, holes are filled, and a margin is added.
    """
    mask = sitk.Cast(probability >= threshold, sitk.sitkUInt8)
    components = sitk.ConnectedComponent(mask, True)
    labels = sitk.GetArrayViewFromImage(components)
    mass = np.bincount(labels.ravel(), weights=sitk.GetArrayViewFromImage(probability).ravel())
    if len(mass) < 2:
        return mask
    kept = np.flatnonzero(mass[1:] >= keep_mass * mass[1:].max()) + 1
    chosen = sitk.GetImageFromArray(np.isin(labels, kept).astype(np.uint8))
    chosen.CopyInformation(probability)
    return grow(sitk.BinaryFillhole(chosen, True), margin_mm)


def grow(mask: sitk.Image, margin_mm: float) -> sitk.Image:
    """A mask (uint8) with every voxel whose centre lies within ``margin_mm`` of it."""
    if margin_mm <= 0:
        return mask
    box = extent(_voxels(mask))
    if box is None:
        return mask
    margin = [int(margin_mm // size) + 2 for size in mask.GetSpacing()[::-1]]
    low, high = zip(
        *((side.start, side.stop) for side in widened(box, margin, mask.GetSize()[::-1])[::-1]), strict=True
    )
    part = sitk.RegionOfInterest(mask, [b - a for a, b in zip(low, high, strict=True)], low)
    distance = sitk.SignedMaurerDistanceMap(part, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    near = sitk.Cast(distance <= margin_mm + ROUNDING_MM, sitk.sitkUInt8)
    return sitk.Paste(sitk.Cast(mask, sitk.sitkUInt8), near, near.GetSize(), destinationIndex=low)


def guided_region(
    image: sitk.Image,
    probability: sitk.Image,
    prediction: sitk.Image | None,
    prompt: str,
    *,
    threshold: float = 0.5,
    margin_mm: float = MARGIN_MM,
) -> Region:
    """A region from the localizer's probability, or the prediction's bounding box where that is not usable.

    Parameters
    ----------
    image
        The input volume.
    probability
        What the localizer gave, on any grid.
    prediction
        The network's mask of the target, in the image's geometry; None if there is none to fall back to.
    prompt
        For the messages.
    threshold, margin_mm
        See `clean`.

    Raises
    ------
    InputError
        The localizer's region is not usable, and there is no prediction to fall back to.
    """
    body = _voxels(imaging.body_mask(image))
    core = clean(probability, threshold, 0)
    mask = imaging.resample_like(grow(core, margin_mm), image, "nearest")
    voxels = _voxels(mask)
    # Without the margin: with it, even a single voxel has more than 2 ml.
    core_ml = imaging.volume_ml(core)
    share = float((voxels & body).sum() / max(1, body.sum()))
    problem = ""
    if not voxels.any():
        problem = f'the localizer finds no "{prompt}" in this volume'
    elif core_ml < SMALLEST_ML:
        problem = f'the region that the localizer gives for "{prompt}" is only {core_ml:.2f} ml'
    elif share > LARGEST_SHARE:
        problem = f'the region that the localizer gives for "{prompt}" covers {share:.0%} of the body'
    if problem and prediction is None:
        raise InputError(f"There is no region: {problem}; try other words, or give a region of your own.")
    if problem and prediction is not None and not _voxels(prediction).any():
        warning = f"There is no region: {problem}, and the network predicts nothing either."
        return _described(image, bounding_box(prediction, 0), body, "prediction box", prediction, [warning])
    if problem and prediction is not None:
        box = bounding_box(prediction, margin_mm)
        return _described(
            image,
            box,
            body,
            "prediction box",
            prediction,
            warnings=[f"The bounding box of the network's own prediction is used as the region: {problem}."],
        )
    agreement = None if prediction is None else measure_agreement(mask, prediction)
    resampled = imaging.resample_like(probability, image, "linear")
    return Region(mask, "guided", imaging.volume_ml(mask), share, resampled, agreement)


def with_prediction(
    region: Region, image: sitk.Image, prediction: sitk.Image, name: str, margin_mm: float = MARGIN_MM
) -> Region:
    """A guided region that holds the prediction, without which a map would explain another place.

    If region and prediction disagree (`ANOTHER_PLACE`), the prediction's box is taken instead: whichever of the two is
    wrong, only there can it be seen why the network draws what it draws. If a part of the prediction lies outside
    (`HOLDS_THE_ORGAN`), it is added with a margin. Other regions, and good ones, stay as they are.

    Parameters
    ----------
    region
        What `guided_region` gave.
    image, prediction
        The input volume, and the network's mask of the target in its geometry.
    name
        Of the target, for the warning.
    margin_mm
        Around what is added, and around the box.
    """
    agreement = region.agreement
    if region.source != "guided" or agreement is None or agreement.recall >= HOLDS_THE_ORGAN:
        return region
    body = _voxels(imaging.body_mask(image))
    if agreement.recall < ANOTHER_PLACE:
        box = bounding_box(prediction, margin_mm)
        warning = (
            f"Only {agreement.recall:.0%} of what the network calls {name} lies where the localizer finds it, so the "
            "box around what the network draws is the region instead: in a scan that shows only a part of the body, "
            "the localizer may be mistaken."
        )
        replaced = _described(image, box, body, "prediction box", prediction, [warning])
        return replace(replaced, probability=region.probability, localizer_agreement=agreement)
    warning = (
        f"{1 - agreement.recall:.0%} of what the network calls {name} lies outside the place where the localizer finds "
        "it: that was added to the region, with a margin."
    )
    mask = sitk.Or(region.mask, grow(prediction, margin_mm))
    extended = _described(image, mask, body, "guided and prediction", prediction, [*region.warnings, warning])
    return replace(extended, probability=region.probability, localizer_agreement=agreement)


def whole_region(image: sitk.Image) -> Region:
    """The whole volume."""
    mask = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    mask.CopyInformation(image)
    return Region(mask, "whole", imaging.volume_ml(mask), 1.0)


def prediction_region(image: sitk.Image, prediction: sitk.Image, margin_mm: float = MARGIN_MM) -> Region:
    """The network's own prediction (uint8, in the image's geometry) with a margin as the region."""
    body = _voxels(imaging.body_mask(image))
    return _described(image, grow(prediction, margin_mm), body, "prediction", prediction)


def with_target(region: Region, image: sitk.Image, target: sitk.Image, margin_mm: float = MARGIN_MM) -> Region:
    """The region, extended by the user's own target and a margin around it, so that the target is always inside."""
    mask = sitk.Or(region.mask, grow(target, margin_mm))
    described = _described(image, mask, _voxels(imaging.body_mask(image)), region.source, target)
    return replace(described, probability=region.probability)


def region_from_mask(image: sitk.Image, mask: sitk.Image, prediction: sitk.Image) -> Region:
    """A user's mask, resampled to the image's geometry, as the region."""
    resampled = imaging.resample_like(sitk.Cast(mask != 0, sitk.sitkUInt8), image, "nearest")
    return _described(image, resampled, _voxels(imaging.body_mask(image)), "file", prediction)


def _described(
    image: sitk.Image,
    mask: sitk.Image,
    body: NDArray[Any],
    source: RegionSource,
    prediction: sitk.Image,
    warnings: list[str] | None = None,
) -> Region:
    share = float((_voxels(mask) & body).sum() / max(1, body.sum()))
    return Region(
        mask, source, imaging.volume_ml(mask), share, None, measure_agreement(mask, prediction), warnings or []
    )


def bounding_box(mask: sitk.Image, margin_mm: float) -> sitk.Image:
    """The box around a mask and a margin, along the volume's axes, as a mask; empty for an empty mask."""
    around = extent(_voxels(mask))
    filled = np.zeros(mask.GetSize()[::-1], np.uint8)
    if around is not None:
        margin = [math.ceil(margin_mm / size) for size in mask.GetSpacing()[::-1]]
        filled[widened(around, margin, filled.shape)] = 1
    box = sitk.GetImageFromArray(filled)
    box.CopyInformation(mask)
    return box


def measure_agreement(region: sitk.Image, prediction: sitk.Image) -> Agreement | None:
    """Compare two masks on one grid; None where one of them is empty."""
    a, b = _voxels(region), _voxels(prediction)
    if not a.any() or not b.any():
        return None
    shared = float((a & b).sum())
    spacing = np.array(region.GetSpacing()[::-1])
    distance = np.linalg.norm((_centre(a) - _centre(b)) * spacing)
    return Agreement(2 * shared / float(a.sum() + b.sum()), shared / float(b.sum()), float(distance))


def _centre(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean index of a mask's voxels; by counts along each axis, as an index of each voxel is a float64 of each."""
    axes = range(mask.ndim)
    counts = [np.count_nonzero(mask, axis=tuple(a for a in axes if a != axis)) for axis in axes]
    return np.array([np.average(np.arange(len(count)), weights=count) for count in counts])


def _voxels(mask: sitk.Image) -> NDArray[Any]:
    return sitk.GetArrayViewFromImage(mask) != 0
