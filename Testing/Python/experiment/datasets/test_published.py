"""Datasets of volume files, in small copies of their published layouts."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from XAICLIPLib.anatomy import vocabulary
from XAICLIPLib.errors import InputError
from XAICLIPLib.experiment.datasets import published
from XAICLIPLib.experiment.datasets.published import read_dataset

# Arbitrary, turned and mirrored, so that a lost geometry or axis is seen.
ORIGIN, SPACING = (-37.5, 12.25, 240.0), (1.5, 2.0, 2.5)
DIRECTION = (-1.0, 0, 0, 0, 0.0, 1.0, 0, 1.0, 0)
SHAPE = (7, 8, 9)
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[1:3, 2:5, 1:4] = 1
LABELS[4:6, 5:7, 5:8] = 6


def volume(array: np.ndarray, origin: tuple[float, float, float] = ORIGIN) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetOrigin(origin)
    image.SetSpacing(SPACING)
    image.SetDirection(DIRECTION)
    return image


def write(path: Path, array: np.ndarray, origin: tuple[float, float, float] = ORIGIN) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(volume(array, origin), str(path))
    return path


def scan(labels: np.ndarray = LABELS) -> np.ndarray:
    """An image that is its labels, ten times over."""
    return labels.astype(np.int16) * 10


def write_pair(image: Path, label: Path, labels: np.ndarray = LABELS) -> None:
    write(image, scan(labels))
    write(label, labels)


def assert_read(case: published.Case, labels: np.ndarray = LABELS) -> None:
    """The labels lie on their own voxels of the image, on one grid, exactly."""
    image, found = case.image(), case.labels()
    assert np.array_equal(sitk.GetArrayFromImage(found), labels)
    assert np.array_equal(sitk.GetArrayFromImage(image), scan(labels))
    for part in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(image, part)() == getattr(found, part)()
    assert np.allclose(
        found.TransformIndexToPhysicalPoint((8, 7, 6)), volume(labels).TransformIndexToPhysicalPoint((8, 7, 6))
    )
    assert found.GetPixelID() == sitk.sitkUInt8


def refused(act: Callable[[], object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        act()
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text


def labels_json(folder: Path, about: object, name: str = "labels.json") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(about), encoding="utf-8")


# --- published ----------------------------------------------------------------------------------


@pytest.fixture
def flare(tmp_path: Path) -> Path:
    for n in (2, 10, 1):
        write_pair(
            tmp_path / "imagesTr" / f"FLARE22_Tr_{n:04d}_0000.nii.gz",
            tmp_path / "labelsTr" / f"FLARE22_Tr_{n:04d}.nii.gz",
        )
    return tmp_path


def test_flare22_is_read_as_published(flare: Path) -> None:
    cases = read_dataset("flare22", flare)
    assert not cases.problems
    assert [c.identifier for c in cases] == ["FLARE22_Tr_0001", "FLARE22_Tr_0002", "FLARE22_Tr_0010"]
    for case in cases:
        assert (case.modality, case.sequence, case.unnamed) == ("CT", None, {})
        assert case.structures == published.FLARE22
        assert_read(case)


def test_btcv_is_read_as_published(tmp_path: Path) -> None:
    for n in (1, 35):
        folder = tmp_path / "RawData" / "Training"
        write_pair(folder / "img" / f"img{n:04d}.nii.gz", folder / "label" / f"label{n:04d}.nii.gz")
    for root in (tmp_path, tmp_path / "RawData", tmp_path / "RawData" / "Training"):
        cases = read_dataset("btcv", root)
        assert [c.identifier for c in cases] == ["BTCV_0001", "BTCV_0035"]
    assert cases[0].structures == published.BTCV
    assert cases[0].modality == "CT"
    assert_read(cases[1])


def test_all_published_names_are_of_the_vocabulary() -> None:
    for names in (published.FLARE22, published.BTCV):
        assert list(names) == list(range(1, 14))
        assert set(names.values()) <= vocabulary().keys()


def test_a_label_value_survives_where_it_is_the_only_one(tmp_path: Path) -> None:
    only = np.where(LABELS == 6, LABELS, 0)
    write_pair(
        tmp_path / "imagesTr" / "FLARE22_Tr_0001_0000.nii.gz", tmp_path / "labelsTr" / "FLARE22_Tr_0001.nii.gz", only
    )
    (case,) = read_dataset("flare22", tmp_path)
    assert_read(case, only)


def test_labels_in_floating_point_are_read_as_whole_numbers(flare: Path) -> None:
    write(flare / "labelsTr" / "FLARE22_Tr_0001.nii.gz", LABELS.astype(np.float32))
    assert_read(read_dataset("flare22", flare)[0])


def test_cases_are_read_only_when_asked_and_can_be_sent_to_another_process(flare: Path) -> None:
    cases = pickle.loads(pickle.dumps(read_dataset("flare22", flare)))
    (flare / "imagesTr" / "FLARE22_Tr_0002_0000.nii.gz").unlink()
    assert_read(cases[0])
    refused(cases[1].image, "FLARE22_Tr_0002_0000.nii.gz")


# --- broken -------------------------------------------------------------------------------------


def test_one_broken_case_does_not_lose_the_others(flare: Path) -> None:
    (flare / "imagesTr" / "FLARE22_Tr_0002_0000.nii.gz").unlink()
    write(flare / "imagesTr" / "FLARE22_Tr_0011_0000.nii.gz", scan())
    (flare / "labelsTr" / "._FLARE22_Tr_0001.nii.gz").write_bytes(b"")
    write(flare / "labelsTr" / "FLARE22_Tr_0010.nii.gz", LABELS[:-1])
    cases = read_dataset("flare22", flare)
    assert [c.identifier for c in cases] == ["FLARE22_Tr_0001"]
    no_image, other_size, no_labels = cases.problems
    assert "labelsTr/FLARE22_Tr_0002.nii.gz have no image" in no_image
    assert "9×8×6 voxels" in other_size
    assert "imagesTr/FLARE22_Tr_0011_0000.nii.gz has no labels" in no_labels


def test_labels_a_little_off_the_grid_take_the_images_and_further_off_are_refused(flare: Path) -> None:
    label = flare / "labelsTr" / "FLARE22_Tr_0001.nii.gz"
    write(label, LABELS, (ORIGIN[0] + 0.1, *ORIGIN[1:]))
    assert_read(read_dataset("flare22", flare)[0])
    write(label, LABELS, (ORIGIN[0] + 0.2, *ORIGIN[1:]))
    (problem,) = read_dataset("flare22", flare).problems
    assert "FLARE22_Tr_0001.nii.gz lies on another grid" in problem
    assert "0.2 mm apart" in problem


def test_a_mirrored_grid_is_another_grid(flare: Path) -> None:
    image = volume(LABELS)
    image.SetDirection([-v for v in DIRECTION[:3]] + list(DIRECTION[3:]))
    sitk.WriteImage(image, str(flare / "labelsTr" / "FLARE22_Tr_0001.nii.gz"))
    assert "lies on another grid" in read_dataset("flare22", flare).problems[0]


def test_a_value_that_the_dataset_does_not_define_is_named(flare: Path) -> None:
    wrong = LABELS.astype(np.float32)
    write(flare / "labelsTr" / "FLARE22_Tr_0001.nii.gz", np.where(LABELS == 6, 14, LABELS).astype(np.uint8))
    write(flare / "labelsTr" / "FLARE22_Tr_0002.nii.gz", np.where(LABELS == 6, 1.5, wrong).astype(np.float32))
    cases = read_dataset("flare22", flare)
    refused(cases[0].labels, "FLARE22_Tr_0001.nii.gz hold the value 14,")
    refused(cases[1].labels, "FLARE22_Tr_0002.nii.gz hold the value 1.5,")
    assert_read(cases[2])


def test_damaged_files_are_named(flare: Path) -> None:
    image = flare / "imagesTr" / "FLARE22_Tr_0001_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:-30])
    (flare / "labelsTr" / "FLARE22_Tr_0010.nii.gz").write_bytes(b"nothing")
    cases = read_dataset("flare22", flare)
    (problem,) = cases.problems
    assert "FLARE22_Tr_0010.nii.gz cannot be read" in problem
    refused(cases[0].image, "FLARE22_Tr_0001_0000.nii.gz is damaged")


@pytest.mark.parametrize("kind", ["flare22", "btcv", "nnunet", "msd", "manifest", "folder"])
def test_a_folder_without_the_dataset_is_refused(tmp_path: Path, kind: published.Kind) -> None:
    refused(lambda: read_dataset(kind, tmp_path), str(tmp_path))
    refused(lambda: read_dataset(kind, tmp_path / "nowhere"), "no file or folder .*nowhere")


def test_a_dataset_without_a_usable_case_is_refused(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    refused(lambda: read_dataset("flare22", tmp_path), "no usable case")
    write(tmp_path / "labelsTr" / "FLARE22_Tr_0001.nii.gz", LABELS)
    refused(lambda: read_dataset("flare22", tmp_path), "FLARE22_Tr_0001.nii.gz have no image")


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    refused(lambda: read_dataset("amos", tmp_path), "choose one of flare22, chaos")  # type: ignore[arg-type]


# --- dataset.json -------------------------------------------------------------------------------

VERSION_1 = {
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "Liver", "6": "cancer"},
    "training": [{"image": "./imagesTr/liver_3.nii.gz", "label": "./labelsTr/liver_3.nii.gz"}],
}
VERSION_2 = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "cancer": 6},
    "file_ending": ".nii.gz",
    "numTraining": 1,
}


@pytest.mark.parametrize("about", [VERSION_1, VERSION_2], ids=["version 1", "version 2"])
@pytest.mark.parametrize("suffix", ["", "_0000"], ids=["decathlon", "nnU-Net"])
def test_both_versions_of_dataset_json_are_read(tmp_path: Path, about: dict[str, object], suffix: str) -> None:
    labels_json(tmp_path, about, "dataset.json")
    write_pair(tmp_path / "imagesTr" / f"liver_3{suffix}.nii.gz", tmp_path / "labelsTr" / "liver_3.nii.gz")
    cases = read_dataset("nnunet", tmp_path)
    (case,) = cases
    assert (case.identifier, case.modality, case.sequence) == ("liver_3", "CT", None)
    assert case.structures == {1: "liver"}
    assert case.unnamed == {6: "cancer"}
    (problem,) = cases.problems
    assert '6 "cancer"' in problem
    assert_read(case)


def test_a_name_with_four_digits_of_its_own_is_not_cut_where_channels_have_no_files(tmp_path: Path) -> None:
    labels_json(tmp_path, VERSION_1, "dataset.json")
    write_pair(tmp_path / "imagesTr" / "ct_0003.nii.gz", tmp_path / "labelsTr" / "ct_0003.nii.gz")
    write(tmp_path / "imagesTr" / "ct_0004.nii.gz", scan())
    cases = read_dataset("msd", tmp_path)
    assert [c.identifier for c in cases] == ["ct_0003"]
    assert "ct_0004.nii.gz has no labels" in cases.problems[1]


def test_channels_of_an_mr_become_components_from_files_or_a_fourth_axis(tmp_path: Path) -> None:
    about = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"background": 0, "PZ": 1, "TZ": [6]}}
    stack = np.stack([scan(), scan()[::-1]])
    for root, four in ((tmp_path / "files", False), (tmp_path / "axis", True)):
        labels_json(root, about, "dataset.json")
        write(root / "labelsTr" / "p_1.nii.gz", LABELS)
        if four:
            sitk.WriteImage(
                sitk.JoinSeries([volume(a) for a in stack]), str(write(root / "imagesTr" / "p_1.nii.gz", scan()))
            )
        else:
            for c, array in enumerate(stack):
                write(root / "imagesTr" / f"p_1_{c:04d}.nii.gz", array)
        (case,) = read_dataset("nnunet", root)
        assert (case.modality, case.sequence) == ("MR", "T2, ADC")
        assert case.structures == {1: "prostate peripheral zone", 6: "prostate transition zone"}
        image, labels = case.image(), case.labels()
        assert np.array_equal(sitk.GetArrayFromImage(image), np.moveaxis(stack, 0, -1))
        assert np.array_equal(sitk.GetArrayFromImage(labels), LABELS)
        assert image.GetDirection() == labels.GetDirection()
        assert image.GetOrigin() == labels.GetOrigin()


def test_a_missing_channel_is_named(tmp_path: Path) -> None:
    labels_json(tmp_path, {"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"PZ": 1, "TZ": 6}}, "dataset.json")
    write_pair(tmp_path / "imagesTr" / "p_1_0000.nii.gz", tmp_path / "labelsTr" / "p_1.nii.gz")
    refused(lambda: read_dataset("nnunet", tmp_path), "p_1_0001.nii.gz is missing")


def test_regions_name_no_structure_but_their_values_are_known(tmp_path: Path) -> None:
    labels_json(tmp_path, {"labels": {"background": 0, "liver": 1, "lesions": [6, 7]}}, "dataset.json")
    write_pair(tmp_path / "imagesTr" / "a_0000.nii.gz", tmp_path / "labelsTr" / "a.nii.gz")
    (case,) = read_dataset("nnunet", tmp_path)
    assert case.structures == {1: "liver"}
    assert case.unnamed == {6: "part of lesions", 7: "part of lesions"}
    assert_read(case)


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ("[]", "holds no JSON object"),
        ("{", "is no JSON file"),
        ("{}", "does not say what its labels mean"),
        ('{"labels": {"liver": "one"}}', "does not say what its labels mean"),
        ('{"labels": {"background": 0, "blob": 1}}', "no label that a structure of the vocabulary means"),
        ('{"labels": {"liver": 1}, "modality": "CT"}', "does not number its channels"),
        ('{"labels": {"liver": 1}, "modality": {"a": "CT"}}', "does not number its channels"),
        ('{"labels": {"liver": 1}}', "lacks imagesTr"),
    ],
)
def test_a_wrong_dataset_json_is_named(tmp_path: Path, about: str, sentence: str) -> None:
    (tmp_path / "dataset.json").write_text(about)
    refused(lambda: read_dataset("nnunet", tmp_path), sentence)


@pytest.mark.parametrize(
    ("names", "modality"),
    [
        (["CT"], "CT"),
        (["MRI"], "MR"),
        (["T1w", "FLAIR"], "MR"),
        (["t1gd"], "MR"),
        (["mp-MRI"], "MR"),
        (["mpMRI"], "MR"),
        (["noNorm"], None),
        (["electron"], None),
        ([""], None),
    ],
)
def test_the_modality_is_taken_from_the_channels(names: list[str], modality: str | None) -> None:
    assert published._modality(names) == modality


# --- users' own ---------------------------------------------------------------------------------


def test_a_manifest_is_read_relative_to_itself(tmp_path: Path) -> None:
    write_pair(tmp_path / "data" / "Jane_Doe.nii.gz", tmp_path / "data" / "seg.nrrd")
    labels_json(tmp_path, {"1": "liver", "6": "spleen"})
    labels_json(tmp_path / "data", {"labels": {"aorta": 1, "LK": 6}}, "names.json")
    (tmp_path / "manifest.csv").write_text(
        "\ufeffImage, label, modality, case, names, sequence\n"
        "data/Jane_Doe.nii.gz, data/seg.nrrd, CT\n"
        "\n"
        f"{tmp_path / 'data' / 'Jane_Doe.nii.gz'}, data/seg.nrrd, mri, b, 1: right kidney; 6=liver, T2-SPIR\n"
        "data/Jane_Doe.nii.gz,data/seg.nrrd,,c,data/names.json,\n",
        encoding="utf-8",
    )
    cases = read_dataset("manifest", tmp_path / "manifest.csv")
    assert cases == read_dataset("manifest", tmp_path)
    assert not cases.problems
    assert [(c.identifier, c.modality, c.sequence) for c in cases] == [
        ("case-001", "CT", None),
        ("b", "MR", "T2-SPIR"),
        ("c", None, None),
    ]
    assert [c.structures for c in cases] == [
        {1: "liver", 6: "spleen"},
        {1: "right kidney", 6: "liver"},
        {1: "aorta", 6: "left kidney"},
    ]
    for case in cases:
        assert_read(case)


def test_wrong_rows_of_a_manifest_are_named_by_their_number(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    (tmp_path / "m.csv").write_text(
        "image,label,modality,structures,case\n"
        "a.nii.gz,b.nii.gz,CT,1: liver|6: spleen,a\n"
        "a.nii.gz,,CT,1: liver,b\n"
        "a.nii.gz,b.nii.gz,PET,1: liver,c\n"
        "a.nii.gz,b.nii.gz,CT,liver,d\n"
        "a.nii.gz,b.nii.gz,CT,1: blob,e\n"
        "a.nii.gz,b.nii.gz,CT,,f\n"
        "nothing.nii.gz,b.nii.gz,CT,1: liver,g\n"
        "a.nii.gz,b.nii.gz,CT,1: liver,a\n"
        "a.nii.gz,b.nii.gz,CT,1: liver,h\n"
    )
    cases = read_dataset("manifest", tmp_path / "m.csv")
    assert [c.identifier for c in cases] == ["a", "h"]
    assert_read(cases[0])
    refused(cases[1].labels, "b.nii.gz hold the value 6,")
    for problem, words in zip(
        cases.problems,
        ("Row 2", 'Row 3 .* "PET"', 'Row 4 .* as "liver"', 'given: "blob"', "labels.json", "nothing.nii.gz", "a twice"),
        strict=True,
    ):
        assert re.search(words, problem)
        assert problem.endswith(".")


def test_a_manifest_without_its_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("image,mask\n")
    refused(lambda: read_dataset("manifest", path), "lacks the column label, modality")
    path.write_text("")
    refused(lambda: read_dataset("manifest", path), "lacks the column image")
    path.write_bytes(b"\xff\xfe\xff")
    refused(lambda: read_dataset("manifest", path), "no CSV file")


def test_a_dicom_folder_may_be_the_image_of_a_manifest(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="pydicom writes the DICOM files")
    from Testing.Python.experiment.datasets.test_chaos import planted, write_series

    write_series(tmp_path / "series", [f"{n}.dcm" for n in range(9)], list(range(9)), planted())
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    labels = sitk.GetImageFromArray(planted())
    labels.CopyInformation(image)
    sitk.WriteImage(labels, str(tmp_path / "labels.nii.gz"))
    (tmp_path / "m.csv").write_text(
        "image,label,modality,names\nseries,labels.nii.gz,CT,1: liver; 2: spleen; 3: aorta; 4: stomach\n"
    )
    (case,) = read_dataset("manifest", tmp_path / "m.csv")
    assert np.array_equal(sitk.GetArrayFromImage(case.labels()), planted())
    assert case.labels().GetOrigin() == case.image().GetOrigin()
    labels.SetOrigin((0, 0, 0))
    sitk.WriteImage(labels, str(tmp_path / "labels.nii.gz"))
    refused(case.labels, "labels.nii.gz lies on another grid")


def test_a_folder_of_equal_names_is_read(tmp_path: Path) -> None:
    labels_json(tmp_path, {"labels": {"1": "liver", "6": "spleen"}, "modality": "MRI"})
    for name in ("p10.nii.gz", "p9.nii.gz", "x.mha"):
        write_pair(tmp_path / "images" / name, tmp_path / "labels" / name)
    (tmp_path / "labels" / "p9.nii.gz").unlink()
    cases = read_dataset("folder", tmp_path)
    assert [c.identifier for c in cases] == ["p10", "x"]
    assert cases[0].modality == "MR"
    (problem,) = cases.problems
    assert "images/p9.nii.gz has no labels: " in problem
    for case in cases:
        assert_read(case)


def test_a_flat_folder_needs_to_be_told_its_labels_unless_it_is_ours(tmp_path: Path) -> None:
    write_pair(tmp_path / "abdomen_03_image.nii.gz", tmp_path / "abdomen_03_label.nii.gz")
    write(tmp_path / "abdomen_04_label.nii.gz", LABELS)
    cases = read_dataset("folder", tmp_path)
    assert [(c.identifier, c.modality) for c in cases] == [("abdomen_03", "CT")]
    assert cases[0].structures == published.BTCV
    assert "abdomen_04_image.nii.gz is missing" in cases.problems[0]
    assert_read(cases[0])
    write_pair(tmp_path / "knee_image.nii.gz", tmp_path / "knee_label.nii.gz")
    refused(lambda: read_dataset("folder", tmp_path), "no .*labels.json, which says what the labels mean")
    labels_json(tmp_path, {"liver": 1, "spleen": 6})
    cases = read_dataset("folder", tmp_path)
    assert cases[1].structures == {1: "liver", 6: "spleen"}
    assert cases[1].modality is None


def test_the_shared_abdomens_are_read(shared_data: Path) -> None:
    cases = read_dataset("folder", shared_data / "abdomen_ct")
    assert not cases.problems
    assert [c.identifier for c in cases] == [f"abdomen_{n:02d}" for n in range(24)]
    image, labels = cases[20].image(), cases[20].labels()
    hu, of = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(labels)
    assert image.GetOrigin() == labels.GetOrigin()
    centre = {
        n: np.mean([image.TransformIndexToPhysicalPoint(i) for i in np.argwhere(of == n)[:, ::-1].tolist()], 0)
        for n in (1, 2, 3, 6)
    }
    # LPS: the left side is at greater x. Liver and right kidney lie right, spleen and left kidney left.
    assert max(centre[2][0], centre[6][0]) < min(centre[1][0], centre[3][0])
    assert 50 < np.median(hu[of == 6]) < 180
