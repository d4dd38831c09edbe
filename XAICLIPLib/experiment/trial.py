"""One structure in one scan, for which every map is measured in the same way.

What the maps share is computed once: the prediction, the localizer's region, the scorer of the curves, and the curves
of random orders.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from XAICLIPLib import anatomy, imaging
from XAICLIPLib.anatomy import Modality, Structure
from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.evaluation.controls import Spacing, random_map
from XAICLIPLib.evaluation.curves import Curves, removal_curves
from XAICLIPLib.evaluation.metrics import outside_share, overlap, pointing_game, relevance_mass
from XAICLIPLib.experiment.datasets.case import Case
from XAICLIPLib.experiment.map_measurements import MapMeasurements, RegionName
from XAICLIPLib.explainers.lime import Lime
from XAICLIPLib.explainers.pieces.supervoxels import supervoxels
from XAICLIPLib.explainers.setting import Setting
from XAICLIPLib.localization.localizer import Localizer
from XAICLIPLib.localization.plugins import checked_probability
from XAICLIPLib.localization.region import Region, guided_region
from XAICLIPLib.scoring.options import Baseline, Score
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.target import class_of, make_target
from XAICLIPLib.segmentation.prediction import Prediction, predict
from XAICLIPLib.segmentation.segmenter import Segmenter

if TYPE_CHECKING:
    from XAICLIPLib.explanation import Explanation

SCORE: Score = "soft dice"
"""Score of the curves, whatever score the maps were made with."""


@dataclass
class Scan:
    """A case with the network's prediction for it.

    Attributes
    ----------
    number
        Of the case in its dataset, from 1.
    images
        The channels of the case.
    modality
        As the dataset says, or guessed.
    labels, structures
        The expert's labels, (X, Y, Z) integers, and the structures that they mean.
    prediction
        Of the network.
    find_s
        Seconds that the localizer took for its first prompt in this scan; None before that. Later prompts may be
        faster, because the localizer caches what it computed.
    """

    number: int
    images: list[sitk.Image]
    modality: Modality | None
    labels: NDArray[np.integer]
    structures: dict[int, str]
    prediction: Prediction
    find_s: float | None = None

    @classmethod
    def of(cls, number: int, case: Case, segmenter: Segmenter, device: torch.device) -> Scan:
        """Read a case and run the network over it.

        Raises
        ------
        InputError
            A file is broken, or the network takes other images.
        """
        image, labels = case.image(), case.labels()
        channels = image.GetNumberOfComponentsPerPixel()
        images = (
            [image] if channels == 1 else [sitk.VectorIndexSelectionCast(image, channel) for channel in range(channels)]
        )
        if channels != len(segmenter.inputs):
            raise InputError(
                f"The case {case.identifier} has {channels} images and the network {segmenter.name} takes "
                f"{len(segmenter.inputs)}: choose another network."
            )
        for one in images:
            imaging.check_volume(one, f"the image of the case {case.identifier}")
        modality = case.modality or imaging.guess_modality(images[0])
        prediction = predict(segmenter, image, device)
        return cls(number, images, modality, xyz(labels), dict(case.structures), prediction)


@dataclass(frozen=True)
class FixedLocalizer:
    """A localizer that returns a stored result, so that a prompt is searched only once in a scan.

    It satisfies the protocol `Localizer`.
    """

    name: str
    threshold: float
    provenance: dict[str, Any]
    probability: sitk.Image

    def locate(
        self,
        image: sitk.Image,
        prompt: Structure | str,
        modality: Modality | None,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> sitk.Image:
        """Return the stored probability map."""
        return self.probability


@dataclass
class Trial:
    """A structure in a scan, prepared for the measurement of its maps.

    Attributes
    ----------
    scan, structure
        The scan, and the name of the structure.
    organ
        (X, Y, Z) bool: the expert's label, on the scan's grid.
    localizer, region
        The localizer's result for the structure, stored, and the guided region.
    scorer, changeable
        The scorer of the curves, on the network's grid, and the mask of the voxels that the curves remove.
    target_ml
        Volume of the network's drawing of the structure.
    points, random_orders, seed
        Settings of the curves.
    """

    scan: Scan
    structure: str
    organ: NDArray[np.bool_]
    localizer: FixedLocalizer
    region: Region
    scorer: Scorer
    changeable: Tensor
    target_ml: float
    points: int
    random_orders: int
    seed: int
    _chance: tuple[Curves, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        scan: Scan,
        structure: str,
        guide: Localizer,
        *,
        baseline: Baseline,
        points: int,
        random_orders: int,
        seed: int,
    ) -> Trial:
        """Locate the structure, and prepare the scorer.

        Raises
        ------
        InputError
            The case has no such label, the network does not draw it here, or there is no region.
        """
        known = anatomy.resolve(structure)
        values = anatomy.match_label(known, scan.structures) if known else []
        organ = np.isin(scan.labels, values)
        if not organ.any():
            raise InputError(f"The case {scan.number} has no label of the {structure}: it is left out.")
        prediction, volume = scan.prediction, scan.images[0]
        name, labels = class_of(structure, None, prediction.segmenter)
        target = make_target(name, labels, None, prediction)
        target_mask = imaging.resample_labels(prediction.prepared.as_image(target.reference), volume)
        started = time.perf_counter()
        probability = checked_probability(
            guide.locate(volume, known or structure, scan.modality, lambda done, total: None), guide.name
        )
        if scan.find_s is None:
            scan.find_s = time.perf_counter() - started
        fixed = FixedLocalizer(guide.name, guide.threshold, dict(guide.provenance), probability)
        region = guided_region(volume, probability, target_mask, structure, threshold=guide.threshold)
        # For the curves, which remove voxels anywhere in the body.
        setting = Setting.of(prediction, prediction.decision, target, volume, baseline=baseline, score=SCORE)
        return cls(
            scan,
            structure,
            organ,
            fixed,
            region,
            setting.scorer,
            setting.changeable,
            imaging.volume_ml(target_mask),
            points,
            random_orders,
            seed,
        )

    def measure(
        self, explanation: Explanation, method: str, region: RegionName, cancelled: Callable[[], bool]
    ) -> MapMeasurements:
        """Measure a map of this structure.

        Raises
        ------
        Cancelled
            `cancelled` returned True between two curves.
        """
        spacing = _spacing(self.scan.images[0])
        values, probed = xyz(explanation.saliency), xyz(explanation.region.mask) != 0
        papers_overlap = overlap(values, self.organ, probed, spacing, seed=self.seed)
        null, best = max(papers_overlap.controls.items(), key=lambda item: item[1].dice)
        pointing, mass = pointing_game(values, self.organ, spacing), relevance_mass(values, self.organ)
        outside = outside_share(values, xyz(self.region.mask) != 0, spacing)
        chance = self._chance_curves(cancelled)
        curves = self._curves(self._on_network_grid(explanation.saliency), cancelled)
        timings, numbers = explanation.record["timings_s"], explanation.measurements
        total = sum(seconds for stage, seconds in timings.items() if stage not in ("read", "load"))
        if region == "guided":
            assert self.scan.find_s is not None
            total += self.scan.find_s
        return MapMeasurements(
            case=self.scan.number,
            structure=self.structure,
            method=method,
            region=region,
            region_source=explanation.region.source,
            explain_s=float(timings["explain"]),
            total_s=float(total),
            perturbations=int(numbers["perturbations"]),
            patches=int(numbers["patches_computed"]),
            score=float(numbers["score_unperturbed"]),
            dice=papers_overlap.saliency.dice,
            iou=papers_overlap.saliency.iou,
            null=null,
            null_dice=best.dice,
            null_iou=best.iou,
            deletion=curves.deletion[SCORE].area,
            insertion=curves.insertion[SCORE].area,
            random_deletion=float(np.mean([c.deletion[SCORE].area for c in chance])),
            random_insertion=float(np.mean([c.insertion[SCORE].area for c in chance])),
            pointing=pointing.hit,
            pointing_chance=pointing.chance,
            mass=mass.value,
            mass_chance=mass.chance,
            outside=outside.value,
            outside_chance=outside.chance,
            machine=machine(self.scorer.volume.device),
        )

    def fewest_sets(self, method: Lime) -> int:
        """How many sets are needed to tell the supervoxels of the whole scan apart; the guided map gets as many."""
        sized = method.sized_for(self.target_ml)
        assert sized.size_mm is not None
        prepared = self.scan.prediction.prepared
        volume = prepared.network_input[: len(prepared.tensor)]
        pieces = supervoxels(volume, self.changeable, prepared.spacing_mm, sized.size_mm, sized.supervoxels)
        return 2 * int(pieces.max())

    def _chance_curves(self, cancelled: Callable[[], bool]) -> tuple[Curves, ...]:
        if not self._chance:
            shape, spacing = tuple(self.changeable.shape), self.scan.prediction.prepared.spacing_mm
            seeds = (1000 + self.seed * self.random_orders + n for n in range(self.random_orders))
            self._chance = tuple(self._curves(random_map(shape, spacing, seed), cancelled) for seed in seeds)
        return self._chance

    def _curves(self, order: Tensor, cancelled: Callable[[], bool]) -> Curves:
        if cancelled():
            raise Cancelled("Cancelled before a map was measured.")
        return removal_curves(
            self.scorer,
            order,
            self.scan.prediction.prepared.spacing_mm,
            removable=self.changeable,
            count=self.points,
            seed=self.seed,
            scores=(SCORE,),
        )

    def _on_network_grid(self, saliency: sitk.Image) -> Tensor:
        grid = self.scan.prediction.prepared.as_image(torch.zeros(tuple(self.changeable.shape)))
        return torch.from_numpy(xyz(imaging.resample_like(saliency, grid)).astype(np.float32))


def xyz(image: sitk.Image) -> NDArray[Any]:
    """The voxels of a scalar volume as (X, Y, Z)."""
    return np.ascontiguousarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0))


def _spacing(image: sitk.Image) -> Spacing:
    x, y, z = image.GetSpacing()
    return x, y, z


def machine(device: torch.device) -> str:
    """A short description of the machine that seconds are measured on."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    threads = f", {torch.get_num_threads()} of {os.cpu_count()} cores" if device.type == "cpu" else ""
    return f"{kind} ({platform.system()} {platform.machine()}{threads}), PyTorch {torch.__version__}"
