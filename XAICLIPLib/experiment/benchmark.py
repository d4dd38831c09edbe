"""The paper's experiment on a labelled dataset: every explainer guided and unguided, measured alike, with controls.

The measurements of each map are saved in a file of their own, all or nothing, so that an interrupted run continues
where it stopped. A folder holds results of the same settings only: maps with different settings cannot be compared.

References
----------
Alzubaidi et al. "XAI-CLIP", arXiv 2602.07017, 2026.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from XAICLIPLib import anatomy
from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.experiment.datasets.case import Case
from XAICLIPLib.experiment.datasets.published import Dataset
from XAICLIPLib.experiment.map_measurements import REGIONS, MapMeasurements, RegionName
from XAICLIPLib.experiment.results import Results
from XAICLIPLib.experiment.trial import Scan, Trial
from XAICLIPLib.explainers import methods
from XAICLIPLib.explainers.lime import Lime
from XAICLIPLib.explainers.methods import METHODS
from XAICLIPLib.localization.localizer import Localizer
from XAICLIPLib.pipeline import explain, load_localizer, load_segmenter
from XAICLIPLib.scoring.options import BASELINES, SCORES, Baseline, Score
from XAICLIPLib.segmentation.segmenter import Promptable, Segmenter
from XAICLIPLib.system.devices import choose_device
from XAICLIPLib.system.packages import versions

FORMAT = "XAI-CLIP benchmark 1"

PAPERS_METHODS = ("occlusion", "rise", "lime")
"""The methods that the paper compares."""

PIXEL_MM = 0.78
"""Pixel size of an abdominal CT slice: 512 pixels over 400 mm. It turns parameters in pixels into lengths."""

POINTS, RANDOM_ORDERS = 8, 2
"""Points of the deletion and insertion curves, and random orders, which all maps of a structure share."""


@dataclass(frozen=True)
class Plan:
    """What an experiment explains, and with which settings.

    Attributes
    ----------
    structures
        Names of the vocabulary.
    methods
        Names of `XAICLIPLib.explainers.methods`. The paper's claim is about occlusion.
    cases
        Identifiers of the dataset, or patterns of them (``abdomen_2*``); none: all cases.
    window_mm, stride_mm
        Edge of the windows of occlusion, the cells of RISE and the supervoxels of LIME, and the stride of occlusion;
        by default chosen by the size of the structure, and half of that. Guided and unguided maps get the same.
    samples
        Patterns of RISE, all of which are used, and sets of LIME; guided and unguided maps get the same. LIME gets at
        least two sets for each supervoxel of the whole scan, to tell them apart. By default the methods' own numbers.
    paper_like
        Use parameters that are known of the paper at second hand, in mm: see `parameters_of`. They are not the paper's.
    score, baseline, seed
        As in `XAICLIPLib.explain`.
    points, random_orders
        Of the deletion and insertion curves.
    """

    structures: tuple[str, ...]
    methods: tuple[str, ...] = PAPERS_METHODS
    cases: tuple[str, ...] = ()
    window_mm: float | None = None
    stride_mm: float | None = None
    samples: int | None = None
    paper_like: bool = False
    score: Score = "soft dice"
    baseline: Baseline = "air"
    seed: int = 0
    points: int = POINTS
    random_orders: int = RANDOM_ORDERS

    def check(self) -> None:
        """Check the plan before anything is loaded.

        Raises
        ------
        InputError
            The plan cannot be run; the message says why.
        """
        for name in self.structures:
            if anatomy.resolve(name) is None:
                near = anatomy.suggestions(name)
                hint = f"did you mean {' or '.join(near)}?" if near else "use names such as liver or left kidney."
                raise InputError(f'There is no structure "{name}" in the vocabulary: {hint}')
        if not self.structures or not self.methods:
            raise InputError("There is nothing to run: name at least one structure and one method.")
        if self.paper_like and (self.window_mm, self.stride_mm, self.samples) != (None, None, None):
            raise InputError("paper-like has a window and samples of its own: leave --window, --stride, --samples out.")
        if self.score not in SCORES or self.baseline not in BASELINES:
            raise InputError(f"There is no score {self.score} or no baseline {self.baseline}: choose others.")
        if self.points < 2 or self.random_orders < 1:
            raise InputError("Curves need at least 2 points and 1 random order.")
        for method in self.methods:
            methods.method(method, **parameters_of(method, self))

    def regions(self, method: str) -> tuple[RegionName, ...]:
        """Guided and whole; only whole for gradient methods, which always cover all that the network sees."""
        return REGIONS if METHODS[method].captions.value else ("whole",)


def parameters_of(method: str, plan: Plan) -> dict[str, Any]:
    """The parameters of a method, the same for the guided and the unguided map.

    With ``paper_like`` they are second-hand parameters (FIELD.md) of 2D slices: windows of 64 pixels every 32, all
    evaluated; RISE with 7 x 7 cells over the slice, half of them kept, 2000 patterns, the plain weighted mean; LIME
    with Felzenszwalb's pieces and 500 sets. Here they are cubes and cells in mm. A fill with 0 after an intensity
    window is the darkest grey, which here is the baseline air.
    """
    parameters: dict[str, dict[str, Any]]
    if plan.paper_like:
        window = 64 * PIXEL_MM
        parameters = {
            "occlusion": {"window_mm": window, "stride_mm": window / 2, "exhaustive": True},
            "rise": {"cell_mm": 512 / 7 * PIXEL_MM, "samples": 2000, "estimator": "mean", "wanted_error": 0.0},
            "lime": {"size_mm": window, "samples": 500, "supervoxels": "felzenszwalb"},
        }
        return parameters.get(method, {})
    parameters = {
        "occlusion": {"window_mm": plan.window_mm, "stride_mm": plan.stride_mm},
        "rise": {"cell_mm": plan.window_mm, "samples": plan.samples, "wanted_error": 0.0},
        "lime": {"size_mm": plan.window_mm, "samples": plan.samples},
    }
    return parameters.get(method, {})


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes
    ----------
    rows
        All measurements of this plan that the folder holds, of earlier runs too, in the order of the plan.
    problems
        What could not be measured, and why, one sentence each. They may name files, and must not go into a report.
    left_out
        The cases, structures and maps that could not be measured, by the numbers of the cases.
    computed
        Number of rows that are new.
    settings
        The settings of all rows.
    complete
        False if the run was interrupted.
    """

    rows: tuple[MapMeasurements, ...]
    problems: tuple[str, ...]
    left_out: tuple[str, ...]
    computed: int
    settings: Mapping[str, Any]
    complete: bool


def benchmark(
    dataset: Dataset,
    plan: Plan,
    folder: str | Path,
    *,
    kind: str = "",
    model: str | Path | Segmenter | None = None,
    localizer: str | Path | Localizer | None = None,
    device: str = "auto",
    trust: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run the experiment, or the part of it that was not measured yet.

    Parameters
    ----------
    dataset
        Labelled cases.
    plan
        What to explain, and with which settings.
    folder
        For the results. A folder with results of the same settings is continued.
    kind
        Name of the kind of dataset, for the report.
    model, localizer, device, trust
        As in `XAICLIPLib.explain`. Both models are loaded once.
    tell
        Called with a sentence for each map that is measured or left out.
    cancelled
        Asked between network batches; True ends the run. The measurements so far are kept.

    Raises
    ------
    InputError
        The plan, a model or the folder cannot be used.
    """
    plan.check()
    names = (structure.name for name in plan.structures if (structure := anatomy.resolve(name)) is not None)
    plan = replace(plan, structures=tuple(dict.fromkeys(names)))
    cases = list(_selected_cases(dataset, plan.cases))
    torch_device = choose_device(device)
    segmenter = load_segmenter(model, torch_device, trust)
    if isinstance(segmenter, Promptable):
        raise InputError("The experiment needs a network that draws by itself, and this one must be pointed at.")
    guide = load_localizer(localizer, torch_device)
    settings = settings_of(dataset, plan, kind, segmenter, guide, torch_device)
    run = _Run(Results(Path(folder), settings), plan, segmenter, guide, torch_device, tell, cancelled)
    complete = True
    try:
        for number, case in cases:
            run.measure_case(number, case)
    except Cancelled:
        complete = False
    return Outcome(
        tuple(row for number, _ in cases for row in run.measured_rows(number)),
        tuple(run.problems),
        tuple(run.left_out),
        run.computed,
        settings,
        complete,
    )


@dataclass
class _Run:
    """One call of `benchmark`, and its results so far."""

    results: Results
    plan: Plan
    segmenter: Segmenter
    guide: Localizer
    device: torch.device
    tell: Callable[[str], None]
    cancelled: Callable[[], bool]
    computed: int = 0

    def __post_init__(self) -> None:
        self.problems: list[str] = []
        self.left_out: list[str] = []

    def measured_rows(self, number: int) -> Iterator[MapMeasurements]:
        for key in self._keys():
            if (row := self.results.read(number, *key)) is not None:
                yield row

    def _keys(self) -> list[tuple[str, str, RegionName]]:
        plan = self.plan
        return [(s, m, r) for s in plan.structures for m in plan.methods for r in plan.regions(m)]

    def measure_case(self, number: int, case: Case) -> None:
        missing = [key for key in self._keys() if self.results.read(number, *key) is None]
        if not missing:
            return
        if self.cancelled():
            raise Cancelled("Cancelled before a case was begun.")
        try:
            scan = Scan.of(number, case, self.segmenter, self.device)
        except InputError as error:
            self._leave_out(f"case {number}", error)
            return
        for structure in dict.fromkeys(structure for structure, _, _ in missing):
            try:
                trial = Trial.of(
                    scan,
                    structure,
                    self.guide,
                    baseline=self.plan.baseline,
                    points=self.plan.points,
                    random_orders=self.plan.random_orders,
                    seed=self.plan.seed,
                )
            except InputError as error:
                self._leave_out(f"case {number}, {structure}", error)
                continue
            for _, method, region in [key for key in missing if key[0] == structure]:
                try:
                    self._measure(trial, method, region)
                except InputError as error:
                    self._leave_out(f"case {number}, {structure}, {method}, {region}", error)

    def _measure(self, trial: Trial, method: str, region: RegionName) -> None:
        scan, plan = trial.scan, self.plan
        parameters = parameters_of(method, plan)
        configured = methods.method(method, **parameters)
        if isinstance(configured, Lime) and configured.samples is not None:
            parameters["samples"] = max(configured.samples, trial.fewest_sets(configured))
        explanation = explain(
            scan.images,
            trial.structure,
            model=self.segmenter,
            localizer=trial.localizer,
            method=method,
            region=region,
            score=plan.score,
            baseline=plan.baseline,
            modality=scan.modality,
            device=str(self.device),
            precision="full",
            seed=plan.seed,
            cancelled=self.cancelled,
            **parameters,
        )
        if not explanation.complete:
            raise Cancelled("Cancelled before a map was complete.")
        row = trial.measure(explanation, method, region, self.cancelled)
        self.results.write(row)
        self.computed += 1
        self.tell(
            f"Case {row.case}, {row.structure}, {method}, {region}: {row.explain_s:.0f} s, {row.patches} patches, "
            f"Dice {row.dice:.2f} (null {row.null_dice:.2f}), faithfulness {row.faithfulness:+.3f} "
            f"(chance {row.random_faithfulness:+.3f})"
        )

    def _leave_out(self, what: str, error: InputError) -> None:
        self.left_out.append(what)
        self.problems.append(f"{what[0].upper()}{what[1:]}: {error}")
        self.tell(f"Left out: {self.problems[-1]}")


def _selected_cases(dataset: Dataset, patterns: Sequence[str]) -> Iterator[tuple[int, Case]]:
    """The cases that match the patterns, with their numbers in the dataset."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(case.identifier, pattern) for case in dataset):
            raise InputError(f'The dataset has no case "{pattern}": it has {", ".join(c.identifier for c in dataset)}.')
    for number, case in enumerate(dataset, 1):
        if not patterns or any(fnmatch.fnmatchcase(case.identifier, pattern) for pattern in patterns):
            yield number, case


def settings_of(
    dataset: Dataset, plan: Plan, kind: str, segmenter: Segmenter, guide: Localizer, device: torch.device
) -> dict[str, Any]:
    """All that determines a map and its measurements: JSON types only, without the cases' names.

    The plan's cases, structures and methods are not part of it, so that others can be added to a folder later.
    """
    names = "\n".join(case.identifier for case in dataset)
    settings = {
        "format": FORMAT,
        "version": versions(())["xaiclip"],
        "dataset": kind,
        "cases": len(dataset),
        "cases_sha256": hashlib.sha256(names.encode("utf-8", "backslashreplace")).hexdigest(),
        "model": dict(segmenter.provenance),
        "localizer": dict(guide.provenance),
        "window_mm": plan.window_mm,
        "stride_mm": plan.stride_mm,
        "samples": plan.samples,
        "paper_like": plan.paper_like,
        "score": plan.score,
        "baseline": plan.baseline,
        "seed": plan.seed,
        "curve_points": plan.points,
        "random_orders": plan.random_orders,
        "device": device.type,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain
