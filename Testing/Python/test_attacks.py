"""What a stranger's model may try, through the commands of users: each is refused in a sentence, and does nothing.

Every attack would leave a file behind. ``pytest -s Testing/Python/test_attacks.py`` prints the sentences.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch
from misbehaving import Behaviour, serving
from monai.networks.nets import UNet

from XAICLIPLib import imaging
from XAICLIPLib.commands import main
from XAICLIPLib.imaging.phantom import torso_phantom

NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for everything: the attacker's files in ``theirs``, a scan, the working directory."""
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path / "models"))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    small = sitk.Shrink(torso_phantom(0).image, [4, 4, 4])
    imaging.write_volume(small, tmp_path / "scan.nrrd")
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str], pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Print a sentence where ``-s`` asks for it."""

    def tell(sentence: str) -> None:
        if pytestconfig.getoption("capture") == "no":
            with capsys.disabled():
                print(f"\n{sentence}", end="")

    return tell


class Runs:
    """A pickle that writes a file when it is read."""

    def __init__(self, canary: Path) -> None:
        self.command = f"echo caught > '{canary}'"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def bundle(folder: Path, **changed: Any) -> Path:
    """A bundle that loads, but for what is changed in its configuration."""
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    data = {"inputs": {"image": {}}, "outputs": {"pred": {"channel_def": {"0": "background", "1": "liver"}}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": data}))
    content = {"network_def": {"_target_": "UNet", **NETWORK}, "preprocessing": [], **changed}
    (folder / "configs" / "inference.json").write_text(json.dumps(content))
    torch.save(UNet(**NETWORK).state_dict(), folder / "models" / "model.pt")
    return folder


def pickled_weights(theirs: Path, canary: Path) -> Path:
    bundle(theirs / "net")
    torch.save({"state_dict": Runs(canary)}, theirs / "net" / "models" / "model.pt")
    return theirs / "net"


def pickled_checkpoint(theirs: Path, canary: Path) -> Path:
    (theirs / "net.yaml").write_text(
        f"network: {{name: UNet, arguments: {json.dumps(NETWORK)}}}\nlabels: [background, liver]\nweights: net.pt\n"
    )
    (theirs / "net.pt").write_bytes(pickle.dumps(Runs(canary)))
    return theirs / "net.yaml"


def importing_bundle(theirs: Path, canary: Path) -> Path:
    return bundle(theirs / "net", network_def=f"$__import__('pathlib').Path({str(canary)!r}).write_text('caught')")


def imports_section(theirs: Path, canary: Path) -> Path:
    code = {"imports": ["$import os"], "spacing": f"$os.system('touch {canary}')"}
    return bundle(
        theirs / "net", **code, preprocessing=[{"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing"}]
    )


def calling_bundle(theirs: Path, canary: Path) -> Path:
    return bundle(theirs / "net", network_def={"_target_": "os.system", "command": f"touch {canary}"})


def scripts_bundle(theirs: Path, canary: Path) -> Path:
    (theirs / "net" / "scripts").mkdir(parents=True)
    (theirs / "net" / "scripts" / "__init__.py").write_text(f"open({str(canary)!r}, 'w').write('caught')")
    return bundle(theirs / "net", network_def={"_target_": "scripts.Network"})


def yaml_object(theirs: Path, canary: Path) -> Path:
    (theirs / "net.yaml").write_text(f"!!python/object/apply:os.system ['touch {canary}']")
    return theirs / "net.yaml"


class Saves(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "caught.pt")
        return torch.cat([x, x], 1)


def torchscript_program(theirs: Path, canary: Path) -> Path:
    torch.jit.script(Saves()).save(str(theirs / "net.ts"))
    (theirs / "net.yaml").write_text("labels: [background, liver]\ntorchscript: net.ts\n")
    return theirs / "net.ts"


def zip_slip(theirs: Path, canary: Path) -> Path:
    with zipfile.ZipFile(theirs / "net.zip", "w") as archive:
        archive.writestr("configs/metadata.json", "{}")
        archive.writestr(f"../../../{canary.name}", "caught")
    return theirs / "net.zip"


def absolute_tar(theirs: Path, canary: Path) -> Path:
    with tarfile.open(theirs / "net.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo(str(canary))
        member.size = len(b"caught")
        archive.addfile(member, io.BytesIO(b"caught"))
    return theirs / "net.tar.gz"


def symlink_zip(theirs: Path, canary: Path) -> Path:
    with zipfile.ZipFile(theirs / "net.zip", "w") as archive:
        link = zipfile.ZipInfo("models")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(canary.parent))
        archive.writestr(f"models/{canary.name}", "caught")
    return theirs / "net.zip"


def bomb_header(theirs: Path, canary: Path) -> Path:
    with zipfile.ZipFile(theirs / "net.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("models/model.pt", bytes(1000))
        archive.filelist[0].file_size = 10_000_000_000
    return theirs / "net.zip"


def lying_safetensors(theirs: Path, canary: Path) -> Path:
    (theirs / "net.yaml").write_text(
        f"network: {{name: UNet, arguments: {json.dumps(NETWORK)}}}\n"
        "labels: [background, liver]\nweights: net.safetensors\n"
    )
    (theirs / "net.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    return theirs / "net.yaml"


BOMB = "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}' if n else '1'] * 10)}]\n" for n in range(9))
"""A billion numbers in 600 bytes."""


def yaml_bomb_bundle(theirs: Path, canary: Path) -> Path:
    content = (bundle(theirs / "net") / "configs" / "inference.json").read_text()
    (theirs / "net" / "configs" / "inference.json").unlink()
    lines = (f"{json.dumps(key)}: {json.dumps(value)}\n" for key, value in json.loads(content).items())
    (theirs / "net" / "configs" / "inference.yaml").write_text(BOMB + "".join(lines))
    return theirs / "net"


def yaml_bomb_description(theirs: Path, canary: Path) -> Path:
    (theirs / "net.yaml").write_text(f"{BOMB}activation: *b8\nlabels: [background, liver]\n")
    return theirs / "net.yaml"


def endless_postprocessing(theirs: Path, canary: Path) -> Path:
    content = (bundle(theirs / "net") / "configs" / "inference.json").read_text()
    (theirs / "net" / "configs" / "inference.json").unlink()
    text = content[:-1] + ', "postprocessing": &a [*a]}'
    (theirs / "net" / "configs" / "inference.yaml").write_text(text)
    return theirs / "net"


def huge_configuration(theirs: Path, canary: Path) -> Path:
    return bundle(theirs / "net", preprocessing=[[]] * 200_000)


def sleeping_bundle(theirs: Path, canary: Path) -> Path:
    return bundle(theirs / "net", preprocessing=[{"_target_": "SimulateDelayd", "keys": "image", "delay_time": 900}])


def printing_bundle(theirs: Path, canary: Path) -> Path:
    return bundle(theirs / "net", preprocessing=[{"_target_": "DataStatsd", "keys": "image"}])


def description_of_elsewhere(theirs: Path, canary: Path) -> Path:
    torch.jit.script(torch.nn.ReLU()).save(str(theirs / "net.ts"))
    (theirs / "inner").mkdir()
    (theirs / "inner" / "net.yaml").write_text("labels: [background, liver]\ntorchscript: ../net.ts\n")
    return theirs / "inner" / "net.yaml"


def compressed_weights(theirs: Path, canary: Path) -> Path:
    weights = bundle(theirs / "net") / "models" / "model.pt"
    torch.save({"a": torch.zeros(1 << 20)}, theirs / "zeros.pt")
    with zipfile.ZipFile(theirs / "zeros.pt") as before, zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            after.writestr(name, before.read(name))
    return theirs / "net"


def many_small_bombs(theirs: Path, canary: Path) -> Path:
    with zipfile.ZipFile(theirs / "net.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"models/{number}.pt", bytes(40_000_000))
    return theirs / "net.zip"


def deep_zip(theirs: Path, canary: Path) -> Path:
    with zipfile.ZipFile(theirs / "net.zip", "w") as archive:
        archive.writestr("a/" * 1200 + "model.pt", "x")
    return theirs / "net.zip"


ATTACKS: dict[Callable[[Path, Path], Path], str] = {
    pickled_weights: "damaged or hold more than weights",
    pickled_checkpoint: "damaged or hold more than weights",
    importing_bundle: "run code from its configuration.*--trust",
    imports_section: "run code from its configuration.*--trust",
    calling_bundle: r"call os\.system.*--trust",
    scripts_bundle: r"call scripts\.Network.*--trust",
    yaml_object: "cannot be read",
    torchscript_program: r"would call torch\.save.*--trust",
    zip_slip: "outside|lead",
    absolute_tar: "outside|lead|absolute",
    symlink_zip: "link",
    bomb_header: "shrunk more than 200 times|GB",
    lying_safetensors: "cannot be read",
    yaml_bomb_bundle: "anchors.*aliases",
    yaml_bomb_description: "anchors.*aliases",
    endless_postprocessing: "anchors.*aliases",
    huge_configuration: "too many parts",
    sleeping_bundle: "call SimulateDelayd.*--trust",
    printing_bundle: "call DataStatsd.*--trust",
    description_of_elsewhere: "stays inside the description's folder",
    compressed_weights: "compressed",
    many_small_bombs: "shrunk more than 200 times",
    deep_zip: "more than 32 folders deep",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_model_is_refused_and_does_nothing(
    world: Path,
    capsys: pytest.CaptureFixture[str],
    show: Callable[[str], None],
    attack: Callable[[Path, Path], Path],
) -> None:
    model = attack(world / "theirs", world / "caught")
    before = snapshot(world)
    status = main.main(["explain", str(world / "scan.nrrd"), "--prompt", "liver", "--model", str(model)])
    told = capsys.readouterr().err.strip()
    show(f"{attack.__name__}: {told.replace(str(world), '…')}")
    assert status == 1 and told.count("\n") == 0 and re.search(ATTACKS[attack], told), told
    assert snapshot(world) == before, "something was written"
    assert not (world.parent / "caught").exists() and not (world / "caught").exists()


@pytest.mark.parametrize("attack", ["wrong checksum", "cut off", "larger than declared"])
def test_a_download_that_is_not_what_the_catalogue_says_is_refused(
    world: Path, capsys: pytest.CaptureFixture[str], show: Callable[[str], None], attack: str
) -> None:
    content = bytes(range(256)) * 1000
    sent = {"wrong checksum": content[:-1] + b"!", "cut off": content[:-500], "larger than declared": content * 3}[
        attack
    ]
    with serving(Behaviour(sent)) as url:
        file = {"url": url, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        entry = {"name": "net", "kind": "segmenter", "format": "meshnet", "title": "x", "modality": "MR"}
        entry |= {"structures": [], "licence": "MIT", "source": {"files": {"model.bin": file}}}
        (world / "theirs" / "list.json").write_text(json.dumps({"models": [entry]}))
        assert main.main(["models", "add", str(world / "theirs" / "list.json")]) == 0
        before = snapshot(world)
        capsys.readouterr()
        assert main.main(["models", "download", "net"]) == 1
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("xaiclip: ")]
    assert re.search(r"SHA-256 differs|declared|larger|more than", told) and told.count("--from FILE") == 1
    show(f"{attack}: {told.replace(str(world), '…')}")
    left = {name for name in set(snapshot(world)) - set(before) if not name.endswith((".part", ".part-version"))}
    assert not left, "nothing that could be taken for the model"
