"""Localizers of others: any object that turns an image and words into a mask, given or installed as a plugin.

A text-to-mask model joins in with four names (`XAICLIPLib.localization.localizer.Localizer`): ``name``, ``threshold``,
``provenance`` and ``locate(image, prompt, modality, advance)``. An installed package registers it for the command line
under the entry-point group `GROUP`, as a callable that takes the device::

    [project.entry-points."xaiclip.localizers"]
    my-localizer = "my_package:MyLocalizer"
"""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from XAICLIPLib.errors import InputError, reason
from XAICLIPLib.localization.localizer import Localizer

GROUP = "xaiclip.localizers"


ROUNDING = 1e-4


def find(name: str) -> EntryPoint | None:
    """The plugin of this name, not loaded."""
    return next(iter(entry_points(group=GROUP, name=name)), None)


def load(plugin: EntryPoint, device: torch.device) -> Localizer:
    """Make a plugin's localizer. Its code runs: it was installed for that.

    Raises
    ------
    InputError
        It cannot be loaded, or makes something else.
    """
    try:
        made = plugin.load()(device)
    except InputError:
        raise
    except Exception as error:  # whatever a package of others may raise
        told = reason(error, 300)
        raise InputError(f"The localizer {plugin.name} ({plugin.value}) does not load: {told}") from error
    return checked_localizer(made, plugin.name)


def checked_localizer(made: Any, name: str) -> Localizer:
    """The object, if it is a localizer.

    Raises
    ------
    InputError
        It lacks something.
    """
    missing = [part for part in ("name", "threshold", "provenance", "locate") if not hasattr(made, part)]
    if missing or not callable(made.locate):
        raise InputError(
            f"The localizer {name} is none ({type(made).__name__} lacks {', '.join(missing) or 'a method locate'}): "
            "see XAICLIPLib.localization.localizer.Localizer."
        )
    threshold = made.threshold
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 < threshold < 1:
        raise InputError(f"The localizer {name} has the threshold {threshold}: it must lie between 0 and 1.")
    localizer: Localizer = made
    return localizer


def checked_probability(found: Any, name: str) -> sitk.Image:
    """What a localizer found, as float32; a mask of 0 and 1 will do.

    Raises
    ------
    InputError
        It is no scalar 3D volume of numbers from 0 to 1.
    """
    if not isinstance(found, sitk.Image) or found.GetDimension() != 3 or found.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"The localizer {name} gave no scalar 3D volume: choose another one.")
    values = sitk.GetArrayViewFromImage(found)
    low, high = (float(values.min()), float(values.max())) if values.size else (math.nan, math.nan)
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= 1 + ROUNDING):
        raise InputError(
            f"The localizer {name} gave values from {low:g} to {high:g}, no probabilities: choose another."
        )
    return sitk.Cast(found, sitk.sitkFloat32)
