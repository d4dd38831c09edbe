"""Tuning: what is learned is the prompts alone, and they find what the labels draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from Testing.Python.localization.test_learned_prompts import write_model
from XAICLIPLib.anatomy import structure
from XAICLIPLib.errors import InputError
from XAICLIPLib.localization.learned_prompts import BACKGROUND
from XAICLIPLib.localization.localizer import ClipLocalizer, Settings
from XAICLIPLib.localization.openclip import load_model
from XAICLIPLib.training import prompts
from XAICLIPLib.training.pairs import Pair
from XAICLIPLib.training.prompts import TuningResult, mean_dice, tune

CPU = torch.device("cpu")
SETTINGS = Settings(contrasts=("liver", "spleen", "left kidney"), slice_mm=10.0, smoothing_mm=0.0, wordings=1)
LIVER = {1: structure("liver")}


def write_pair(folder: Path, number: int, label: int = 1) -> Pair:
    """A body of 0 HU with a bright ball, which is labelled, at a place of its own."""
    z, y, x = np.indices((14, 30, 30))
    hu = np.where(((x - 15) / 13) ** 2 + ((y - 15) / 11) ** 2 < 1, 0, -1000)
    centre = np.random.default_rng(number).uniform((5, 11, 10), (9, 19, 20))
    ball = (x - centre[2]) ** 2 + (y - centre[1]) ** 2 + (4 * (z - centre[0]) / 3) ** 2 < 5.5**2
    hu[ball & (hu == 0)] = 200
    files = []
    for name, values in (("image", hu.astype(np.int16)), ("label", (label * (hu == 200)).astype(np.uint8))):
        image = sitk.GetImageFromArray(values)
        image.SetSpacing([8.0, 8.0, 10.0])
        files.append(folder / f"case_{number}_{name}.nrrd")
        sitk.WriteImage(image, str(files[-1]))
    return Pair(*files)


@pytest.fixture(scope="module")
def localizer(tmp_path_factory: pytest.TempPathFactory) -> ClipLocalizer:
    """Random towers, whose patches of another brightness lie elsewhere in the joint space."""
    folder = write_model(tmp_path_factory.mktemp("model"), text={"width": 16, "heads": 2}, vision={"image_size": 96})
    return ClipLocalizer(load_model(folder, CPU), SETTINGS)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return [write_pair(tmp_path_factory.mktemp("pairs"), number) for number in range(3)]


@pytest.fixture(scope="module")
def tuned(localizer: ClipLocalizer, pairs: list[Pair]) -> TuningResult:
    return run(localizer, pairs)


def run(localizer: ClipLocalizer, pairs: list[Pair], labels: Any = LIVER, **options: Any) -> TuningResult:
    given = {"length": 4, "steps": 120, "modality": "CT"} | options
    return tune(localizer, pairs[:2], pairs[2:], labels, **given)


def test_regions_overlap_the_labels_of_held_out_scans_better(tuned: TuningResult) -> None:
    assert tuned.better
    assert tuned.after["liver"].dice > tuned.before["liver"].dice + 0.1
    assert tuned.after["liver"].dice > 0.5


def test_only_what_was_labelled_and_the_background_are_learned(tuned: TuningResult) -> None:
    assert set(tuned.prompts.vectors) == {"liver", BACKGROUND}
    assert {tuple(v.shape) for v in tuned.prompts.vectors.values()} == {(4, 16)}
    assert tuned.prompts.modality == "CT"


def test_the_towers_stay_as_they_are(localizer: ClipLocalizer, pairs: list[Pair]) -> None:
    before = {key: value.clone() for key, value in localizer.model.model.state_dict().items()}
    run(localizer, pairs, steps=5)
    after = localizer.model.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_equal_seeds_give_equal_prompts(localizer: ClipLocalizer, pairs: list[Pair]) -> None:
    first, second = (run(localizer, pairs, steps=10, seed=5) for _ in range(2))
    assert all(torch.equal(v, second.prompts.vectors[name]) for name, v in first.prompts.vectors.items())


def test_the_best_state_is_kept_not_the_last(
    localizer: ClipLocalizer, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(prompts, "RATE", 20.0)  # far too fast: it jumps about
    result = run(localizer, pairs, steps=30, tell=told.append)
    scores = {int(t.split()[1]): float(t.split("mean Dice ")[1].split()[0]) for t in told if t.startswith("step")}
    assert scores[result.step] == max(scores.values()) == pytest.approx(mean_dice(result.after), abs=1e-3)
    waited = [s for s in scores if s > result.step]
    assert len(waited) <= prompts.PATIENCE


def test_the_regions_reported_are_those_that_the_localizer_gives(
    localizer: ClipLocalizer, pairs: list[Pair], tuned: TuningResult
) -> None:
    """Dice from the localizer's own answer, on the scan's own grid."""
    image, drawn = pairs[2].read()
    found = localizer.with_prompts(tuned.prompts).locate(image, structure("liver"), "CT")
    on_scan = sitk.GetArrayFromImage(sitk.Resample(found, image)) >= localizer.threshold
    truth = sitk.GetArrayFromImage(drawn) == 1
    dice = 2 * (on_scan & truth).sum() / (on_scan.sum() + truth.sum())
    assert dice == pytest.approx(tuned.after["liver"].dice, abs=0.08)


# --- the classes, and what is asked of them


def test_the_classes_are_those_of_the_localizers_softmax(localizer: ClipLocalizer) -> None:
    names, owner, fixed = prompts._classes(localizer, [structure("spleen"), structure("liver")], "CT")
    assert names == ["spleen", "liver", "left kidney", BACKGROUND]
    assert owner.tolist() == [0, 1, 2, 2]
    assert [value is None for value in fixed] == [True, True, False, True]
    written = localizer.class_embeddings(structure("left kidney"), "CT")[0]
    kidney = fixed[2]
    assert isinstance(kidney, Tensor)
    expected = localizer.embed(localizer.wordings(structure("left kidney"), "CT"))
    torch.testing.assert_close(kidney, expected)
    assert len(written) == len(names)


def test_a_labelled_group_is_learned_by_its_members(localizer: ClipLocalizer) -> None:
    both = ClipLocalizer(localizer.model, Settings(contrasts=("left kidney", "right kidney", "liver"), wordings=1))
    names, owner, _ = prompts._classes(both, [structure("kidneys")], "CT")
    assert (names, owner.tolist()) == (["left kidney", "right kidney", "liver", BACKGROUND], [0, 0, 1, 1])


def test_patches_outside_of_the_body_are_not_learned_from(localizer: ClipLocalizer, pairs: list[Pair]) -> None:
    image, drawn = pairs[0].read()
    view = localizer.view(image, "CT")
    masks = prompts._masks(drawn, view, LIVER, [structure("liver")])
    found = prompts._patches(localizer, view, image, masks)
    slices, cells = len(view.grey), 96 // 8
    assert 0.4 * slices * cells**2 < len(found.shares) < 0.9 * slices * cells**2
    assert found.embeddings.dtype == found.shares.dtype == torch.float16
    assert float(found.shares.max()) == 1.0  # a patch within the ball
    assert float(found.shares.float().sum()) * 64 == pytest.approx(masks[0].sum(), rel=1e-3)


def test_what_no_training_label_has_is_named(localizer: ClipLocalizer, pairs: list[Pair]) -> None:
    result = run(localizer, pairs, labels={**LIVER, 7: structure("spleen")}, steps=2)
    assert result.absent == ("spleen",)
    assert "spleen" not in result.prompts.vectors


@pytest.mark.parametrize(
    ("labels", "count", "told"),
    [
        ({5: structure("liver")}, 3, "case_0_label.nrrd and the other training labels have none of the values 5"),
        (LIVER, 2, "too few labelled scans"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    localizer: ClipLocalizer, pairs: list[Pair], labels: Any, count: int, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        run(localizer, pairs[:count], labels=labels)


def test_validation_without_any_structure_is_refused(
    localizer: ClipLocalizer, pairs: list[Pair], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"case_9_label.nrrd and the other validation labels"):
        run(localizer, [*pairs[:2], write_pair(tmp_path, 9, label=4)])


def test_the_table_has_a_line_for_each_structure_and_the_mean(tuned: TuningResult) -> None:
    lines = prompts.table(tuned.before, tuned.after).splitlines()
    assert [line.split()[0] for line in lines] == ["structure", "liver", "mean"]
    assert lines[1].split()[1:] == lines[2].split()[1:]


# --- the command


def test_the_command_writes_prompts_that_explain_takes(
    localizer: ClipLocalizer, pairs: list[Pair], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from XAICLIPLib.commands.main import main
    from XAICLIPLib.models import catalogue

    folder, output = localizer.model.folder, tmp_path / "new" / "p.safetensors"
    images, labels = [str(p.image) for p in pairs], [str(p.labels) for p in pairs]
    command = ["tune-prompts", "--images", *images, "--labels", *labels, "--structures", "1=liver", "--localizer"]
    command += [str(folder), "--output", str(output), "--steps", "10", "--context", "2", "--modality", "CT"]
    assert main([*command, "--validation", "1", "--device", "cpu"]) == 0
    told = capsys.readouterr()
    assert "liver" in told.out and str(output) in told.out
    found = catalogue.load_localizer(folder, CPU, prompts=output)
    assert found.provenance["prompts"]["structures"] == ["background", "liver"]
    assert main([*command, "--validation", "3", "--device", "cpu"]) == 1
    assert "Of 3 labelled scans 3 cannot be held out" in capsys.readouterr().err
    assert main([*command, "--validation", str(pairs[0].image.parent)]) == 1
    assert "is to be learned from and to validate on" in capsys.readouterr().err


def test_explain_takes_a_file_of_prompts_and_says_where_there_is_none(
    pairs: list[Pair], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from XAICLIPLib.commands.main import main

    command = ["explain", str(pairs[0].image), "--prompt", "liver", "--output", str(tmp_path / "out")]
    assert main([*command, "--prompts", str(tmp_path / "nowhere.safetensors"), "--device", "cpu"]) == 1
    assert "There is no file of prompts" in capsys.readouterr().err
