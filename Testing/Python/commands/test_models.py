"""The command ``xaiclip models``, as a person at a terminal runs it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import monai.networks.nets as nets
import pytest
import torch
import yaml
from misbehaving import Behaviour, serving

from XAICLIPLib.commands import main
from XAICLIPLib.models import catalogue
from XAICLIPLib.models.catalogue import entries, find
from XAICLIPLib.resources import resource_path

CONTENT = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's models."""
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path / "mine"))
    return tmp_path / "mine"


def run(*arguments: str | Path) -> int:
    return main.main(["models", *map(str, arguments)])


def catalogue_file(path: Path, url: str, content: bytes = CONTENT) -> Path:
    """A catalogue of a user with one model of one file."""
    remote = {"url": url, "sha256": hashlib.sha256(content).hexdigest()}
    entry: dict[str, Any] = {"name": "net", "kind": "segmenter", "format": "auto", "title": "a network of ours"}
    entry |= {"modality": "MR", "structures": ["brain"], "licence": "MIT", "citation": "Us, 2026", "size_mb": 1.024}
    path.write_text(json.dumps({"models": [entry | {"source": {"files": {"net.bin": remote}}}]}), encoding="utf-8")
    return path


def test_list_is_the_default_and_lists_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    text = capsys.readouterr().out
    assert run("list") == 0
    assert capsys.readouterr().out == text
    words = " ".join(text.split())
    for entry in entries():
        assert f"\n  {entry.name}" in text and entry.title in words and entry.licence in words
        assert entry.source == "shipped" or entry.origin in words
        assert not isinstance(entry.source, str) or entry.source == "shipped" or entry.source in text, (
            "not to be copied"
        )
        assert len(entry.structures) > 24 or ", ".join(entry.structures) in words
    assert text.count("(default)") == 2 and "  abdomen-ct (default)\n" in text and "  anatomy-clip (default)\n" in text
    assert "and 80 more, see `xaiclip models info wholebody-ct`" in words
    assert max(map(len, text.splitlines())) <= 160, "but for addresses, which are not broken"


def test_a_model_that_is_not_here_is_called_so_by_models_and_doctor_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    listed = " ".join(capsys.readouterr().out.split())
    absent = [entry.name for entry in entries() if not entry.installed]
    assert len(absent) > 5 and listed.count("not on this machine") == len(absent)
    assert main.main(["doctor"]) == 0
    said = [line.split()[1] for line in capsys.readouterr().out.splitlines() if "not on this machine" in line]
    assert sorted(said) == sorted(absent)


def test_json_says_of_every_model_what_programs_want(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for arguments in (["--json"], ["list", "--json"]):
        assert run(*arguments) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1]
    keys = {"name", "kind", "format", "title", "modality", "structures", "licence", "citation", "size_mb", "trust"}
    for model, entry in zip(told[0], entries(), strict=True):
        assert set(model) == keys | {"source", "installed", "default"}
        assert (model["name"], model["source"], model["installed"]) == (entry.name, entry.origin, entry.installed)
    assert [model["name"] for model in told[0] if model["default"]] == ["abdomen-ct", "anatomy-clip"]


def test_the_list_comes_fast_and_without_pytorch() -> None:
    code = (
        "import sys; from XAICLIPLib.commands.main import main; main(['models']); main(['models', '--json'])\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'monai', 'numpy', 'pooch', 'requests')))"
    )
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - start < 20, "on a busy machine; it takes half a second on an idle one"


def test_info_tells_all_of_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "wholebody-ct") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "urinary bladder" in words and "rib right 12" in words and "more, see" not in words
    assert "Cite: Wasserthal" in words and "monai:wholeBody_ct_segmentation@0.2.5" in words
    assert run("info", "Abdomen-CT") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith("abdomen-ct (default)") and "runs without --trust" in words
    assert run("info", "abdomen-ct", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(resource_path("models", "abdomen-ct"))
    assert set(told["files"]) == {"configs/inference.json", "configs/metadata.json", "models/model.pt"}


@pytest.mark.parametrize("command", ["info", "download", "remove"])
def test_an_unknown_name_is_told(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "nosuch") == 1
    assert "There is no model nosuch in the catalogue" in capsys.readouterr().err


def test_a_model_is_added_downloaded_listed_and_removed(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Behaviour(CONTENT, breaks_after=[500_000])) as url:
        assert run("add", catalogue_file(tmp_path / "ours.json", url)) == 0
        assert "--model net" in capsys.readouterr().out
        assert run("list") == 0
        words = " ".join(capsys.readouterr().out.split())
        said = f"not on this machine; `xaiclip models download net` gets it from {url}"
        assert f"MR; licence MIT; 1.02 MB; {said}" in words
        assert run("download", "net") == 0
        assert f"Installed in {mine / 'models' / 'net'}. Licence: MIT." in capsys.readouterr().out
    assert (mine / "models" / "net" / "net.bin").read_bytes() == CONTENT
    assert run("download", "net") == 0
    assert "on this machine already" in capsys.readouterr().out
    assert run("list") == 0
    assert f"on this machine, from {url}" in " ".join(capsys.readouterr().out.split())
    assert run("remove", "net") == 0
    assert str(mine / "models" / "net") in capsys.readouterr().out
    assert run("info", "net") == 1


def test_a_download_that_fails_says_how_else(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Behaviour(status=404)) as url:
        run("add", catalogue_file(tmp_path / "ours.json", url))
        capsys.readouterr()
        assert run("download", "net") == 1
    told = capsys.readouterr().err.strip()
    place = mine / "models" / "net" / "net.bin"
    assert told == (
        f"xaiclip: {url} cannot be downloaded (the server answers 404 Not Found): get that file on another computer, "
        f"then run `xaiclip models download net --from FILE` or put it at {place}."
    )
    given = tmp_path / "copied"
    given.write_bytes(CONTENT)
    assert run("download", "net", "--from", given) == 0
    assert place.read_bytes() == CONTENT


def test_a_wrong_file_is_not_installed(tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("add", catalogue_file(tmp_path / "ours.json", "https://example.invalid/net.bin"))
    (tmp_path / "copied").write_bytes(b"other")
    assert run("download", "net", "--from", tmp_path / "copied") == 1
    assert "SHA-256" in capsys.readouterr().err
    assert not (mine / "models").exists()


def test_ctrl_c_keeps_what_came(tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from XAICLIPLib.commands import models

    class Pressed(models.Interrupt):
        def __call__(self) -> bool:
            return True

    monkeypatch.setattr(models, "Interrupt", Pressed)
    with serving(Behaviour(CONTENT)) as url:
        run("add", catalogue_file(tmp_path / "ours.json", url))
        assert run("download", "net") == 130
    assert "the next attempt goes on" in capsys.readouterr().err
    assert (mine / "models" / "net" / "net.bin.part").exists()


def test_a_folder_of_ones_own_is_added_and_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = resource_path("models", "anatomy-clip")
    assert run("add", folder, "--name", "my-clip") == 0
    assert "--localizer my-clip" in capsys.readouterr().out
    assert run("list") == 0
    assert f"yours, at {folder}" in " ".join(capsys.readouterr().out.split())
    assert run("remove", "my-clip") == 0
    assert "is forgotten" in capsys.readouterr().out
    assert folder.is_dir()


def test_a_network_of_ones_own_is_looked_at_as_it_is_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nets.BasicUNet(features=(2,) * 6).state_dict(), tmp_path / "net.pt")
    content = {
        "network": {"name": "BasicUNet", "arguments": {"features": [2] * 6}},
        "weights": "net.pt",
        "labels": ["background", "left lung"],
        "modality": "CT",
        "spacing_mm": 2.0,
        "intensity": {"range": [-1000, 400]},
        "window": {"size": [32, 32, 32]},
    }
    (tmp_path / "lungs.yaml").write_text(yaml.safe_dump(content))
    assert run("add", tmp_path / "lungs.yaml") == 0
    assert "Draws: left lung" in capsys.readouterr().out
    entry = find("lungs")
    assert (entry.structures, entry.modality, entry.inputs) == (("left lung",), "CT", ("image",))
    assert run("info", "lungs") == 0
    told = capsys.readouterr().out
    assert "Draws: left lung" in told and "CT; licence unknown" in told

    (tmp_path / "damaged.yaml").write_text(yaml.safe_dump(content | {"weights": "elsewhere.pt"}))
    assert run("add", tmp_path / "damaged.yaml") == 1
    told = capsys.readouterr()
    assert told.err.startswith("It does not load as it is: ") and "elsewhere.pt" in told.err
    assert "It is listed as damaged" in told.err and "Added" not in told.out, "it is kept: what it lacks may come"
    assert find("damaged").structures == ()


def network(folder: Path, **changes: Any) -> Path:
    """A small network of two inputs with its description."""
    torch.save(nets.BasicUNet(in_channels=2, features=(2,) * 6).state_dict(), folder / "net.pt")
    content = {
        "network": {"name": "BasicUNet", "arguments": {"features": [2] * 6, "in_channels": 2}},
        "weights": "net.pt",
        "labels": ["background", "left lung"],
        "inputs": ["arterial", "venous"],
        "spacing_mm": 2.0,
        "intensity": {"range": [-1000, 400]},
        "window": {"size": [32, 32, 32]},
    }
    (folder / "two.yaml").write_text(yaml.safe_dump(content | changes))
    return folder / "two.yaml"


def test_names_that_the_list_cannot_hold_do_not_lock_the_user_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """nnU-Net calls two phases both CT."""
    real = catalogue.load_segmenter

    def load(*given: Any) -> Any:
        found = real(*given)
        monkeypatch.setattr(type(found), "inputs", ("CT", "CT"))
        monkeypatch.setattr(type(found), "labels", {0: "background", 1: " "})
        return found

    monkeypatch.setattr(catalogue, "load_segmenter", load)
    assert run("add", network(tmp_path)) == 0
    told = capsys.readouterr()
    assert "names that the list cannot show" in told.err and "--model two" in told.out
    assert find("two").inputs == ("image",)
    assert run("list") == 0 and run("remove", "two") == 0


def test_an_archive_without_a_network_is_not_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "letters.zip", "w") as archive:
        archive.writestr("letters/a.txt", "Dear colleague")
    before = entries()
    assert run("add", tmp_path / "letters.zip") == 1
    told = capsys.readouterr()
    assert "holds no network" in told.err and "Added" not in told.out
    assert entries() == before


def test_trust_is_given_to_the_network_that_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    real = catalogue.load_segmenter
    monkeypatch.setattr(catalogue, "load_segmenter", lambda *a: (given.append(a[2]), real(*a))[1])
    assert run("add", network(tmp_path), "--trust") == 0
    assert given == [True]


def test_what_is_no_model_is_not_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = entries()
    (tmp_path / "letters.txt").write_text("Dear colleague")
    (tmp_path / "empty").mkdir()
    for name in ("letters.txt", "empty"):
        assert run("add", tmp_path / name) == 1
        told = capsys.readouterr().err
        assert f"{tmp_path / name} is no model that is known: give the folder of a MONAI bundle" in told
    assert entries() == before


def bundle(folder: Path, output: dict[str, Any], **more: Any) -> Path:
    """A small bundle with a licence file and the needs that it states."""
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    arguments = {"spatial_dims": 3, "channels": [4, 8], "strides": [2], "in_channels": 1, "out_channels": 2}
    content = {
        "network_def": {"_target_": "UNet", **arguments},
        "preprocessing": {"_target_": "Compose", "transforms": []},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(content | more))
    data_format = {"inputs": {"image": {"modality": "MRI", "num_channels": 1}}, "outputs": {"pred": output}}
    packages = {"optional_packages_version": {"einops": "0.7.0"}}
    (folder / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": data_format, **packages}))
    (folder / "LICENSE").write_text("MIT License\n\nCopyright (c) 2026 Nobody\n")
    torch.save(nets.UNet(**arguments).state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.mark.parametrize(
    ("output", "more", "told"),
    [
        ({"type": "object", "format": "dict"}, {}, "is a detector, as its metadata say"),
        ({"channel_def": {"0": "a"}}, {"inferer": {"_target_": "scripts.Mover"}}, "moves its network by scripts.Mover"),
    ],
)
def test_what_can_never_be_explained_is_not_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: dict[str, Any], more: dict[str, Any], told: str
) -> None:
    before = entries()
    assert run("add", bundle(tmp_path / "ours", output, **more)) == 1
    said = capsys.readouterr()
    assert told in said.err and "--trust" not in said.err and "Added" not in said.out
    assert entries() == before


def test_a_bundle_that_names_no_channels_is_given_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bundle(tmp_path / "ours", {"num_channels": 2})
    assert run("add", folder) == 1
    assert "does not name its 2 output channels" in (told := capsys.readouterr().err) and "--labels" in told
    assert run("remove", "ours") == 0
    assert run("add", folder, "--labels", "0=background, 1=liver") == 0
    assert "Draws: liver" in capsys.readouterr().out
    assert (find("ours").labels, find("ours").modality, find("ours").licence) == (("background", "liver"), "MR", "MIT")
    loaded = catalogue.load_segmenter("ours", torch.device("cpu"))
    assert loaded.labels == {0: "background", 1: "liver"}
    renamed = catalogue.load_segmenter("ours", torch.device("cpu"), False, {0: "background", 1: "spleen"})
    assert renamed.labels[1] == "spleen"
    with pytest.raises(SystemExit):
        run("add", folder, "--labels", "1=liver")
    assert "names not every channel once" in capsys.readouterr().err


def test_labels_are_for_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("add", network(tmp_path), "--labels", "background,liver") == 1
    assert "The labels are for a MONAI bundle" in capsys.readouterr().err


def test_a_folder_is_described_without_being_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = entries()
    folder = bundle(tmp_path / "ours", {"channel_def": {"0": "background", "1": "liver"}})
    assert run("info", folder) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith(str(folder))
    assert "MR; licence MIT; yours, at" in told and "Draws: liver" in told
    assert "It asks for the Python packages einops 0.7.0; nothing is installed by XAI-CLIP." in told
    assert run("info", folder, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["segments"], record["packages"]) == (True, {"einops": "0.7.0"})
    assert run("info", bundle(tmp_path / "nodules", {"type": "object"})) == 0
    assert "It is a detector, and draws no structures" in " ".join(capsys.readouterr().out.split())
    assert run("info", tmp_path) == 1
    assert "is no model that is known" in capsys.readouterr().err
    assert entries() == before
