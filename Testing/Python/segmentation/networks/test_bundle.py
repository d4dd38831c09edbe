"""MONAI bundles: what is taken from them, what is refused, and that no code of theirs runs."""

from __future__ import annotations

import copy
import inspect
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.networks
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from monai.bundle import ConfigParser
from monai.networks.nets import SegResNet, UNet
from monai.networks.nets.vista3d import vista3d132
from safetensors.torch import save_file

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.models import catalogue
from XAICLIPLib.segmentation.networks.bundle import BundleSegmenter, is_bundle
from XAICLIPLib.segmentation.sliding_window import Tiling, predict_logits
from XAICLIPLib.segmentation.untrusted import configuration as untrusted_configuration
from XAICLIPLib.segmentation.untrusted.configuration import Configuration

CPU = torch.device("cpu")
NETWORKS: dict[str, dict[str, Any]] = {
    "SegResNet": {
        "_target_": "SegResNet",
        "spatial_dims": 3,
        "init_filters": 8,
        "blocks_down": [1, 1],
        "blocks_up": [1],
        "in_channels": 1,
        "out_channels": 3,
    },
    "UNet": {
        "_target_": "monai.networks.nets.UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 3,
        "channels": [4, 8],
        "strides": [2],
        "norm": ["instance", {"affine": True}],
    },
}
METADATA: dict[str, Any] = {
    "name": "Tiny organs",
    "version": "1.2.3",
    "license": "Apache-2.0",
    "network_data_format": {
        "inputs": {"image": {"type": "image", "modality": "CT", "num_channels": 1}},
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "liver", "2": "spleen"}}},
    },
}
READ = {"_target_": "LoadImaged", "keys": "image"}
STEPS: list[dict[str, Any]] = [
    READ,
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "monai.transforms.Spacingd", "keys": "image", "pixdim": [3.0, 3.0, 3.0], "mode": "bilinear"},
    {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -100, "a_max": 200, "b_min": 0.0, "b_max": 1.0},
    {"_target_": "EnsureTyped", "keys": "image"},
]


def configuration(network: str = "SegResNet") -> dict[str, Any]:
    """What the bundles of the model zoo look like, with the expressions in the parts that are not needed here."""
    parts: dict[str, Any] = {
        "imports": ["$import glob"],
        "device": "$torch.device('cpu')",
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @files]", "transform": "@preprocessing"},
        "network_def": NETWORKS[network],
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": STEPS},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [8, 16, 8],
            "sw_batch_size": 2,
            "overlap": [0.5, 0.25, 0.5],
            "mode": "gaussian",
            "sigma_scale": 0.2,
            "cval": -1,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}],
        },
    }
    return copy.deepcopy(parts)


def network_of(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    options = {k: v for k, v in NETWORKS[name].items() if k != "_target_"}
    return (SegResNet if name == "SegResNet" else UNet)(**options).eval()


def write(
    folder: Path,
    content: Any = None,
    metadata: Any = METADATA,
    network: str = "SegResNet",
    kind: str = "json",
    save: Callable[[dict[str, torch.Tensor], Path], object] | None = None,
) -> Path:
    """Write a bundle; returns its folder."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    content = configuration(network) if content is None else content
    text = json.dumps(content) if kind == "json" else yaml.safe_dump(content)
    (folder / "configs" / f"inference.{kind}").write_text(text, encoding="utf-8")
    if metadata is not None:
        (folder / "configs" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    state = network_of(network).state_dict()
    if save is None:
        torch.save(state, folder / "models" / "model.pt")
    else:
        save(state, folder / "models")
    return folder


def oblique_image() -> sitk.Image:
    """An LPS volume turned about two axes, with unequal spacing and an origin of its own."""
    size = (20, 25, 12)  # resampled to 3 mm, no axis ends at half a voxel, where rounding would be by chance
    array = np.random.default_rng(0).uniform(-200, 300, size[::-1]).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    a, b = math.radians(20), math.radians(-15)
    about_z = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    image.SetDirection((about_z @ about_x @ np.diag([1, -1, -1])).ravel().tolist())
    image.SetSpacing((2.0, 1.5, 4.0))
    image.SetOrigin((-30.0, 45.0, 12.5))
    return image


def message(folder: Path, trust: bool = False) -> str:
    """The refusal, which is one sentence on one line that names the bundle."""
    with pytest.raises(InputError) as caught:
        BundleSegmenter(folder, CPU, trust=trust)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert str(folder) in text
    return text


# What is taken from a bundle


@pytest.mark.parametrize("kind", ["json", "yaml", "yml"])
@pytest.mark.parametrize("trust", [False, True])
def test_everything_comes_from_the_bundle(tmp_path: Path, kind: str, trust: bool) -> None:
    folder = write(tmp_path / "bundle", kind=kind)
    assert is_bundle(folder)
    segmenter = BundleSegmenter(folder, CPU, trust=trust)
    assert segmenter.name == "Tiny organs"
    assert segmenter.labels == {0: "background", 1: "liver", 2: "spleen"}
    assert segmenter.activation == "softmax"
    assert (segmenter.inputs, segmenter.modality) == (("image",), "CT")
    window = segmenter.window
    assert window is not None
    assert (window.roi_size, window.overlap, window.mode) == ((8, 16, 8), (0.5, 0.25, 0.5), "gaussian")
    assert (window.sigma_scale, window.padding_value) == (0.2, -1.0)
    provenance = segmenter.provenance
    assert (provenance["version"], provenance["licence"]) == ("1.2.3", "Apache-2.0")
    assert len(provenance["sha256"]) == 64
    assert not segmenter.network.training


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("trust", [False, True])
def test_prediction_is_that_of_the_bundle_run_by_monai(tmp_path: Path, network: str, trust: bool) -> None:
    """MONAI's way: the image as a file, the bundle's own preprocessing, inferer and network, from its parser."""
    folder = write(tmp_path / "bundle", network=network)
    imaging.write_volume(oblique_image(), tmp_path / "scan.nii.gz")
    # Ours starts from the file's own affine: on an oblique grid Spacingd places its output by whether the axes are at
    # right angles to eight digits, which a file's float32 are not.
    stored = nibabel.nifti1.load(tmp_path / "scan.nii.gz")
    assert isinstance(stored, nibabel.nifti1.Nifti1Image)
    image = imaging.image_from_array(stored.get_fdata(dtype=np.float32), stored.affine)
    parser = ConfigParser(configuration(network))
    prepared = parser.get_parsed_content("preprocessing")({"image": str(tmp_path / "scan.nii.gz")})["image"]
    theirs = parser.get_parsed_content("network_def").eval()
    theirs.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    with torch.no_grad():
        expected = parser.get_parsed_content("inferer")(prepared[None], theirs)[0].as_tensor()

    segmenter = BundleSegmenter(folder, CPU, trust=trust)
    ours = segmenter.prepare(image)
    assert ours.tensor.dtype == torch.float32
    assert type(ours.tensor) is torch.Tensor
    np.testing.assert_allclose(ours.affine, prepared.affine, atol=1e-6)
    torch.testing.assert_close(ours.tensor, prepared.as_tensor(), atol=1e-4, rtol=1e-4)
    tiling = Tiling.of(ours.tensor.shape[1:], segmenter.window)
    assert len(tiling.patches) > 2
    logits = predict_logits(segmenter.logits, ours.tensor, tiling, 4)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    assert not logits.requires_grad


@pytest.mark.parametrize("lazy", [False, True])
def test_prepared_voxels_lie_where_the_affine_says(tmp_path: Path, lazy: bool) -> None:
    """A field linear in patient coordinates, resampled, still tells the coordinates of every voxel."""
    content = configuration()
    content["preprocessing"]["transforms"] = STEPS[:4]
    content["preprocessing"]["lazy"] = lazy
    segmenter = BundleSegmenter(write(tmp_path / "bundle", content), CPU)
    image = oblique_image()
    indices = np.stack(np.meshgrid(*map(np.arange, image.GetSize()), indexing="ij"), -1).reshape(-1, 3)
    affine = imaging.ras_affine(image)
    weights = np.array([1.0, -2.0, 0.5])
    field = (indices @ affine[:3, :3].T + affine[:3, 3]) @ weights
    image = imaging.image_from_array(field.reshape(image.GetSize()), affine)

    prepared = segmenter.prepare(image)
    assert prepared.spacing_mm == pytest.approx((3, 3, 3), abs=1e-4)
    assert prepared.affine.dtype == np.float64
    inner = np.stack(np.meshgrid(*[np.arange(2, n - 2) for n in prepared.tensor.shape[1:]], indexing="ij"), -1)
    expected = (inner @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]) @ weights
    found = prepared.tensor[0].numpy()[tuple(np.moveaxis(inner, -1, 0))]
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_gradients_reach_the_input_and_no_weight(tmp_path: Path) -> None:
    segmenter = BundleSegmenter(write(tmp_path / "bundle"), CPU)
    patch = torch.rand(1, 1, 16, 16, 16, requires_grad=True)
    segmenter.logits(patch).sum().backward()
    assert patch.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in segmenter.network.parameters())


SAVES: dict[str, Callable[[dict[str, torch.Tensor], Path], object]] = {
    "safetensors": lambda state, folder: save_file(state, folder / "model.safetensors"),
    "half precision": lambda state, folder: torch.save({k: v.half() for k, v in state.items()}, folder / "model.pt"),
    "of DataParallel": lambda state, folder: torch.save(
        {f"module.{k}": v for k, v in state.items()}, folder / "model.pth"
    ),
    "of a checkpoint": lambda state, folder: torch.save({"model": state, "epoch": 3}, folder / "model.pt"),
}


@pytest.mark.parametrize("name", SAVES)
def test_weights_load_as_they_are_usually_saved(tmp_path: Path, name: str) -> None:
    segmenter = BundleSegmenter(write(tmp_path / "bundle", save=SAVES[name]), CPU)
    tolerance = 1e-2 if name == "half precision" else 0.0
    for key, value in network_of("SegResNet").state_dict().items():
        torch.testing.assert_close(segmenter.network.state_dict()[key], value, atol=tolerance, rtol=tolerance)


def postprocessing(**options: Any) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": [{"_target_": "Activationsd", "keys": "pred", **options}]}


@pytest.mark.parametrize(
    ("part", "first", "activation"),
    [
        (postprocessing(sigmoid=True), "background", "sigmoid"),
        (postprocessing(sigmoid=[True]), "background", "sigmoid"),
        (postprocessing(sigmoid=False, softmax=True), "liver", "softmax"),
        (postprocessing(sigmoid=True, _disabled_=True), "background", "softmax"),
        ({"_target_": "AsDiscreted", "keys": "pred", "argmax": True}, "liver", "softmax"),
        (postprocessing(sigmoid="@yes"), "background", "sigmoid"),
        (postprocessing(sigmoid="$not @yes", softmax="$@yes"), "liver", "softmax"),
        (postprocessing(sigmoid=True, _disabled_="$@yes"), "background", "softmax"),
        ("@elsewhere", "background", "sigmoid"),
        (None, "background", "softmax"),
        (None, "liver", "sigmoid"),
    ],
)
def test_activation_is_that_of_the_postprocessing(tmp_path: Path, part: Any, first: str, activation: str) -> None:
    content, metadata = configuration(), copy.deepcopy(METADATA)
    content["elsewhere"], content["yes"] = postprocessing(sigmoid=True), True
    content["postprocessing"] = part
    if part is None:
        del content["postprocessing"]
    metadata["network_data_format"]["outputs"]["pred"]["channel_def"] = {"0": first, "1": "spleen", "2": "aorta"}
    assert BundleSegmenter(write(tmp_path / "bundle", content, metadata), CPU).activation == activation


@pytest.mark.parametrize(
    ("inferer", "roi"),
    [
        ({"_target_": "SlidingWindowInferer", "roi_size": 16}, (16, 16, 16)),
        ({"_target_": "SlidingWindowInferer", "roi_size": [16, -1, 0]}, (16, -1, 0)),
        ({"_target_": "monai.inferers.SimpleInferer"}, None),
        (None, None),
    ],
)
def test_window_is_that_of_the_inferer(tmp_path: Path, inferer: Any, roi: Any) -> None:
    content = configuration()
    content["inferer"] = inferer
    if inferer is None:
        del content["inferer"]
    window = BundleSegmenter(write(tmp_path / "bundle", content), CPU).window
    assert (window and window.roi_size) == roi


def test_references_disabled_parts_and_shared_parts_are_followed(tmp_path: Path) -> None:
    content = configuration()
    content |= {
        "key": "image",
        "spacing": {"all": [4.0, 4.0, 4.0]},
        "net": content["network_def"],
        "network_def": "@net",
        "filters": 8,
        "never": {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [99, 99, 99], "_disabled_": True},
    }
    content["net"]["init_filters"] = "@filters"
    content["preprocessing"]["transforms"] = [
        {"_target_": "LoadImaged", "keys": "@key", "reader": "$a reader that is never asked"},
        {"_target_": "Compose", "transforms": [{"_target_": "EnsureChannelFirstd", "keys": "@key"}]},
        {"_target_": "Spacingd", "keys": "@##1#transforms#0#keys", "pixdim": "@spacing::all"},
        "@never",
        {**content["never"]},
    ]
    content["preprocessing"]["transforms"][2]["keys"] = ["@key"]
    prepared = BundleSegmenter(write(tmp_path / "bundle", content), CPU).prepare(oblique_image())
    assert prepared.spacing_mm == pytest.approx((4, 4, 4), abs=1e-4)
    assert max(prepared.tensor.shape) < 99


# Code that must not run


def attacks(witness: Path) -> dict[str, Callable[[dict[str, Any]], None]]:
    """Configurations that would create the file ``witness`` as MONAI's parser reads them."""
    code = f"$__import__('pathlib').Path({str(witness)!r}).touch()"
    touch = {"_target_": "os.system", "command": f"{sys.executable} -c \"open({str(witness)!r}, 'w')\""}
    opened = {"_target_": "open", "file": str(witness), "mode": "w"}

    def into_network(value: Any) -> Callable[[dict[str, Any]], None]:
        return lambda content: content["network_def"].update(dropout_prob=value)

    def into_steps(*values: Any) -> Callable[[dict[str, Any]], None]:
        return lambda content: content["preprocessing"]["transforms"].extend(values)

    def with_parts(change: Callable[[dict[str, Any]], None], **parts: Any) -> Callable[[dict[str, Any]], None]:
        def apply(content: dict[str, Any]) -> None:
            content.update(parts)
            change(content)

        return apply

    return {
        "expression": into_network(code),
        "attribute of the network": into_steps({"_target_": "Identityd", "keys": "$@network_def.__class__"}),
        "method of the network": into_steps({"_target_": "Identityd", "keys": "$@network_def.state_dict()"}),
        "import": into_network("$import os"),
        "branch that is not taken": into_network(f"$0.1 if True else {code[1:]}"),
        "code behind a harmless expression": with_parts(into_network("$@hidden + 0.1"), hidden=code),
        "huge power": into_network("$10 ** 10 ** 10"),
        "expression as the network": lambda content: content.update(network_def=code),
        "expression in a list": into_steps({"_target_": "Identityd", "keys": ["image", code]}),
        "expression behind a reference": with_parts(into_network("@hidden"), hidden=code),
        "expression behind two references": with_parts(into_network("@one"), one={"two": ["@three"]}, three=code),
        "expression below a referred part": with_parts(into_network("@a::b"), a={"b": {"c": code}}),
        "expression in the inferer": lambda content: content["inferer"].update(roi_size=code),
        "expression in _requires_": into_steps({"_target_": "Identityd", "keys": "image", "_requires_": code}),
        "expression in _disabled_": into_steps({"_target_": "Identityd", "keys": "image", "_disabled_": code}),
        "expression in a disabled part": into_steps(
            {"_target_": "Lambdad", "keys": "image", "func": code, "_disabled_": True}
        ),
        "expression as a target": into_network({"_target_": code}),
        "expression as a function": into_steps({"_target_": "Lambdad", "keys": "image", "func": code}),
        "macro": with_parts(into_network("%hidden"), hidden=code),
        "macro of a file": into_network(f"%{witness.with_suffix('.json')}::code"),
        "function of a package": into_network(touch),
        "function behind a reference": with_parts(into_network("@hidden"), hidden=touch),
        "function nested in a list": into_steps({"_target_": "Identityd", "keys": ["image", [touch]]}),
        "target behind a reference": with_parts(into_network({**touch, "_target_": "@name"}), name="os.system"),
        "builtin without a dot": into_network(opened),
        "builtin by its module": into_network({**opened, "_target_": "builtins.open"}),
        "another module through MONAI's": into_network({**touch, "_target_": "monai.transforms.io.array.os.system"}),
        "torch through MONAI's": into_network({"_target_": "monai.networks.nets.torch.load", "f": str(witness)}),
        "MONAI's own function": into_network(
            {"_target_": "monai.utils.module.instantiate", "__path": "os.system", "__mode": "default"}
        ),
        "MONAI's function without a dot": into_network({"_target_": "run", "config_file": str(witness)}),
        "function among the networks": into_network(
            {"_target_": "monai.networks.utils.convert_to_onnx", "model": "@network_def", "inputs": []}
        ),
        "method of a class": into_network({"_target_": "torch.nn.Module.load_state_dict"}),
        "module of torch.nn": into_network({"_target_": "torch.nn.modules.module.warnings.warn"}),
        "function of torch.nn": into_network({"_target_": "torch.nn.functional.relu"}),
        "callable mode": into_steps({"_target_": "Identityd", "keys": "image", "_mode_": "callable"}),
        "debugger": into_steps({"_target_": "Identityd", "keys": "image", "_mode_": "debug"}),
        "breakpoint": into_steps({"_target_": "Identityd", "keys": "image", "_debug_": True}),
        "writer of files": into_steps({"_target_": "SaveImaged", "keys": "image", "output_dir": str(witness)}),
        "writer named by a string": into_steps({"_target_": "SaveImaged", "keys": "image", "writer": "os.system"}),
        "writer of tables": into_steps({"_target_": "SaveClassificationd", "keys": "image"}),
        "class of another package": into_steps({"_target_": "TorchVisiond", "keys": "image", "name": "Lambda"}),
        "merger named by a string": lambda content: content.update(
            inferer={"_target_": "PatchInferer", "merger_cls": "os.system"}
        ),
        "call of a network that downloads": lambda content: content.update(
            network_def="$monai.networks.nets.HoVerNet(pretrained_url='https://example.org')"
        ),
        "call of another of MONAI's functions": lambda content: content.update(
            network_def=f"$monai.networks.nets.resnet.get_pretrained_resnet_medicalnet({str(witness)!r})"
        ),
        "call with unpacked arguments": lambda content: content.update(
            network_def="$monai.networks.nets.UNet(**@parts)", parts={"spatial_dims": 3}
        ),
        "call of a method of what was called": lambda content: content.update(
            network_def=f"$monai.networks.nets.UNet(3, 1, 2, [4, 8], [2]).apply({code[1:]})"
        ),
        "call with code as argument": lambda content: content.update(
            network_def=f"$monai.networks.nets.UNet(3, 1, {code[1:]}, [4, 8], [2])"
        ),
        "call of a class through another module": lambda content: content.update(
            network_def=f"$monai.networks.nets.torch.load({str(witness)!r})"
        ),
        "network that downloads": lambda content: content.update(
            network_def={"_target_": "HoVerNet", "pretrained_url": "https://example.org"}
        ),
    }


@pytest.mark.parametrize("name", attacks(Path("witness")))
def test_code_is_refused_before_any_of_it_runs(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the bundle was evaluated")

    witness = tmp_path / "witness"
    witness.with_suffix(".json").write_text(json.dumps({"code": "$1"}))
    content = configuration()
    attacks(witness)[name](content)
    folder = write(tmp_path / "bundle", content)
    for builds in (SegResNet, UNet):
        monkeypatch.setattr(builds, "__init__", never)  # nothing is built, not even what is harmless
    monkeypatch.setattr(torch, "load", never)
    text = message(folder)
    assert "--trust" in text or "which is not supported" in text, "trust is not invited for what can never work"
    assert not witness.exists()


def test_a_large_network_of_monai_is_named_by_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the functions of MONAI only those that build a network and do nothing else are called."""
    made: list[dict[str, Any]] = []

    def small(**given: Any) -> torch.nn.Module:
        made.append(given)
        return torch.nn.Identity()

    small.__signature__ = inspect.signature(vista3d132)  # type: ignore[attr-defined]
    monkeypatch.setitem(untrusted_configuration._FACTORIES, "monai.networks.nets.vista3d132", small)
    text = "$monai.networks.nets.vista3d132(in_channels=@count).to(@device)"
    content = {"count": 1, "device": "$torch.device('cuda')", "network_def": text}
    assert isinstance(Configuration(content, "b").build("network_def"), torch.nn.Identity)
    assert made == [{"in_channels": 1}]


def test_trust_runs_what_is_refused_otherwise(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    content = configuration()
    content["network_def"]["init_filters"] = f"$(open({str(witness)!r}, 'w').close(), 8)[1]"
    folder = write(tmp_path / "bundle", content)
    assert "--trust" in message(folder)
    assert not witness.exists()
    assert BundleSegmenter(folder, CPU, trust=True).labels[1] == "liver"
    assert witness.exists()


def test_a_reader_named_by_the_bundle_is_never_made(tmp_path: Path) -> None:
    """LoadImaged calls whatever its reader names, as soon as it is made; it is not needed, so it is not made."""
    witness = tmp_path / "witness"
    content = configuration()
    content["preprocessing"]["transforms"][0] = {**READ, "reader": "builtins.open", "file": str(witness), "mode": "w"}
    folder = write(tmp_path / "bundle", content)
    segmenter = BundleSegmenter(folder, CPU)
    assert segmenter.prepare(oblique_image()).tensor.ndim == 4
    assert not witness.exists()


def test_expressions_elsewhere_in_the_file_are_never_evaluated(tmp_path: Path) -> None:
    """MONAI's parser runs every import in the file, and loads every macro, whatever part is asked for."""
    package = tmp_path / "evil_of_the_bundle.py"
    package.write_text(f"open({str(tmp_path / 'witness')!r}, 'w')")
    content = configuration()
    content["imports"] = ["$import evil_of_the_bundle"]
    content["other"] = "%/no/such/file.json::part"
    # The same place twice: the nested part is harmless, the part of that very name is not.
    content["net"] = {"inner": content["network_def"]}
    content["net::inner"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'witness'}"}
    content["network_def"] = "@net::inner"
    folder = write(tmp_path / "bundle", content)
    sys.path.insert(0, str(tmp_path))
    try:
        BundleSegmenter(folder, CPU)
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "witness").exists()
    assert "evil_of_the_bundle" not in sys.modules


def test_no_module_is_imported_to_look_a_name_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MONAI's lookup does, even where the module lies inside an allowed package."""
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'witness')!r}, 'w')")
    monkeypatch.setattr(monai.networks, "__path__", [*monai.networks.__path__, str(tmp_path)])
    folder = write(tmp_path / "bundle", replaced(network_def={"_target_": "monai.networks.planted.Network"}))
    assert "--trust" in message(folder)
    assert not (tmp_path / "witness").exists()


def test_weights_that_hold_code_are_refused(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(witness), "w")

    def save(state: dict[str, torch.Tensor], folder: Path) -> None:
        torch.save({**state, "more": Evil()}, folder / "model.pt")

    folder = write(tmp_path / "bundle", save=save)
    for trust in (False, True):
        text = message(folder, trust)
        assert "damaged or hold more than weights" in text
        assert "weights_only" not in text
    assert not witness.exists()


def test_a_configuration_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    content = configuration()
    content |= {f"laugh{n}": [f"@laugh{n + 1}"] * 10 for n in range(9)} | {"laugh9": "ha"}
    content["preprocessing"]["transforms"].append({"_target_": "Identityd", "keys": "@laugh0"})
    assert "unfolds into too many parts" in message(write(tmp_path / "bundle", content))


def test_where_the_inferer_runs_is_not_the_bundles_to_say(tmp_path: Path) -> None:
    content = configuration()
    content["inferer"] |= {"device": "$torch.device('cuda')", "sw_device": "$print('run')", "progress": "$1 / 0"}
    window = BundleSegmenter(write(tmp_path / "bundle", content), CPU).window
    assert window is not None
    assert window.roi_size == (8, 16, 8)


def test_the_weights_are_those_that_the_bundles_loader_names(tmp_path: Path) -> None:
    loader = {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model_lowres.pt'"}
    content = configuration() | {"handlers": [loader]}
    folder = write(tmp_path / "one", content)
    assert "lacks its weights: put model_lowres.pt into its models folder" in message(folder)
    (folder / "models" / "model_lowres.pt").write_bytes((folder / "models" / "model.pt").read_bytes())
    assert BundleSegmenter(folder, CPU).weights.name == "model_lowres.pt"
    save_file(network_of("SegResNet").state_dict(), folder / "models" / "model_lowres.safetensors")
    (folder / "models" / "model_lowres.pt").unlink()
    assert BundleSegmenter(folder, CPU).weights.name == "model_lowres.safetensors"


def test_weights_that_only_code_tells_are_refused(tmp_path: Path) -> None:
    path = "$@bundle_root + max('/models/model_lowres.pt', '/models/model.pt', key=len)"
    loader = {"_target_": "CheckpointLoader", "load_path": path}
    content = configuration() | {"checkpointloader": loader}
    folder = write(tmp_path / "bundle", content)
    assert BundleSegmenter(folder, CPU).weights.name == "model.pt"  # the only one of them that is there
    (folder / "models" / "model_lowres.pt").write_bytes((folder / "models" / "model.pt").read_bytes())
    assert "chooses between model.pt and model_lowres.pt by code" in message(folder)
    assert BundleSegmenter(folder, CPU, trust=True).weights.name == "model_lowres.pt"


def test_a_network_that_downloads_by_default_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def spy(self: UNet, *, pretrained: bool = True, **options: Any) -> None:
        asked.append(pretrained)
        original(self, **options)

    original = UNet.__init__
    monkeypatch.setattr(UNet, "__init__", spy)
    BundleSegmenter(write(tmp_path / "bundle", configuration("UNet"), network="UNet"), CPU)
    assert asked[-1] is False


def test_pretrained_weights_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = UNet.__init__

    def spy(self: UNet, *, pretrained: Any, **options: Any) -> None:
        seen.append(pretrained)
        real(self, **options)

    monkeypatch.setattr(UNet, "__init__", spy)
    content = configuration("UNet")
    content["network_def"]["pretrained"] = True
    folder = tmp_path / "bundle"
    monkeypatch.setattr(sys.modules[__name__], "network_of", lambda _: torch.nn.Identity())
    write(folder, content, network="UNet")
    with pytest.raises(InputError, match="weights"):
        BundleSegmenter(folder, CPU)
    assert seen == [False]


# What is missing or damaged


def changed(path: str, value: Any = None) -> dict[str, Any]:
    """The metadata with a part replaced, or left out."""
    metadata = copy.deepcopy(METADATA)
    part = metadata
    *way, name = path.split("/")
    for step in way:
        part = part[step]
    part[name] = value
    if value is None:
        del part[name]
    return metadata


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        (None, "is no MONAI bundle: .*metadata.json cannot be read"),
        ([1, 2], "is no MONAI bundle"),
        (changed("network_data_format"), "does not name its output channels"),
        (changed("network_data_format/outputs/pred/channel_def"), "does not name its output channels: add channel_def"),
        (changed("network_data_format/outputs/pred/channel_def", {}), "does not name its output channels"),
        (changed("network_data_format/outputs/pred/channel_def", {"liver": "1"}), "correct network_data_format"),
        (changed("network_data_format/outputs/pred/channel_def", ["liver"]), "correct network_data_format"),
        (changed("network_data_format/inputs/image/num_channels", "many"), "correct network_data_format"),
        (changed("network_data_format/inputs/image/num_channels", -1), "correct network_data_format .*is -1"),
    ],
)
def test_metadata_that_lacks_something_is_refused(tmp_path: Path, metadata: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        BundleSegmenter(write(tmp_path / "bundle", metadata=metadata), CPU)
    message(tmp_path / "bundle")


def without(key: str) -> dict[str, Any]:
    content = configuration()
    del content[key]
    if key == "network_def":
        del content["network"]
    return content


def replaced(**parts: Any) -> dict[str, Any]:
    return configuration() | parts


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (without("network_def"), "does not define a network"),
        (without("preprocessing"), "does not define its preprocessing"),
        ([1], "inference.json cannot be read"),
        (replaced(network_def="@nowhere"), "lacks what it refers to"),
        (replaced(network_def="@network_def"), "refers to itself"),
        (replaced(network_def=["@a"], a={"b": "@network_def"}), "refers to itself"),
        (replaced(network_def={"_target_": "Identityd", "keys": "image"}), "does not define a network"),
        (replaced(network_def={"_target_": "SegResNet", "petals": 5}), "does not build .network_def: .*petals"),
        (replaced(network_def={"_target_": "SegResNet", "init_filters": "$8 / 0"}), "does not compute .*division by z"),
        (replaced(network_def="$@nowhere"), "lacks what it refers to"),
        (replaced(network_def="@########a"), "lacks what it refers to"),
        (replaced(network_def="@imports::" + "9" * 5000), "lacks what it refers to"),  # no number that Python reads
        (replaced(network_def="$@network_def"), "refers to itself"),
        (replaced(inferer={"_target_": "SaliencyInferer", "cam_name": "x"}), "SaliencyInferer, which is not supported"),
        (replaced(inferer={"_target_": "scripts.Mover"}), "scripts.Mover, which is not supported: [^-]*$"),
        (replaced(inferer={"_target_": "SliceInferer", "roi_size": [9, 9, 9]}), "sliding window that cannot be moved"),
        (replaced(inferer={"_target_": "SlidingWindowInferer", "roi_size": [9, 9]}), "2D network"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(tmp_path: Path, content: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        BundleSegmenter(write(tmp_path / "bundle", content), CPU)
    message(tmp_path / "bundle")


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    assert not is_bundle(tmp_path)
    assert "is no MONAI bundle" in message(tmp_path)


def test_a_very_long_name_of_weights_takes_no_time(tmp_path: Path) -> None:
    """It was searched from each of its characters on: hours, for a configuration of a megabyte."""
    loader = {"_target_": "CheckpointLoader", "load_path": "a." * 500_000}
    folder = write(tmp_path / "bundle", replaced(checkpointloader=loader))
    begun = time.process_time()
    assert BundleSegmenter(folder, CPU).weights.name == "model.pt"
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": }', "\x00"])
def test_damaged_configurations_are_refused(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path / "bundle")
    (folder / "configs" / "inference.json").write_text(text)
    assert "cannot be read" in message(folder)
    (folder / "configs" / "inference.json").unlink()
    assert "has none of configs/inference.json" in message(folder)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle", kind="yaml")
    witness = tmp_path / "witness"
    with (folder / "configs" / "inference.yaml").open("a") as file:
        file.write(f"evil: !!python/object/apply:builtins.open [{witness}, w]\n")
    assert "cannot be read" in message(folder, trust=True)
    assert not witness.exists()


def damage(state: dict[str, torch.Tensor], folder: Path) -> None:
    torch.save(state, folder / "model.pt")
    content = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(content[: len(content) // 2])


DAMAGES: dict[str, tuple[Callable[[dict[str, torch.Tensor], Path], object], str]] = {
    "missing": (lambda state, folder: None, "has no weights: put model.pt"),
    "cut off": (damage, "cannot be read|damaged"),
    "empty": (lambda state, folder: (folder / "model.pt").touch(), "cannot be read|damaged"),
    "text": (lambda state, folder: (folder / "model.pt").write_text("no weights"), "cannot be read|damaged"),
    "damaged safetensors": (lambda state, folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "cannot be"),
    "no state": (lambda state, folder: torch.save([1, 2], folder / "model.pt"), "holds? no state"),
    "other keys": (lambda state, folder: torch.save({"a": torch.zeros(1)}, folder / "model.pt"), "do not belong"),
    "other shapes": (
        lambda state, folder: torch.save({k: v[:1] if v.ndim else v for k, v in state.items()}, folder / "model.pt"),
        "do not belong to the bundle's network .*size mismatch",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_weights_that_cannot_be_used_are_refused(tmp_path: Path, name: str) -> None:
    save, complaint = DAMAGES[name]
    folder = write(tmp_path / "bundle", save=save)
    with pytest.raises(InputError, match=complaint):
        BundleSegmenter(folder, CPU)
    assert len(message(folder)) < 500


@pytest.mark.parametrize(
    ("image", "inputs"),
    [
        ({"num_channels": 3, "channel_def": {"0": "T1c", "1": "T1", "2": "FLAIR"}}, ("T1c", "T1", "FLAIR")),
        ({"channel_def": {"0": "T1c", "1": "T1"}}, ("T1c", "T1")),
        ({"num_channels": 2}, ("image 1", "image 2")),
        ({"num_channels": 2, "channel_def": {"1": "CT"}}, ("image 1", "CT")),
        ({"num_channels": 1, "channel_def": {"0": "image"}}, ("image",)),
        ({}, ("image",)),
    ],
)
def test_inputs_are_named_by_the_metadata(tmp_path: Path, image: dict[str, Any], inputs: tuple[str, ...]) -> None:
    metadata = changed("network_data_format/inputs/image", image)
    assert BundleSegmenter(write(tmp_path / "bundle", metadata=metadata), CPU).inputs == inputs


def test_another_number_of_images_is_refused_with_the_names_of_all(tmp_path: Path) -> None:
    named = {"num_channels": 2, "channel_def": {"0": "T1", "1": "FLAIR"}}
    metadata = changed("network_data_format/inputs/image", named)
    image = oblique_image()
    segmenter = BundleSegmenter(write(tmp_path / "two", metadata=metadata), CPU)
    with pytest.raises(InputError, match=r"Tiny organs takes 2 images .* \(T1, FLAIR\), and 1 was given: give all"):
        segmenter.prepare(image)
    assert segmenter.prepare(sitk.Compose(image, image)).tensor.shape[0] == 2
    with pytest.raises(InputError, match=r"takes one image .* \(image\), and 2 were given: give it\."):
        BundleSegmenter(write(tmp_path / "one"), CPU).prepare(sitk.Compose(image, image))


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        ({"_target_": "Identityd", "keys": ["image", "label"]}, "preprocessing of the bundle .* fails .*label"),
        ({"_target_": "EnsureTyped", "keys": "image", "track_meta": False}, "with its geometry"),
        ({"_target_": "ToNumpyd", "keys": "image"}, "with its geometry"),
        ({"_target_": "RepeatChanneld", "keys": "image", "repeats": 2}, "does not give one 3D image"),
    ],
)
def test_a_preprocessing_that_does_not_suit_the_volume_is_refused(
    tmp_path: Path, step: dict[str, Any], complaint: str
) -> None:
    content = configuration()
    content["preprocessing"]["transforms"].append(step)
    segmenter = BundleSegmenter(write(tmp_path / "bundle", content), CPU)
    with pytest.raises(InputError, match=complaint):
        segmenter.prepare(oblique_image())


@pytest.mark.parametrize(
    ("named", "told"), [(("background", "liver"), 2), (("background", "liver", "spleen", "left kidney"), 4)]
)
def test_a_network_with_another_number_of_channels_than_names_is_refused(
    tmp_path: Path, named: tuple[str, ...], told: int
) -> None:
    channels = {str(number): name for number, name in enumerate(named)}
    metadata = changed("network_data_format/outputs/pred/channel_def", channels)
    segmenter = BundleSegmenter(write(tmp_path / "bundle", metadata=metadata), CPU)
    with pytest.raises(
        InputError,
        match=rf"gives 3 output channels and its metadata name {told}: correct channel_def .*metadata\.json\.$",
    ):
        segmenter.logits(torch.zeros(1, 1, 8, 16, 8))


def test_a_bundle_is_loaded_without_a_word_of_readers(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """MONAI's readers for DICOM, which are not used, tell of a decoder that is not there."""
    catalogue.load_segmenter(None, torch.device("cpu"), False)
    assert [record.getMessage() for record in caplog.records if "Codec" in record.getMessage()] == []
    assert [str(warning.message) for warning in recwarn if "Codec" in str(warning.message)] == []
