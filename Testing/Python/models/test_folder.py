"""Where the user's models lie, and that a damaged memory of them does not pass for none."""

from __future__ import annotations

from pathlib import Path

import pytest

from XAICLIPLib.errors import InputError
from XAICLIPLib.models.folder import (
    Lock,
    download_folder,
    hub_snapshot,
    models_folder,
    read_lock,
    remove_lock,
    write_lock,
)


def test_the_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path / "mine"))
    assert models_folder() == tmp_path / "mine"
    assert download_folder("net") == tmp_path / "mine" / "models" / "net"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XAICLIP_MODELS", "~/here")
    assert models_folder() == tmp_path / "here"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XAICLIP_MODELS", "relative")
    assert models_folder() == tmp_path / "relative"


@pytest.mark.parametrize("named", [None, "", " "])
def test_without_it_the_folder_is_where_the_system_keeps_a_users_data(
    named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platformdirs = pytest.importorskip("platformdirs")
    monkeypatch.setenv("HOME", str(tmp_path))
    if named is None:
        monkeypatch.delenv("XAICLIP_MODELS", raising=False)
    else:
        monkeypatch.setenv("XAICLIP_MODELS", named)
    assert models_folder() == Path(platformdirs.user_data_dir("xaiclip", appauthor=False))
    assert not models_folder().exists(), "asking makes nothing"


def test_a_lock_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path / "mine"))
    folder = tmp_path / "net"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "abc").write_bytes(b"abc")
    lock = write_lock("net", "hf-hub:a/b", folder, "a/b")
    # SHA-256 of "abc" is the example of FIPS 180-2, appendix B.1.
    sums = {"sub/abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert lock == Lock("hf-hub:a/b", sums, "a/b") == read_lock("net")
    remove_lock("net")
    assert read_lock("net") is None
    remove_lock("net")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"source": "x"}', '{"source": "x", "files": {}, "more": 1}'])
def test_a_damaged_lock_is_told(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path))
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "net.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"checksums of the model net in .*net\.json cannot be read"):
        read_lock("net")


@pytest.mark.parametrize("repository", ["no/such-repository", "no name", "", "a/b/c"])
def test_a_repository_that_was_not_downloaded_has_no_folder(repository: str) -> None:
    assert hub_snapshot(repository, "config.json") is None
