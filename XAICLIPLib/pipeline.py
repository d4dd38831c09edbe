"""From a volume and a prompt to an explanation: the steps, one after the other.

`explain` reads the scan, loads the models, segments, says what the target is, finds the region, explains, and measures
what came of it; each step is a function below it, in that order.

>>> explanation = explain("scan.nii.gz", prompt="liver")  # doctest: +SKIP
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from XAICLIPLib import anatomy, imaging
from XAICLIPLib.errors import InputError, MethodUnsuited
from XAICLIPLib.evaluation import assessment, key_regions, network_response, reliability, suitability
from XAICLIPLib.evaluation.reliability_flag import ReliabilityFlag, in_reading_order
from XAICLIPLib.explainers import methods
from XAICLIPLib.explainers.base import Estimate, Method
from XAICLIPLib.explainers.setting import Setting
from XAICLIPLib.explanation import Explanation
from XAICLIPLib.imaging.channels import Volume, read_images, stack, warnings_of
from XAICLIPLib.imaging.dicom.source import DicomSource
from XAICLIPLib.imaging.masks import MaskSource, is_mask, parse_box, user_mask
from XAICLIPLib.imaging.modality import KnownModality, modality_of
from XAICLIPLib.localization.localizer import Localizer
from XAICLIPLib.localization.region import (
    MARGIN_MM,
    Region,
    prediction_region,
    region_from_mask,
    whole_region,
    with_prediction,
    with_target,
)
from XAICLIPLib.localization.search import PromptSearch, check_choices
from XAICLIPLib.localization.slices import Modality
from XAICLIPLib.models import catalogue
from XAICLIPLib.progress import Progress, Run
from XAICLIPLib.reporting import record
from XAICLIPLib.reporting.measurements import cautions, correction, measure, touches_edge
from XAICLIPLib.scoring.options import BASELINES, PARTS, PRECISIONS, SCORES, Baseline, Part, Precision, Score
from XAICLIPLib.scoring.target import (
    RIM_MM,
    Target,
    class_among,
    class_called,
    class_of,
    classes_of,
    make_target,
    what_is_drawn,
)
from XAICLIPLib.segmentation.footprint import doubt_of_size, footprint, told_as_memory
from XAICLIPLib.segmentation.networks.described import Predictor, from_object
from XAICLIPLib.segmentation.prediction import Inference, Prediction, label_values, predict, values_of
from XAICLIPLib.segmentation.segmenter import Promptable, Segmenter
from XAICLIPLib.system.devices import choose_device

REGIONS = ("guided", "whole", "prediction")
"""Words for a region."""

MOST_NAMED = 3
"""So many structures that are not there are named in a warning."""

ESTIMATE_EVERY_S = 2.0
ESTIMATE_SHARE = 0.1
"""Of the time, which running estimates may take: to resample one to a large scan takes seconds."""


def explain(
    image: Volume | Sequence[Volume],
    prompt: str,
    *,
    model: str | Path | Segmenter | Predictor | None = None,
    localizer: str | Path | Localizer | None = None,
    prompts: str | Path | None = None,
    method: str | None = None,
    region: MaskSource = "guided",
    target: MaskSource | None = None,
    score: Score = "soft dice",
    effect: Part = "total",
    baseline: Baseline = "air",
    threshold: float | None = None,
    margin_mm: float = MARGIN_MM,
    modality: Modality | None = None,
    series: int | str | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    trust: bool = False,
    labels: Mapping[int, str] | None = None,
    check: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_estimate: Callable[[sitk.Image], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    **parameters: Any,
) -> Explanation:
    """Explain why a segmentation network drew a structure where it did.

    Parameters
    ----------
    image
        A scalar 3D volume, or the path of one (NIfTI, NRRD, MetaImage, a folder with a DICOM series); all of them, in
        the network's order, where it takes several at once. The grid of the first is that of the result, and in it the
        prompt is looked for.
    prompt
        The structure in words: "liver", "left kidney", "renal, left".
    model
        A segmenter, an object with ``predict(batch)`` and a ``description``
        (`XAICLIPLib.segmentation.networks.described.from_object`), a name in the catalogue (default: the first), or the
        path of a network in any of the formats of `XAICLIPLib.segmentation.networks.formats`. One that must be pointed
        at (SAM) draws what the prompt names, and is shown where: the target's mask or box, or else the region's, or
        else what the localizer finds, without a margin.
    localizer
        A localizer (any object with the properties and the method of `Localizer`), its name in the catalogue (default:
        the first) or among the installed plugins, a folder, ``hf-hub:ID`` or ``NAME:TAG``.
    prompts
        A file of learned prompts for the localizer; by default the one in its folder, if any.
    method
        The explainer; see `XAICLIPLib.explainers.methods` for all of them and their parameters. By default Owen
        gradients; occlusion where a parameter of its own is given, and where gradients cannot be had: the network
        cannot be differentiated, or the baseline is another one for each place.
    region
        ``guided`` (by the localizer), ``whole`` (unguided), ``prediction`` (what the network itself draws), or a place:
        a mask, the path of one, a box (six numbers in mm: from and to along right, anterior, superior).
    target
        Another structure of the network than the prompt's, by name; or the place of the voxels whose class is to be
        explained: a mask ("why is *this* called liver?") or a box ("why does the liver end here?").
    score
        How well the target survives; see `XAICLIPLib.scoring.scorer`.
    effect
        Which part of the score lost is shown: ``total``; ``remote``, what was lost where nothing was hidden, so that
        hiding an organ is not credited with its own removal; or ``local``, the rest. For the methods that hide places;
        where no method is named and a part is asked for, occlusion is taken.
    baseline
        What replaces perturbed voxels; see `XAICLIPLib.scoring.baselines`.
    threshold
        Probability from which a voxel belongs to the guided region; by default the localizer's own.
    margin_mm
        Added around the guided region, or the prediction.
    modality
        CT or MR; by default what a DICOM header says, or guessed from the intensities.
    series
        Which series of a DICOM folder that holds several: its number in the list that the refusal gives, or its UID.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    precision
        ``full``; ``reduced``: half precision where that was checked to make no difference; ``auto``: that on a CUDA
        GPU.
    batch_size
        Patches computed together, by default as many as fit; halved when memory runs out.
    seed
        Of all that is random. The same seed gives the same map on the same device.
    trust
        Run the code in the configuration of a bundle that does not ship.
    labels
        Names of the output channels of a bundle that does not name them, from 0.
    check
        Test the map when it is done: its deletion and insertion curves beside those of maps that know nothing of the
        network, and whether a little noise in the scan changes it. Takes somewhat longer than another explanation.
    on_progress
        Called after every batch.
    on_estimate
        Called with the saliency so far, in the input's geometry, at most every two seconds and for a tenth of the time.
    on_warning
        Called with what the user should know before the work is done, such as that the scan is not for this network;
        it is among the explanation's warnings as well.
    cancelled
        Asked between batches. Once perturbing has begun, True ends with the partial result.
    **parameters
        Of the method, such as ``window_mm`` for occlusion or ``samples`` for rise.

    Raises
    ------
    InputError
        An input cannot be used: the message says which, and the way out.
    Cancelled
        `cancelled` said so before there was anything to return.

    References
    ----------
    Alzubaidi et al. "XAI-CLIP", arXiv 2602.07017, 2026.
    """
    question = Question.of(
        prompt,
        target=target,
        region=region,
        method=method,
        effect=effect,
        score=score,
        baseline=baseline,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
        localizer=localizer,
        threshold=threshold,
        margin_mm=margin_mm,
        modality=modality,
        prompts=prompts,
        **parameters,
    )
    run = Run(on_progress, cancelled or (lambda: False), on_warning)
    check_words(question, model, run)
    torch_device = choose_device(device)

    with run.timed("read"):
        scan = read_scan(image, modality, question, series)
        run.warnings += scan.warnings
    with run.timed("load"):
        models = load_models(model, scan, question, torch_device, trust, run, labels)
    with run.timed("localize"):
        probability = point_at_prompt(models, scan, question, run)
    with run.timed("segment"):
        prediction = predict_scan(models, question, torch_device, run)
        target_case = find_target(prediction, models, scan, question, run)
    return explain_target(
        models, scan, question, target_case, probability, run, on_estimate, check, model, torch_device
    )


def explain_target(
    models: Models,
    scan: Scan,
    question: Question,
    target_case: TargetCase,
    probability: sitk.Image | None,
    run: Run,
    on_estimate: Callable[[sitk.Image], None] | None,
    check: bool,
    model: Any,
    device: torch.device,
) -> Explanation:
    """Explain a target that was found in the network's answer: the steps of `explain` from the region on."""
    for flag in target_case.suitability:
        if flag.raised:
            run.tell(flag.sentence)  # now, and not after minutes; among the warnings it is one of the flags
    with run.timed("localize"):
        search_area = find_region(models, scan, question, target_case, probability, run)
    question = question.sized_for(imaging.volume_ml(target_case.mask))
    run.raise_if_cancelled()
    needed = footprint(models.ready, models.image, target_case.decision.shape, device, resampled=True)
    with run.timed("explain"), told_as_memory("while the scan was explained", needed):
        setting = Setting.of(
            target_case.inference,
            target_case.decision,
            target_case.target,
            scan.volume,
            search_area.mask,
            baseline=question.baseline,
            score=question.score,
            batch_size=question.batch_size,
            precision=question.precision,
            effect=question.effect,
            shared=target_case.shared,
        )
        response_flags = network_response.response_flags(setting.scorer)
        question, estimates = begin_explainer(question, setting, run)
        last, complete = run_explainer(estimates, setting, target_case, scan, run, on_estimate)
    with told_as_memory("while the map was put together", needed):
        return assemble_explanation(
            models,
            scan,
            question,
            replace(target_case, suitability=[*target_case.suitability, *response_flags]),
            search_area,
            setting,
            last,
            complete,
            check,
            run,
            model,
            device,
        )


def localize(
    image: sitk.Image | str | Path,
    prompt: str,
    *,
    localizer: str | Path | Localizer | None = None,
    prompts: str | Path | None = None,
    threshold: float | None = None,
    margin_mm: float = MARGIN_MM,
    modality: Modality | None = None,
    series: int | str | None = None,
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
    search = PromptSearch.checked(localizer, threshold, margin_mm, modality, prompts)
    several = anatomy.prompts_in(prompt)
    if len(several) > 1 and all(map(anatomy.resolve, several)):
        raise InputError(f'"{prompt}" names {len(several)} structures ({", ".join(several)}): look for one of them.')
    run = Run(on_progress, cancelled or (lambda: False))
    (read,) = read_images([image], series)
    volume, kind = read.image, modality_of(read, modality)
    prompt = " ".join(prompt.split())
    guide = load_localizer(search.localizer, choose_device(device), search.prompts)
    with run.timed("localize"):
        probability = search.locate(guide, volume, prompt, kind.for_methods, run)
        return search.region(guide, volume, probability, prompt, None)


# --- what is asked ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What `explain` was asked, checked; the attributes are its parameters.

    ``fallback`` is taken where ``method`` cannot work; None where the method was asked for by name.
    """

    prompt: str
    target: MaskSource | None
    region: MaskSource
    method: Method
    fallback: Method | None
    score: Score
    effect: Part
    baseline: Baseline
    precision: Precision
    batch_size: int | None
    seed: int
    search: PromptSearch

    @classmethod
    def of(
        cls,
        prompt: str,
        *,
        target: MaskSource | None = None,
        region: MaskSource = "guided",
        method: str | None = None,
        score: Score = "soft dice",
        effect: Part = "total",
        baseline: Baseline = "air",
        precision: Precision = "auto",
        batch_size: int | None = None,
        seed: int = 0,
        localizer: str | Path | Localizer | None = None,
        threshold: float | None = None,
        margin_mm: float = MARGIN_MM,
        modality: Modality | None = None,
        prompts: str | Path | None = None,
        **parameters: Any,
    ) -> Question:
        """The question that parameters of `explain` ask; raises `InputError` for a choice that cannot be used."""
        search = PromptSearch.checked(localizer, threshold, margin_mm, modality, prompts)
        name = method or (methods.implied(parameters) if effect == "total" else methods.FALLBACK)
        chosen_method = methods.method(name, **parameters)
        fallback = None if method or name == methods.FALLBACK else methods.method(methods.FALLBACK)
        check_choices(score=(score, SCORES), effect=(effect, PARTS))
        check_choices(baseline=(baseline, BASELINES), precision=(precision, PRECISIONS))
        if effect != "total" and not chosen_method.captions.value:
            raise InputError(
                f"The effect {effect} is of methods that hide places, and {chosen_method.name} hides none: "
                f"choose the effect total, or a method such as {methods.FALLBACK}."
            )
        if isinstance(region, str) and region not in REGIONS and not is_mask(region):
            raise InputError(f"The region {region} is neither {', '.join(REGIONS)}, a box nor the file of a mask.")
        batch_size = None if batch_size is None else _whole_number("batch_size", batch_size, 1)
        seed = _whole_number("seed", seed, 0)
        words = " ".join(prompt.split())
        how = (score, effect, baseline, precision, batch_size, seed, search)
        return cls(words, target, region, chosen_method, fallback, *how)

    @property
    def guided(self) -> bool:
        """Whether the localizer says where to look."""
        return isinstance(self.region, str) and self.region == "guided"

    @property
    def around_prediction(self) -> bool:
        """Whether what the network draws says where to look."""
        return isinstance(self.region, str) and self.region == "prediction"

    def sized_for(self, volume_ml: float) -> Question:
        """With the sizes that were left open chosen for a structure of this volume."""
        fallback = self.fallback and self.fallback.sized_for(volume_ml)
        return replace(self, method=self.method.sized_for(volume_ml), fallback=fallback)


def check_words(question: Question, model: Any, run: Run) -> None:
    """Refuse words that mean nothing, and tell of those that were corrected, before anything is read.

    Only where the classes of the network are known by then: of one that ships, or that is loaded already.
    """
    by_name = isinstance(question.target, str) and not is_mask(question.target)
    words = str(question.target) if by_name else question.prompt
    corrected = correction(words)
    if corrected:
        run.tell(corrected)
    if model is None or isinstance(model, (str, Path)):
        classes = dict(enumerate(catalogue.listed_structures(model)))
    else:
        classes = {} if isinstance(model, Promptable) or not hasattr(model, "labels") else classes_of(model)
    if classes and class_called(words, classes) is None and anatomy.resolve(words) is None:
        class_among(question.prompt, question.target, classes, "")


# --- the steps ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What was read.

    Attributes
    ----------
    images
        Of one patient, in the network's order.
    kind
        The modality, and who says so.
    target_mask, region_mask
        Masks of the user, uint8, in the geometry of the first image; None where none is given.
    warnings
        What the files leave open.
    source
        The DICOM images of the first image; None where it is none.
    """

    images: Sequence[sitk.Image]
    kind: KnownModality
    target_mask: sitk.Image | None
    region_mask: sitk.Image | None
    warnings: Sequence[str] = ()
    source: DicomSource | None = None

    @property
    def modality(self) -> Modality | None:
        """CT or MR, where it is one of these."""
        return self.kind.for_methods

    @property
    def volume(self) -> sitk.Image:
        """The first image, whose grid is that of the result."""
        return self.images[0]


def read_scan(
    image: Volume | Sequence[Volume],
    modality: Modality | None,
    question: Question,
    series: int | str | None = None,
) -> Scan:
    """Read the images and the masks."""
    read = read_images(image, series)
    images, kind = [one.image for one in read], modality_of(read[0], modality)
    return Scan(
        images,
        kind,
        user_mask("target", question.target, images[0]),
        user_mask("region", question.region, images[0]),
        [*warnings_of(read), *kind.warnings()],
        read[0].source,
    )


@dataclass
class Models:
    """What was loaded.

    Attributes
    ----------
    segmenter
        The network; one that must be pointed at becomes a segmenter in `point_at_prompt`.
    image
        What it is given: one component per pixel for each of its inputs.
    localizer
        None where nothing is looked for.
    pointed_by
        Who says where a network that must be pointed at shall draw.
    """

    segmenter: Segmenter | Promptable
    image: sitk.Image
    localizer: Localizer | None
    pointed_by: str | None

    @property
    def ready(self) -> Segmenter:
        """The network, once it was pointed at."""
        assert not isinstance(self.segmenter, Promptable)
        return self.segmenter


def load_models(
    model: str | Path | Segmenter | Predictor | None,
    scan: Scan,
    question: Question,
    device: torch.device,
    trust: bool,
    run: Run,
    labels: Mapping[int, str] | None = None,
) -> Models:
    """Load the network, and the localizer where it is needed."""
    segmenter = load_segmenter(model, device, trust, labels)
    image, warnings = stack(scan.images, segmenter.inputs, segmenter.name)
    run.warnings += warnings
    pointed_by = None
    if isinstance(segmenter, Promptable):
        masks = {"target": scan.target_mask, "region": scan.region_mask}
        pointed_by = next((name for name, mask in masks.items() if mask is not None), "localizer")
    else:
        class_of(question.prompt, question.target, segmenter)  # refused before a localizer is loaded, or downloaded
    if doubt := doubt_of_size(scan.volume):
        run.warn(doubt)
    needed = question.guided or pointed_by == "localizer"
    search = question.search
    flag = suitability.modality_flag(scan.kind, segmenter.name, segmenter.modality)
    if flag is not None and flag.raised:
        run.tell(flag.sentence)  # among the result's warnings with the other flags
    localizer = load_localizer(search.localizer, device, search.prompts) if needed else None
    if localizer is not None:
        listed = catalogue.modality_of_localizer(localizer.name)
        if (caution := suitability.localizer_caution(scan.kind, localizer.name, listed)) is not None:
            run.warn(caution)
    return Models(segmenter, image, localizer, pointed_by)


def load_segmenter(model: Any, device: torch.device, trust: bool, labels: Mapping[int, str] | None = None) -> Segmenter:
    """A network by its name or path; an object is taken as it is."""
    if model is None or isinstance(model, (str, Path)):
        return catalogue.load_segmenter(model, device, trust, labels)
    segmenter: Segmenter = from_object(model) if hasattr(model, "predict") else model
    return segmenter


def load_localizer(
    localizer: str | Path | Localizer | None, device: torch.device, prompts: str | Path | None = None
) -> Localizer:
    """A localizer by its name or path, with learned prompts; an object is taken as it is."""
    if localizer is None or isinstance(localizer, (str, Path)):
        return catalogue.load_localizer(localizer, device, prompts)
    return localizer


def point_at_prompt(models: Models, scan: Scan, question: Question, run: Run) -> sitk.Image | None:
    """Point a network that must be pointed at: at the user's mask, or at what the localizer finds without a margin.

    Returns the probability of the prompt, where it was looked for.
    """
    if not isinstance(models.segmenter, Promptable):
        return None
    probability, search = None, question.search
    mask = scan.region_mask if scan.target_mask is None else scan.target_mask
    if mask is None:
        assert models.localizer is not None
        probability = search.locate(models.localizer, scan.volume, question.prompt, scan.modality, run)
        narrow = search.region(models.localizer, scan.volume, probability, question.prompt, None, margin_mm=0)
        mask = narrow.mask
    models.segmenter = models.segmenter.prompted(question.prompt, mask, scan.modality)
    return probability


@dataclass(frozen=True)
class TargetCase:
    """The target in the network's answer.

    Attributes
    ----------
    inference
        The network with the scan as it sees it.
    decision
        (X, Y, Z) whole numbers, on the network's grid: what it drew.
    segmentation
        The same as a label map in the scan's geometry.
    target
        What is scored.
    labels
        Output channels of the target.
    mask
        uint8, in the scan's geometry: the target as it is explained, predicted or given.
    suitability
        Whether the network was made for such a scan, and answers at all.
    shared
        The numbers that stand for several overlapping classes at once, with their channels.
    """

    inference: Inference
    decision: Tensor
    segmentation: sitk.Image
    target: Target
    labels: tuple[int, ...]
    mask: sitk.Image
    suitability: list[ReliabilityFlag]
    shared: Mapping[int, tuple[int, ...]]

    def on_scan(self, values: Tensor, scan: Scan, interpolation: Literal["linear", "nearest"] = "linear") -> sitk.Image:
        """Values (X, Y, Z) of the network's grid in the geometry of the scan."""
        return imaging.resample_like(self.inference.prepared.as_image(values), scan.volume, interpolation)


def predict_scan(models: Models, question: Question, device: torch.device, run: Run) -> Prediction:
    """Run the network over the scan."""
    return predict(
        models.ready, models.image, device, question.batch_size, lambda done, total: run.advance("segment", done, total)
    )


def find_target(
    prediction: Prediction, models: Models, scan: Scan, question: Question, run: Run, other: TargetCase | None = None
) -> TargetCase:
    """Say what of the network's answer is the target; ``other`` is another target in the same answer."""
    segmenter = models.ready
    name, labels = class_of(question.prompt, question.target, segmenter)
    if scan.target_mask is None:
        name, labels, absent = what_is_drawn(group := name, labels, prediction)
        if absent:
            more = f" (and {len(absent) - MOST_NAMED} more)" if len(absent) > MOST_NAMED else ""
            run.warnings.append(
                f"Of the {group}, the network draws no {' and no '.join(absent[:MOST_NAMED])}{more} in this volume: "
                f"only what it draws is explained, and recorded as {name}."
            )
    in_a_box = parse_box(question.target) is not None
    unsuited = suitability.mismatch(scan.kind, segmenter.modality)
    target = make_target(name, labels, scan.target_mask, prediction, box=in_a_box, unsuited=unsuited)
    mask = scan.target_mask
    if mask is None or in_a_box:
        mask = imaging.resample_labels(prediction.prepared.as_image(target.reference), scan.volume)
    if other is not None:
        return replace(other, target=target, labels=labels, mask=mask)
    return TargetCase(
        prediction,
        prediction.decision.cpu(),
        prediction.label_map(scan.volume),
        target,
        labels,
        mask,
        suitability.suitability_flags(scan.volume, scan.kind, segmenter, prediction.prepared),
        prediction.shared,
    )


def find_region(
    models: Models,
    scan: Scan,
    question: Question,
    case: TargetCase,
    probability: sitk.Image | None,
    run: Run,
) -> Region:
    """Say where the scan is perturbed."""
    search, volume = question.search, scan.volume
    if models.localizer is not None and question.guided:
        if probability is None:
            probability = search.locate(models.localizer, volume, question.prompt, scan.modality, run)
        region = search.region(models.localizer, volume, probability, question.prompt, case.mask)
        if question.target is None:  # else the prompt says where to look, and the target what for
            region = with_prediction(region, volume, case.mask, case.target.name, search.margin_mm)
    elif question.around_prediction:
        predicted = _mask_of(case.segmentation, values_of(models.ready, case.shared, case.labels))
        region = prediction_region(volume, predicted, search.margin_mm)
    elif scan.region_mask is None:
        region = whole_region(volume)
    else:
        region = region_from_mask(volume, scan.region_mask, case.mask)
    if scan.target_mask is not None and region.source not in ("whole", "file"):
        region = with_target(region, volume, scan.target_mask, search.margin_mm)
    for warning in region.warnings:
        run.warn(warning)
    return region


def begin_explainer(question: Question, setting: Setting, run: Run) -> tuple[Question, Iterator[Estimate]]:
    """Make the first step of the method, or of the fallback where it cannot work; the question with what is used."""
    estimates = question.method.estimates(setting, question.seed)
    try:
        first = next(estimates)
    except MethodUnsuited as error:
        if question.fallback is None:
            raise
        run.warnings.append(f"Explained by {question.fallback.name} and not by {question.method.name}: {error.reason}.")
        question = replace(question, method=question.fallback, fallback=None)
        return question, question.method.estimates(setting, question.seed)
    return question, itertools.chain([first], estimates)


def run_explainer(
    estimates: Iterator[Estimate],
    setting: Setting,
    case: TargetCase,
    scan: Scan,
    run: Run,
    on_estimate: Callable[[sitk.Image], None] | None,
) -> tuple[Estimate, bool]:
    """Run the method to its end or until it is cancelled; the last estimate, and whether it is complete."""
    due = time.perf_counter() + ESTIMATE_EVERY_S
    last: Estimate | None = None
    complete = True
    for last in estimates:
        run.advance("explain", last.done, last.planned, has_result=True)
        if last.done == 0 < last.planned:
            run.raise_if_cancelled()  # a batch may finish no perturbation
        elif last.done < last.planned and run.cancelled():
            complete = False
            break
        if on_estimate is not None and last.done and (begun := time.perf_counter()) >= due:
            on_estimate(case.on_scan(last.saliency(), scan))
            now = time.perf_counter()
            due = now + max(ESTIMATE_EVERY_S, (now - begun) / ESTIMATE_SHARE)
    assert last is not None  # the region is not empty, so that a window meets it
    run.warnings += setting.scorer.warnings
    return last, complete


def assemble_explanation(
    models: Models,
    scan: Scan,
    question: Question,
    case: TargetCase,
    region: Region,
    setting: Setting,
    last: Estimate,
    complete: bool,
    check: bool,
    run: Run,
    model: Any,
    device: torch.device,
) -> Explanation:
    """Measure the map, and put everything together."""
    scorer, name = setting.scorer, case.target.name
    values = last.saliency() if complete else last.measured()  # no guesses in a result
    agreement = region.agreement if region.source == "guided" else region.localizer_agreement
    evidence = assessment.evidence_of(name, question.method, setting, last, values, agreement)
    saliency = case.on_scan(values, scan)
    error = last.standard_error()
    probed = case.on_scan(last.probed(), scan, "nearest")
    measurements = measure(
        saliency,
        probed,
        case.mask,
        scorer,
        last,
        len(case.inference.tiling.patches),
    )
    if {"structures", "credit_of_organ"} & set(measurements):  # not by voxels, which would count each by its size
        outside = evidence.outside
        measurements["effect_inside_target"] = None if outside is None else 1 - outside.value
        uniform = None if outside is None or math.isnan(outside.chance) else 1 - outside.chance
        measurements["effect_inside_target_if_uniform"] = uniform
    words = question.target if isinstance(question.target, str) and scan.target_mask is None else question.prompt
    bounded = question.score != "logit margin"
    run.warnings += question.method.cautions(setting.spacing_mm)
    run.warnings += cautions(name, words, case.mask, region, scorer.full_score, bounded)
    checked = check_map(question, setting, last, values, run) if check and complete else assessment.Assessment()
    enough = None if checked.regions is None else checked.regions.sufficient_ml
    is_whole = scan.target_mask is None
    evidence = replace(
        evidence,
        faithfulness=checked.faithfulness,
        stability=checked.stability,
        sufficient_ml=enough,
        volume_ml=measurements["target_volume_ml"] if is_whole else None,
        is_cut=touches_edge(case.mask),
    )
    flags = in_reading_order([*case.suitability, *reliability.reliability_flags(evidence)])
    run.warnings[:0] = [flag.sentence for flag in flags if flag.raised]
    if not complete:
        captions = question.method.captions
        run.warnings.append(
            f"Cancelled after {last.done} of {last.planned} perturbations: the saliency is incomplete, and 0 also "
            "where nothing was tried yet; probed.nrrd tells where something was."
            if captions.value
            else f"Cancelled after {last.done} of {last.planned} {captions.counted}: the saliency is a rough one."
        )
    numbers = label_values(models.ready)
    names = {numbers[channel]: structure for channel, structure in models.ready.labels.items()}
    sets = {n: " + ".join(str(models.ready.labels.get(c, c)) for c in held) for n, held in case.shared.items()}
    target_record = _target_record(question, scan, case, values_of(models.ready, case.shared, case.labels))
    return Explanation(
        image=scan.volume,
        saliency=saliency,
        region=region,
        segmentation=case.segmentation,
        probed=probed,
        prediction=case.mask,
        target=target_record,
        labels=names | sets,
        measurements=measurements,
        record=record.build(
            prompt=question.prompt,
            target=target_record,
            labels=names | sets,
            image=scan.volume,
            modality=scan.kind.code,
            region=region,
            measurements=measurements,
            models={
                "segmenter": catalogue.provenance_of(model, models.ready.provenance),
                "localizer": dict(models.localizer.provenance) if models.localizer is not None else None,
            },
            parameters=_parameters_record(models, question, region, setting, last, device),
            timings=run.timings,
            warnings=run.warnings,
            reliability=flags,
            faithfulness=assessment.faithfulness_record(checked.faithfulness),
            stability=assessment.stability_record(checked.stability),
            key_regions=key_regions.record(checked.regions),
            complete=complete,
            further_images=dict(zip(models.ready.inputs[1:], scan.images[1:], strict=True)),
        ),
        complete=complete,
        standard_error=None if error is None else case.on_scan(error, scan),
        sufficient=_on_scan_or_none(checked, "sufficient", case, scan),
        necessary=_on_scan_or_none(checked, "necessary", case, scan),
        source=scan.source,
    )


def check_map(question: Question, setting: Setting, last: Estimate, values: Tensor, run: Run) -> assessment.Assessment:
    """Test the map on the network that it explains."""
    with run.timed("check"):
        checked = assessment.assess_map(
            question.method,
            setting,
            last,
            values,
            question.seed,
            lambda done, total: run.advance("check", done, total, True),
            run.cancelled,
        )
    if checked.stability is None:
        missing = "whether it changes under noise"
        if checked.faithfulness is None:
            missing += ", and whether it beats maps that know nothing of the network,"
        run.warnings.append(f"The check of the map was cancelled before its end: {missing} was not checked.")
    return checked


def _on_scan_or_none(
    checked: assessment.Assessment, kind: key_regions.Kind, case: TargetCase, scan: Scan
) -> sitk.Image | None:
    """The region that suffices or is necessary in the geometry of the scan; None where none is known."""
    region = None if checked.regions is None else checked.regions.by_map[kind]
    return None if region is None else case.on_scan(region.voxels.to(torch.uint8), scan, "nearest")


def _target_record(question: Question, scan: Scan, case: TargetCase, numbers: list[int]) -> dict[str, Any]:
    """What is explained, for the record."""
    voxels = "given"
    if scan.target_mask is None:
        voxels = "predicted"
    elif parse_box(question.target) is not None:
        voxels = "predicted in a box"
    return {"name": case.target.name, "label": numbers[0] if len(numbers) == 1 else numbers, "voxels": voxels}


def _parameters_record(
    models: Models, question: Question, region: Region, setting: Setting, last: Estimate, device: torch.device
) -> dict[str, Any]:
    """How it was explained, for the record."""
    search, around = question.search, question.guided or region.source == "prediction"
    return {
        "method": question.method.name,
        "described": question.method.in_words(last.findings()),
        **asdict(question.method),  # type: ignore[call-overload] # every method is a dataclass
        "region": region.source,
        "threshold": search.threshold_of(models.localizer),
        "margin_mm": search.margin_mm if around else None,
        **({"pointed_by": models.pointed_by} if models.pointed_by else {}),
        "score": question.score,
        "effect": question.effect,
        "baseline": question.baseline,
        "rim_mm": RIM_MM,
        "batch_size": setting.scorer.batch_in_use,
        "precision": "reduced" if setting.scorer.reduced else "full",
        "seed": question.seed,
        "device": str(device),
    }


def _mask_of(label_map: sitk.Image, values: list[int]) -> sitk.Image:
    """Where a label map has one of some values, uint8."""
    mask = sitk.GetImageFromArray(np.isin(sitk.GetArrayViewFromImage(label_map), values).astype(np.uint8))
    mask.CopyInformation(label_map)
    return mask


def _whole_number(name: str, value: Any, least: int) -> int:
    """A whole number, or an `InputError`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value < 2**63:
        raise InputError(f"{name} is {value}: give a whole number from {least}.")
    return int(value)
