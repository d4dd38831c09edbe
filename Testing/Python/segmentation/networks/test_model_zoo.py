"""Bundles laid out as those of MONAI's Model Zoo, at small size: they load untrusted and predict what MONAI predicts.

The configurations are our own, of the shape of the zoo's: the same sections, expressions and classes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from monai.bundle import ConfigParser

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.segmentation.networks.bundle import BundleSegmenter
from XAICLIPLib.segmentation.prediction import predict
from XAICLIPLib.segmentation.sliding_window import predict_logits
from XAICLIPLib.segmentation.untrusted.configuration import Configuration

CPU = torch.device("cpu")
DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"
SEQUENCES = ("T1c", "T1", "T2", "FLAIR")


def steps(pixdim: Any, *more: dict[str, Any], key: str = "image", **reading: Any) -> dict[str, Any]:
    """The usual preprocessing: read, turn, resample, and what else is done."""
    transforms = [
        {"_target_": "LoadImaged", "keys": key, **reading},
        {"_target_": "EnsureTyped", "keys": key},
        {"_target_": "EnsureChannelFirstd", "keys": key},
        {"_target_": "Orientationd", "keys": key, "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": key, "pixdim": pixdim, "mode": "bilinear"},
    ]
    return {"_target_": "Compose", "transforms": [*transforms, *more]}


def scaled(low: float, high: float) -> dict[str, Any]:
    ends = {"a_min": low, "a_max": high, "b_min": 0.0, "b_max": 1.0, "clip": True}
    return {"_target_": "ScaleIntensityRanged", "keys": "image", **ends}


def ending(**activation: bool) -> dict[str, Any]:
    """Postprocessing, with the parts that write files and hold code."""
    transforms = [
        {"_target_": "Activationsd", "keys": "pred", **activation},
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
        {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: torch.where(x[[2]] > 0, 4, 0)"},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_dtype": "@output_dtype"},
    ]
    return {"_target_": "Compose", "transforms": transforms}


COMMON: dict[str, Any] = {
    "imports": ["$import glob", "$import numpy", "$import os"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "output_dtype": "$numpy.float32",
    "dataset_dir": "sampledata",
    "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
    "device": DEVICE,
    "network": "$@network_def.to(@device)",
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
    "evaluator": {"_target_": "SupervisedEvaluator", "device": "@device", "network": "@network"},
    "initialize": ["$setattr(torch.backends.cudnn, 'benchmark', True)", "$@checkpointloader(@evaluator)"],
    "run": ["$@evaluator.run()"],
}


def loader(path: str = "$@bundle_root + '/models/model.pt'") -> dict[str, Any]:
    return {"_target_": "CheckpointLoader", "load_path": path, "load_dict": {"model": "@network"}}


def window(*roi: int, **more: Any) -> dict[str, Any]:
    return {"_target_": "SlidingWindowInferer", "roi_size": list(roi), "sw_batch_size": 2, **more}


@dataclass
class Layout:
    """A bundle of the zoo.

    ``theirs`` is what MONAI's own parser needs changed to build it here; ``arrays`` is saved as ``models/code.pt``.
    """

    content: dict[str, Any]
    classes: int
    kind: str = "json"
    inputs: tuple[str, ...] = ("image",)
    activation: str = "softmax"
    weights: str = "model.pt"
    arrays: dict[str, Any] | None = None
    theirs: Callable[[dict[str, Any]], None] = field(default=lambda content: None)


def whole_body(highres: bool = True) -> Layout:
    network = {"_target_": "SegResNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 105, "init_filters": 8}
    content = {
        "displayable_configs": {"highres": highres, "sw_overlap": 0.25, "sw_batch_size": 1},
        "image_key": "image",
        "pixdim": "$[1.5, 1.5, 1.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
        "modelname": "$'model.pt' if @displayable_configs#highres else 'model_lowres.pt'",
        "network_def": {**network, "blocks_down": [1, 1, 1], "blocks_up": [1, 1], "dropout_prob": 0.2},
        "preprocessing": steps(
            "@pixdim",
            {"_target_": "NormalizeIntensityd", "keys": "@image_key", "nonzero": True},
            {"_target_": "ScaleIntensityd", "keys": "@image_key", "minv": -1.0, "maxv": 1.0},
            key="@image_key",
        ),
        "inferer": window(24, 24, 24)
        | {
            "sw_batch_size": "@displayable_configs#sw_batch_size",
            "overlap": "@displayable_configs#sw_overlap",
            "padding_mode": "replicate",
            "mode": "gaussian",
            "device": DEVICE,
        },
        "postprocessing": ending(softmax=True),
        "checkpointloader": loader("$@bundle_root + '/models/' + @modelname"),
    }
    return Layout(content, 105, weights="model.pt" if highres else "model_lowres.pt")


def swin_unetr() -> Layout:
    def theirs(content: dict[str, Any]) -> None:
        del content["network_def"]["img_size"]  # removed from MONAI
        del content["preprocessing"]["transforms"][0]["reader"]  # needs the package itk

    network = {"_target_": "SwinUNETR", "spatial_dims": 3, "img_size": 32, "in_channels": 1, "out_channels": 14}
    content = {
        "network_def": {**network, "feature_size": 12, "depths": [1, 1, 1, 1], "use_checkpoint": False},
        "preprocessing": steps([1.5, 3.0, 2.0], scaled(-175, 250), reader="ITKReader"),
        "inferer": window(32, 32, 64, overlap=0.5),
        "postprocessing": ending(softmax=True),
        "handlers": [loader(), {"_target_": "StatsHandler", "iteration_log": False}],
    }
    return Layout(content, 14, theirs=theirs)


def spleen() -> Layout:
    network = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "norm": "batch"}
    content = {
        "network_def": {**network, "channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 2},
        "preprocessing": steps([1.5, 1.5, 2.0], scaled(-57, 164)),
        "inferer": window(24, 24, 24, overlap=0.5),
        "postprocessing": ending(softmax=True),
        "checkpointloader": loader(),
    }
    return Layout(content, 2)


def multi_organ() -> Layout:
    def theirs(content: dict[str, Any]) -> None:
        content["arch_ckpt"] = "$torch.load(@arch_ckpt_path, weights_only=False)"
        content["dints_space"]["device"] = "cpu"

    blocks, depths = 3, 3
    random = np.random.default_rng(2)
    arrays = {
        "node_a": np.ones((blocks + 1, depths)),
        "arch_code_a": np.ones((blocks, 3 * depths - 2)),
        "arch_code_c": random.integers(0, 2, (blocks, 3 * depths - 2)),
        "best_dsc": np.float64(0.9),
        "iter_num": 3,
    }
    content = {
        "input_channels": 1,
        "output_classes": 8,
        "arch_ckpt_path": "$@bundle_root + '/models/code.pt'",
        "arch_ckpt": "$torch.load(@arch_ckpt_path, map_location=torch.device('cuda'))",
        "dints_space": {
            "_target_": "monai.networks.nets.TopologyInstance",
            "channel_mul": 0.25,
            "num_blocks": blocks,
            "num_depths": depths,
            "use_downsample": True,
            "arch_code": ["$@arch_ckpt['arch_code_a']", "$@arch_ckpt['arch_code_c']"],
            "device": "$torch.device('cuda')",
        },
        "network_def": {
            "_target_": "monai.networks.nets.DiNTS",
            "dints_space": "@dints_space",
            "in_channels": "@input_channels",
            "num_classes": "@output_classes",
            "use_downsample": True,
            "node_a": "$torch.from_numpy(@arch_ckpt['node_a'])",
        },
        "preprocessing": steps([2, 2, 2], scaled(-500, 500)),
        "inferer": window(32, 32, 32, overlap=0.625),
        "postprocessing": ending(softmax=True),
        "handlers": [loader(), {"_target_": "StatsHandler", "iteration_log": False}],
    }
    return Layout(content, 8, kind="yaml", arrays=arrays, theirs=theirs)


def brats() -> Layout:
    network = {"_target_": "SegResNet", "init_filters": 8, "in_channels": 4, "out_channels": 3, "dropout_prob": 0.2}
    normalised = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True}
    content = {
        "network_def": {**network, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "LoadImaged", "keys": "image"}, normalised],
        },
        "inferer": window(32, 32, 24, overlap=0.5),
        "postprocessing": ending(sigmoid=True),
        "handlers": [loader(), {"_target_": "StatsHandler", "iteration_log": False}],
    }
    return Layout(content, 3, inputs=SEQUENCES, activation="sigmoid")


def deepedit() -> Layout:
    """Without the clicks: its channels and steps are put together by expressions."""
    network = {"_target_": "UNet", "spatial_dims": 3, "channels": [4, 8], "strides": [2]}
    content = {
        "label_names": {"spleen": 1, "background": 0},
        "number_intensity_ch": 1,
        "network_def": {
            **network,
            "in_channels": "$len(@label_names) - 2 + @number_intensity_ch",
            "out_channels": "$len(@label_names)",
        },
        "first": steps([2, 2, 2])["transforms"],
        "size": [32, 32, 24],
        "then": [scaled(-175, 250), {"_target_": "Resized", "keys": "image", "spatial_size": "@size", "mode": "area"}],
        "preprocessing": {"_target_": "Compose", "transforms": "$@first + @then"},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": ending(softmax=True),
        "handlers": [loader()],
    }
    return Layout(content, 2)


def made_by_calls() -> Layout:
    """As the zoo's templates and newer bundles: networks and keys by MONAI's own names, in expressions."""
    content = {
        "image": "$monai.utils.CommonKeys.IMAGE",
        "channels": [4, 8],
        "network_def": "$monai.networks.nets.UNet(3, 1, out_channels=2, channels=@channels, strides=[2])",
        "transforms": steps([2, 2, 2], key="@image")["transforms"],
        "preprocessing": {"_target_": "Compose", "transforms": "$@transforms "},
        "inferer": "$monai.inferers.SlidingWindowInferer(roi_size=[24] * 3, overlap=0.5)",
        "postprocessing": ending(softmax=True),
        "handlers": [loader()],
    }
    return Layout(content, 2)


LAYOUTS: dict[str, Callable[[], Layout]] = {
    "networks by calls": made_by_calls,
    "wholeBody_ct_segmentation": whole_body,
    "wholeBody_ct_segmentation at 3 mm": lambda: whole_body(False),
    "swin_unetr_btcv_segmentation": swin_unetr,
    "spleen_ct_segmentation": spleen,
    "multi_organ_segmentation": multi_organ,
    "brats_mri_segmentation": brats,
    "spleen_deepedit_annotation": deepedit,
}


def scan(path: Path, seed: int) -> sitk.Image:
    """A volume turned by a quarter, written and read again: the same voxels and affine for us as for MONAI."""
    array = np.random.default_rng(seed).uniform(-200, 300, (12, 25, 31)).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 2.5, 3.0))
    image.SetOrigin((-30.0, 45.0, 12.5))
    image.SetDirection((0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    imaging.write_volume(image, path)
    stored = nibabel.nifti1.load(path)
    assert isinstance(stored, nibabel.nifti1.Nifti1Image)
    return imaging.image_from_array(stored.get_fdata(dtype=np.float32), stored.affine)


def parser_of(layout: Layout, folder: Path) -> ConfigParser:
    content = copy.deepcopy({**COMMON, **layout.content, "bundle_root": str(folder)})
    layout.theirs(content)
    return ConfigParser(content)


def save(folder: Path, layout: Layout) -> torch.nn.Module:
    """Write a bundle with random weights; returns the network that MONAI makes of it."""
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    content = {**COMMON, **layout.content}
    text = json.dumps(content) if layout.kind == "json" else yaml.safe_dump(content)
    (folder / "configs" / f"inference.{layout.kind}").write_text(text, encoding="utf-8")
    first = "background" if layout.activation == "softmax" else "Tumor core"
    classes = {"0": first} | {str(n): f"structure {n}" for n in range(1, layout.classes)}
    channels = dict(zip(map(str, range(9)), layout.inputs, strict=False))
    given = {"type": "image", "modality": "MR", "num_channels": len(channels), "channel_def": channels}
    described = {"inputs": {"image": given}, "outputs": {"pred": {"channel_def": classes}}}
    metadata = {"version": "0.1.9", "network_data_format": described}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    if layout.arrays is not None:
        torch.save(layout.arrays, folder / "models" / "code.pt")
    torch.manual_seed(0)
    network: torch.nn.Module = parser_of(layout, folder).get_parsed_content("network_def").eval()
    for module in network.modules():  # a batch norm that has never seen a batch does nothing
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
    torch.save(network.state_dict(), folder / "models" / layout.weights)
    return network


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_bundle_of_the_zoo_loads_untrusted_and_predicts_what_monai_predicts(name: str, tmp_path: Path) -> None:
    layout, folder = LAYOUTS[name](), tmp_path / "bundle"
    network = save(folder, layout)
    paths = [tmp_path / f"{n}.nii.gz" for n, _ in enumerate(layout.inputs)]
    scans = [scan(path, seed) for seed, path in enumerate(paths)]
    parser = parser_of(layout, folder)
    given = {"image": str(paths[0]) if len(paths) == 1 else [str(p) for p in paths]}
    prepared = parser.get_parsed_content("preprocessing")(given)["image"]
    with torch.no_grad():
        expected = parser.get_parsed_content("inferer")(prepared[None].to(CPU), network)[0]

    segmenter = BundleSegmenter(folder, CPU)
    assert segmenter.inputs == layout.inputs
    assert segmenter.activation == layout.activation
    assert segmenter.weights.name == layout.weights
    assert len(segmenter.labels) == layout.classes
    found = predict(segmenter, scans[0] if len(scans) == 1 else sitk.Compose(scans), CPU)
    np.testing.assert_allclose(found.prepared.affine, prepared.affine, atol=1e-6)
    logits = expected.as_tensor() if hasattr(expected, "as_tensor") else expected
    assert logits.std() > 1e-3, "the network says something"
    with torch.inference_mode():
        ours = predict_logits(segmenter.logits, found.volume, found.tiling)
    torch.testing.assert_close(ours, logits.cpu(), atol=1e-4, rtol=1e-4)
    shown = found.label_map(scans[0])
    assert imaging.same_geometry(shown, scans[0])


def test_a_volume_smaller_than_the_window_is_padded_as_the_bundle_says(tmp_path: Path) -> None:
    """Or the comparison above says nothing about padding."""
    save(tmp_path / "bundle", layout := whole_body(False))
    found = predict(BundleSegmenter(tmp_path / "bundle", CPU), scan(tmp_path / "scan.nii.gz", 0), CPU)
    assert layout.content["inferer"]["padding_mode"] == found.tiling.padding_mode == "replicate"
    assert any(before or after for before, after in found.tiling.padding)


def test_the_other_weights_of_a_bundle_are_not_taken_for_those_it_chooses(tmp_path: Path) -> None:
    layout = whole_body(False)
    layout.weights = "model.pt"
    save(tmp_path / "bundle", layout)
    with pytest.raises(InputError, match=r"lacks its weights: put model_lowres\.pt into its models folder\.$"):
        BundleSegmenter(tmp_path / "bundle", CPU)


class Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.witness), "w")


def test_a_file_that_a_configuration_loads_runs_no_code(tmp_path: Path) -> None:
    folder, layout = tmp_path / "bundle", multi_organ()
    save(folder, layout)
    assert layout.arrays is not None
    torch.save(layout.arrays | {"more": Evil(tmp_path / "witness")}, folder / "models" / "code.pt")
    with pytest.raises(InputError, match=r"code\.pt is damaged or holds more than tensors and arrays"):
        BundleSegmenter(folder, CPU)
    assert not (tmp_path / "witness").exists()


def test_a_configuration_without_a_folder_loads_nothing(tmp_path: Path) -> None:
    layout = multi_organ()
    save(tmp_path, layout)
    content = {**COMMON, **layout.content, "bundle_root": str(tmp_path)}
    with pytest.raises(InputError, match=r"run code from its configuration \(arch_ckpt: .*--trust"):
        Configuration(content, "organs").build("network_def")


@pytest.mark.parametrize("where", ["absolute", "dots", "link"])
def test_a_configuration_loads_no_file_outside_the_bundle(tmp_path: Path, where: str) -> None:
    layout, folder = multi_organ(), tmp_path / "bundle"
    outside = tmp_path / "outside.pt"
    paths = {"absolute": str(outside), "dots": "../outside.pt", "link": "$@bundle_root + '/linked.pt'"}
    save(folder, layout)
    torch.save(layout.arrays, outside)
    (folder / "linked.pt").symlink_to(outside)
    content = {**COMMON, **layout.content, "arch_ckpt_path": paths[where]}
    (folder / "configs" / "inference.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"lacks a file that its configuration loads: put (outside|linked)\.pt into"):
        BundleSegmenter(folder, CPU)
    # The place where the authors had it is not here: it is looked for in the models folder.
    (folder / "models" / "code.pt").rename(folder / "models" / Path(paths[where].strip("'")).name)
    assert BundleSegmenter(folder, CPU).inputs == ("image",)


def test_what_networks_print_as_they_are_made_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "bundle", multi_organ())
    capsys.readouterr()
    BundleSegmenter(tmp_path / "bundle", CPU)
    assert capsys.readouterr() == ("", "")


def test_trust_runs_no_more_than_it_must(tmp_path: Path) -> None:
    """A bundle that loads without code loads the same way with trust: MONAI's parser would need a GPU here."""
    save(tmp_path / "bundle", multi_organ())
    assert BundleSegmenter(tmp_path / "bundle", CPU, trust=True).inputs == ("image",)
