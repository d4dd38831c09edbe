"""TotalSegmentator's networks: where they are found, and its way of bringing an image to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")

import nibabel

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging import image_from_array, ras_affine
from XAICLIPLib.segmentation.networks import totalsegmentator
from XAICLIPLib.segmentation.sliding_window import predict_logits

CPU = torch.device("cpu")
OBLIQUE = (0.05, 0.1, -0.9937, 0.995, -0.09, 0.041, -0.0853, -0.9908, -0.104)


@pytest.fixture
def weights(trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as TotalSegmentator's, with the plans' spacing as in its own."""
    results = tmp_path / "home" / "nnunet" / "results"
    for dataset, spacing in {
        "Dataset297_TotalSegmentator_total_3mm_1559subj": 3.0,
        "Dataset291_TotalSegmentator_part1_organs_1559subj": 1.5,
        "Dataset850_TotalSegMRI_part1_organs_1088subj": 1.5,
        "Dataset258_lung_vessels_248subj": 2.0,
    }.items():
        folder = results / dataset / "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres"
        shutil.copytree(trained["plain"], folder)
        plans = json.loads((folder / "plans.json").read_text())
        plans["configurations"]["3d_fullres"]["spacing"] = [spacing] * 3
        (folder / "plans.json").write_text(json.dumps(plans))
    (results / "Dataset292_TotalSegmentator_part2_vertebrae_1532subj").mkdir()  # an interrupted download
    for name in ("TOTALSEG_WEIGHTS_PATH", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOTALSEG_HOME_DIR", str(tmp_path / "home"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "nobody")
    return results


def scan(direction: tuple[float, ...] = OBLIQUE) -> sitk.Image:
    generator = np.random.default_rng(2)
    values = 180 + 900 * ndimage.gaussian_filter(generator.normal(size=(30, 44, 40)), 2)
    image = sitk.GetImageFromArray(values.astype(np.float32))
    image.SetSpacing((2.2, 1.4, 2.9))
    matrix = np.linalg.qr(np.reshape(direction, (3, 3)))
    signs = np.sign(np.diag(matrix.R))
    image.SetDirection((matrix.Q * signs).ravel().tolist())
    image.SetOrigin((10.0, -20.0, 35.0))
    return image


def test_networks_on_this_machine_are_listed_by_task_or_dataset(weights: Path) -> None:
    expected = ["total/organs", "total_fast", "total_mr/organs", "Dataset258"]
    assert totalsegmentator.available() == [f"totalsegmentator:{name}" for name in expected]


@pytest.mark.parametrize("variable", ["TOTALSEG_WEIGHTS_PATH", "nnUNet_results", "home"])
def test_weights_are_found_where_the_environment_says(
    variable: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOTALSEG_HOME_DIR")
    assert totalsegmentator.available() == []
    if variable == "home":
        weights.parents[1].rename(weights.parents[2] / ".totalsegmentator")
        monkeypatch.setattr(Path, "home", lambda: weights.parents[2])
    else:
        monkeypatch.setenv(variable, str(weights))
    assert "totalsegmentator:total_fast" in totalsegmentator.available()


def test_what_is_known_of_a_network(weights: Path) -> None:
    fast = totalsegmentator.load("totalsegmentator:total_fast", CPU)
    assert (fast.name, fast.modality, fast.inputs) == ("totalsegmentator:total_fast", "CT", ("image",))
    assert fast.labels == {0: "background", 1: "liver", 2: "spleen"}
    known = fast.provenance
    assert (known["licence"], known["resampled"]) == ("Apache-2.0", "3 mm")
    assert known["dataset"] == "Dataset297_TotalSegmentator_total_3mm_1559subj"
    organs = totalsegmentator.load("totalsegmentator:Dataset291", CPU)
    assert (organs.task, organs.provenance["tile_step_size"]) == (totalsegmentator.TASKS["total/organs"], "0.8")
    assert totalsegmentator.load("totalsegmentator:total_mr/organs", CPU).modality == "MR"
    other = totalsegmentator.load("totalsegmentator:Dataset258", CPU)
    assert (other.modality, other.provenance["licence"]) == ("CT", "unknown")
    assert "without TotalSegmentator's crop" in other.provenance["resampled"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("total", "several networks: choose one of totalsegmentator:total/organs, totalsegmentator:total/vertebrae"),
        ("total_mr", "choose one of totalsegmentator:total_mr/organs"),
        ("toes", "toes is not known here: choose one of total/organs"),
        ("body", r"Dataset299\) are not in .*totalseg_download_weights"),
        ("total/vertebrae", r"Dataset292\) are not in"),
        ("Dataset999", r"Dataset999\) are not in"),
    ],
)
def test_networks_that_are_not_there_are_refused_in_a_sentence(name: str, words: str, weights: Path) -> None:
    with pytest.raises(InputError, match=words):
        totalsegmentator.load(f"totalsegmentator:{name}", CPU)


@pytest.mark.parametrize(("name", "spacing"), [("total_fast", 3.0), ("total/organs", 1.5)])
def test_image_is_brought_to_the_network_as_by_totalsegmentator(
    name: str, spacing: float, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps, written out with nibabel and SciPy; then nnU-Net reads the file and predicts."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    network = totalsegmentator.load(f"totalsegmentator:{name}", CPU)
    image = scan()
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    canonical = nibabel.as_closest_canonical(nibabel.load(tmp_path / "scan.nii.gz"))
    factors = np.array(canonical.header.get_zooms()) / spacing
    values = ndimage.zoom(canonical.get_fdata(), factors, order=3).astype(np.int32)
    affine = canonical.affine.copy()
    affine[:3, :3] = affine[:3, :3] / factors
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "resampled.nii.gz")

    predictor = nnUNetPredictor(network.task.tile_step_size, True, False, False, CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(network._inner.folder.path), (0,))
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    data = preprocessor.run_case(
        [str(tmp_path / "resampled.nii.gz")],
        None,
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.dataset_json,
    )[0]
    with monkeypatch.context() as single:
        # nnU-Net sums tiles in half precision, which at the corners, of tiny weight, leaves few digits
        single.setattr(torch, "half", torch.float32)
        expected = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))

    prepared = network.prepare(image)
    assert prepared.tensor.shape == data.shape
    # Numbers are cut off to whole ones: one that lies just beside a whole one may fall to either side.
    assert (np.abs(prepared.tensor.numpy() - data) < 1e-4).mean() > 0.999
    logits = predict_logits(network.logits, prepared.tensor, network.window(tuple(prepared.tensor.shape[1:])))
    assert (logits - expected).abs().mean() < 1e-3


@pytest.mark.parametrize("name", ["total_fast", "Dataset258"])
def test_affine_tells_where_the_voxels_lie(name: str, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that holds one of its coordinates still does after all preprocessing, where no intensity is changed."""
    network = totalsegmentator.load(f"totalsegmentator:{name}", CPU)
    network._inner._configuration.configuration["normalization_schemes"] = ["NoNormalization"]
    grid = ras_affine(scan())
    size = (40, 44, 30)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), -1)
    for axis in range(3):
        place = 100 + 10 * (index @ grid[axis, :3] + grid[axis, 3])  # whole numbers are tenths of a mm
        prepared = network.prepare(image_from_array(place, grid))
        shape = prepared.tensor.shape[1:]
        there = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
        told = 100 + 10 * (there @ prepared.affine[axis, :3] + prepared.affine[axis, 3])
        middle = (slice(5, -5),) * 3
        assert np.abs(prepared.tensor.numpy()[0][middle] - told[middle]).max() < 1.1


def test_orientation_of_the_input_does_not_matter(weights: Path) -> None:
    """The same anatomy, stored along other axes, gives the same input to the network."""
    network = totalsegmentator.load("totalsegmentator:total_fast", CPU)
    image = scan((1, 0, 0, 0, 1, 0, 0, 0, 1))
    turned = sitk.DICOMOrient(image, "PIL")
    assert turned.GetDirection() != image.GetDirection()
    first, second = network.prepare(image), network.prepare(turned)
    assert torch.allclose(first.tensor, second.tensor, atol=0.05)
    assert np.allclose(first.affine, second.affine)
