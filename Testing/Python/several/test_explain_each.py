"""Several structures of one scan: what is shared, what each explanation holds, and what is said of the others."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import SimpleITK as sitk
from test_explanation import BOXES, Finder, Network, mask_of, run, scan, values

import XAICLIPLib
from XAICLIPLib import pipeline
from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.explanation import Explanation
from XAICLIPLib.progress import Progress
from XAICLIPLib.several.explain_each import NOT_BEGUN, explain_each


class AnyOrgan(Finder):
    """A localizer that finds whatever it is asked for."""

    LABELS: ClassVar = {"liver": 1, "left kidney": 2, "right kidney": 3}

    def locate(self, image: sitk.Image, prompt: Any, *others: Any) -> sitk.Image:
        self.label = self.LABELS[prompt.name]
        return super().locate(image, prompt, *others)


def each(image: sitk.Image | None = None, prompt: str = "liver and kidneys", **options: Any) -> list[Explanation]:
    given: dict[str, Any] = {"model": Network(), "localizer": AnyOrgan(), "device": "cpu"}
    given |= {"method": "occlusion", "window_mm": 24.0, "stride_mm": 12.0} | options
    return list(explain_each(scan() if image is None else image, prompt, **given))


def alone(*arguments: Any, **options: Any) -> Explanation:
    return run(*arguments, method="occlusion", **options)


def test_each_explanation_is_the_one_that_its_structure_alone_would_get() -> None:
    told: list[Any] = []
    explanations = each(on_structures=told.append, on_missing=lambda *missing: told.append(missing))
    assert told == [["liver", "left kidney", "right kidney"]]
    assert [e.target["name"] for e in explanations] == ["liver", "left kidney", "right kidney"]
    assert [e.record["prompt"] for e in explanations] == ["liver", "left kidney", "right kidney"]
    for explanation, label in zip(explanations, (1, 2, 3), strict=True):
        single = alone(prompt=explanation.target["name"], region="guided", localizer=AnyOrgan())
        assert (
            explanation.target
            == single.target
            == {"name": single.target["name"], "label": label, "voxels": "predicted"}
        )
        assert np.array_equal(values(explanation.prediction), values(mask_of(scan(), BOXES[label])))
        assert np.array_equal(values(explanation.saliency), values(single.saliency))
        assert np.array_equal(values(explanation.region.mask), values(single.region.mask))
        assert explanation.warnings == single.warnings


def test_the_scan_is_read_and_segmented_once_and_each_region_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read, network, finder = [], Network(), AnyOrgan()
    monkeypatch.setattr(pipeline, "read_images", lambda *a, real=pipeline.read_images: read.append(a) or real(*a))
    told: list[Progress] = []
    each(model=network, localizer=finder, on_progress=told.append)
    assert len(read) == 1
    assert [asked.name for asked in finder.asked] == ["liver", "left kidney", "right kidney"]  # type: ignore[union-attr]
    assert sum(p.stage == "segment" and p.done == p.total for p in told) == 1


def test_a_pair_is_two_explanations_here_and_one_target_to_explain() -> None:
    assert [e.target["label"] for e in each(prompt="both kidneys")] == [2, 3]
    assert alone(prompt="both kidneys").target == {"name": "kidneys", "label": [2, 3], "voxels": "predicted"}
    (one,) = each(prompt="kidneys", target="kidneys", region="whole")
    assert one.target["label"] == [2, 3]


def test_a_pair_that_the_network_draws_as_one_class_is_one_explanation() -> None:
    network = Network({0: "background", 1: "liver", 2: "kidneys"})
    told: list[Any] = []
    explanations = each(
        prompt="liver, left kidney, right kidney", model=network, region="whole", on_structures=told.append
    )
    assert [e.target["name"] for e in explanations] == ["liver", "kidneys"]
    assert told == [["liver", "kidneys"]]


def test_a_class_whose_name_has_an_and_in_it_is_one_structure() -> None:
    network = Network({0: "background", 1: "liver and spleen"})
    (one,) = each(prompt="Liver and Spleen", model=network, region="whole")
    assert one.target["name"] == "liver and spleen"


@pytest.mark.parametrize("prompt", ["left kidney and right kidney", "kidneys"])
def test_what_is_not_drawn_is_said_and_the_other_is_explained(prompt: str) -> None:
    told: list[Any] = []
    (one,) = each(scan(structures=(1, 2)), prompt, on_missing=lambda *missing: told.append(missing))
    assert told == [("right kidney", "the network finds no right kidney in this volume")]
    assert one.target == {"name": "left kidney", "label": 2, "voxels": "predicted"}
    said = f'Of "{prompt}", the right kidney was not explained: the network finds no right kidney in this volume.'
    assert said in one.warnings


def test_a_structure_for_which_there_is_no_class_is_said_and_the_other_is_explained() -> None:
    told: list[Any] = []
    (one,) = each(prompt="pancreas, liver", on_missing=lambda *missing: told.append(missing))
    assert told == [("pancreas", "the network tiny has no class for it")]
    assert one.target["name"] == "liver"


def test_where_nothing_is_drawn_the_error_names_all() -> None:
    with pytest.raises(InputError, match=r"finds no left kidney in this volume; the network finds no right kidney in"):
        each(scan(structures=(1,)), "kidneys")
    with pytest.raises(InputError, match="does not segment the"):
        each(prompt="pancreas and spleen")


def test_a_piece_that_means_nothing_is_refused_before_the_network_runs() -> None:
    network = Network()
    with pytest.raises(InputError, match=r'"toenail" names no structure that is known here'):
        each(prompt="liver and toenail", model=network)
    assert network.calls == 0


def test_to_explain_several_as_one_is_refused_with_the_way_to_explain_each() -> None:
    with pytest.raises(InputError, match=r'"liver and right kidney" names 2 structures .*XAICLIPLib\.explain_each'):
        alone(prompt="liver and right kidney")


def test_to_look_for_several_at_once_is_refused() -> None:
    with pytest.raises(InputError, match=r"names 2 structures \(liver, right kidney\): look for one of them"):
        pipeline.localize(scan(), "liver and right kidney", localizer=AnyOrgan())


def test_of_a_group_only_what_is_drawn_is_recorded() -> None:
    """It was recorded as "kidneys" with both labels, without a word."""
    one = alone(scan(structures=(1, 2)), prompt="left kidney and right kidney")
    assert one.target == {"name": "left kidney", "label": 2, "voxels": "predicted"}
    assert any("Of the kidneys, the network draws no right kidney in this volume" in w for w in one.warnings)
    lacks = alone(prompt="kidneys", model=Network({0: "background", 1: "liver", 2: "left kidney"}))
    assert lacks.target == {"name": "left kidney", "label": 2, "voxels": "predicted"}
    assert any("draws no right kidney" in w for w in lacks.warnings)
    assert not any("Of the kidneys" in w for w in alone(prompt="kidneys").warnings)


def test_cancelling_the_second_keeps_the_first_and_begins_no_third() -> None:
    told: list[Progress] = []
    missing: list[Any] = []
    explained = 0

    def progress(now: Progress) -> None:
        nonlocal explained
        explained += now.stage == "explain" != told[-1].stage
        told.append(now)

    explanations = each(
        on_progress=progress,
        cancelled=lambda: explained == 2 and told[-1].stage == "explain" and told[-1].done > 3,
        on_missing=lambda *one: missing.append(one),
        window_mm=12.0,
        stride_mm=6.0,
    )
    assert [e.complete for e in explanations] == [True, False]
    assert missing == [("right kidney", NOT_BEGUN)]


def test_cancelling_between_two_keeps_the_first() -> None:
    missing: list[Any] = []
    finder = AnyOrgan()
    explanations = each(
        localizer=finder, cancelled=lambda: len(finder.asked) == 2, on_missing=lambda *one: missing.append(one)
    )
    assert [e.target["name"] for e in explanations] == ["liver"] and explanations[0].complete
    assert missing == [("left kidney", NOT_BEGUN), ("right kidney", NOT_BEGUN)]
    with pytest.raises(Cancelled):
        each(cancelled=lambda: True)


def test_it_is_a_public_name_with_the_defaults_of_explain() -> None:
    import inspect

    assert XAICLIPLib.explain_each is explain_each
    of_explain = inspect.signature(pipeline.explain).parameters
    for function in (explain_each, pipeline.Question.of):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in of_explain and parameter.default is not inspect.Parameter.empty:
                assert parameter.default == of_explain[name].default, name
