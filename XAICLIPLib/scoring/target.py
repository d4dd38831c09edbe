"""What is explained: a class of the network, and the voxels over which it is scored."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from XAICLIPLib import anatomy, imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.scoring.scorer import Target, decided
from XAICLIPLib.segmentation.prediction import Prediction
from XAICLIPLib.segmentation.segmenter import Segmenter

RIM_MM = 6.0
"""Around the predicted structure: there, too, the target is scored, so that a prediction that spills over loses."""


Bounds = tuple[float, float, float, float, float, float]
"""A box: from and to along right, anterior and superior, in mm (RAS, as 3D Slicer shows positions)."""

Place = str | Path | sitk.Image | Bounds
"""Where something is: a mask, the path of one, a box, or ``box:R0,R1,A0,A1,S0,S1``."""


def class_of(prompt: str, target: Place | None, segmenter: Segmenter) -> tuple[str, tuple[int, ...]]:
    """Name and labels of the class that is explained."""
    by_name = isinstance(target, str) and not is_mask(target)
    words = target if isinstance(target, str) and by_name else prompt
    classes = {
        label: str(name)
        for label, name in segmenter.labels.items()
        if not (segmenter.activation == "softmax" and label == 0)
    }
    exact = next((label for label, name in classes.items() if _plain(name) == _plain(words)), None)
    if exact is not None:
        return classes[exact], (exact,)
    known = ", ".join(classes.values())
    # A mask says where, and leaves it to the prompt to say which class.
    way = "choose a prompt that names" if target is not None and not by_name else "say with --target"
    wanted = anatomy.resolve(words)
    if wanted is None:
        like = anatomy.suggestion(words)
        meant = f" (did you mean {like}?)" if like else ""
        if by_name:
            raise InputError(
                f'The target "{words}" is neither a file nor a known structure{meant}; the network has: {known}.'
            )
        raise InputError(
            f'"{prompt}" names no structure that is known here{meant}, so {way} the class of the network to explain: '
            f"{known}."
        )
    labels = anatomy.match_label(wanted, classes)
    if not labels:
        raise InputError(
            f"The network {segmenter.name} does not segment the {wanted.name}; {way} the class to explain: {known}."
        )
    return wanted.name, tuple(labels)


def _plain(name: str) -> str:
    """A class name without what spells it: case, underscores, hyphens."""
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def make_target(
    name: str, labels: tuple[int, ...], drawn: sitk.Image | None, prediction: Prediction, box: bool = False
) -> Target:
    """The target on the network's grid: the predicted structure with a rim, the user's mask, or what lies in a box.

    A mask is taken for the reference as it is: how much of it does the network still call so? Of a box the reference
    is what the network draws in it, and the rest of it counts as the rim does.
    """
    if drawn is not None:
        given = prediction.prepared.mask_from(drawn)
        if not bool(given.any()):
            raise InputError(
                "Nothing of the target lies in the part of the volume that the network sees: give another mask."
            )
        decision = decided(prediction.logits, labels, prediction.segmenter.activation).cpu()
        if not bool((decision & given).any()):
            raise InputError(
                f"The network calls nothing {name} in the {'box' if box else 'mask'} of the target: "
                "give another one, or another prompt."
            )
        return Target(name, labels, decision & given if box else given, given)
    reference = decided(prediction.logits, labels, prediction.segmenter.activation).cpu()
    if not bool(reference.any()):
        raise InputError(
            f"The network finds no {name} in this volume, so there is nothing to explain: choose another structure "
            "with --target or give a mask."
        )
    distance = ndimage.distance_transform_edt(~reference.numpy(), sampling=prediction.prepared.spacing_mm)
    return Target(name, labels, reference, torch.from_numpy(np.asarray(distance) <= RIM_MM))


def read_mask(what: Literal["target", "region"], source: Place | None, volume: sitk.Image) -> sitk.Image | None:
    """A mask or box of the user, uint8, in exactly the volume's geometry; None where none is given."""
    if source is None or not is_mask(source):
        return None
    bounds = box_of(source)
    if bounds is not None:
        mask = imaging.box_mask(volume, bounds)
    elif isinstance(source, sitk.Image):
        mask = source
    else:
        assert isinstance(source, (str, Path))
        mask = imaging.read_mask(source, volume)
    if mask.GetDimension() != 3 or mask.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"The {what} is no mask: give a 3D volume with one whole number per voxel.")
    if not imaging.same_geometry(mask, volume):
        mask = imaging.resample_like(mask, volume, "nearest")
    labels = np.unique(sitk.GetArrayViewFromImage(mask))
    if np.count_nonzero(labels) > 1:
        raise InputError(
            f"The mask of the {what} holds {np.count_nonzero(labels)} labels: give one with a single structure."
        )
    mask = sitk.Cast(mask != 0, sitk.sitkUInt8)
    if not sitk.GetArrayViewFromImage(mask).any():
        shape, way = ("mask", "one that was drawn on this scan") if bounds is None else ("box", "its bounds in RAS mm")
        raise InputError(f"The {shape} of the {what} has no voxel inside the volume: give {way}.")
    mask.CopyInformation(volume)
    return mask


def box_of(given: object) -> Bounds | None:
    """The box that a target or region is, if it is one.

    Raises
    ------
    InputError
        It is meant as one, and is none: not six numbers, or not in order.
    """
    if isinstance(given, str) and given.lower().startswith("box:"):
        parts: list[Any] = given[4:].split(",")
    elif isinstance(given, (tuple, list)):
        parts = list(given)
    else:
        return None
    try:
        bounds = [float(part) for part in parts]
        right = (
            len(bounds) == 6 and np.isfinite(bounds).all() and all(a < b for a, b in zip(*_ends(bounds), strict=True))
        )
    except (TypeError, ValueError):
        right = False
    if not right:
        raise InputError(
            f"The box {given} is none: give six numbers in mm, from and to along right, anterior and superior."
        )
    r0, r1, a0, a1, s0, s1 = bounds
    return r0, r1, a0, a1, s0, s1


def _ends(bounds: list[float]) -> tuple[list[float], list[float]]:
    return bounds[::2], bounds[1::2]


def is_mask(given: object) -> bool:
    """Whether a target or region is a place: a volume, a box, or a path, by its type, its ending, or because it exists.

    A bare word stays a word where a file of that name exists: results often lie in a folder called "liver".
    """
    if not isinstance(given, str):
        return isinstance(given, (Path, sitk.Image, tuple, list))
    endings = (".nii", ".gz", ".nrrd", ".nhdr", ".mha", ".mhd")
    name = given.lower()
    return (
        name.startswith("box:")
        or name.endswith(endings)
        or (bool(re.search(r"[./\\]", given)) and os.path.exists(given))
    )
