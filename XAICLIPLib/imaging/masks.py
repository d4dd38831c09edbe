"""Masks from the user: a volume, the path of its file, or a box."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging import geometry, volumes

Bounds = tuple[float, float, float, float, float, float]
"""A box: from and to along right, anterior and superior, in mm (RAS, as 3D Slicer shows positions)."""

MaskSource = str | Path | sitk.Image | Bounds
"""A mask, the path of one, a box, or ``box:R0,R1,A0,A1,S0,S1``."""


def user_mask(what: Literal["target", "region"], source: MaskSource | None, volume: sitk.Image) -> sitk.Image | None:
    """A user's mask or box as a mask (uint8) in exactly the volume's geometry; None if neither is given."""
    if source is None or not is_mask(source):
        return None
    bounds = parse_box(source)
    if bounds is not None:
        mask = geometry.box_mask(volume, bounds)
    elif isinstance(source, sitk.Image):
        mask = source
    else:
        assert isinstance(source, (str, Path))
        mask = volumes.read_mask(source, volume)
    if mask.GetDimension() != 3 or mask.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"The {what} is no mask: give a 3D volume with one whole number per voxel.")
    if not geometry.same_geometry(mask, volume):
        mask = geometry.resample_like(mask, volume, "nearest")
    labels = np.unique(sitk.GetArrayViewFromImage(mask))
    if np.count_nonzero(labels) > 1:
        raise InputError(
            f"The mask of the {what} holds {np.count_nonzero(labels)} labels: give one with a single structure."
        )
    mask = sitk.Cast(mask != 0, sitk.sitkUInt8)
    if not sitk.GetArrayViewFromImage(mask).any():
        shape, advice = (
            ("mask", "one that was drawn on this scan") if bounds is None else ("box", "its bounds in RAS mm")
        )
        raise InputError(f"The {shape} of the {what} has no voxel inside the volume: give {advice}.")
    mask.CopyInformation(volume)
    return mask


def parse_box(source: object) -> Bounds | None:
    """The bounds of a target or region that is given as a box; None for anything else.

    Raises
    ------
    InputError
        It is meant as a box, but does not have six numbers in order.
    """
    if isinstance(source, str) and source.lower().startswith("box:"):
        parts: list[Any] = source[4:].split(",")
    elif isinstance(source, (tuple, list)):
        parts = list(source)
    else:
        return None
    try:
        bounds = [float(part) for part in parts]
        valid = (
            len(bounds) == 6 and np.isfinite(bounds).all() and all(a < b for a, b in zip(*_ends(bounds), strict=True))
        )
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise InputError(
            f"The box {source} is none: give six numbers in mm, from and to along right, anterior and superior."
        )
    r0, r1, a0, a1, s0, s1 = bounds
    return r0, r1, a0, a1, s0, s1


def _ends(bounds: list[float]) -> tuple[list[float], list[float]]:
    return bounds[::2], bounds[1::2]


def is_mask(source: object) -> bool:
    """Whether a target or region is a mask or box, and not a word: a volume, a box, or a path.

    A path is known by its type, by its ending, or because the file exists. A word without a dot or slash is never taken
    for a path, even if a file of that name exists: results often lie in a folder called "liver".
    """
    if not isinstance(source, str):
        return isinstance(source, (Path, sitk.Image, tuple, list))
    endings = (".nii", ".gz", ".nrrd", ".nhdr", ".mha", ".mhd")
    name = source.lower()
    return (
        name.startswith("box:")
        or name.endswith(endings)
        or (bool(re.search(r"[./\\]", source)) and os.path.exists(source))
    )
