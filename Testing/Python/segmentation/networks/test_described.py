"""Networks described from outside: they predict what they predict without us, and mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR, UNet
from monai.transforms import Compose, NormalizeIntensity, Orientation, ScaleIntensityRange, Spacing
from safetensors.torch import save_file
from torch import Tensor, nn

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.phantom import torso_phantom
from XAICLIPLib.pipeline import explain
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.scores import target_score
from XAICLIPLib.scoring.target import Target
from XAICLIPLib.segmentation.networks.described import from_object, is_described, load_described
from XAICLIPLib.segmentation.prediction import predict
from XAICLIPLib.segmentation.segmenter import Segmenter
from XAICLIPLib.segmentation.sliding_window import Tiling, predict_logits

CPU = torch.device("cpu")
LABELS = {0: "background", 1: "liver", 2: "spleen"}
DYNUNET = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 8, 16],
}
NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "SegResNet": (
        SegResNet,
        {"init_filters": 8, "in_channels": 1, "out_channels": 3, "blocks_down": [1, 1], "blocks_up": [1]},
    ),
    "UNet": (UNet, {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}),
    "DynUNet": (DynUNet, DYNUNET),
    "SwinUNETR": (SwinUNETR, {"in_channels": 1, "out_channels": 3, "feature_size": 12}),
    "UNETR": (
        UNETR,
        {
            "in_channels": 1,
            "out_channels": 3,
            "img_size": [64, 64, 32],
            "feature_size": 4,
            "hidden_size": 24,
            "mlp_dim": 32,
            "num_heads": 2,
        },
    ),
}


def written(folder: Path, name: str, **changed: Any) -> Path:
    """A network of random weights with its description; the network itself is in ``network.pt``'s order."""
    kind, arguments = NETWORKS[name]
    torch.manual_seed(0)
    network = kind(**arguments).eval()
    torch.save(network.state_dict(), folder / "net.pt")
    content = {
        "network": {"name": name, "arguments": arguments},
        "weights": "net.pt",
        "labels": LABELS,
        "modality": "CT",
        "spacing_mm": [6, 6, 6],
        "intensity": {"range": [-160, 240]},
        "window": {"size": [64, 64, 32], "overlap": 0.5, "mode": "gaussian"},
    }
    (folder / "net.yaml").write_text(yaml.safe_dump({**content, **changed}))
    return folder / "net.yaml"


@pytest.fixture(scope="module")
def scan() -> sitk.Image:
    """Oblique, anisotropic and not RAS, so that orientation and grid matter."""
    image = sitk.Resample(
        torso_phantom(0).image, [60, 50, 40], sitk.Transform(), sitk.sitkLinear, *grid(torso_phantom(0).image)
    )
    return sitk.DICOMOrient(image, "PIL")


def grid(image: sitk.Image) -> tuple[Any, ...]:
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    spacing = np.array([4.0, 4.5, 5.0])
    return tuple(middle - spacing * np.array([59, 49, 39]) / 2), tuple(spacing), image.GetDirection(), -1000.0


def logits_of(segmenter: Segmenter, image: sitk.Image) -> Tensor:
    """All logits (K, X, Y, Z) of an image."""
    volume = segmenter.prepare(image).network_input
    with torch.inference_mode():
        return predict_logits(segmenter.logits, volume, Tiling.of(volume.shape[1:], segmenter.window))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_monai_network_predicts_what_monai_predicts(tmp_path: Path, scan: sitk.Image, name: str) -> None:
    segmenter = load_described(written(tmp_path, name), CPU)
    kind, arguments = NETWORKS[name]
    theirs = kind(**arguments).eval()
    theirs.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    prepared = Compose([Orientation("RAS"), Spacing((6, 6, 6)), ScaleIntensityRange(-160, 240, 0, 1, clip=True)])(
        imaging.as_metatensor(scan)
    )
    with torch.inference_mode():
        expected = sliding_window_inference(prepared.as_tensor()[None], (64, 64, 32), 2, theirs, 0.5, "gaussian")[0]
    torch.testing.assert_close(logits_of(segmenter, scan), expected, atol=1e-4, rtol=1e-4)
    assert segmenter.provenance["kind"] == "MONAI network" and len(segmenter.provenance["sha256"]) == 64


@pytest.mark.parametrize("name", NETWORKS)
def test_incremental_scores_are_those_of_full_inference(tmp_path: Path, scan: sitk.Image, name: str) -> None:
    segmenter = load_described(written(tmp_path, name), CPU)
    prediction = predict(segmenter, scan, CPU)
    voxels = torch.zeros(prediction.volume.shape[1:], dtype=torch.bool)
    voxels[8:16, 8:16, 8:16] = True
    target = Target("liver", 1, voxels, voxels)
    replacement = torch.zeros_like(prediction.volume)
    box = (slice(10, 22), slice(4, 12), slice(10, 18))
    scorer = Scorer(segmenter.logits, prediction.volume, replacement, prediction.tiling, target)
    ((_, lost),) = [pair for batch in scorer.lost([Perturbation(box)]) for pair in batch]
    changed = prediction.volume.clone()
    changed[(slice(None), *box)] = 0
    with torch.inference_mode():
        full = predict_logits(segmenter.logits, changed, prediction.tiling)
    score = target_score("soft dice", full[:, voxels], torch.ones(int(voxels.sum()), dtype=torch.bool), 1, "softmax")
    assert abs(scorer.full_score - lost - float(score)) < 1e-4


def test_torchscript_predicts_what_it_was_traced_from(tmp_path: Path, scan: sitk.Image) -> None:
    written(tmp_path, "SegResNet")
    plain = logits_of(load_described(tmp_path / "net.yaml", CPU), scan)
    kind, arguments = NETWORKS["SegResNet"]
    network = kind(**arguments).eval()
    network.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    folder = tmp_path / "script"
    folder.mkdir()
    torch.jit.trace(network, torch.zeros(1, 1, 64, 64, 32)).save(str(folder / "own.ts"))
    content = yaml.safe_load((tmp_path / "net.yaml").read_text())
    del content["network"], content["weights"]
    (folder / "own.yaml").write_text(yaml.safe_dump(content))
    for path in (folder / "own.ts", folder / "own.yaml", folder):
        if path.suffix == ".yaml" or path == folder:
            (folder / "own.yaml").write_text(yaml.safe_dump({**content, "torchscript": "own.ts"}))
        segmenter = load_described(path, CPU)
        assert segmenter.provenance["kind"] == "TorchScript" and segmenter.name == "own"
        torch.testing.assert_close(logits_of(segmenter, scan), plain, atol=1e-4, rtol=1e-4)


def test_safetensors_and_several_channels_load(tmp_path: Path, scan: sitk.Image) -> None:
    arguments = {"spatial_dims": 3, "in_channels": 2, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    network = UNet(**arguments).eval()
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    content = {
        "network": {"name": "UNet", "arguments": arguments},
        "weights": "net.safetensors",
        "labels": ["tumour core", "whole tumour"],
        "activation": "sigmoid",
        "inputs": ["T1", "FLAIR"],
        "modality": "MR",
        "intensity": "nonzero z-score",
        "window": {"size": [16, 16, 16]},
    }
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(content))
    segmenter = load_described(tmp_path / "net.safetensors", CPU)
    both = sitk.Compose([sitk.Cast(scan + 1100, sitk.sitkFloat32), sitk.Cast(900 - scan, sitk.sitkFloat32)])
    prepared = segmenter.prepare(both)
    expected = NormalizeIntensity(nonzero=True, channel_wise=True)(Orientation("RAS")(imaging.as_metatensor(both)))
    torch.testing.assert_close(prepared.tensor, expected.as_tensor().float())
    assert logits_of(segmenter, both).shape == (2, *prepared.tensor.shape[1:])


class Bright:
    """Calls liver what is brighter than a threshold: any object will do."""

    description: ClassVar[dict[str, Any]] = {
        "labels": {0: "background", 1: "liver"},
        "modality": "CT",
        "spacing_mm": 6,
        "intensity": {"range": [-1000, 1000]},
    }

    def predict(self, batch: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(batch), 40 * (batch - 0.52)], 1)


def test_any_object_with_predict_can_be_explained(scan: sitk.Image) -> None:
    region = imaging.body_mask(scan)
    found = explain(scan, "liver", model=Bright(), region=region, method="occlusion", window_mm=60, device="cpu")
    assert found.record["models"]["segmenter"] == {
        "name": "Bright",
        "kind": "Python object",
        "version": "unknown",
        "licence": "unknown",
        "sha256": "",
    }
    saliency = sitk.GetArrayFromImage(found.saliency)
    inside = sitk.GetArrayFromImage(found.prediction) != 0
    assert inside.any() and saliency[inside].mean() > 1.5 * abs(saliency[~inside].mean())


@pytest.mark.parametrize("given", [object(), lambda batch: batch, nn.Linear(1, 1)])
def test_an_object_that_is_no_network_is_told_what_it_lacks(given: Any) -> None:
    with pytest.raises(InputError, match=r"predict\(batch\) and a description"):
        from_object(given)


def test_an_output_that_is_not_what_the_description_says_is_told(scan: sitk.Image) -> None:
    class Wrong(Bright):
        description: ClassVar[dict[str, Any]] = {
            **Bright.description,
            "labels": {0: "background", 1: "liver", 2: "spleen"},
        }

    with pytest.raises(InputError, match="correct labels or window"):
        explain(scan, "liver", model=Wrong(), region="whole", device="cpu")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"network": {"name": "os.system", "arguments": {}}}, "none of MONAI's"),
        (
            {"network": {"name": "SegResNet", "arguments": {"in_channels": "$__import__('os')"}}},
            "plain",
        ),
        ({"network": {"name": "SegResNet", "arguments": {"channels": 3}}}, "does not build"),
        ({"network": {"name": "SegResNet", "arguments": {"in_channels": 1, "out_channels": 9}}}, "do not belong"),
        ({"weights": "absent.pt"}, "absent.pt"),
        ({"network": None}, "name the network"),
    ],
)
def test_what_does_not_load_is_named(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = written(tmp_path, "SegResNet", **change)
    with pytest.raises(InputError, match=complaint):
        load_described(path, CPU)


def test_weights_alone_are_no_network(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "net.pt")
    assert not is_described(tmp_path / "net.pt") and not is_described(tmp_path)
    (tmp_path / "net.yaml").write_text("labels: [a, b]")
    assert is_described(tmp_path / "net.pt") and is_described(tmp_path)
    (tmp_path / "other.yaml").write_text("labels: [a, b]")
    assert not is_described(tmp_path), "which of two descriptions is meant is not known"
