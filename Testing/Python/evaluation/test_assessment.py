"""A map is tested on the network that it explains: true maps pass, maps of nothing do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from Testing.Python.test_explanation import Finder, Network, scan
from XAICLIPLib.evaluation import assessment
from XAICLIPLib.evaluation.assessment import PERTURBATIONS, REGION_CALLS, Assessment, assess_map, faithfulness_record
from XAICLIPLib.evaluation.controls import random_map
from XAICLIPLib.evaluation.reliability import reliability_flags
from XAICLIPLib.explanation import Explanation
from XAICLIPLib.pipeline import explain
from XAICLIPLib.progress import Progress, Stage

NAMES = ("like the null", "unstable")


def run(**options: Any) -> Explanation:
    given = {"model": Network(), "localizer": Finder(), "region": "whole", "device": "cpu", "check": True}
    return explain(scan(), "liver", **given | options)


def flags(result: Explanation) -> dict[str, dict[str, Any]]:
    return {flag["name"]: flag for flag in result.record["reliability"]}


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """What `assess_map` was given for a map of structures, taken at the door."""
    taken: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:

        def take(*arguments: Any) -> Assessment:
            taken["arguments"] = arguments
            return assess_map(*arguments)

        patch.setattr(assessment, "assess_map", take)
        taken["result"] = run(method="structures")
    return taken


def test_a_true_map_leads_the_controls_and_does_not_tremble(known: dict[str, Any]) -> None:
    made = flags(known["result"])
    assert set(NAMES) <= set(made)
    assert not any(made[name]["raised"] for name in NAMES)
    assert made["like the null"]["value"] > 0.2


def test_a_map_of_nothing_is_found_out(known: dict[str, Any]) -> None:
    method, ground, last, saliency, seed, advance, cancelled = known["arguments"]
    noise = random_map(tuple(saliency.shape), ground.spacing_mm, seed=99)
    tested = assess_map(method, ground, last, noise, seed, advance, cancelled)
    evidence = assessment.evidence_of("liver", method, ground, last, saliency, None)
    (flag,) = (
        f for f in reliability_flags(replace(evidence, faithfulness=tested.faithfulness)) if f.name == "like the null"
    )
    assert flag.raised and "do not read it" in flag.sentence


def test_the_record_holds_curves_areas_and_controls(known: dict[str, Any]) -> None:
    found = known["result"].record["faithfulness"]
    assert set(found["controls"]) == {"random", "mask", "depth", "border", "centre", "edges"}
    assert len(found["volumes_mm3"]) == assessment.POINTS == len(found["map"]["deletion"]["scores"])
    assert found["map"]["deletion"]["area"] < found["controls"]["random"]["deletion"]["area"]
    assert found["map"]["deletion"]["scores"][-1] == pytest.approx(0, abs=0.05), "all is hidden"
    assert set(found["lead"]) == {"deletion", "insertion"}
    assert known["result"].record["stability"]["samples"] == 1
    assert faithfulness_record(None) is None


def test_it_takes_as_many_perturbations_as_it_says() -> None:
    seen: list[Progress] = []
    result = run(method="structures", on_progress=seen.append)
    told = [p for p in seen if p.stage == "check"]
    assert told and {p.total for p in told} == {
        PERTURBATIONS + REGION_CALLS + result.measurements["perturbations_planned"]
    }
    assert told[-1].done == told[-1].total
    assert "check" in result.record["timings_s"]


def test_what_the_check_costs_is_not_counted_as_the_explanations() -> None:
    with_check, without = run(method="structures"), run(method="structures", check=False)
    assert with_check.measurements == without.measurements
    assert without.record["faithfulness"] is None and without.record["stability"] is None
    assert not set(NAMES) & set(flags(without))


@pytest.mark.parametrize(("after", "curves"), [(1, False), (PERTURBATIONS, True)])
def test_a_check_that_is_cancelled_leaves_the_map_and_says_so(after: int, curves: bool) -> None:
    seen: list[Progress] = []
    result = run(
        method="structures",
        on_progress=seen.append,
        cancelled=lambda: seen[-1].stage == "check" and seen[-1].done >= after,
    )
    assert result.complete and (result.record["faithfulness"] is not None) == curves
    assert result.record["stability"] is None
    assert any("check of the map was cancelled" in warning for warning in result.warnings)


def test_noise_of_a_random_method_is_no_effect_outside() -> None:
    made = flags(run(method="rise", samples=150, check=False))
    assert not made["leans outside"]["raised"]
    assert "not converged" in made


def test_each_raised_flag_is_a_warning_once_and_none_that_passed_is() -> None:
    result = run(region="guided", localizer=Finder(label=2), check=False, window_mm=24.0, stride_mm=24.0)
    raised = [flag for flag in result.record["reliability"] if flag["raised"]]
    assert "region disagrees" in {flag["name"] for flag in raised}
    assert all(result.warnings.count(flag["sentence"]) == 1 for flag in raised)
    passed = [flag["sentence"] for flag in result.record["reliability"] if not flag["raised"]]
    assert passed and not set(passed) & set(result.warnings)
    assert sum("disagree" in warning for warning in result.warnings) == 1


def test_a_given_region_is_not_called_the_localizers_mistake() -> None:
    box = (-1000.0, 1000.0, -1000.0, 1000.0, -1000.0, 1000.0)
    assert "region disagrees" not in flags(run(region=box, check=False, window_mm=48.0, stride_mm=48.0))


def test_the_effect_outside_is_told_with_its_margin() -> None:
    flag = flags(run(check=False, window_mm=24.0, stride_mm=24.0))["leans outside"]
    assert "more than 12 mm outside the liver" in flag["sentence"]
    assert 0 <= flag["value"] <= 1


def test_the_stages_are_told_in_the_terminal_too() -> None:
    from XAICLIPLib.commands.terminal import STAGES

    assert set(get_args(Stage)) == set(STAGES)


def test_the_noise_is_of_the_scans_own_range(known: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, float] = {}

    def note(again: Any, volume: torch.Tensor, *, radius: float, **_options: Any) -> None:
        given["radius"] = radius

    monkeypatch.setattr(assessment, "stability", note)
    assess_map(*known["arguments"])
    values = known["arguments"][1].volume.numpy()
    low, high = np.percentile(values, (0.5, 99.5))
    assert given["radius"] == pytest.approx(0.02 * (high - low), rel=0.05)
