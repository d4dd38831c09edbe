"""Several structures of one scan, each explained on its own: the scan is read and segmented once.

>>> for explanation in explain_each("scan.nii.gz", prompt="liver and kidneys"):  # doctest: +SKIP
...     explanation.save(f"results/{explanation.target['name']}")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch

from XAICLIPLib import anatomy, pipeline
from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.explanation import Explanation
from XAICLIPLib.imaging.channels import Volume
from XAICLIPLib.localization.slices import Modality
from XAICLIPLib.pipeline import Models, Question, Scan, TargetCase
from XAICLIPLib.progress import Progress, Run
from XAICLIPLib.scoring.target import class_called, class_of, classes_of
from XAICLIPLib.segmentation.networks.described import Predictor
from XAICLIPLib.segmentation.segmenter import Promptable, Segmenter
from XAICLIPLib.system.devices import choose_device

NOT_BEGUN = "the run was cancelled before it was begun"
"""Why a structure was not explained, where nothing speaks against it."""


def explain_each(
    image: Volume | Sequence[Volume],
    prompt: str,
    *,
    model: str | Path | Segmenter | Predictor | None = None,
    modality: Modality | None = None,
    series: int | str | None = None,
    device: str = "auto",
    trust: bool = False,
    labels: Mapping[int, str] | None = None,
    check: bool = False,
    on_structures: Callable[[Sequence[str]], None] | None = None,
    on_missing: Callable[[str, str], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_estimate: Callable[[sitk.Image], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    **options: Any,
) -> Iterator[Explanation]:
    """Explain each of the structures that a prompt names, one after the other.

    The scan is read, the models are loaded and the network is run once for all of them; the region is looked for once
    for each. A network that must be pointed at (SAM) is run once for each structure. A pair ("kidneys") is two
    structures where the network draws its sides apart; `XAICLIPLib.explain` explains it as one target.

    Parameters
    ----------
    image, model, modality, series, device, trust, labels, check, on_progress, on_estimate, on_warning, cancelled
        As of `XAICLIPLib.explain`.
    prompt
        The structures in words: "liver and spleen", "liver, left kidney", "kidneys". One structure is one as well.
    on_structures
        Called once with the names of the structures, in the order in which they will be explained, before anything is
        computed. Each is `anatomy.name_of` the ``prompt`` in an explanation's record.
    on_missing
        Called with the name of a structure that is not explained, and the reason in words. Each explanation has a
        warning of those that are not.
    **options
        All other parameters of `XAICLIPLib.explain`. A ``target`` says what to explain instead of the prompt, so that
        there is one explanation.

    Yields
    ------
    Explanation
        Of one structure, as soon as it is there. After one that was cancelled there is no other.

    Raises
    ------
    InputError
        An input cannot be used, a piece of the prompt means nothing, or the network draws none of the structures.
    Cancelled
        `cancelled` said so before there was any explanation.
    """
    question = Question.of(prompt, modality=modality, **options)
    run = Run(on_progress, cancelled or (lambda: False), on_warning)
    for piece in anatomy.prompts_in(question.prompt) if question.target is None else (question.prompt,):
        pipeline.check_words(replace(question, prompt=piece), model, run)
    torch_device = choose_device(device)
    with run.timed("read"):
        scan = pipeline.read_scan(image, modality, question, series)
        run.warnings += scan.warnings
    with run.timed("load"):
        segmenter = pipeline.load_segmenter(model, torch_device, trust, labels)
        questions = [replace(question, prompt=one) for one in structures_in(question, segmenter)]
        missing = _without_class(questions, segmenter)
        questions = [one for one in questions if one.prompt not in missing]
        models = pipeline.load_models(segmenter, scan, questions[0], torch_device, trust, run)
    if on_structures is not None:
        on_structures([anatomy.name_of(one.prompt) for one in questions])
    case_of = _Cases(models, scan, torch_device, run)
    cases = case_of.shared(questions, missing)
    for absent, reason in missing.items():
        if on_missing is not None:
            on_missing(anatomy.name_of(absent), reason)
    for sentence in _not_explained(prompt, missing):
        run.tell(sentence)  # now, and not with the first explanation, of which it is a warning too
    yielded = False
    for number, one in enumerate(questions):
        if one.prompt in missing:
            continue
        own = replace(run, warnings=list(run.warnings), timings=dict(run.timings))
        try:
            target = cases.get(one.prompt) or case_of.pointed_at(one, own)
            own.warnings += [*target.warnings, *_not_explained(prompt, missing)]
            explanation = pipeline.explain_target(
                *(target.models, scan, one, target.case, target.probability, own, on_estimate),
                *(check, model, torch_device),
            )
        except InputError as error:
            if len(questions) == 1:
                raise
            missing[one.prompt] = _reason(error)
            if on_missing is not None:
                on_missing(anatomy.name_of(one.prompt), missing[one.prompt])
            continue
        except Cancelled:
            if not yielded:
                raise
            _leave_out(questions[number:], missing, on_missing)
            return
        yield explanation
        yielded = True
        if not explanation.complete:
            _leave_out(questions[number + 1 :], missing, on_missing)
            return
    if not yielded:
        raise InputError(_none_of(prompt, missing))


def structures_in(question: Question, segmenter: Segmenter | Promptable) -> list[str]:
    """The prompts of the structures that a question names, each of which a network draws on its own, if at all."""
    if question.target is not None:
        return [question.prompt]
    classes = {} if isinstance(segmenter, Promptable) else classes_of(segmenter)
    if class_called(question.prompt, classes) is not None:
        return [question.prompt]
    prompts: list[str] = []
    for prompt in anatomy.prompts_in(question.prompt):
        sides = anatomy.sides_of(prompt)
        apart = sides and class_called(prompt, classes) is None and _draws_apart(prompt, sides, classes)
        if isinstance(segmenter, Promptable):
            apart = sides and anatomy.has_several_pieces(prompt)  # it draws the two together where asked for "kidneys"
        prompts += sides if apart else [prompt]
    return list({anatomy.name_of(prompt): prompt for prompt in reversed(prompts)}.values())[::-1]


def _draws_apart(pair: str, sides: Sequence[str], classes: Mapping[int, str]) -> bool:
    """Whether a network has classes for the sides of a pair, and none for the two together."""
    structure = anatomy.resolve(pair)
    of_sides = {label for side in sides for label in anatomy.match_label(anatomy.structure(side), classes)}
    return structure is not None and set(anatomy.match_label(structure, classes)) == of_sides != set()


def _without_class(questions: Sequence[Question], segmenter: Segmenter | Promptable) -> dict[str, str]:
    """The prompts for which a network has no class, with the reason.

    Raises
    ------
    InputError
        A prompt means nothing, or there is a class for none.
    """
    if isinstance(segmenter, Promptable):
        return {}
    missing = {}
    for one in questions:
        try:
            class_of(one.prompt, one.target, segmenter)
        except InputError as error:
            if len(questions) == 1 or anatomy.resolve(one.prompt) is None:
                raise
            missing[one.prompt] = f"the network {segmenter.name} has no class for it"
            last = error
    if len(missing) == len(questions):
        raise last
    return missing


@dataclass(frozen=True)
class _TargetOfOne:
    """A target in the network's answer, ready to be explained."""

    models: Models
    case: TargetCase
    probability: sitk.Image | None
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class _Cases:
    """Finds targets in a scan: in one answer of the network, or of one that must be pointed at, in one for each."""

    models: Models
    scan: Scan
    device: torch.device
    run: Run

    def shared(self, questions: Sequence[Question], missing: dict[str, str]) -> dict[str, _TargetOfOne]:
        """The targets in one answer, by their prompts; what is not drawn is added to those that are missing."""
        if isinstance(self.models.segmenter, Promptable):
            return {}
        cases: dict[str, _TargetOfOne] = {}
        with self.run.timed("segment"):
            prediction = pipeline.predict_scan(self.models, questions[0], self.device, self.run)
            other: TargetCase | None = None
            for one in questions:
                own = replace(self.run, warnings=[])
                try:
                    other = pipeline.find_target(prediction, self.models, self.scan, one, own, other)
                except InputError as error:
                    if len(questions) == 1:
                        raise
                    missing[one.prompt] = _reason(error)
                else:
                    cases[one.prompt] = _TargetOfOne(self.models, other, None, own.warnings)
        return cases

    def pointed_at(self, question: Question, run: Run) -> _TargetOfOne:
        """The target of a network that must be pointed at."""
        models = replace(self.models)
        with run.timed("localize"):
            probability = pipeline.point_at_prompt(models, self.scan, question, run)
        with run.timed("segment"):
            prediction = pipeline.predict_scan(models, question, self.device, run)
            return _TargetOfOne(models, pipeline.find_target(prediction, models, self.scan, question, run), probability)


def _reason(error: InputError) -> str:
    """An error as a part of a sentence: without its beginning in capitals, its way out and its full stop."""
    text = str(error).split(", so there is nothing to explain", 1)[0].rstrip(".")
    return text[:1].lower() + text[1:]


def _not_explained(prompt: str, missing: Mapping[str, str]) -> list[str]:
    return [f'Of "{prompt}", the {anatomy.name_of(one)} was not explained: {why}.' for one, why in missing.items()]


def _none_of(prompt: str, missing: Mapping[str, str]) -> str:
    return f'Nothing of "{prompt}" can be explained: {"; ".join(missing.values())}.'


def _leave_out(
    questions: Sequence[Question], missing: dict[str, str], on_missing: Callable[[str, str], None] | None
) -> None:
    """Tell of the structures that a cancelled run did not come to."""
    for one in questions:
        if one.prompt not in missing and on_missing is not None:
            on_missing(anatomy.name_of(one.prompt), NOT_BEGUN)
