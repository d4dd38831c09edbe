"""The paper's experiment on tiny cases: what is measured, that it goes on after an interruption, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from Testing.Python.test_explanation import BOXES, Finder, Network, mask_of, scan, values
from XAICLIPLib import imaging
from XAICLIPLib.commands import main
from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.curves import removal_curves
from XAICLIPLib.experiment import benchmark as module
from XAICLIPLib.experiment import results
from XAICLIPLib.experiment.benchmark import Outcome, Plan, benchmark, parameters_of
from XAICLIPLib.experiment.datasets.published import read_dataset
from XAICLIPLib.experiment.map_measurements import MapMeasurements
from XAICLIPLib.experiment.report import report
from XAICLIPLib.experiment.results import Results
from XAICLIPLib.models import catalogue
from XAICLIPLib.pipeline import explain

NAMES = ("Mustermann_Erika", "Doe_John")
"""As users name files."""

PLAN = Plan(("liver",), ("occlusion",), window_mm=24.0, stride_mm=12.0, points=3, random_orders=1)


def make_dataset(root: Path) -> Path:
    """A dataset of two patients, in the layout `folder`."""
    for shift, name in enumerate(NAMES):
        image = scan()
        labels = np.zeros(image.GetSize()[::-1], np.uint8)
        labels[values(image) == 100] = 1
        labels[values(image) == 200] = 7
        labels = np.roll(labels, shift, axis=2)  # the second expert disagrees with the network
        label = sitk.GetImageFromArray(labels)
        label.CopyInformation(image)
        imaging.write_volume(image, root / "images" / f"{name}.nii.gz")
        imaging.write_volume(label, root / "labels" / f"{name}.nii.gz")
    (root / "labels.json").write_text(json.dumps({"labels": {"1": "liver", "7": "left kidney"}, "modality": "CT"}))
    return root


def run(root: Path, output: Path, plan: Plan = PLAN, **options: Any) -> Outcome:
    given = {"model": Network(), "localizer": Finder(), "device": "cpu", "kind": "folder"} | options
    return benchmark(read_dataset("folder", root), plan, output, **given)


@dataclass(frozen=True)
class Done:
    """A dataset and the finished run of `PLAN` on it."""

    data: Path
    output: Path
    outcome: Outcome


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Made once: do not change its files."""
    root = tmp_path_factory.mktemp("benchmark")
    return Done(make_dataset(root / "data"), root / "out", run(root / "data", root / "out"))


@pytest.fixture
def folder(original: Done, tmp_path: Path) -> Path:
    """A copy of the dataset."""
    return Path(shutil.copytree(original.data, tmp_path / "data"))


@pytest.fixture
def done(original: Done, tmp_path: Path, folder: Path) -> Done:
    """A copy of all."""
    return Done(folder, Path(shutil.copytree(original.output, tmp_path / "out")), original.outcome)


def by_key(outcome: Outcome) -> dict[tuple[int, str, str, str], MapMeasurements]:
    return {(row.case, row.structure, row.method, row.region): row for row in outcome.rows}


# What is measured


def test_every_case_structure_method_and_region_is_measured_once(folder: Path, tmp_path: Path) -> None:
    methods = ("occlusion", "rise", "lime", "structures")
    plan = Plan(("liver",), methods, ("Doe_John",), 24.0, 12.0, 40, points=2, random_orders=1)
    told: list[str] = []
    outcome = run(folder, tmp_path / "out", plan, tell=told.append)
    assert outcome.problems == () and outcome.complete
    keys = [(r.case, r.structure, r.method, r.region) for r in outcome.rows]
    assert len(set(keys)) == len(keys) == outcome.computed == len(told) == 4 * 2
    for row in outcome.rows:
        assert 0 <= row.dice <= 1 and 0 <= row.deletion <= 1 and row.perturbations > 0
    found = by_key(outcome)
    for method in ("rise", "lime"):  # the same budget guided and unguided, unless there are no more sets
        guided, whole = (found[1, "liver", method, region] for region in ("guided", "whole"))
        assert guided.perturbations <= whole.perturbations
        assert method == "lime" or guided.perturbations == whole.perturbations == 40
    guided, whole = (found[1, "liver", "occlusion", region] for region in ("guided", "whole"))
    assert guided.patches < whole.patches and guided.perturbations < whole.perturbations


def test_the_numbers_are_those_of_the_map_worked_out_by_hand(original: Done) -> None:
    row = by_key(original.outcome)[1, "liver", "occlusion", "whole"]
    made = explain(
        scan(), "liver", model=Network(), region="whole", device="cpu", window_mm=24.0, stride_mm=12.0, modality="CT"
    )
    saliency = values(made.saliency)
    organ = np.roll(values(mask_of(scan(), BOXES[1])), 1, axis=2) != 0
    marked = saliency >= saliency.max() / 2
    shared = (marked & organ).sum()
    assert row.dice == pytest.approx(2 * shared / (marked.sum() + organ.sum()))
    assert row.iou == pytest.approx(shared / (marked | organ).sum())
    positive = np.maximum(saliency, 0)
    assert row.mass == pytest.approx(positive[organ].sum() / positive.sum())
    assert row.mass_chance == pytest.approx(organ.mean())
    assert row.patches == made.measurements["patches_computed"]
    assert row.score == pytest.approx(made.measurements["score_unperturbed"])
    guided = explain(scan(), "liver", model=Network(), localizer=Finder(), device="cpu", modality="CT")
    outside = values(guided.region.mask) == 0
    assert row.outside == pytest.approx(np.abs(saliency)[outside].sum() / np.abs(saliency).sum())
    assert row.null in ("uniform", "centre", "white noise", "smooth noise")


def test_a_guided_map_has_its_effect_in_its_region_and_costs_the_finding(folder: Path, tmp_path: Path) -> None:
    class Slow(Finder):
        def locate(self, *given: Any) -> sitk.Image:
            self.asked.append("slow")
            return super().locate(*given)

    finder = Slow()
    plan = Plan(("liver",), ("rise", "structures"), window_mm=24.0, samples=20, points=2, random_orders=1)
    found = by_key(run(folder, tmp_path / "out", plan, localizer=finder))
    assert finder.asked.count("slow") == 2, "once for each case, not for each method"
    assert found[1, "liver", "rise", "guided"].outside == pytest.approx(0, abs=1e-3)
    assert found[1, "liver", "rise", "whole"].outside > 0.05
    for row in found.values():
        assert row.total_s > row.explain_s > 0


def test_curves_are_of_the_same_scorer_and_the_same_voxels_for_every_map(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from XAICLIPLib.experiment import trial

    seen: list[tuple[int, int]] = []

    def recorded(scorer: Any, order: Any, spacing: Any, *, removable: Any, **rest: Any) -> Any:
        seen.append((id(scorer), id(removable)))
        return removal_curves(scorer, order, spacing, removable=removable, **rest)

    monkeypatch.setattr(trial, "removal_curves", recorded)
    run(folder, tmp_path / "out", Plan(("liver",), ("occlusion",), ("Doe_John",), 24.0, 12.0, points=3))
    assert len(seen) == 2 + 2, "two random orders, shared by both maps"
    assert len(set(seen)) == 1


def test_gradients_have_nothing_to_guide() -> None:
    assert PLAN.regions("integrated-gradients") == ("whole",)
    assert PLAN.regions("structures") == ("guided", "whole")


def test_lime_gets_enough_sets_for_the_whole_scan_and_as_many_guided(folder: Path, tmp_path: Path) -> None:
    plan = Plan(("liver",), ("lime",), ("Doe_John",), window_mm=12.0, samples=3, points=2)
    outcome = run(folder, tmp_path / "out", plan)
    assert outcome.problems == ()
    whole = by_key(outcome)[1, "liver", "lime", "whole"]
    guided = by_key(outcome)[1, "liver", "lime", "guided"]
    assert whole.perturbations >= 100 and guided.perturbations <= whole.perturbations


def test_paper_like_is_the_second_hand_setting_in_mm() -> None:
    plan = Plan(("liver",), paper_like=True)
    assert parameters_of("occlusion", plan) == {"window_mm": 49.92, "stride_mm": 24.96, "exhaustive": True}
    assert parameters_of("rise", plan)["samples"] == 2000 and parameters_of("rise", plan)["estimator"] == "mean"
    assert parameters_of("lime", plan)["supervoxels"] == "felzenszwalb"
    plan.check()


# Going on


def test_an_interrupted_run_goes_on_where_it_was(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explained: list[tuple[str, str]] = []

    def counted(*given: Any, **options: Any) -> Any:
        explained.append((options["method"], options["region"]))
        return explain(*given, **options)

    monkeypatch.setattr(module, "explain", counted)
    done: list[str] = []
    first = run(folder, tmp_path / "out", tell=done.append, cancelled=lambda: bool(done))
    assert not first.complete and first.computed == 1 and len(first.rows) == 1
    kept = {path: path.read_bytes() for path in (tmp_path / "out" / "measured").iterdir()}
    assert len(kept) == 1
    explained.clear()
    second = run(folder, tmp_path / "out")
    assert second.complete and second.computed == 3 and len(second.rows) == 4
    assert explained == [("occlusion", "whole"), ("occlusion", "guided"), ("occlusion", "whole")]
    assert all(path.read_bytes() == before for path, before in kept.items())
    explained.clear()
    network = Network()
    third = run(folder, tmp_path / "out", model=network)
    assert (third.computed, explained, network.calls) == (0, [], 0)
    assert third.rows == second.rows


def test_methods_and_structures_can_be_added_to_a_folder(done: Done) -> None:
    more = Plan(("liver",), ("occlusion", "structures"), ("Doe_John",), 24.0, 12.0, points=3, random_orders=1)
    outcome = run(done.data, done.output, more)
    assert (outcome.computed, len(outcome.rows)) == (2, 4)


@pytest.mark.parametrize(
    ("plan", "options", "differs"),
    [
        (Plan(("liver",), ("occlusion",), (), 24.0, 24.0, points=3, random_orders=1), {}, "stride_mm"),
        (PLAN, {"model": Network(name="another")}, "model"),
        (PLAN, {"localizer": Finder(name="another")}, "localizer"),
    ],
)
def test_a_folder_of_other_settings_is_refused(
    original: Done, plan: Plan, options: dict[str, Any], differs: str
) -> None:
    with pytest.raises(InputError, match=rf"other settings \({differs}\): choose another folder"):
        run(original.data, original.output, plan, **options)


def test_other_cases_under_the_same_numbers_are_refused(done: Done) -> None:
    for kind in ("images", "labels"):
        (done.data / kind / "Doe_John.nii.gz").rename(done.data / kind / "Doe_Jane.nii.gz")
    with pytest.raises(InputError, match="cases_sha256"):
        run(done.data, done.output)


@pytest.mark.parametrize("damage", ["", "[1]", '{"settings_sha256": "0"}'])
def test_a_damaged_result_is_named(done: Done, damage: str) -> None:
    path = next((done.output / "measured").iterdir())
    path.write_text(damage)
    with pytest.raises(InputError, match=f"{path.name} is damaged: delete it"):
        run(done.data, done.output)


def test_a_result_of_other_settings_is_not_taken_for_one_of_these(done: Done) -> None:
    path = next((done.output / "measured").iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings_sha256": "0"}))
    with pytest.raises(InputError, match="is of other settings"):
        run(done.data, done.output)


def test_results_are_written_whole_or_not_at_all(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(row: MapMeasurements, settings: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "to_text", dies)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", Plan(("liver",), ("structures",), points=2, random_orders=1))
    assert list((tmp_path / "out" / "measured").iterdir()) == []


# What cannot be measured


def test_a_broken_case_is_named_and_the_others_are_measured(folder: Path, tmp_path: Path) -> None:
    image = scan()
    wrong = sitk.GetImageFromArray(values(image == 100) * 99)
    wrong.CopyInformation(image)
    imaging.write_volume(wrong, folder / "labels" / "Doe_John.nii.gz")
    outcome = run(folder, tmp_path / "out")
    first, second = sorted(c.identifier for c in read_dataset("folder", folder))
    assert (first, second) == ("Doe_John", "Mustermann_Erika")
    (problem,) = outcome.problems
    assert problem.startswith("Case ") and "hold the value 99" in problem and "Doe_John" in problem
    assert len(outcome.rows) == 2 and len({row.case for row in outcome.rows}) == 1
    text = report(outcome, PLAN)
    assert "## Left out" in text and outcome.left_out[0] in text and "Doe_John" not in text


def test_a_structure_that_a_case_lacks_is_left_out(folder: Path, tmp_path: Path) -> None:
    plan = Plan(("liver", "spleen"), ("structures",), ("Doe*",), points=2, random_orders=1)
    outcome = run(folder, tmp_path / "out", plan)
    assert outcome.left_out == ("case 1, spleen",)
    assert {row.structure for row in outcome.rows} == {"liver"}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(("livver-x",)), 'no structure "livver-x"'),
        (Plan(()), "nothing to run"),
        (Plan(("liver",), ("magic",)), "no method 'magic'"),
        (Plan(("liver",), window_mm=-1.0), "window_mm is -1"),
        (Plan(("liver",), window_mm=20.0, paper_like=True), "of its own"),
        (Plan(("liver",), points=1), "at least 2 points"),
        (Plan(("liver",), cases=("nobody",)), 'no case "nobody"'),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_before_a_network_runs(
    folder: Path, tmp_path: Path, plan: Plan, message: str
) -> None:
    network = Network()
    with pytest.raises(InputError, match=message):
        run(folder, tmp_path / "out", plan, model=network)
    assert network.calls == 0 and not (tmp_path / "out").exists()


def test_a_group_of_structures_is_explained_with_all_its_labels(folder: Path, tmp_path: Path) -> None:
    plan = Plan(("kidneys",), ("occlusion",), ("Doe_John",), 24.0, 12.0, points=2, random_orders=1)
    outcome = run(folder, tmp_path / "out", plan, localizer=Finder(label=2))
    assert outcome.problems == () and len(outcome.rows) == 2


# The command


def test_the_command_writes_a_report_without_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: Done
) -> None:
    folder, output = done.data, done.output
    shipped: Callable[..., Any] = lambda *_: Network()  # noqa: E731
    monkeypatch.setattr(catalogue, "load_segmenter", shipped)
    monkeypatch.setattr(catalogue, "load_localizer", lambda *_: Finder())
    arguments = f"benchmark --dataset folder --root {folder} --structures liver --methods occlusion --window 24"
    arguments += f" --stride 12 --points 3 --random-orders 1 --device cpu --output {output}"
    assert main.main(arguments.split()) == 0
    said = capsys.readouterr()
    text = (output / "report.md").read_text(encoding="utf-8")
    assert said.out.strip() == text.strip()
    for claim in ("−60%", "+44.6%", "+96.7%", "null × region"):
        assert claim in text
    for path in (output / "report.md", output / "results.csv", output / "settings.json"):
        assert not any(name in path.read_text(encoding="utf-8") for name in NAMES)
    assert not any(name in path.read_text() for path in (output / "measured").iterdir() for name in NAMES)
    assert sorted(json.loads((output / "cases.json").read_text()).values()) == sorted(NAMES)
    assert len((output / "results.csv").read_text().splitlines()) == 1 + 4
    assert (output / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert main.main([*arguments.split()[:-1], str(output), "--stride", "24"]) == 1
    assert "other settings (stride_mm)" in capsys.readouterr().err


def test_results_are_read_back_as_they_were_measured(original: Done) -> None:
    there = Results(original.output, original.outcome.settings)
    assert there.read(1, "liver", "occlusion", "guided") == original.outcome.rows[0]
    assert there.read(3, "liver", "occlusion", "guided") is None
