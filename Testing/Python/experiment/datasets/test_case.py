"""What all datasets share: cases, the sequence of them, label names and label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from XAICLIPLib.errors import InputError
from XAICLIPLib.experiment.datasets.case import Case, Dataset, attempt, gather, label_image, name_labels, natural


def case(identifier: str) -> Case:
    return Case(identifier, "CT", None, {1: "liver"}, sitk.Image, sitk.Image)


def wrong(sentence: str) -> Case:
    raise InputError(sentence)


def test_a_dataset_is_a_sequence_of_its_cases() -> None:
    dataset = Dataset((case("a"), case("b")), ("c is broken.",))
    assert len(dataset) == 2
    assert [c.identifier for c in dataset] == ["a", "b"]
    assert dataset[-1] == case("b")
    assert dataset[:1] == (case("a"),)
    assert case("b") in dataset


def test_gathering_keeps_good_cases_and_sentences_about_the_others(tmp_path: Path) -> None:
    found = [attempt(case, "a"), attempt(wrong, "b is broken."), case("a"), case("c")]
    dataset = gather(found, tmp_path)
    assert [c.identifier for c in dataset] == ["a", "c"]
    assert dataset.problems == ("b is broken.", f"{tmp_path} has the case a twice: the second one is left out.")


def test_gathering_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no usable case, it is empty"):
        gather([], tmp_path)
    with pytest.raises(InputError, match=r"^b is broken\.$"):
        gather([attempt(wrong, "b is broken.")], tmp_path)


def test_other_errors_than_the_users_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        attempt(lambda: 1 / 0)  # type: ignore[arg-type, return-value]


def test_names_become_those_of_the_vocabulary_and_sides_stay() -> None:
    structures, unnamed = name_labels({0: "background", 3: "Kidney_Left", 1: "postcava", 2: "tumor"})
    assert structures == {1: "inferior vena cava", 3: "left kidney"}
    assert unnamed == {2: "tumor"}


def test_numbers_in_names_count_by_value() -> None:
    assert sorted(["p10", "p9", "2", "q", "10"], key=natural) == ["2", "10", "p9", "p10", "q"]
    assert natural(Path("far") / "p1") == natural("p1")


@pytest.mark.parametrize(("top", "kind"), [(255, sitk.sitkUInt8), (256, sitk.sitkUInt16), (70000, sitk.sitkUInt32)])
def test_label_maps_have_the_smallest_type_and_the_grid_of_their_image(top: int, kind: int) -> None:
    grid = sitk.Image(4, 3, 2, sitk.sitkFloat32)
    grid.SetOrigin((1, 2, 3))
    grid.SetSpacing((0.5, 1, 2))
    grid.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    array = np.zeros((2, 3, 4))
    array[1, 2, 3] = top
    image = label_image(array, grid)
    assert image.GetPixelID() == kind
    assert image[3, 2, 1] == top
    for part in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(image, part)() == getattr(grid, part)()
