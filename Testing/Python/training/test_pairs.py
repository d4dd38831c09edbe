"""Scans and label maps: which belong together, and what their values mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from XAICLIPLib.anatomy import structure
from XAICLIPLib.errors import InputError
from XAICLIPLib.training.pairs import Pair, find_pairs, named_labels, parse_names, read_names


def files(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return [folder / name for name in names]


def names_of(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.image.name, pair.labels.name) for pair in pairs]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("abdomen_03_image.nii.gz", "abdomen_03_label.nii.gz"),  # this project's data
        ("pt_1_ct.nii.gz", "pt_1_seg.nii.gz"),
        ("BRATS_001_0000.nii.gz", "BRATS_001.nii.gz"),  # nnU-Net
        ("spleen_10.nii.gz", "spleen_10.nii.gz"),  # Medical Segmentation Decathlon
        ("Case-7.nrrd", "case-7-mask.mha"),
    ],
)
def test_pairs_are_found_by_name_in_two_folders(tmp_path: Path, image: str, label: str) -> None:
    files(tmp_path / "images", image, "notes.txt", "._hidden.nii.gz")
    files(tmp_path / "labels", label)
    assert names_of(find_pairs([tmp_path / "images"], [tmp_path / "labels"])) == [(image, label)]


def test_a_folder_may_hold_scans_and_labels_beside_each_other(tmp_path: Path) -> None:
    files(tmp_path, "a_02_label.nii.gz", "a_02_image.nii.gz", "a_01_image.nii.gz", "a_01_label.nii.gz")
    expected = [(f"a_0{n}_image.nii.gz", f"a_0{n}_label.nii.gz") for n in (1, 2)]
    assert names_of(find_pairs([tmp_path], [tmp_path])) == expected


def test_files_that_are_named_alike_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    scans = [files(tmp_path / f"s{n}", "ct.nii.gz")[0] for n in (1, 2)]
    labels = [files(tmp_path / f"s{n}", "seg.nii.gz")[0] for n in (2, 1)]
    assert find_pairs(scans, labels) == [Pair(scans[0], labels[1]), Pair(scans[1], labels[0])]


def test_what_has_no_partner_is_named(tmp_path: Path) -> None:
    scans = files(tmp_path, "a_image.nii.gz", "b_image.nii.gz")
    labels = files(tmp_path, "a_label.nii.gz", "c_label.nii.gz")
    with pytest.raises(InputError, match=r"b_image.nii.gz has no label map of the same name"):
        find_pairs(scans, labels)
    with pytest.raises(InputError, match=r"c_label.nii.gz has no scan of the same name"):
        find_pairs(scans[:1], labels)


@pytest.mark.parametrize("twice", ["a_image.nrrd", "a_ct.nii.gz"])
def test_two_scans_of_one_name_are_refused(tmp_path: Path, twice: str) -> None:
    scans, labels = files(tmp_path, "a_image.nii.gz", twice), files(tmp_path, "a_label.nii.gz")
    with pytest.raises(InputError, match="have the same name"):
        find_pairs(scans, labels)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file or folder"):
        find_pairs([tmp_path / "nowhere"], [tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no scans"):
        find_pairs([tmp_path / "empty"], [tmp_path])


# --- reading


def write(path: Path, values: np.ndarray, spacing: float = 2.0) -> Path:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing([spacing] * 3)
    sitk.WriteImage(image, str(path))
    return path


def test_labels_keep_their_values_even_where_there_is_only_one(tmp_path: Path) -> None:
    scan = np.random.default_rng(0).normal(0, 50, (6, 6, 6)).astype(np.float32)
    drawn = np.zeros((6, 6, 6), np.uint8)
    drawn[2:4] = 6
    _, labels = Pair(write(tmp_path / "i.nrrd", scan), write(tmp_path / "l.nrrd", drawn)).read()
    assert np.unique(sitk.GetArrayFromImage(labels)).tolist() == [0, 6]


@pytest.mark.parametrize(
    ("labels", "spacing", "told"),
    [
        (np.eye(6, dtype=np.uint8)[None].repeat(6, 0), 2.5, "l.nrrd lie on another grid than their scan"),
        (np.eye(6, dtype=np.uint8)[None].repeat(7, 0), 2.0, "l.nrrd lie on another grid than their scan"),
        (np.eye(6, dtype=np.float32)[None].repeat(6, 0) / 2, 2.0, "l.nrrd is no label map"),
        (-np.eye(6, dtype=np.int16)[None].repeat(6, 0), 2.0, "l.nrrd is no label map"),
        (np.zeros((6, 6, 6), np.uint8), 2.0, "l.nrrd is constant"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: np.ndarray, spacing: float, told: str) -> None:
    scan = np.random.default_rng(0).normal(0, 50, (6, 6, 6)).astype(np.float32)
    pair = Pair(write(tmp_path / "i.nrrd", scan), write(tmp_path / "l.nrrd", labels, spacing))
    with pytest.raises(InputError, match=told):
        pair.read()


# --- names


def test_names_are_understood_as_prompts_are() -> None:
    found = named_labels({1: "Spleen", 2: "kidney_left", 7: "renal, right", 9: "spleen"})
    assert found == {
        1: structure("spleen"),
        2: structure("left kidney"),
        7: structure("right kidney"),
        9: structure("spleen"),
    }


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({1: "spleeen thing"}, 'The label 1, "spleeen thing", is no known structure .*"spleen"'),
        ({1: "kidneys", 2: "left kidney"}, '"kidneys" and "left kidney" overlap'),
        ({}, "No label has a name"),
    ],
)
def test_names_that_mean_nothing_certain_are_refused(names: dict[int, str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        named_labels(names)


def test_names_are_read_from_a_line_and_from_json(tmp_path: Path) -> None:
    expected = {1: "spleen", 2: "right kidney"}
    assert parse_names("1=spleen, 2 = right kidney") == expected
    path = tmp_path / "labels.json"
    for held in (
        {"1": "spleen", "2": "right kidney"},
        {"background": 0, "spleen": 1, "right kidney": 2},
        {"labels": {"background": 0, "spleen": 1, "right kidney": 2}, "channel_names": {"0": "CT"}},
    ):
        path.write_text(json.dumps(held))
        assert read_names(path) == expected


@pytest.mark.parametrize("text", ["", "spleen", "1=", "0=spleen", "1=spleen,1=liver", "one=spleen", "-1=spleen"])
def test_a_line_that_is_written_otherwise_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="1=spleen,2=right kidney"):
        parse_names(text)


@pytest.mark.parametrize("content", ["", "[1]", "3", '{"a": "b"}', '{"a": [1]}'])
def test_json_that_names_nothing_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(InputError, match="does not name labels"):
        read_names(path)
