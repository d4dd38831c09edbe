"""What an entry of the catalogue says of itself: where it comes from, whether it is here, whether it was changed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from XAICLIPLib.errors import InputError
from XAICLIPLib.models.entry import Entry, Remote

SUM = "0" * 64
PLAIN = Entry("net", "segmenter", "auto", "x", "CT", (), "MIT", "monai:net@1.0")


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's models."""
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path / "mine"))
    return tmp_path / "mine"


def test_where_it_comes_from_is_told_in_words(tmp_path: Path) -> None:
    remote = Remote("https://example.org/a.bin", SUM)
    other = Remote("https://example.org/b.bin", SUM)
    for source, told in (
        ("shipped", "shipped"),
        ("hf-hub:a/b", "hf-hub:a/b"),
        (tmp_path, str(tmp_path)),
        (remote, "https://example.org/a.bin"),
        ({"a": remote}, "https://example.org/a.bin"),
        ({"a": remote, "b": other}, "https://example.org/a.bin and others"),
    ):
        assert replace(PLAIN, source=source).origin == told
    assert PLAIN.fetched_as("monai") == "net@1.0" and PLAIN.fetched_as("hf-hub") is None


def test_its_size_is_told_by_the_catalogue_or_by_its_files() -> None:
    small, large = (Remote(f"https://example.org/{size}.bin", SUM, size) for size in (500_000, 1_500_000))
    unknown = Remote("https://example.org/", SUM)
    for source, size_mb, told in (
        (small, None, 0.5),
        ({"a": small, "b": large}, None, 2.0),
        ({"a": small, "b": large}, 3.0, 3.0),
        ({"a": small, "b": unknown}, None, None),
        ("hf-hub:a/b", None, None),
        ("hf-hub:a/b", 375.0, 375.0),
    ):
        assert replace(PLAIN, source=source, size_mb=size_mb).download_mb == told
    assert list(replace(PLAIN, source=small).remotes) == ["500000.bin"]
    assert list(replace(PLAIN, source=unknown).remotes) == ["net"], "by its own name, where the address has none"


def test_inputs_are_known_but_for_a_path_of_the_user(tmp_path: Path) -> None:
    assert PLAIN.knows_inputs and PLAIN.inputs == ("image",)
    assert not replace(PLAIN, source=tmp_path).knows_inputs
    assert replace(PLAIN, source=tmp_path, inputs=("T1", "T2")).knows_inputs


def test_a_package_is_installed_where_pip_says_so() -> None:
    assert replace(PLAIN, source="package:numpy").installed
    assert not replace(PLAIN, source="package:no-such-package-here").installed


def test_totalsegmentator_is_installed_where_its_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(PLAIN, source="package:TotalSegmentator", format="totalsegmentator")
    for name in ("TOTALSEG_WEIGHTS_PATH", "TOTALSEG_HOME_DIR", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not entry.installed
    folder = tmp_path / ".totalsegmentator" / "nnunet" / "results" / "Dataset297_x"
    folder.mkdir(parents=True)
    assert not entry.installed, "an interrupted download"
    fold = folder / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    for path in (fold.parent / "plans.json", fold.parent / "dataset.json", fold / "checkpoint_final.pth"):
        assert not entry.installed
        path.write_text("{}", encoding="utf-8")
    assert entry.installed
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    assert not entry.installed
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(folder.parent))
    assert entry.installed


def test_a_path_is_installed_while_it_is_there(tmp_path: Path) -> None:
    entry = replace(PLAIN, source=tmp_path / "net.pt")
    assert not entry.installed
    (tmp_path / "net.pt").write_bytes(b"abc")
    assert entry.installed
    entry.check()


def test_a_model_is_here_when_all_its_files_are_and_whole_when_none_was_changed(mine: Path) -> None:
    content = {"a.json": b"{}", "b/c.bin": b"weights"}
    sums = {name: hashlib.sha256(text).hexdigest() for name, text in content.items()}
    entry = replace(PLAIN, files=sums)
    folder = mine / "models" / "net"
    entry.check()
    for name, text in content.items():
        assert not entry.installed
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    assert entry.installed and entry.folder == folder
    entry.check()
    (folder / "stray.py").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match=r"stray\.py does not belong to it: remove that file\.$"):
        entry.check()
    os.remove(folder / "stray.py")
    (folder / "a.json").write_bytes(b"[]")
    with pytest.raises(
        InputError, match=r"a\.json is not the file that was meant: run `xaiclip models remove net` and"
    ):
        entry.check()
    os.remove(folder / "a.json")
    with pytest.raises(InputError, match=r"is incomplete, .*a\.json is missing"):
        entry.check()


def test_prompts_tuned_beside_a_localizer_do_not_change_it(mine: Path) -> None:
    folder = mine / "models" / "net"
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_bytes(b"{}")
    (folder / "prompts.safetensors").write_bytes(b"tuned")
    sums = {"open_clip_config.json": hashlib.sha256(b"{}").hexdigest()}
    localizer = replace(PLAIN, kind="localizer", format="open_clip", source="hf-hub:a/b", files=sums)
    localizer.check()
    with pytest.raises(InputError, match=r"prompts\.safetensors does not belong to it"):
        replace(localizer, kind="segmenter", format="auto").check()
    (folder / "other").mkdir()
    (folder / "other" / "prompts.safetensors").write_bytes(b"elsewhere")
    with pytest.raises(InputError, match=r"prompts\.safetensors does not belong to it"):
        localizer.check()
