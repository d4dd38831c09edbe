"""What only a GPU can show, with the CPU as the oracle. These tests skip where PyTorch sees no CUDA GPU."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from Testing.Python.scoring.test_scorer import CASES, Case, losses, make_case, mixed_perturbations, segresnet, unet
from Testing.Python.test_explanation import Network, geometry, run, scan, values
from XAICLIPLib.anatomy import structure
from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers.methods import METHODS
from XAICLIPLib.explanation import Explanation
from XAICLIPLib.imaging.phantom import torso_phantom
from XAICLIPLib.localization.region import guided_region
from XAICLIPLib.models import catalogue
from XAICLIPLib.pipeline import explain
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.segmentation.batching import LARGEST_BATCH, Batches
from XAICLIPLib.segmentation.untrusted.torchscript import read_torchscript
from XAICLIPLib.system.devices import available_devices, choose_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA GPU here")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
QUICK: dict[str, dict[str, Any]] = {
    "occlusion": {"window_mm": 18.0, "stride_mm": 9.0},
    "rise": {"cell_mm": 18.0, "samples": 40, "wanted_error": 0.0},
    "lime": {"size_mm": 18.0, "samples": 80},
    "structures": {},
    "integrated-gradients": {"steps": 4},
}
"""Explainers that the tiny network of `test_explanation` has the layers for, with little to do."""


def on_gpu(case: Case, **options: Any) -> Scorer:
    """The case's scorer, all of it on the GPU."""
    moved = dataclasses.replace(case, volume=case.volume.to(GPU), network=copy.deepcopy(case.network).to(GPU))
    return dataclasses.replace(moved.scorer(), **options)


def tiny(method: str, device: str) -> Explanation:
    """The tiny network's liver, the whole scan probed in full precision."""
    options = {"method": method, "region": "whole", "precision": "full", **QUICK[method]}
    return explain(scan(), "liver", model=Network(), device=device, **options)


@pytest.mark.parametrize("name", CASES)
def test_scores_lost_are_those_of_full_inference_on_the_cpu(name: str) -> None:
    case = make_case(*CASES[name])
    perturbations = mixed_perturbations(tuple(case.volume.shape[1:]))
    expected = case.full_losses(perturbations)
    assert max(abs(e) for e in expected) > 5e-3
    assert losses(on_gpu(case), perturbations) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_does_not_change_the_result(batch_size: int) -> None:
    case = make_case(segresnet, (30, 26, 21), (12, 12, 10))
    perturbations = mixed_perturbations((30, 26, 21))
    expected = losses(on_gpu(case, batch_size=8), perturbations)
    assert losses(on_gpu(case, batch_size=batch_size), perturbations) == pytest.approx(expected, abs=1e-5)


def test_gradients_are_those_of_the_cpu() -> None:
    case = make_case(unet, (30, 26, 21), (12, 12, 10))
    expected, found = case.scorer().gradient(), on_gpu(case).gradient()
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("method", QUICK)
def test_every_explainer_draws_the_map_of_the_cpu(method: str) -> None:
    maps = {}
    for device in ("cpu", "cuda"):
        found = tiny(method, device)
        assert found.record["parameters"]["device"] == device
        maps[device] = values(found.saliency)
    strongest = np.abs(maps["cpu"]).max()
    assert strongest > 0
    np.testing.assert_allclose(maps["cuda"], maps["cpu"], atol=1e-3 * strongest)


def test_a_map_is_the_same_every_time() -> None:
    first, second = (values(tiny("rise", "cuda").saliency) for _ in range(2))
    np.testing.assert_array_equal(first, second)


class Wide(nn.Module):
    """Takes 256 MiB for a patch of 64 voxels a side, more than the memory that is left to it holds of many."""

    def forward(self, x: Tensor) -> Tensor:
        many = x.repeat(1, 256, 1, 1, 1) + torch.arange(256, device=x.device).reshape(1, -1, 1, 1, 1)
        return torch.cat([-x, many.mean(1, keepdim=True)], 1)


def test_memory_that_really_runs_out_halves_the_batches() -> None:
    """The free memory promises more than this process may take, as if another program took the rest meanwhile."""
    total = torch.cuda.get_device_properties(0).total_memory
    patches = list(torch.rand(24, 1, 64, 64, 64, device=GPU))
    network = Wide()
    expected = torch.stack([network(p[None])[0] for p in patches])
    torch.cuda.empty_cache()
    batches = Batches(network, GPU)
    assert batches.size_for(patches[0]) > 8
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 4 * 2**30) / total)
    try:
        found = batches.run(patches)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    torch.testing.assert_close(found, expected)
    assert batches.warnings and all("Memory ran out" in warning for warning in batches.warnings)
    assert batches.size is not None and batches.size < 24


def test_small_patches_go_as_many_at_once_as_are_allowed() -> None:
    network = segresnet().to(GPU)
    assert Batches(network, GPU).size_for(torch.rand(1, 16, 16, 16, device=GPU)) == LARGEST_BATCH


class Shipped:
    """The shipped models on the phantom, on both devices, made once."""

    def __init__(self) -> None:
        self.image = torso_phantom(spacing_mm=3.0).image
        self.maps: dict[tuple[str, str], Explanation] = {}

    def map(self, device: str, precision: str) -> Explanation:
        if (device, precision) not in self.maps:
            options: dict[str, Any] = {"device": device, "precision": precision, "window_mm": 60.0, "stride_mm": 60.0}
            self.maps[device, precision] = explain(self.image, "liver", **options)
        return self.maps[device, precision]


@pytest.fixture(scope="module")
def shipped() -> Shipped:
    return Shipped()


def test_the_shipped_models_explain_as_on_the_cpu(shipped: Shipped) -> None:
    """The localizer's tower runs in half precision, so that the region's border may move by a voxel."""
    cpu, gpu = shipped.map("cpu", "full"), shipped.map("cuda", "full")
    assert geometry(gpu.saliency) == geometry(cpu.saliency)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(gpu.region.mask, cpu.region.mask)
    assert overlap.GetDiceCoefficient() > 0.99
    assert np.mean(values(gpu.segmentation) == values(cpu.segmentation)) > 0.9999
    assert np.corrcoef(values(gpu.saliency).ravel(), values(cpu.saliency).ravel())[0, 1] > 0.999


def test_half_precision_is_taken_by_itself_and_gives_the_same_map(shipped: Shipped) -> None:
    full, auto = shipped.map("cuda", "full"), shipped.map("cuda", "auto")
    assert full.record["parameters"]["precision"] == "full"
    told = [warning for warning in auto.record["warnings"] if "Half precision" in warning]
    assert (auto.record["parameters"]["precision"] == "reduced") != bool(told), "it is taken, or it is said why not"
    assert np.corrcoef(values(full.saliency).ravel(), values(auto.saliency).ravel())[0, 1] > 0.999


class Overflowing(nn.Module):
    """Reaches beyond the largest number of half precision on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv3d(1, 1, 1, bias=False), nn.Conv3d(1, 2, 1)
        nn.init.constant_(self.large.weight, 2e5)
        nn.init.constant_(self.small.weight, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.small(self.large(x)) * torch.tensor([-3.0, 3.0], device=x.device).reshape(1, 2, 1, 1, 1)
        return found


def test_half_precision_is_given_up_where_it_overflows() -> None:
    case = make_case(Overflowing, (30, 26, 21), (12, 12, 10))
    perturbations = mixed_perturbations((30, 26, 21))
    scorer = on_gpu(case, precision="auto")
    assert losses(scorer, perturbations) == pytest.approx(case.full_losses(perturbations), abs=1e-4)
    assert not scorer.reduced
    (warning,) = scorer.warnings
    assert "not finite in it" in warning


def test_the_localizer_finds_what_it_finds_on_the_cpu(shipped: Shipped) -> None:
    regions = []
    for device in (CPU, GPU):
        localizer = catalogue.load_localizer(None, device)
        probability = localizer.locate(shipped.image, structure("spleen"), "CT", lambda done, total: None)
        region = guided_region(shipped.image, probability, None, "spleen", threshold=localizer.threshold)
        regions.append(values(region.mask) > 0)
    assert regions[0].any()
    assert 2 * (regions[0] & regions[1]).sum() / (regions[0].sum() + regions[1].sum()) > 0.99


def test_a_torchscript_network_draws_as_on_the_cpu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.jit.script(nn.Conv3d(1, 3, 3, padding=1).eval()).save(str(tmp_path / "conv.ts"))
    patch = torch.rand(2, 1, 16, 16, 16)
    cpu, gpu = (read_torchscript(tmp_path / "conv.ts", device) for device in (CPU, GPU))
    torch.testing.assert_close(gpu(patch.to(GPU)).cpu(), cpu(patch), atol=1e-3, rtol=1e-3)


def test_sam_draws_as_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("transformers.utils", reason="the optional package transformers is not installed")
    from Testing.Python.segmentation.networks.test_sam import save_tiny
    from XAICLIPLib.segmentation.networks.sam import SamSegmenter

    save_tiny(tmp_path)
    grey, boxes = torch.rand(2, 50, 40), torch.tensor([[3.0, 4.0, 15.0, 12.0], [5.0, 0.0, 39.0, 9.0]])
    cpu, gpu = (
        SamSegmenter(tmp_path, device).segment_boxes(grey.to(device), boxes.to(device)) for device in (CPU, GPU)
    )
    torch.testing.assert_close(gpu.cpu(), cpu, atol=1e-3, rtol=1e-3)


def test_a_map_is_tested_on_the_gpu_too() -> None:
    found = run(device="cuda", check=True)
    assert found.record["faithfulness"] is not None and found.record["stability"] is not None


def test_devices_are_told_by_name() -> None:
    assert torch.cuda.get_device_name(0) in available_devices()["cuda:0"]
    assert choose_device("auto").type == "cuda"
    with pytest.raises(InputError, match="cuda:99 is not available"):
        choose_device("cuda:99")


def test_every_explainer_is_tried_or_needs_layers() -> None:
    assert set(QUICK) | {"seg-grad-cam"} == set(METHODS)
