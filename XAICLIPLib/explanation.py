"""From a volume and a prompt to an explanation: the whole pipeline, and its result.

>>> explanation = explain("scan.nii.gz", prompt="liver")  # doctest: +SKIP
>>> explanation.save("results/liver")  # doctest: +SKIP
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation import assessment, reliability
from XAICLIPLib.evaluation.flags import ordered
from XAICLIPLib.evaluation.suitability import checks as suits
from XAICLIPLib.explainers import methods
from XAICLIPLib.explainers.methods import BASELINES, PRECISIONS, SCORES, Baseline, Precision, Score
from XAICLIPLib.explainers.running import Ground, estimates, in_words, name_of, with_defaults
from XAICLIPLib.imaging.channels import Volume, read_images, stack
from XAICLIPLib.localization.localize import Finding, check_choices
from XAICLIPLib.localization.localizer import Localizer
from XAICLIPLib.localization.region import (
    MARGIN_MM,
    Region,
    prediction_region,
    region_from_mask,
    whole_region,
    with_target,
)
from XAICLIPLib.localization.slices import Modality
from XAICLIPLib.models import catalogue
from XAICLIPLib.progress import Progress, Run
from XAICLIPLib.reporting import record
from XAICLIPLib.reporting.measurements import cautions, measure
from XAICLIPLib.scoring.baselines import baseline_for, with_held
from XAICLIPLib.scoring.perturbation import Estimate
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.target import RIM_MM, Place, box_of, class_of, is_mask, make_target, read_mask
from XAICLIPLib.segmentation.networks.described import Predictor, from_object
from XAICLIPLib.segmentation.prediction import label_values, predict, surroundings
from XAICLIPLib.segmentation.segmenter import Prepared, Promptable, Segmenter
from XAICLIPLib.system.devices import choose_device

_REGION_WORDS = {
    "guided": "guided ",
    "whole": "unguided ",
    "prediction": "around the prediction: ",
    "prediction box": "in the prediction's box: ",
    "file": "in a given region: ",
}
"""Before the name of a method, by the source of the region."""

REGIONS = ("guided", "whole", "prediction")
"""Words for a region."""

ESTIMATE_EVERY_S = 2.0
ESTIMATE_SHARE = 0.1
"""Of the time, which running estimates may take: to resample one to a large scan takes seconds."""


@dataclass(frozen=True)
class Explanation:
    """Why a network drew a structure where it did.

    All volumes lie in the geometry of the input.

    Attributes
    ----------
    image
        The input.
    saliency
        float32: the score lost because of each voxel, 0 where nothing was perturbed; what a value of each method means
        is told by `XAICLIPLib.explainers.methods.READINGS`.
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
    standard_error
        float32, of the saliency, where the method is random; else None.
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
    standard_error: sitk.Image | None = None

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        return list(self.record["warnings"])

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write ``saliency.nrrd``, ``region.nrrd``, ``segmentation.nrrd``, ``explanation.json`` and ``figure.png``.

        A random method writes ``standard_error.nrrd`` as well, and a target that was given or lies in a box
        ``target.nrrd``. Returns the path of each by its name without the ending. Files of an earlier explanation are
        replaced.

        Raises
        ------
        InputError
            The folder cannot be written.
        """
        from XAICLIPLib.reporting.figure import save_figure  # matplotlib only when a picture is drawn

        folder = Path(folder)
        # The record is written last: whatever fails before, none of another map stays beside this one.
        with suppress(OSError):
            (folder / "explanation.json").unlink(missing_ok=True)
        written = {
            name: imaging.write_volume(volume, folder / f"{name}.nrrd")
            for name, volume in (
                ("saliency", self.saliency),
                ("region", self.region.mask),
                ("segmentation", self.segmentation),
                ("standard_error", self.standard_error),
                # The network's own label says what was explained, where no one drew it.
                ("target", None if self.target["voxels"] == "predicted" else self.prediction),
            )
            if volume is not None
        }
        for name in {"standard_error", "target"} - set(written):  # of an earlier explanation by another method
            (folder / f"{name}.nrrd").unlink(missing_ok=True)
        parameters = self.record["parameters"]
        reading = methods.READINGS[parameters["method"]]
        written["figure"] = save_figure(
            folder / "figure.png",
            self.image,
            self.saliency,
            self.region.mask,
            self.prediction,
            title=f"Why did the network draw the {self.target['name']} here?",
            subtitle=f"{self.record['models']['segmenter']['name']} · {_REGION_WORDS[parameters['region']]}"
            f"{parameters['described']}, baseline {parameters['baseline']}"
            + ("" if self.complete else " · cancelled before the end"),
            modality=self.record["input"]["modality"],
            target_label="Given mask" if self.target["voxels"] == "given" else "Predicted target",
            region_label=reading.region,
            pieces=reading.pieces,
            warnings=self.warnings,
            saliency_label=reading.label.format(score=parameters["score"].replace("dice", "Dice")),
        )
        written["explanation"] = record.write(self.record, folder / "explanation.json")
        return written

    def report(self, path: str | Path, pdf: bool = False) -> dict[str, Path]:
        """Write it as one page for a reader; see `XAICLIPLib.reporting.report.save_report`.

        Parameters
        ----------
        path
            The file, ``.html`` or ``.pdf``.
        pdf
            Beside an HTML file write a PDF as well.

        Raises
        ------
        InputError
            The file cannot be written, or has another ending.
        """
        from XAICLIPLib.reporting.report import save_report

        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            return save_report(folder, path, volume=self.image, pdf=pdf)


def explain(
    image: Volume | Sequence[Volume],
    prompt: str,
    *,
    model: str | Path | Segmenter | Predictor | None = None,
    localizer: str | Path | Localizer | None = None,
    prompts: str | Path | None = None,
    method: str = "occlusion",
    region: Place = "guided",
    target: Place | None = None,
    score: Score = "soft dice",
    baseline: Baseline = "air",
    threshold: float | None = None,
    margin_mm: float = MARGIN_MM,
    modality: Modality | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    trust: bool = False,
    check: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_estimate: Callable[[sitk.Image], None] | None = None,
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
        The explainer; see `XAICLIPLib.explainers.methods` for all of them and their parameters.
    region
        ``guided`` (by the localizer), ``whole`` (unguided), ``prediction`` (what the network itself draws), or a place:
        a mask, the path of one, a box (six numbers in mm: from and to along right, anterior, superior).
    target
        Another structure of the network than the prompt's, by name; or the place of the voxels whose class is to be
        explained: a mask ("why is *this* called liver?") or a box ("why does the liver end here?").
    score
        How well the target survives; see `XAICLIPLib.scoring.scorer`.
    baseline
        What replaces perturbed voxels; see `XAICLIPLib.scoring.baselines`.
    threshold
        Probability from which a voxel belongs to the guided region; by default the localizer's own.
    margin_mm
        Added around the guided region, or the prediction.
    modality
        CT or MR; by default guessed from the intensities.
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
    check
        Test the map when it is done: its deletion and insertion curves beside those of maps that know nothing of the
        network, and whether a little noise in the scan changes it. Takes somewhat longer than another explanation.
    on_progress
        Called after every batch.
    on_estimate
        Called with the saliency so far, in the input's geometry, at most every two seconds and for a tenth of the time.
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
    wanted = methods.method(method, **parameters)
    check_choices(score=(score, SCORES), baseline=(baseline, BASELINES), precision=(precision, PRECISIONS))
    if isinstance(region, str) and region not in REGIONS and not is_mask(region):
        raise InputError(f"The region {region} is neither {', '.join(REGIONS)}, a box nor the file of a mask.")
    finding = Finding.checked(localizer, threshold, margin_mm, modality, prompts)
    batch_size = None if batch_size is None else _whole("batch_size", batch_size, 1)
    seed = _whole("seed", seed, 0)
    run = Run(on_progress, cancelled or (lambda: False))
    where = choose_device(device)

    with run.timed("read"):
        images = read_images(image)
        volume = images[0]
        modality = modality or imaging.guess_modality(volume)
        drawn, area = read_mask("target", target, volume), read_mask("region", region, volume)
        in_a_box = box_of(target) is not None
        guided = isinstance(region, str) and region == "guided"
    with run.timed("load"):
        segmenter = _segmenter(model, where, trust)
        network_sees, told = stack(images, segmenter.inputs, segmenter.name)
        run.warnings += told
        promptable = isinstance(segmenter, Promptable)
        if not promptable:
            name, labels = class_of(prompt, target, segmenter)  # refused before a localizer is loaded, or downloaded
        guide = finding.load(where) if guided or (promptable and drawn is None and area is None) else None
    probability, pointed_by = None, "target" if drawn is not None else "region" if area is not None else "localizer"
    if isinstance(segmenter, Promptable):
        with run.timed("localize"):
            shown = area if drawn is None else drawn
            if shown is None:
                assert guide is not None
                probability = finding.locate(guide, volume, prompt, modality, run)
                shown = finding.region(guide, volume, probability, prompt, None, margin_mm=0).mask
            segmenter = segmenter.prompted(prompt, shown, modality)
        name, labels = class_of(prompt, target, segmenter)

    with run.timed("segment"):
        prediction = predict(segmenter, network_sees, where, batch_size, lambda d, t: run.advance("segment", d, t))
        flags = suits(volume, modality, segmenter, prediction.prepared)
        segmentation = prediction.label_map(volume)
        explained = make_target(name, labels, drawn, prediction, box=in_a_box)
        decision = prediction.decision().cpu()
        prepared, tiling, network_input = prediction.prepared, prediction.tiling, prediction.volume
        channels = len(prepared.tensor)
        del prediction  # the logits of a hundred classes are larger than all the rest
        structure = drawn
        if structure is None or in_a_box:
            structure = imaging.resample_labels(prepared.as_image(explained.reference), volume)
        values = label_values(segmenter)

    with run.timed("localize"):
        if guide is not None and guided:
            if probability is None:
                probability = finding.locate(guide, volume, prompt, modality, run)
            roi = finding.region(guide, volume, probability, prompt, structure)
        elif isinstance(region, str) and region == "prediction":
            roi = prediction_region(volume, _mask_of(segmentation, [values[channel] for channel in labels]), margin_mm)
        else:
            roi = whole_region(volume) if area is None else region_from_mask(volume, area, structure)
        if drawn is not None and roi.source not in ("whole", "file"):
            roi = with_target(roi, volume, drawn, margin_mm)
        run.warnings += roi.warnings
        probed = prepared.mask_from(roi.mask)
        body = prepared.mask_from(imaging.body_mask(volume))
        perturbed_input, held = network_input[:channels], None if prepared.held is None else network_input[channels:]
        replacement, changeable = baseline_for(baseline, perturbed_input, probed, prepared.spacing_mm, body)
        replacement = with_held(replacement, held)
        if not bool((probed & changeable).any()):
            raise InputError(
                "Nothing of the region lies in the part of the volume that the network sees: choose another region."
            )

    wanted = with_defaults(wanted, imaging.volume_ml(structure))
    run.go_on()
    names = {values[channel]: structure for channel, structure in segmenter.labels.items()}
    with run.timed("explain"):
        forward, patches = surroundings(segmenter, tiling, explained.voxels)
        scorer = Scorer(
            forward,
            network_input,
            replacement,
            patches,
            explained,
            segmenter.activation,
            score,
            batch_size,
            precision,
        )
        ground = Ground(
            scorer,
            perturbed_input,
            probed,
            changeable,
            decision,
            {value: name for value, name in names.items() if value},
            prepared.spacing_mm,
            getattr(segmenter, "network", None),
        )
        last, complete = _follow(estimates(wanted, ground, seed), prepared, volume, run, on_estimate)
    run.warnings += scorer.warnings

    found = last.saliency() if complete or last.measured is None else last.measured()  # no guesses in a result
    evidence = assessment.evidence_of(
        name, wanted, ground, last, found, roi.agreement if roi.source == "guided" else None
    )
    saliency = imaging.resample_like(prepared.as_image(found), volume)
    error = last.standard_error
    perturbed = imaging.resample_like(prepared.as_image(last.probed()), volume, "nearest")
    own = [values[channel] for channel in labels]
    target_record: dict[str, Any] = {
        "name": name,
        "label": own[0] if len(own) == 1 else own,
        "voxels": "predicted" if drawn is None else "predicted in a box" if in_a_box else "given",
    }
    measurements = measure(saliency, perturbed, structure, scorer, last, len(tiling.patches))
    if isinstance(wanted, methods.Structures):  # by what each costs: its map's voxels would count each by its size
        outside = evidence.outside
        measurements["effect_inside_target"] = None if outside is None else 1 - outside.value
        measurements["effect_inside_target_if_uniform"] = None if outside is None else 1 - outside.chance
    words = target if isinstance(target, str) and drawn is None else prompt
    run.warnings += cautions(name, words, structure, roi, scorer.full_score, score != "logit margin")
    tested = assessment.Checked()
    if check and complete:
        with run.timed("check"):
            tested = assessment.check(
                wanted, ground, last, found, seed, lambda d, t: run.advance("check", d, t, True), run.cancelled
            )
        if tested.stability is None:
            run.warnings.append("The check of the map was cancelled before its end: see what was not checked.")
    evidence = replace(evidence, faithfulness=tested.faithfulness, stability=tested.stability)
    flags = ordered([*flags, *reliability.checks(evidence)])
    run.warnings[:0] = [flag.sentence for flag in flags if flag.raised]
    if not complete:
        run.warnings.append(
            f"Cancelled after {last.done} of {last.planned} perturbations: the saliency is incomplete, and 0 also "
            "where nothing was tried yet."
        )
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
                "segmenter": catalogue.provenance_of(model, segmenter.provenance),
                "localizer": dict(guide.provenance) if guide is not None else None,
            },
            parameters={
                "method": name_of(wanted),
                "described": in_words(wanted),
                **asdict(wanted),
                "region": roi.source,
                "threshold": finding.threshold_of(guide),
                "margin_mm": margin_mm if guided or roi.source == "prediction" else None,
                **({"pointed_by": pointed_by} if promptable else {}),
                "score": score,
                "baseline": baseline,
                "rim_mm": RIM_MM,
                "batch_size": scorer.batch_in_use,
                "precision": "reduced" if scorer.reduced else "full",
                "seed": seed,
                "device": str(where),
            },
            timings=run.timings,
            warnings=run.warnings,
            reliability=flags,
            faithfulness=assessment.faithfulness_record(tested.faithfulness),
            stability=assessment.stability_record(tested.stability),
            complete=complete,
            further_images=dict(zip(segmenter.inputs[1:], images[1:], strict=True)),
        ),
        complete=complete,
        standard_error=None if error is None else imaging.resample_like(prepared.as_image(error()), volume),
    )


def _follow(
    estimates: Iterator[Estimate],
    prepared: Prepared,
    volume: sitk.Image,
    run: Run,
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
        if on_estimate is not None and last.done and (begun := time.perf_counter()) >= due:
            on_estimate(imaging.resample_like(prepared.as_image(last.saliency()), volume))
            now = time.perf_counter()
            due = now + max(ESTIMATE_EVERY_S, (now - begun) / ESTIMATE_SHARE)
    assert last is not None  # the region is not empty, so that a window meets it
    return last, True


def _mask_of(label_map: sitk.Image, values: list[int]) -> sitk.Image:
    """Where a label map has one of some values, uint8."""
    mask = sitk.GetImageFromArray(np.isin(sitk.GetArrayViewFromImage(label_map), values).astype(np.uint8))
    mask.CopyInformation(label_map)
    return mask


def _segmenter(model: Any, device: torch.device, trust: bool) -> Segmenter:
    if model is None or isinstance(model, (str, Path)):
        return catalogue.load_segmenter(model, device, trust)
    segmenter: Segmenter = from_object(model) if hasattr(model, "predict") else model
    return segmenter


def _whole(what: str, value: Any, least: int) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value < 2**63:
        raise InputError(f"{what} is {value}: give a whole number from {least}.")
    return int(value)
