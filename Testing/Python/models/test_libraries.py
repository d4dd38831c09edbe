"""Other libraries download in a process of their own: what they leave, how they fail, and that they can be ended."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from misbehaving import Behaviour, serving

from XAICLIPLib.errors import Cancelled
from XAICLIPLib.models import libraries

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")


def test_a_bundle_of_the_zoo_is_downloaded_by_monai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monai = pytest.importorskip("monai.bundle")

    def fetched(name: str, version: str, bundle_dir: str, source: str, progress: bool) -> None:
        assert (name, version, source) == ("some_bundle", "1.0.2", "monaihosting")
        (Path(bundle_dir) / name / ".cache").mkdir(parents=True)

    monkeypatch.setattr(monai, "download", fetched)
    assert libraries.main("monai", "some_bundle@1.0.2", tmp_path) == 0
    assert (tmp_path / libraries.PLACE).read_text() == "some_bundle"
    assert list((tmp_path / "some_bundle").iterdir()) == []


def test_a_repository_of_the_hub_comes_with_one_kind_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def fetched(repository: str, local_dir: Path, ignore_patterns: list[str]) -> None:
        assert repository == "someone/sam"
        local_dir.mkdir()
        for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
            (local_dir / name).write_text("x", encoding="utf-8")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    place = libraries.from_hub("someone/sam", tmp_path)
    assert sorted(path.name for path in place.iterdir()) == ["config.json", "model.safetensors"]


def test_a_library_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"\w+"):
        libraries.fetch("hf-hub", "nobody/nothing", tmp_path)


def test_a_library_that_is_missing_is_an_import_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "huggingface_hub.py").write_text("raise ModuleNotFoundError('No module named huggingface_hub')")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(ImportError, match="No module named huggingface_hub"):
        libraries.fetch("hf-hub", "nobody/nothing", work)


def test_a_download_that_hangs_is_ended_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's own library against a server that accepts and never answers."""
    behaviour, sizes = Behaviour(hangs=True), []
    with serving(behaviour) as url:
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_ENDPOINT", url.rsplit("/", 1)[0])
        began: list[float] = []

        def cancelled() -> bool:
            if behaviour.asked and not began:
                began.append(time.monotonic())
            return bool(began)

        with pytest.raises(Cancelled, match="nobody/nothing"):
            libraries.fetch("hf-hub", "nobody/nothing", tmp_path, sizes.append, cancelled)
        assert time.monotonic() - began[0] < 3
    assert sizes
