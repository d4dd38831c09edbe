"""2D networks that a bundle moves slice by slice: what they predict is what MONAI predicts with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.inferers import SliceInferer
from monai.networks.nets import UNet

from XAICLIPLib.pipeline import explain
from XAICLIPLib.segmentation.bundles.slices import SliceNetwork
from XAICLIPLib.segmentation.networks.bundle import BundleSegmenter
from XAICLIPLib.segmentation.prediction import predict
from XAICLIPLib.segmentation.sliding_window import predict_logits

CPU = torch.device("cpu")
ARGUMENTS = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(**ARGUMENTS).eval()


def write(folder: Path, axis: int = 2) -> Path:
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    content = {
        "network_def": {"_target_": "UNet", **ARGUMENTS},
        "preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "ScaleIntensityd", "keys": "image"}]},
        "inferer": {"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": axis},
        "postprocessing": {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(content))
    channels = {"0": "background", "1": "pool", "2": "myocardium"}
    described = {
        "inputs": {"image": {"modality": "MR", "num_channels": 1, "spatial_shape": [16, 16]}},
        "outputs": {"pred": {"type": "image", "format": "segmentation", "channel_def": channels}},
    }
    (folder / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": described}))
    torch.save(network().state_dict(), folder / "models" / "model.pt")
    return folder


def scan() -> sitk.Image:
    z, y, x = np.mgrid[0:12, 0:20, 0:24]
    array = np.random.default_rng(0).uniform(0, 100, z.shape) + 300 * ((y - 10) ** 2 + (x - 12) ** 2 < 30)
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing((2.0, 2.0, 5.0))
    return image


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_inferer_predicts_what_monai_predicts(tmp_path: Path, axis: int) -> None:
    segmenter = BundleSegmenter(write(tmp_path / "heart", axis), CPU)
    size = [16, 16]
    size.insert(axis, 1)
    assert segmenter.window is not None
    assert segmenter.window.roi_size == tuple(size)
    answer = predict(segmenter, scan(), CPU)
    with torch.no_grad():
        expected = SliceInferer(roi_size=(16, 16), spatial_dim=axis)(answer.prepared.tensor[None], network())
    assert isinstance(expected, torch.Tensor)
    logits = predict_logits(segmenter.logits, answer.prepared.tensor, answer.tiling)
    torch.testing.assert_close(logits, expected[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(answer.decision, expected[0].argmax(0).to(answer.decision.dtype))


@pytest.mark.parametrize("method", ["occlusion", "seg-grad-cam", "integrated-gradients"])
def test_a_2d_network_is_explained_slice_by_slice(tmp_path: Path, method: str) -> None:
    segmenter = BundleSegmenter(write(tmp_path / "heart"), CPU)
    answer = predict(segmenter, scan(), CPU).decision
    drawn = int(torch.bincount(answer.flatten().long(), minlength=3)[1:].argmax()) + 1
    explanation = explain(
        scan(), "liver", model=segmenter, target=segmenter.labels[drawn], region="whole", method=method
    )
    assert explanation.complete
    assert np.abs(sitk.GetArrayViewFromImage(explanation.saliency)).max() > 0


def test_a_slice_network_keeps_the_thickness_of_what_it_gets() -> None:
    patches = torch.rand(2, 1, 16, 1, 16)
    with torch.no_grad():
        torch.testing.assert_close(SliceNetwork(network(), 1)(patches)[:, :, :, 0], network()(patches[:, :, :, 0]))
