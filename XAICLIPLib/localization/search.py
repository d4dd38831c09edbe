"""Searching a scan for a prompt: the localizer, and the probability from which a voxel belongs to the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import SimpleITK as sitk

from XAICLIPLib import anatomy
from XAICLIPLib.errors import InputError
from XAICLIPLib.localization.localizer import Localizer
from XAICLIPLib.localization.plugins import checked_localizer, checked_probability
from XAICLIPLib.localization.region import Region, guided_region
from XAICLIPLib.localization.slices import Modality
from XAICLIPLib.progress import Run

MODALITIES: tuple[Modality, ...] = get_args(Modality)


@dataclass(frozen=True)
class PromptSearch:
    """Checked settings of the search for a prompt; the attributes are parameters of `XAICLIPLib.explain`."""

    localizer: str | Path | Localizer | None
    threshold: float | None
    margin_mm: float
    prompts: str | Path | None

    @classmethod
    def checked(cls, localizer: Any, threshold: Any, margin_mm: Any, modality: Any, prompts: Any) -> PromptSearch:
        """Check the settings, and raise an `InputError` for one that cannot be used."""
        if threshold is not None and not (_is_number(threshold) and 0 < threshold < 1):
            raise InputError(f"threshold is {threshold}: give a probability between 0 and 1.")
        if not (_is_number(margin_mm) and 0 <= margin_mm <= 200):
            raise InputError(f"margin_mm is {margin_mm}: give a length in mm from 0 to 200.")
        if modality is not None:
            check_choices(modality=(modality, MODALITIES))
        if not (localizer is None or isinstance(localizer, (str, Path))):
            checked_localizer(localizer, "given")
            if prompts is not None:
                raise InputError("Learned prompts are for a localizer that is named: leave prompts out, or name it.")
        return cls(localizer, threshold, float(margin_mm), prompts)

    def threshold_of(self, localizer: Localizer | None) -> float | None:
        """The threshold that was given, or the localizer's own; None without a localizer."""
        return None if localizer is None else localizer.threshold if self.threshold is None else self.threshold

    def locate(
        self, localizer: Localizer, volume: sitk.Image, prompt: str, modality: Modality | None, run: Run
    ) -> sitk.Image:
        """The probability of the prompt, on a grid of the localizer's own."""
        what = anatomy.resolve(prompt) or prompt
        probability = localizer.locate(volume, what, modality, lambda d, t: run.advance("localize", d, t))
        return checked_probability(probability, localizer.name)

    def region(
        self,
        localizer: Localizer,
        volume: sitk.Image,
        probability: sitk.Image,
        prompt: str,
        prediction: sitk.Image | None,
        margin_mm: float | None = None,
    ) -> Region:
        """The region that the probability gives."""
        threshold = self.threshold_of(localizer)
        assert threshold is not None
        margin_mm = self.margin_mm if margin_mm is None else margin_mm
        return guided_region(volume, probability, prediction, prompt, threshold=threshold, margin_mm=margin_mm)


def check_choices(**choices: tuple[str, tuple[str, ...]]) -> None:
    """Raise an `InputError` that names the argument whose value is none of the known ones."""
    for what, (value, known) in choices.items():
        if value not in known:
            raise InputError(f"There is no {what} {value!r}: choose one of {', '.join(known)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and bool(np.isfinite(value))
