"""The catalogue of models: what is listed is what ships, and what was changed does not run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from XAICLIPLib import anatomy, catalog
from XAICLIPLib.catalog import Entry, entries, load_localizer, load_segmenter
from XAICLIPLib.errors import InputError
from XAICLIPLib.localization import localizer, openclip
from XAICLIPLib.resources import resource_path
from XAICLIPLib.segmentation import bundle

CPU = torch.device("cpu")
SHIPPED = [entry for entry in entries() if entry.source == "shipped"]
FIELDS = {"name", "kind", "title", "modality", "structures", "licence", "source"}


class Loaded:
    """Stands for a model that is loaded; remembers of what."""

    def __init__(self, source: Any, device: torch.device, trust: bool = False) -> None:
        self.source, self.trust, self.folder = source, trust, None


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load no weights: only which model is chosen matters."""
    monkeypatch.setattr(bundle, "BundleSegmenter", Loaded)
    monkeypatch.setattr(openclip, "load_model", Loaded)
    monkeypatch.setattr(localizer, "ClipLocalizer", lambda model, contexts: model)


@pytest.fixture
def resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Resources of their own: one small model of each kind."""
    listed = []
    for name, kind, content in (
        ("net", "segmenter", {"configs/metadata.json": "{}", "models/model.pt": "weights"}),
        ("clip", "localizer", {"open_clip_config.json": "{}"}),
    ):
        for path, text in content.items():
            file = tmp_path / "models" / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        files = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in content.items()}
        listed.append(
            {"name": name, "kind": kind, "title": name, "modality": "CT", "structures": ["liver"]}
            | {"licence": "Apache-2.0", "source": "shipped", "files": files}
        )
    (tmp_path / "models.json").write_text(json.dumps({"models": listed}), encoding="utf-8")
    monkeypatch.setattr(catalog, "resource_path", tmp_path.joinpath)
    entries.cache_clear()
    yield tmp_path / "models"
    entries.cache_clear()


# What ships


def test_every_entry_is_well_formed() -> None:
    listed = json.loads(resource_path("models.json").read_text(encoding="utf-8"))["models"]
    assert len({entry["name"] for entry in listed}) == len(listed)
    for entry in listed:
        assert set(entry) in (FIELDS, FIELDS | {"files"}), entry["name"]
        assert entry["kind"] in ("segmenter", "localizer")
        assert entry["modality"] in ("CT", "MR", "CT, MR")
        assert entry["title"] and entry["licence"]
        assert all(anatomy.resolve(name) for name in entry["structures"])
        if entry["source"] == "shipped":
            assert entry["files"] and entry["structures"]
            assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in entry["files"].values())
        else:
            assert entry["source"].startswith("hf-hub:") and "files" not in entry


def test_the_default_of_each_kind_ships() -> None:
    for kind in ("segmenter", "localizer"):
        first = next(entry for entry in entries() if entry.kind == kind)
        assert first.source == "shipped"


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_files_that_ship_are_those_that_were_listed(entry: Entry) -> None:
    entry.check()
    assert entry.folder is not None
    for name, expected in entry.files.items():
        found = hashlib.sha256((entry.folder / name).read_bytes()).hexdigest()
        assert found == expected, f"{name} is not as listed: run python -m XAICLIPLib.training.publish"


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_a_model_that_ships_has_a_card(entry: Entry) -> None:
    assert entry.folder is not None
    card = next(entry.folder.rglob("README.md")).read_text(encoding="utf-8").lower()
    for word in ("data", "licence", "limits", "not for diagnosis"):
        assert word in card, word


def test_what_ships_is_at_most_25_mb() -> None:
    sizes = [p.stat().st_size for p in resource_path("models").rglob("*") if p.is_file()]
    assert 0 < sum(sizes) <= 25_000_000


def test_the_segmenter_that_ships_is_what_the_catalogue_says() -> None:
    entry = next(e for e in SHIPPED if e.kind == "segmenter")
    segmenter = load_segmenter(None, CPU)
    assert {name for name in segmenter.labels.values() if name != "background"} == set(entry.structures)
    assert segmenter.modality == entry.modality
    assert segmenter.provenance["sha256"] == entry.files["models/model.pt"]


# Which model a name means


@pytest.mark.usefixtures("loaded")
def test_a_model_is_found_by_default_by_name_and_by_folder(resources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(resources)
    for name in (None, "net", resources / "net", str(resources / "net"), "./net", "../models/net/"):
        found: Any = load_segmenter(name, CPU)
        assert (found.source, found.trust) == (resources / "net", True), name
    for name in (None, "clip", resources / "clip", "./clip"):
        found = load_localizer(name, CPU)
        assert found.source == resources / "clip", name


@pytest.mark.usefixtures("loaded")
def test_a_copy_of_a_shipped_model_is_the_users_own(resources: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(resources / "net", tmp_path / "copy")
    (copy / "models" / "model.pt").write_text("other weights", encoding="utf-8")
    found: Any = load_segmenter(copy, CPU)
    assert (found.source, found.trust) == (copy, False)
    found = load_segmenter(copy, CPU, trust=True)
    assert found.trust


@pytest.mark.usefixtures("loaded")
def test_other_localizers_go_to_open_clip_as_they_are() -> None:
    for name in ("hf-hub:someone/model", "ViT-B-32:openai"):
        found: Any = load_localizer(name, CPU)
        assert found.source == name
    found = load_localizer("biomedclip", CPU)
    assert found.source.startswith("hf-hub:microsoft/BiomedCLIP")


@pytest.mark.parametrize("name", ["nosuch", "", "clip", "/nosuch/folder"])
def test_an_unknown_segmenter_is_refused_with_the_known_ones(resources: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"There is no model {name}: give the folder of a MONAI bundle .* net\."):
        load_segmenter(name, CPU)


def test_an_unknown_localizer_is_refused() -> None:
    with pytest.raises(InputError, match="nosuch-model"):
        load_localizer("nosuch-model", CPU)


# What was changed


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("by_folder", [False, True])
def test_a_changed_file_is_refused_by_name_and_by_folder(resources: Path, by_folder: bool) -> None:
    (resources / "net" / "models" / "model.pt").write_text("weightz", encoding="utf-8")
    with pytest.raises(InputError, match=r"net was changed, .*model\.pt .* install XAI-CLIP again, or give a copy"):
        load_segmenter(resources / "net" if by_folder else "net", CPU)


@pytest.mark.usefixtures("loaded")
def test_a_missing_file_is_refused(resources: Path) -> None:
    (resources / "clip" / "open_clip_config.json").unlink()
    with pytest.raises(InputError, match=r"clip is incomplete, .*open_clip_config\.json is missing"):
        load_localizer("clip", CPU)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("added", ["configs/inference.json", "models/model.ts", "scripts/net.py"])
def test_a_file_that_could_run_in_the_place_of_a_shipped_one_is_refused(resources: Path, added: str) -> None:
    file = resources / "net" / added
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=rf"net was changed, .*{Path(added).name} did not ship"):
        load_segmenter("net", CPU)


@pytest.mark.usefixtures("loaded")
def test_the_card_may_be_edited(resources: Path) -> None:
    (resources / "net" / "README.md").write_text("# mine", encoding="utf-8")
    load_segmenter("net", CPU)


def test_models_are_listed_without_pytorch() -> None:
    code = "import sys; from XAICLIPLib.cli import main; main(['models']); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_name_that_is_too_long_for_a_path_is_refused_like_any_other(resources: Path) -> None:
    with pytest.raises(InputError, match="There is no model"):
        load_segmenter("x" * 5000, CPU)


def test_open_clips_own_way_to_name_a_folder_does_not_go_round_the_checksums(resources: Path) -> None:
    (resources / "clip" / "open_clip_config.json").write_text("changed", encoding="utf-8")
    with pytest.raises(InputError, match="was changed"):
        load_localizer(f"local-dir:{resources / 'clip'}", CPU)
