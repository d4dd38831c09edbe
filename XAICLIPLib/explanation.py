"""From a volume and a prompt to an explanation: the whole pipeline, and its result.

>>> explanation = explain("scan.nii.gz", prompt="liver")  # doctest: +SKIP
>>> explanation.save("results/liver")  # doctest: +SKIP
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import SimpleITK as sitk
import torch

from XAICLIPLib import anatomy, catalog, imaging, record
from XAICLIPLib.anatomy import Structure
from XAICLIPLib.devices import choose_device
from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.localization.localizer import Localizer
from XAICLIPLib.localization.region import Region, guided_region, region_from_mask, whole_region
from XAICLIPLib.perturbation.baselines import BASELINES, Baseline, baseline_volume
from XAICLIPLib.perturbation.occlusion import occlusion, window_for
from XAICLIPLib.perturbation.perturbation import Estimate
from XAICLIPLib.scoring import SCORES, Score, Scorer
from XAICLIPLib.segmentation.prediction import label_values, predict
from XAICLIPLib.segmentation.segmenter import Prepared, Segmenter
from XAICLIPLib.target import RIM_MM, class_of, is_mask, make_target, read_mask

Method = Literal["occlusion"]
METHODS: tuple[Method, ...] = get_args(Method)

Stage = Literal["localize", "segment", "explain"]

SMALL_ML, UNSURE = 0.5, 0.5
"""Below this volume, or this score of the undisturbed network, a drawing is hardly an organ."""

ESTIMATE_EVERY_S = 2.0
ESTIMATE_SHARE = 0.1
"""Of the time, which running estimates may take: to resample one to a large scan takes seconds."""


@dataclass(frozen=True)
class Progress:
    """How far an explanation is.

    Attributes
    ----------
    stage
        ``localize`` counts slices, ``segment`` patches, ``explain`` perturbations.
    done, total
        Of this stage.
    seconds_left
        Of this stage, from its pace so far; None until something is done.
    """

    stage: Stage
    done: int
    total: int
    seconds_left: float | None


@dataclass(frozen=True)
class Explanation:
    """Why a network drew a structure where it did.

    All volumes lie in the geometry of the input.

    Attributes
    ----------
    image
        The input.
    saliency
        float32: the mean score lost by the perturbations that held each voxel; 0 where nothing was perturbed.
    region
        Where perturbations were made.
    segmentation
        The network's label map.
    prediction
        uint8: the target as it was explained, predicted or given.
    target
        ``name`` and ``label`` of what is explained.
    labels
        Structure by label of `segmentation`.
    measurements
        Numbers about the target, the saliency and the work done.
    record
        All that ``explanation.json`` holds: the above, and models, versions, parameters, timings, warnings.
    complete
        False where the computation was cancelled: the saliency is what was known by then.
    """

    image: sitk.Image
    saliency: sitk.Image
    region: Region
    segmentation: sitk.Image
    prediction: sitk.Image
    target: Mapping[str, Any]
    labels: Mapping[int, str]
    measurements: Mapping[str, Any]
    record: Mapping[str, Any]
    complete: bool = True

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        return list(self.record["warnings"])

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write ``saliency.nrrd``, ``region.nrrd``, ``segmentation.nrrd``, ``explanation.json`` and ``figure.png``.

        Returns the path of each by its name without the ending. Files of an earlier explanation are replaced.

        Raises
        ------
        InputError
            The folder cannot be written.
        """
        from XAICLIPLib.figure import save_figure  # matplotlib only when a picture is drawn

        folder = Path(folder)
        written = {
            name: imaging.write_volume(volume, folder / f"{name}.nrrd")
            for name, volume in (
                ("saliency", self.saliency),
                ("region", self.region.mask),
                ("segmentation", self.segmentation),
            )
        }
        parameters = self.record["parameters"]
        written["figure"] = save_figure(
            folder / "figure.png",
            self.image,
            self.saliency,
            self.region.mask,
            self.prediction,
            title=f"Why did the network draw the {self.target['name']} here?",
            subtitle=f"{self.record['models']['segmenter']['name']} · {parameters['region']} {parameters['method']}, "
            f"window {parameters['window_mm']:g} mm, stride {parameters['stride_mm']:g} mm, "
            f"baseline {parameters['baseline']}" + ("" if self.complete else " · cancelled before the end"),
            modality=self.record["input"]["modality"],
            target_label="Given mask" if self.target["voxels"] == "given" else "Predicted target",
            warnings=self.warnings,
            saliency_label=f"score lost ({parameters['score'].replace('dice', 'Dice')})",
        )
        written["explanation"] = record.write(self.record, folder / "explanation.json")
        return written


def explain(
    image: sitk.Image | str | Path,
    prompt: str,
    *,
    model: str | Path | Segmenter | None = None,
    localizer: str | Path | Localizer | None = None,
    method: Method = "occlusion",
    region: str | Path | sitk.Image = "guided",
    target: str | Path | sitk.Image | None = None,
    score: Score = "soft dice",
    baseline: Baseline = "air",
    window_mm: float | None = None,
    stride_mm: float | None = None,
    device: str = "auto",
    batch_size: int = 4,
    seed: int = 0,
    trust: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_estimate: Callable[[sitk.Image], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Explanation:
    """Explain why a segmentation network drew a structure where it did.

    Parameters
    ----------
    image
        A scalar 3D volume, or the path of one (NIfTI, NRRD, MetaImage, a folder with a DICOM series).
    prompt
        The structure in words: "liver", "left kidney", "renal, left".
    model
        A segmenter, its name in the catalogue (default: the first), or the folder of a MONAI bundle.
    localizer
        A localizer, its name in the catalogue (default: the first), a folder, ``hf-hub:ID`` or ``NAME:TAG``.
    method
        The explainer.
    region
        ``guided`` (by the localizer), ``whole`` (unguided), or a mask: a volume, or the path of one.
    target
        Another structure of the network than the prompt's, by name; or a mask of the voxels whose class is to be
        explained ("why is *this* called liver?").
    score
        How well the target survives; see `XAICLIPLib.scoring`.
    baseline
        What replaces perturbed voxels; see `XAICLIPLib.perturbation.baselines`.
    window_mm, stride_mm
        Edge of the occluding windows, by default as `window_for` the target's volume, and their distance, by default
        half of it.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    batch_size
        Patches computed together; halved when memory runs out.
    seed
        Of all that is random. The same seed gives the same map on the same device.
    trust
        Run the code in the configuration of a bundle that does not ship.
    on_progress
        Called after every batch.
    on_estimate
        Called with the saliency so far, in the input's geometry, at most every two seconds and for a tenth of the time.
    cancelled
        Asked between batches. Once perturbing has begun, True ends with the partial result.

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
    _check_choices(method=(method, METHODS), score=(score, SCORES), baseline=(baseline, BASELINES))
    if isinstance(region, str) and region not in ("guided", "whole") and not is_mask(region):
        raise InputError(f"The region {region} is neither guided, whole nor the file of a mask.")
    window_mm, stride_mm = _length("window_mm", window_mm), _length("stride_mm", stride_mm)
    if window_mm is not None and stride_mm is not None and stride_mm > window_mm:
        raise InputError(
            f"stride_mm is {stride_mm:g}, more than window_mm, {window_mm:g}: that leaves gaps, give a shorter stride."
        )
    batch_size, seed = _whole("batch_size", batch_size, 1), _whole("seed", seed, 0)
    run = _Run(on_progress, cancelled or (lambda: False))
    where = choose_device(device)

    with run.timed("read"):
        volume = image if isinstance(image, sitk.Image) else imaging.read_volume(image)
        imaging.check_volume(volume)
        modality = imaging.guess_modality(volume)
        drawn, area = read_mask("target", target, volume), read_mask("region", region, volume)
    with run.timed("load"):
        segmenter = _segmenter(model, where, trust)
        name, labels = class_of(prompt, target, segmenter)
        guide = _localizer(localizer, where) if isinstance(region, str) and region == "guided" else None
    if modality and modality not in (_modalities(segmenter.modality) or {modality}):
        run.warnings.append(
            f"The network {segmenter.name} is for {segmenter.modality}, and this volume looks like {modality}: "
            "do not rely on its segmentation."
        )

    with run.timed("segment"):
        prediction = predict(segmenter, volume, where, batch_size, lambda d, t: run.advance("segment", d, t))
        prepared, tiling = prediction.prepared, prediction.tiling
        segmentation = prediction.label_map(volume)
        explained = make_target(name, labels, drawn, prediction)
        structure = drawn
        if structure is None:
            structure = imaging.resample_labels(prepared.as_image(explained.reference), volume)
        network_input = prediction.volume
        del prediction  # the logits of a hundred classes are larger than all the rest

    with run.timed("localize"):
        roi = _region(area, prompt, guide, volume, structure, modality, run)
        run.warnings += roi.warnings
        probed = prepared.mask_from(roi.mask)
        if not bool(probed.any()):
            raise InputError(
                "Nothing of the region lies in the part of the volume that the network sees: choose another region."
            )

    if window_mm is None:
        window_mm = window_for(imaging.volume_ml(structure))
    if stride_mm is None:
        stride_mm = window_mm / 2
    run.go_on()
    with run.timed("explain"):
        outside = ~prepared.mask_from(imaging.body_mask(volume)) if baseline == "air" else None
        replacement = baseline_volume(baseline, network_input, probed, prepared.spacing_mm, outside)
        scorer = Scorer(
            segmenter.logits,
            network_input,
            replacement,
            tiling,
            explained,
            segmenter.activation,
            score,
            batch_size,
        )
        estimates = occlusion(scorer, probed, prepared.spacing_mm, window_mm=window_mm, stride_mm=stride_mm, seed=seed)
        last, complete = _follow(estimates, prepared, volume, run, on_estimate)
    run.warnings += scorer.warnings
    saliency = imaging.resample_like(prepared.as_image(last.saliency()), volume)

    perturbed = imaging.resample_like(prepared.as_image(last.probed()), volume, "nearest")
    measurements = _measure(saliency, perturbed, structure, scorer, last, len(tiling.patches))
    values = label_values(segmenter)
    own = [values[channel] for channel in labels]
    target_record: dict[str, Any] = {
        "name": name,
        "label": own[0] if len(own) == 1 else own,
        "voxels": "given" if drawn is not None else "predicted",
    }
    names = {values[channel]: structure for channel, structure in segmenter.labels.items()}
    run.warnings += _cautions(name, prompt, structure, roi, scorer.full_score)
    if not complete:
        run.warnings.append(f"Cancelled after {last.done} of {last.planned} perturbations: the saliency is incomplete.")
    return Explanation(
        image=volume,
        saliency=saliency,
        region=roi,
        segmentation=segmentation,
        prediction=structure,
        target=target_record,
        labels=names,
        measurements=measurements,
        record=record.build(
            prompt=prompt,
            target=target_record,
            labels=names,
            image=volume,
            modality=modality,
            region=roi,
            measurements=measurements,
            models={
                "segmenter": dict(segmenter.provenance),
                "localizer": dict(guide.provenance) if guide is not None else None,
            },
            parameters={
                "method": method,
                "region": roi.source,
                "score": score,
                "baseline": baseline,
                "window_mm": window_mm,
                "stride_mm": stride_mm,
                "rim_mm": RIM_MM,
                "batch_size": batch_size,
                "seed": seed,
                "device": str(where),
            },
            timings=run.timings,
            warnings=run.warnings,
            complete=complete,
        ),
        complete=complete,
    )


@dataclass
class _Run:
    """Clock, progress, cancel and warnings of one call."""

    report: Callable[[Progress], None] | None
    cancelled: Callable[[], bool]
    warnings: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    _begun: float = 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        self._begun = time.perf_counter()
        yield
        self.timings[stage] = round(time.perf_counter() - self._begun, 3)

    def advance(self, stage: Stage, done: int, total: int, may_end: bool = False) -> None:
        """Tell how far the stage is; raises `Cancelled` where the user asked for it and there is nothing to return."""
        if self.report is not None:
            elapsed = time.perf_counter() - self._begun
            self.report(Progress(stage, done, total, elapsed / done * (total - done) if done else None))
        if not may_end:
            self.go_on()

    def go_on(self) -> None:
        """Raise `Cancelled` where the user asked for it."""
        if self.cancelled():
            raise Cancelled("Cancelled before there was a result.")


def _follow(
    estimates: Iterator[Estimate],
    prepared: Prepared,
    volume: sitk.Image,
    run: _Run,
    on_estimate: Callable[[sitk.Image], None] | None,
) -> tuple[Estimate, bool]:
    """Run an explainer to its end or until it is cancelled; the last estimate, and whether it is complete."""
    due = time.perf_counter() + ESTIMATE_EVERY_S
    last: Estimate | None = None
    for last in estimates:
        run.advance("explain", last.done, last.planned, may_end=True)
        if last.done == 0 < last.planned:
            run.go_on()  # a batch may finish no perturbation
        elif last.done < last.planned and run.cancelled():
            return last, False
        if on_estimate is not None and (begun := time.perf_counter()) >= due:
            on_estimate(imaging.resample_like(prepared.as_image(last.saliency()), volume))
            now = time.perf_counter()
            due = now + max(ESTIMATE_EVERY_S, (now - begun) / ESTIMATE_SHARE)
    assert last is not None  # the region is not empty, so that a window meets it
    return last, True


def _segmenter(model: str | Path | Segmenter | None, device: torch.device, trust: bool) -> Segmenter:
    return catalog.load_segmenter(model, device, trust) if model is None or isinstance(model, (str, Path)) else model


def _localizer(localizer: str | Path | Localizer | None, device: torch.device) -> Localizer:
    if localizer is None or isinstance(localizer, (str, Path)):
        return catalog.load_localizer(localizer, device)
    return localizer


# --- where is probed ------------------------------------------------------------------------------


def _region(
    drawn: sitk.Image | None,
    prompt: str,
    guide: Localizer | None,
    volume: sitk.Image,
    prediction: sitk.Image,
    modality: Literal["CT", "MR"] | None,
    run: _Run,
) -> Region:
    if guide is not None:
        what: Structure | str = anatomy.resolve(prompt) or prompt
        probability = guide.locate(volume, what, modality, lambda d, t: run.advance("localize", d, t))
        return guided_region(volume, probability, prediction, prompt, threshold=guide.threshold)
    return whole_region(volume) if drawn is None else region_from_mask(volume, drawn, prediction)


# --- numbers and checks --------------------------------------------------------------------------


def _cautions(name: str, prompt: str, explained: sitk.Image, region: Region, score: float) -> list[str]:
    """What a reader must know before taking the map for an answer."""
    found = []
    if not anatomy.is_spelled_right(prompt):
        found.append(f'"{prompt}" is not a known spelling and was understood as {name}: check that this is meant.')
    volume = imaging.volume_ml(explained)
    if volume < SMALL_ML or score < UNSURE:
        found.append(
            f"Only {volume:.2g} ml of {name} with a score of {score:.2f} are explained: the organ may lie outside the "
            "scan and the drawing be a false positive, so do not interpret this map."
        )
    voxels = sitk.GetArrayViewFromImage(explained)
    if any(voxels.take(end, axis).any() for axis in range(3) for end in (0, -1)):
        found.append(f"The {name} touches the edge of the scan: volume and map cover only the part inside.")
    if region.source == "file" and (region.agreement is None or region.agreement.recall < 0.5):
        share = region.agreement.recall if region.agreement else 0.0
        found.append(f"Only {share:.0%} of the {name} lies in the given region: most of it was not tried.")
    return found


def _measure(
    saliency: sitk.Image, perturbed: sitk.Image, prediction: sitk.Image, scorer: Scorer, last: Estimate, patches: int
) -> dict[str, Any]:
    """Numbers about an explanation; see the README for what each means."""
    effect = np.abs(sitk.GetArrayViewFromImage(saliency))
    inside = sitk.GetArrayViewFromImage(prediction) != 0
    probed = sitk.GetArrayViewFromImage(perturbed) != 0
    total = float(effect.sum(dtype=np.float64))
    return {
        "score_unperturbed": scorer.full_score,
        "target_volume_ml": imaging.volume_ml(prediction),
        "largest_score_lost": float(sitk.GetArrayViewFromImage(saliency).max()),
        "smallest_score_lost": float(sitk.GetArrayViewFromImage(saliency).min()),
        "effect_inside_target": float(effect[inside].sum(dtype=np.float64)) / total if total else None,
        "effect_inside_target_if_uniform": float((inside & probed).sum() / probed.sum()) if probed.any() else None,
        "probed_volume_ml": float(probed.sum() * np.prod(saliency.GetSpacing()) / 1000),
        "perturbations": last.done,
        "perturbations_planned": last.planned,
        "patches_computed": scorer.forwards,
        "patches_full_inference_would_compute": last.done * patches,
    }


def _check_choices(**given: tuple[str, tuple[str, ...]]) -> None:
    for what, (value, known) in given.items():
        if value not in known:
            raise InputError(f"There is no {what} {value!r}: choose one of {', '.join(known)}.")


def _length(what: str, value: Any) -> float | None:
    """A length in mm, where one is given."""
    if value is None:
        return None
    if not (isinstance(value, (int, float, np.number)) and np.isfinite(value) and value > 0):
        raise InputError(f"{what} is {value}: give a length in mm above 0.")
    return float(value)


def _whole(what: str, value: Any, least: int) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value < 2**63:
        raise InputError(f"{what} is {value}: give a whole number from {least}.")
    return int(value)


def _modalities(words: str | None) -> set[str]:
    """Which of CT and MR a network's own words for its modality mean; empty where they mean neither."""
    signs = {"CT": r"\bCT|computed tomography", "MR": r"\bMR|magnetic resonance|\bT[12]\b"}
    return {name for name, pattern in signs.items() if re.search(pattern, words or "", re.IGNORECASE)}
