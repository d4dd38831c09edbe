"""What the benchmarks share: the real CT, the shipped models, and a scorer for a structure in it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk
import torch
from torch import Tensor

from XAICLIPLib import anatomy, imaging
from XAICLIPLib.explainers.setting import Setting
from XAICLIPLib.localization.region import guided_region
from XAICLIPLib.models import catalogue
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.target import make_target
from XAICLIPLib.segmentation.prediction import Prediction, predict

CPU = torch.device("cpu")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    return parser


def real_ct(parser: argparse.ArgumentParser, data: Path) -> sitk.Image:
    """The CT of another source than the training's; where it is absent the program ends and says so."""
    path = data / "totalseg" / "example_ct.nii.gz"
    if not path.is_file():
        parser.exit(0, f"Skipped: the real CT is not here ({path}).\n")
    torch.set_flush_denormal(True)
    return imaging.read_volume(path)


@dataclass
class Subject:
    """A structure of a scan, ready to be explained."""

    image: sitk.Image
    prediction: Prediction
    name: str
    setting: Setting
    volume_ml: float

    @property
    def scorer(self) -> Scorer:
        """Of perturbations."""
        return self.setting.scorer

    @property
    def reference(self) -> Tensor:
        """(X, Y, Z) bool: the structure as predicted."""
        return self.scorer.target.reference

    @property
    def region(self) -> Tensor:
        """(X, Y, Z) bool: where perturbations are made."""
        return self.setting.region

    @property
    def changeable(self) -> Tensor:
        """(X, Y, Z) bool: the voxels that they can change."""
        return self.setting.changeable

    @classmethod
    def of(cls, image: sitk.Image, prediction: Prediction, name: str, guided: bool = True) -> Subject:
        """The structure as the shipped network draws it, in the region that the shipped localizer finds."""
        segmenter, structure, prepared = prediction.segmenter, anatomy.structure(name), prediction.prepared
        target = make_target(name, tuple(anatomy.match_label(structure, segmenter.labels)), None, prediction)
        mask = imaging.resample_labels(prepared.as_image(target.reference), image)
        region = None
        if guided:
            localizer = catalogue.load_localizer(None, CPU)
            probability = localizer.locate(image, structure, imaging.guess_modality(image))
            region = guided_region(image, probability, mask, name, threshold=localizer.threshold).mask
        setting = Setting.of(prediction, prediction.decision, target, image, region)
        return cls(image, prediction, name, setting, imaging.volume_ml(mask))


def shipped_prediction(image: sitk.Image) -> Prediction:
    """What the shipped network says of a scan."""
    return predict(catalogue.load_segmenter(None, CPU), image, CPU)


def patches(scorer: Scorer, perturbations: Iterable[Perturbation]) -> int:
    """Network patches that scoring some perturbations takes."""
    return sum(len(scorer.touched(p)) for p in perturbations)
