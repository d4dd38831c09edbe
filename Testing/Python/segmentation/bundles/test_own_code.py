"""A trusted bundle's code is imported from its own root while it is built and run, and from nowhere else or later."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.networks.nets import UNet

from XAICLIPLib.errors import InputError
from XAICLIPLib.segmentation.bundles.own_code import OwnCode
from XAICLIPLib.segmentation.networks.bundle import BundleSegmenter

CPU = torch.device("cpu")
ARGUMENTS: dict[str, Any] = {"spatial_dims": 3, "channels": [4, 8], "strides": [2], "in_channels": 1, "out_channels": 2}
NETWORK = """
from monai.networks.nets import UNet
from {package}.scale import FACTOR

class Net(UNet):
    def forward(self, x):
        from {package}.late import OFFSET  # when it runs, and not only when it is built
        return super().forward(x) * FACTOR + OFFSET
"""


def write(folder: Path, factor: float, head: str = "", steps: Any = None, images: Any = None, **more: Any) -> Path:
    """A bundle whose network is a class in its package ``scripts``."""
    for name in ("configs", "models", "scripts"):
        (folder / name).mkdir(parents=True)
    (folder / "scripts" / "__init__.py").write_text("")
    (folder / "scripts" / "scale.py").write_text(f"FACTOR = {factor}\n")
    (folder / "scripts" / "late.py").write_text("OFFSET = 0.5\n")
    (folder / "scripts" / "net.py").write_text(head + NETWORK.format(package="scripts"))
    content = {
        "imports": ["$import glob"],
        "network_def": {"_target_": "scripts.net.Net", **ARGUMENTS},
        "preprocessing": {"_target_": "Compose", "transforms": steps or [{"_target_": "LoadImaged", "keys": "image"}]},
        "inferer": {"_target_": "SimpleInferer"},
        **more,
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(content))
    described = {
        "inputs": {"image": images or {"num_channels": 1}},
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "liver"}}},
    }
    packages = {"nosuchpackage_of_a_bundle": "1.2"}
    metadata = {"name": folder.name, "optional_packages_version": packages, "network_data_format": described}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    torch.save(network().state_dict(), folder / "models" / "model.pt")
    return folder


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(**ARGUMENTS).eval()


def state() -> tuple[list[str], set[str], bool]:
    return (
        list(sys.path),
        {name for name in sys.modules if name.partition(".")[0] == "scripts"},
        sys.dont_write_bytecode,
    )


def scan(value: float = 0.0) -> sitk.Image:
    array = np.random.default_rng(0).normal(value, 1, (8, 12, 16)).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 1.5, 3.0))
    image.SetOrigin((-30.0, 45.0, 12.5))
    return image


def test_two_bundles_with_a_package_of_one_name_get_each_its_own(tmp_path: Path) -> None:
    before = state()
    folders = [write(tmp_path / name, factor) for name, factor in (("one", 2.0), ("two", 3.0))]
    first, second = (BundleSegmenter(folder, CPU, trust=True) for folder in folders)
    patch = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        plain = network()(patch)
        for segmenter, factor in ((first, 2.0), (second, 3.0), (first, 2.0)):
            torch.testing.assert_close(segmenter.logits(patch), plain * factor + 0.5)
    assert state() == before, "the import path and the modules are as they were"
    assert not list(tmp_path.rglob("__pycache__")), "nothing is written into the user's folder"


def test_a_module_of_that_name_that_is_here_already_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scripts", installed := type(sys)("scripts"))
    BundleSegmenter(write(tmp_path / "one", 2.0), CPU, trust=True)
    assert sys.modules["scripts"] is installed


def test_without_trust_no_code_of_a_bundle_is_imported(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    folder = write(tmp_path / "one", 2.0, head=f"open({str(witness)!r}, 'w').close()\n")
    before = state()
    with pytest.raises(InputError, match=r"would call scripts\.net\.Net \(network_def\).*--trust"):
        BundleSegmenter(folder, CPU)
    assert not witness.exists()
    assert state() == before
    BundleSegmenter(folder, CPU, trust=True)
    assert witness.exists()


def test_a_failing_bundle_leaves_everything_as_it_was(tmp_path: Path) -> None:
    before = state()
    with pytest.raises(InputError, match="division by zero"):
        BundleSegmenter(write(tmp_path / "one", 2.0, head="1 / 0\n"), CPU, trust=True)
    assert state() == before


def test_a_missing_package_is_named_and_never_installed(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", 2.0, head="import nosuchpackage_of_a_bundle\n")
    with pytest.raises(InputError) as caught:
        BundleSegmenter(folder, CPU, trust=True)
    assert str(caught.value) == (
        f"The code of the bundle {folder} needs the Python package nosuchpackage_of_a_bundle, which is not here: "
        "install it where XAI-CLIP is installed; its metadata ask for nosuchpackage_of_a_bundle 1.2."
    )
    assert not caught.value.ways, "a stranger's package is not offered for installation"


def test_what_only_skipped_parts_need_may_be_missing(tmp_path: Path) -> None:
    """A reader of another package, the engine that runs the bundle, and imports for these."""
    steps = [
        {"_target_": "LoadImaged", "keys": "image", "reader": "$nosuchpackage.Reader()"},
        {"_target_": "scripts.steps.Double", "keys": "image"},
    ]
    folder = write(tmp_path / "one", 2.0, steps=steps, imports=["$import glob", "$import nosuchpackage"])
    (folder / "scripts" / "steps.py").write_text(
        "from monai.transforms import MapTransform\n\n\nclass Double(MapTransform):\n"
        "    def __call__(self, data):\n        return {**data, 'image': data['image'] * 2}\n"
    )
    prepared = BundleSegmenter(folder, CPU, trust=True).prepare(scan())
    expected = sitk.GetArrayFromImage(scan()).transpose(2, 1, 0)[None] * 2
    np.testing.assert_allclose(np.sort(prepared.tensor.numpy().ravel()), np.sort(expected.ravel()), rtol=1e-6)


def test_several_images_are_given_under_the_keys_that_the_bundle_reads(tmp_path: Path) -> None:
    """And where its code drops the geometry as it joins them, the first image tells it."""
    keys = ["artery", "vein", "late"]
    steps = [
        {"_target_": "LoadImaged", "keys": [*keys, "label"], "image_only": False},
        {"_target_": "Spacingd", "keys": keys, "pixdim": [3.0, 3.0, 3.0]},
        {"_target_": "scripts.steps.Join", "names": keys},
        {"_target_": "EnsureTyped", "keys": "image"},
    ]
    folder = write(tmp_path / "three", 1.0, steps=steps, images={"num_channels": 3, "channel_def": {"0": "image"}})
    (folder / "scripts" / "steps.py").write_text(
        "import numpy as np\n\n\nclass Join:\n    def __init__(self, names):\n        self.names = names\n\n"
        "    def __call__(self, data):\n        meta = data[self.names[0] + '_meta_dict']\n"
        "        return {**data, 'image': np.concatenate([np.asarray(data[n]) for n in self.names]), 'm': meta}\n"
    )
    segmenter = BundleSegmenter(folder, CPU, trust=True)
    assert segmenter.inputs == ("artery", "vein", "late")
    prepared = segmenter.prepare(sitk.Compose([scan(10.0), scan(20.0), scan(30.0)]))
    assert [round(float(channel.mean()), -1) for channel in prepared.tensor] == [10.0, 20.0, 30.0]
    np.testing.assert_allclose(prepared.spacing_mm, (3.0, 3.0, 3.0))
    np.testing.assert_allclose(prepared.affine[:3, 3], (30.0, -45.0, 12.5), err_msg="RAS of the scan's origin")


def test_the_channels_of_clicks_are_held_and_not_asked_for(tmp_path: Path) -> None:
    steps = [
        {"_target_": "LoadImaged", "keys": "image", "reader": "ITKReader"},
        {"_target_": "scripts.steps.AddGuidance"},
    ]
    images = {"num_channels": 3, "channel_def": {"0": "image"}}
    folder = write(tmp_path / "clicks", 1.0, steps=steps, images=images)
    (folder / "scripts" / "steps.py").write_text(
        "import torch\n\n\nclass AddGuidance:\n    def __call__(self, data):\n        image = data['image']\n"
        "        return {**data, 'image': torch.cat([image, torch.zeros_like(image), torch.zeros_like(image)])}\n"
    )
    segmenter = BundleSegmenter(folder, CPU, trust=True)
    assert segmenter.inputs == ("image",)
    prepared = segmenter.prepare(scan())
    assert len(prepared.tensor) == 1
    assert prepared.held is not None
    assert prepared.held.shape[0] == 2


def test_packages_that_all_else_stands_on_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('the bundle replaced torch')")
    (tmp_path / "json.py").write_text("raise RuntimeError('the bundle replaced json')")
    own_code = OwnCode(tmp_path)
    assert own_code.names == frozenset()
    with own_code.importable(), own_code.importable():
        import json as again

        assert again is json
        assert sys.modules["torch"] is torch
    assert str(tmp_path) not in sys.path


def test_a_file_with_the_name_of_a_standard_module_does_not_stay_in_its_place(tmp_path: Path) -> None:
    assert "tabnanny" not in sys.modules, "one that nothing here imports"
    values = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "tabnanny.py").write_text(f"VALUE = {number}\n")
        with OwnCode(folder).importable():
            values.append(importlib.import_module("tabnanny").VALUE)
        assert "tabnanny" not in sys.modules
    assert values == [1, 2]
