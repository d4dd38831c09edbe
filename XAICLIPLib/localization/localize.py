"""From a volume and a prompt to the region of the prompt.

>>> region = localize("scan.nii.gz", prompt="liver")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import SimpleITK as sitk
import torch

from XAICLIPLib import anatomy, imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.channels import read_images
from XAICLIPLib.localization.localizer import Localizer
from XAICLIPLib.localization.plugins import checked_localizer, checked_probability
from XAICLIPLib.localization.region import MARGIN_MM, Region, guided_region
from XAICLIPLib.localization.slices import Modality
from XAICLIPLib.models import catalogue
from XAICLIPLib.progress import Progress, Run
from XAICLIPLib.system.devices import choose_device

MODALITIES: tuple[Modality, ...] = get_args(Modality)


def localize(
    image: sitk.Image | str | Path,
    prompt: str,
    *,
    localizer: str | Path | Localizer | None = None,
    prompts: str | Path | None = None,
    threshold: float | None = None,
    margin_mm: float = MARGIN_MM,
    modality: Modality | None = None,
    device: str = "auto",
    on_progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Region:
    """Find a structure in a volume by its name: the region that `explain` would perturb.

    The parameters are those of `explain`.

    Raises
    ------
    InputError
        An input cannot be used, or the localizer finds nothing.
    Cancelled
        `cancelled` said so.
    """
    finding = Finding.checked(localizer, threshold, margin_mm, modality, prompts)
    run = Run(on_progress, cancelled or (lambda: False))
    (volume,) = read_images([image])
    guide = finding.load(choose_device(device))
    with run.timed("localize"):
        probability = finding.locate(guide, volume, prompt, modality or imaging.guess_modality(volume), run)
        return finding.region(guide, volume, probability, prompt, None)


@dataclass(frozen=True)
class Finding:
    """How the prompt is found, checked."""

    localizer: str | Path | Localizer | None
    threshold: float | None
    margin_mm: float
    prompts: str | Path | None

    @classmethod
    def checked(cls, localizer: Any, threshold: Any, margin_mm: Any, modality: Any, prompts: Any) -> Finding:
        """The arguments of `localize`; raises `InputError` for one that cannot be used."""
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

    def load(self, device: torch.device) -> Localizer:
        """The localizer."""
        if self.localizer is None or isinstance(self.localizer, (str, Path)):
            return catalogue.load_localizer(self.localizer, device, self.prompts)
        return self.localizer

    def threshold_of(self, guide: Localizer | None) -> float | None:
        """The threshold that was given, or the localizer's own; None without a localizer."""
        return None if guide is None else guide.threshold if self.threshold is None else self.threshold

    def locate(
        self, guide: Localizer, volume: sitk.Image, prompt: str, modality: Modality | None, run: Run
    ) -> sitk.Image:
        """The probability of the prompt, on a grid of the localizer's own."""
        what = anatomy.resolve(prompt) or prompt
        found = guide.locate(volume, what, modality, lambda d, t: run.advance("localize", d, t))
        return checked_probability(found, guide.name)

    def region(
        self,
        guide: Localizer,
        volume: sitk.Image,
        probability: sitk.Image,
        prompt: str,
        prediction: sitk.Image | None,
        margin_mm: float | None = None,
    ) -> Region:
        """The region, from the probability."""
        threshold = self.threshold_of(guide)
        assert threshold is not None
        margin_mm = self.margin_mm if margin_mm is None else margin_mm
        return guided_region(volume, probability, prediction, prompt, threshold=threshold, margin_mm=margin_mm)


def check_choices(**given: tuple[str, tuple[str, ...]]) -> None:
    """Refuse a value, by the name of its argument, that is none of those known."""
    for what, (value, known) in given.items():
        if value not in known:
            raise InputError(f"There is no {what} {value!r}: choose one of {', '.join(known)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and bool(np.isfinite(value))
