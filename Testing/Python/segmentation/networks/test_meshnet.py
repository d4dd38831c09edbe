"""MeshNets as segmenters: the standard grid, the labels, and scores that need the target's surroundings alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from Testing.Python.segmentation.networks.test_layers_model import CHAIN, write_model
from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.target import Target, class_of
from XAICLIPLib.segmentation.networks.meshnet import SIZE, MeshNetSegmenter, intensity_range, is_meshnet
from XAICLIPLib.segmentation.prediction import network_near
from XAICLIPLib.segmentation.sliding_window import Tiling

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def head(shared_data: Path) -> sitk.Image:
    """A T1 that lies on the standard grid."""
    return imaging.read_volume(shared_data / "brain_mr" / "t1_crop.nii.gz")


@pytest.fixture
def small(tmp_path: Path) -> MeshNetSegmenter:
    """A MeshNet with random weights."""
    return MeshNetSegmenter(write_model(tmp_path / "tiny").parent, CPU)


def test_real_models_are_known_by_their_files(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "brain_mr" / "model30chan18cls"
    assert is_meshnet(folder)
    assert is_meshnet(folder / "model.json")
    assert not is_meshnet(folder / "model.bin")
    assert not is_meshnet(folder / "colormap.json")
    assert not is_meshnet(tmp_path)
    assert not is_meshnet(tmp_path / "nothing")
    (tmp_path / "model.json").write_bytes(b"\xff\xfe{[")
    assert not is_meshnet(tmp_path)


def test_a_real_model_tells_what_it_is(shared_data: Path) -> None:
    atlas = MeshNetSegmenter(shared_data / "brain_mr" / "model30chan18cls", CPU)
    assert (atlas.name, atlas.modality, atlas.inputs, atlas.window) == ("model30chan18cls", "MR", ("image",), None)
    assert atlas.activation == "softmax"
    assert atlas.reach == (46, 46, 46)  # 2 (1 + 2 + 4 + 8) + 16
    assert not atlas.by_quantiles
    assert len(atlas.labels) == 18
    assert atlas.labels[0] == "background"
    assert atlas.labels[1] == "cerebral white matter"
    assert atlas.labels[17] == "ventral dc"
    tissue = MeshNetSegmenter(shared_data / "brain_mr" / "model20chan3cls" / "model.json", CPU)
    assert tissue.by_quantiles
    assert dict(tissue.labels) == {0: "background", 1: "white matter", 2: "grey matter"}


PROMPTS = {
    "hippocampus": [14],
    "thalamus": [7],
    "caudate": [8],
    "putamen": [9],
    "globus pallidus": [10],
    "amygdala": [15],
    "brain stem": [13],
    "cerebellum": [5, 6],
    "cerebellar cortex": [6],
    "cerebral white matter": [1],
    "cerebral cortex": [2],
    "lateral ventricles": [3, 4],
    "third ventricle": [11],
    "4th ventricle": [12],
    "nucleus accumbens": [16],
    "ventral diencephalon": [17],
    "brain": list(range(1, 18)),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_finds_its_classes(shared_data: Path, prompt: str) -> None:
    atlas = MeshNetSegmenter(shared_data / "brain_mr" / "model30chan18cls", CPU)
    assert list(class_of(prompt, None, atlas)[1]) == PROMPTS[prompt]


def test_the_brain_is_the_grey_and_the_white_matter_of_a_network_for_tissues(shared_data: Path) -> None:
    tissue = MeshNetSegmenter(shared_data / "brain_mr" / "model20chan3cls", CPU)
    assert class_of("brain", None, tissue) == ("brain", (1, 2))


def test_a_head_on_the_standard_grid_stays_as_it_is(head: sitk.Image, small: MeshNetSegmenter) -> None:
    prepared = small.prepare(head)
    values = sitk.GetArrayFromImage(head).transpose(2, 1, 0).astype(np.float32)
    assert prepared.tensor.shape == (1, SIZE, SIZE, SIZE)
    np.testing.assert_allclose(prepared.affine, imaging.ras_affine(head), atol=1e-4)
    np.testing.assert_allclose(prepared.tensor[0].numpy(), (values - values.min()) / np.ptp(values), atol=1e-6)


def test_a_turned_and_cropped_head_comes_to_the_standard_grid_where_it_lies(
    head: sitk.Image, small: MeshNetSegmenter
) -> None:
    turned = sitk.DICOMOrient(head, "RPS")[40:220, 20:240, 30:230]
    for n in range(3):  # the same anatomy in world coordinates must come out, whatever the order of the axes
        turned = sitk.PermuteAxes(turned, [1, 2, 0]) if n else turned
    turned = sitk.Cast(turned, sitk.sitkFloat32) * 7 + 3
    prepared = small.prepare(turned)
    np.testing.assert_allclose(prepared.affine[:3, :3], [[-1, 0, 0], [0, 0, 1], [0, -1, 0]], atol=1e-9)
    here = prepared.as_image(prepared.tensor[0])
    expected = sitk.GetArrayFromImage(imaging.resample_like(sitk.Cast(head, sitk.sitkFloat32), here)).ravel()
    there = sitk.GetArrayFromImage(imaging.resample_like(turned, here, outside=-1.0)).ravel() > -0.5
    found = sitk.GetArrayFromImage(here).ravel()
    assert there.mean() > 0.3
    assert np.corrcoef(found[there], expected[there])[0, 1] > 0.98
    assert 0 <= found.min() < found.max() == 1


def test_a_few_bright_voxels_do_not_darken_the_head() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 100, (50, 50, 50)).astype(np.float32)
    values.flat[:20] = 5000
    low, high = intensity_range(values)
    assert low == pytest.approx(0, abs=0.1)
    assert 80 <= high <= 110


def test_by_quantiles_the_middle_nine_tenths_lie_between_0_and_1(shared_data: Path, head: sitk.Image) -> None:
    tissue = MeshNetSegmenter(shared_data / "brain_mr" / "model20chan3cls", CPU)
    values = tissue.prepare(head).tensor.numpy()
    assert np.quantile(values, (0.05, 0.95)) == pytest.approx([0, 1], abs=1e-5)


def test_a_volume_without_contrast_is_refused(small: MeshNetSegmenter) -> None:
    small.by_quantiles = True
    image = sitk.Image(40, 40, 40, sitk.sitkFloat32)
    image[20, 20, 20] = 1.0
    with pytest.raises(InputError, match="cannot normalise"):
        small.prepare(image)


def test_names_of_another_network_are_refused_and_none_are_numbers(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m").parent
    assert dict(MeshNetSegmenter(folder, CPU).labels) == {0: "background", 1: "class 1"}
    (folder / "colormap.json").write_text(json.dumps({"labels": ["Unknown", "Left-Thalamus-Proper"]}))
    assert dict(MeshNetSegmenter(folder, CPU).labels) == {0: "background", 1: "left thalamus proper"}
    (folder / "colormap.json").write_text(json.dumps({"labels": ["a", "b", "c"]}))
    with pytest.raises(InputError, match="names 3 classes and the network has 2"):
        MeshNetSegmenter(folder, CPU)


def test_a_network_of_several_images_is_refused(tmp_path: Path) -> None:
    chain = [{**CHAIN[0], "batch_input_shape": [None, 16, 16, 16, 2]}, {**CHAIN[-1], "filters": 2}]
    weights = {"c/kernel": np.ones((1, 1, 1, 2, 2), np.float32), "c/bias": np.zeros(2, np.float32)}
    with pytest.raises(InputError, match="2 images at once"):
        MeshNetSegmenter(write_model(tmp_path / "m", chain, weights), CPU)


def test_scores_from_the_surroundings_are_those_of_the_whole_volume(small: MeshNetSegmenter) -> None:
    shape = (30, 26, 28)
    volume = torch.rand((1, *shape), generator=torch.Generator().manual_seed(3)) * 4
    voxels = torch.zeros(shape, dtype=torch.bool)
    voxels[10:16, 0:7, 12:18] = True  # at the volume's edge on one side
    reference = voxels.clone()
    reference[:, 4:] = False
    target, whole = Target("it", 1, reference, voxels), Tiling.of(shape, None)
    forward, near = network_near(small, whole, voxels)
    assert near.weight.numel() < voxels.numel() / 4
    boxes = [((8, 12), (0, 6), (10, 20)), ((0, 30), (0, 26), (0, 28)), ((17, 19), (8, 9), (19, 23))]
    hidden = [Perturbation(tuple(slice(*ends) for ends in box)) for box in boxes]
    baseline = torch.zeros_like(volume)

    def losses(scorer: Scorer) -> list[float]:
        found = dict(pair for batch in scorer.lost(hidden) for pair in batch)
        return [found[n] for n in range(len(hidden))]

    quick = Scorer(forward, volume, baseline, near, target)
    full = Scorer(small.logits, volume, baseline, whole, target)
    assert quick.full_score == pytest.approx(full.full_score, abs=1e-5)
    assert losses(quick) == pytest.approx(losses(full), abs=1e-5)
    assert max(map(abs, losses(full))) > 1e-3
    torch.testing.assert_close(quick.gradient(), full.gradient(), atol=1e-5, rtol=0)
