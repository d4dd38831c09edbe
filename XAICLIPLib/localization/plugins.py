"""Other people's localizers: objects that turn an image and words into a mask, passed in or installed as a plugin.

A text-to-mask model is a localizer if it has four attributes (`XAICLIPLib.localization.localizer.Localizer`): ``name``,
``threshold``, ``provenance`` and ``locate(image, prompt, modality, advance)``. An installed package registers it for
the command line under the entry-point group `GROUP`, as a callable that takes the device::

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
"""How far a probability may exceed 1."""


def find(name: str) -> EntryPoint | None:
    """The plugin of this name, not loaded."""
    return next(iter(entry_points(group=GROUP, name=name)), None)


def load(plugin: EntryPoint, device: torch.device) -> Localizer:
    """Make a plugin's localizer. This runs the plugin's code, which the user installed for that purpose.

    Raises
    ------
    InputError
        It cannot be loaded, or makes something that is no localizer.
    """
    try:
        localizer = plugin.load()(device)
    except InputError:
        raise
    except Exception as error:  # other packages raise errors of any kind
        cause = reason(error, 300)
        raise InputError(f"The localizer {plugin.name} ({plugin.value}) does not load: {cause}") from error
    return checked_localizer(localizer, plugin.name)


def checked_localizer(value: Any, name: str) -> Localizer:
    """Return the object if it is a localizer.

    Raises
    ------
    InputError
        It lacks an attribute, or its threshold is invalid.
    """
    missing = [part for part in ("name", "threshold", "provenance", "locate") if not hasattr(value, part)]
    if missing or not callable(value.locate):
        raise InputError(
            f"The localizer {name} is none ({type(value).__name__} lacks {', '.join(missing) or 'a method locate'}): "
            "see XAICLIPLib.localization.localizer.Localizer."
        )
    threshold = value.threshold
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 < threshold < 1:
        raise InputError(f"The localizer {name} has the threshold {threshold}: it must lie between 0 and 1.")
    checked: Localizer = value
    return checked


def checked_probability(volume: Any, name: str) -> sitk.Image:
    """A localizer's probability volume as float32; a mask of 0 and 1 is allowed too.

    Raises
    ------
    InputError
        It is not a scalar 3D volume of numbers from 0 to 1.
    """
    if not isinstance(volume, sitk.Image) or volume.GetDimension() != 3 or volume.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"The localizer {name} gave no scalar 3D volume: choose another one.")
    values = sitk.GetArrayViewFromImage(volume)
    low, high = (float(values.min()), float(values.max())) if values.size else (math.nan, math.nan)
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= 1 + ROUNDING):
        raise InputError(
            f"The localizer {name} gave values from {low:g} to {high:g}, no probabilities: choose another."
        )
    return sitk.Cast(volume, sitk.sitkFloat32)
