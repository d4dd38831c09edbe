"""Loading image-text models: what is loaded is the file on record, and what cannot be is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.localization.openclip import import_open_clip, load_model

CPU = torch.device("cpu")
MODEL: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
PREPROCESS: dict[str, Any] = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic"}


def weights_of(model: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    state: dict[str, Tensor] = import_open_clip().CLIP(**json.loads(json.dumps(model))).state_dict()
    return state


def write_config(folder: Path, model: Any = MODEL, preprocess: dict[str, Any] = PREPROCESS) -> Path:
    folder.mkdir(exist_ok=True)
    text = json.dumps({"model_cfg": model, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as open_clip writes it."""
    write_config(tmp_path / "tiny")
    save_file(weights_of(MODEL), tmp_path / "tiny" / "open_clip_model.safetensors")
    return tmp_path / "tiny"


def refusal(source: str | Path) -> str:
    """What the user reads: one line."""
    with pytest.raises(InputError) as caught:
        load_model(source, CPU)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


# --- importing


def test_a_new_process_imports_open_clip_and_hears_nothing(folder: Path) -> None:
    """Whatever torchvision is beside torch, and with no logging set up."""
    code = (
        "import sys, torch; from XAICLIPLib.localization.openclip import import_open_clip, load_model;"
        "assert 'open_clip' not in sys.modules; assert import_open_clip() is sys.modules['open_clip'];"
        "load_model(sys.argv[1], torch.device('cpu'))"
    )
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", code, str(folder)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# --- what a folder gives


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_gives_the_weights_in_it(folder: Path, prefix: str) -> None:
    loaded = load_model(f"{prefix}{folder}", CPU)
    assert (loaded.name, loaded.folder, loaded.device) == ("tiny", folder, CPU)
    assert not loaded.model.training
    expected = weights_of(MODEL)
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_folder_gives_the_preprocessing_and_the_tokens_of_its_configuration(folder: Path) -> None:
    loaded = load_model(folder, CPU)
    assert loaded.side == 32
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    tokens = loaded.tokenize(["a liver", "a ct of the left kidney"])
    assert tokens.shape == (2, 12)
    assert loaded.model.encode_text(tokens).shape == (2, 12)
    assert loaded.scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_the_checksum_is_that_of_the_file_that_was_loaded(folder: Path) -> None:
    """Of several, open_clip's own name goes first."""
    save_file(weights_of(MODEL, seed=1), folder / "a_first_by_name.safetensors")
    torch.save(weights_of(MODEL, seed=2), folder / "open_clip_pytorch_model.bin")
    loaded = load_model(folder, CPU)
    chosen = folder / "open_clip_model.safetensors"
    assert loaded.checksum == hashlib.sha256(chosen.read_bytes()).hexdigest()
    assert torch.equal(loaded.model.visual.proj, weights_of(MODEL, seed=0)["visual.proj"])


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["open_clip_pytorch_model.bin"], 0),
        (["weights.pth"], 0),
        (["a.bin", "b.safetensors"], 1),
        (["model.safetensors", "a.safetensors"], 0),
        (["optimizer.bin", "pytorch_model.bin"], 1),
        (["epoch_1.pt", "model.pth"], 1),
    ],
)
def test_the_weights_of_other_names_are_found(tmp_path: Path, names: list[str], chosen: int) -> None:
    write_config(tmp_path)
    for seed, name in enumerate(names):
        if name.endswith(".safetensors"):
            save_file(weights_of(MODEL, seed), tmp_path / name)
        else:
            torch.save(weights_of(MODEL, seed), tmp_path / name)
    loaded = load_model(tmp_path, CPU)
    assert loaded.checksum == hashlib.sha256((tmp_path / names[chosen]).read_bytes()).hexdigest()
    assert torch.equal(loaded.model.visual.proj, weights_of(MODEL, chosen)["visual.proj"])


def test_loading_says_nothing_that_misleads(
    folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """open_clip's warning of random weights comes before the weights are loaded, and would be wrong."""
    (folder / "open_clip_model.safetensors").rename(folder / "of_another_name.safetensors")
    filters = list(logging.getLogger().filters)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        load_model(folder, CPU)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    logging.warning("another's warning is heard again")
    assert "heard again" in caplog.text
    assert logging.getLogger().filters == filters


# --- what is refused


def test_a_folder_without_a_configuration_is_refused(folder: Path) -> None:
    (folder / "open_clip_config.json").unlink()
    assert "open_clip_config.json is missing or damaged" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"not json", b"[]", b'"model_cfg"', b"[" * 100_000])
def test_a_damaged_configuration_is_refused(folder: Path, content: bytes) -> None:
    (folder / "open_clip_config.json").write_bytes(content)
    assert "open_clip_config.json is missing or damaged" in refusal(folder)


@pytest.mark.parametrize("content", ["{}", '{"model_cfg": null}', json.dumps(MODEL)])
def test_a_configuration_without_model_cfg_is_refused(folder: Path, content: str) -> None:
    (folder / "open_clip_config.json").write_text(content, encoding="utf-8")
    assert "has no model_cfg" in refusal(folder)


@pytest.mark.parametrize("model", [{}, {**MODEL, "vision_cfg": {"nonsense": 1}}, {**MODEL, "text_cfg": 3}])
def test_a_configuration_that_describes_no_model_is_refused(folder: Path, model: dict[str, Any]) -> None:
    write_config(folder, model)
    assert f"The localizer {folder} does not load" in refusal(folder)


@pytest.mark.parametrize(
    ("model", "preprocess"),
    [
        ({**MODEL, "vision_cfg": {**MODEL["vision_cfg"], "image_size": [32, 48]}}, PREPROCESS),
        (MODEL, {**PREPROCESS, "mean": [0.5]}),
        (MODEL, {**PREPROCESS, "std": [0.5, 0.0, 0.5]}),
    ],
    ids=["not square", "one mean", "std of zero"],
)
def test_images_that_slices_cannot_be_made_into_are_refused(
    tmp_path: Path, model: dict[str, Any], preprocess: dict[str, Any]
) -> None:
    write_config(tmp_path, model, preprocess)
    save_file(weights_of(model), tmp_path / "open_clip_model.safetensors")
    assert "does not load: its" in refusal(tmp_path) or "only square" in refusal(tmp_path)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    assert "has no weights" in refusal(folder)


def test_a_pt_file_alone_is_refused_because_open_clip_would_leave_random_weights(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(weights_of(MODEL), folder / "open_clip_model.pt")
    assert "has no weights" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"not weights"])
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_damaged_weights_are_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    (folder / name).write_bytes(content)
    assert f"The localizer {folder} does not load: " in refusal(folder)


@pytest.mark.parametrize("change", ["shape", "missing", "another's"])
def test_weights_of_another_model_are_refused(folder: Path, change: str) -> None:
    state = weights_of(MODEL)
    if change == "shape":
        state["visual.proj"] = torch.zeros(16, 13)
    elif change == "missing":
        del state["visual.proj"]
    else:
        state["visual.another"] = torch.zeros(3)
    save_file(state, folder / "open_clip_model.safetensors")
    message = refusal(folder)
    assert "visual.another" in message if change == "another's" else "visual.proj" in message


class Malicious:
    """Makes a folder when it is unpickled by a loader that trusts its file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.pth"])
def test_a_pickle_runs_nothing(folder: Path, tmp_path: Path, form: str, name: str) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    proof, path = tmp_path / "proof", folder / name
    state = {**weights_of(MODEL), "malicious": Malicious(proof)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"malicious": Malicious(proof)}, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    message = refusal(folder)
    assert not proof.exists()
    assert name in message and ".safetensors" in message and "weights_only" not in message
    pickle.loads(pickle.dumps(Malicious(proof)))
    assert proof.is_dir()  # so it would have run


# --- names


@pytest.mark.parametrize("source", ["no-such-model", "no-such-model:tag", "/no/such/folder", "C:\\no\\such", "x/y"])
def test_an_unknown_name_is_refused(source: str) -> None:
    assert refusal(source).startswith(f"There is no localizer {source}: give a folder")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "is missing" in refusal(f"local-dir:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("source", ["ViT-B-32", "ViT-B-32:", "ViT-B-32:no-such-tag"])
def test_a_name_without_its_weights_says_which_there_are(source: str) -> None:
    message = refusal(source)
    assert "The localizer ViT-B-32 needs the name of its weights" in message
    assert "laion2b_s34b_b79k" in message


def test_a_model_that_open_clip_has_no_weights_for_is_refused() -> None:
    open_clip = import_open_clip()
    bare = next(name for name in open_clip.list_models() if not open_clip.list_pretrained_tags_by_model(name))
    assert refusal(bare) == f"open_clip has no weights for {bare}: choose another localizer."


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and nothing downloaded before."""
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", ["hf-hub:nobody/no-such-model", "ViT-B-32:laion2b_s34b_b79k"])
def test_what_cannot_be_downloaded_is_refused_and_the_way_out_told(
    source: str, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(source)
    assert message.startswith(f"The localizer {source} does not load: its files are not on this machine")
    assert "give a folder" in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", ["hf-hub:nobody/no-such-model", "ViT-B-32:laion2b_s34b_b79k"])
def test_a_hub_out_of_reach_is_told_of_soon_and_in_one_line(
    source: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without the variable that says so: huggingface_hub asks six times, for half a minute, and logs each."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    begun = time.monotonic()
    assert "its files are not on this machine and cannot be downloaded" in refusal(source)
    assert time.monotonic() - begun < 10
    assert [record for record in caplog.records if "huggingface" in record.name] == []
    assert capfd.readouterr() == ("", "")
    assert constants.HF_HUB_OFFLINE is False, "the next model is asked for again"


@pytest.mark.usefixtures("offline")
def test_a_hub_model_whose_weights_are_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not left with random weights."""
    cached = write_config(tmp_path / "cached") / "open_clip_config.json"

    def on_hub(identifier: str, filename: str = "") -> str:
        assert identifier == "nobody/only-its-configuration"
        if filename == cached.name:
            return str(cached)
        raise FileNotFoundError("Failed to download file")

    monkeypatch.setattr(import_open_clip().pretrained, "download_pretrained_from_hf", on_hub)
    message = refusal("hf-hub:nobody/only-its-configuration")
    assert "its files are not on this machine" in message


@pytest.mark.parametrize("source", ["hf-hub:", "local-dir:"])
def test_an_empty_name_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(source)
