"""deepbet as a segmenter, against the package's own pipeline on a real T1."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.scoring.target import class_of
from XAICLIPLib.segmentation.networks.deepbet import DeepbetSegmenter, brain_box, load

CPU = torch.device("cpu")

needs_deepbet = pytest.mark.skipif(
    importlib.util.find_spec("deepbet") is None, reason="the package deepbet is not installed"
)


class Recorded(torch.nn.Module):
    """Runs a network and keeps what went in and came out."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.network(x)
        self.seen.append((x.clone(), output.clone()))
        return output


@needs_deepbet
def test_it_draws_the_brain_that_deepbet_draws(shared_data: Path) -> None:
    bet = pytest.importorskip("deepbet.bet", reason="deepbet's own pipeline cannot be imported")
    nibabel = pytest.importorskip("nibabel")
    path = shared_data / "brain_mr" / "t1_crop.nii.gz"
    own = bet.BrainExtraction(no_gpu=True)
    own.model = Recorded(own.model)  # the network runs once: 256 voxels cubed take half a minute
    _, mask, _ = own.run(nibabel.load(path))
    ((given, said),) = own.model.seen

    segmenter, image = load(CPU), imaging.read_volume(path)
    prepared = segmenter.prepare(image)
    torch.testing.assert_close(prepared.tensor, given[0], atol=1e-5, rtol=0)
    part = given[..., 64:128, 64:128, 64:128]
    with torch.inference_mode():
        logits = segmenter.logits(part)
        torch.testing.assert_close(logits.softmax(1), own.model.network(part), atol=1e-5, rtol=0)
    brain = imaging.resample_labels(prepared.as_image((said[0, 1] > 0.5).to(torch.uint8)), image)
    found = sitk.GetArrayFromImage(brain).transpose(2, 1, 0) > 0
    expected = np.asarray(mask.dataobj) > 0
    dice = 2 * (found & expected).sum() / (found.sum() + expected.sum())
    assert dice > 0.99


@needs_deepbet
def test_it_tells_what_it_is() -> None:
    segmenter = load(CPU)
    assert class_of("brain", None, segmenter) == ("brain", (1,))
    assert (segmenter.activation, segmenter.window, segmenter.inputs) == ("softmax", None, ("image",))
    assert segmenter.provenance["licence"] == "MIT"
    assert len(segmenter.provenance["sha256"]) == 64


@needs_deepbet
def test_a_volume_without_contrast_is_refused() -> None:
    image = sitk.Image(40, 40, 40, sitk.sitkFloat32)
    image[20, 20, 20] = 1.0
    with pytest.raises(InputError, match="cannot normalise"):
        load(CPU).prepare(image)


def test_without_the_package_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install deepbet"):
        load(CPU)


def test_a_damaged_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"no network")
    with pytest.raises(InputError, match="missing or damaged"):
        DeepbetSegmenter(tmp_path, CPU)


def test_the_box_is_that_of_the_largest_piece_with_a_margin() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[4:14, 6:16, 2:12] = True
    mask[18:20, 18:20, 18:20] = True
    box = brain_box(mask, (40, 20, 30))
    assert box == (slice(6, 30), slice(5, 17), slice(1, 19))
    with pytest.raises(InputError, match="finds no brain"):
        brain_box(np.zeros((8, 8, 8), bool), (8, 8, 8))
