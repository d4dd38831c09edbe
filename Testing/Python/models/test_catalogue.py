"""The catalogue of models: what is listed is what ships, and what was changed does not run."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from XAICLIPLib import anatomy
from XAICLIPLib.errors import InputError
from XAICLIPLib.localization import localizer, openclip
from XAICLIPLib.models import catalogue
from XAICLIPLib.models import entry as entry_module
from XAICLIPLib.models.catalogue import Entry, entries, find, load_localizer, load_segmenter, shipped_entries
from XAICLIPLib.models.entry import Remote
from XAICLIPLib.resources import resource_path
from XAICLIPLib.segmentation.networks import formats
from XAICLIPLib.system.checksums import sha256

CPU = torch.device("cpu")
SHIPPED = [entry for entry in shipped_entries() if entry.source == "shipped"]


class Loaded:
    """Stands for a model that is loaded; remembers of what."""

    def __init__(self, source: Any, device: torch.device, trust: bool = False) -> None:
        self.source, self.trust, self.folder = source, trust, None


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load no weights: only which model is chosen matters."""

    def load(path: Path, device: torch.device, trust: bool = False, labels: Any = None) -> Loaded | None:
        return Loaded(path, device, trust) if (path / "configs" / "metadata.json").is_file() else None

    monkeypatch.setattr(formats, "load", load)
    monkeypatch.setattr(openclip, "load_model", Loaded)
    monkeypatch.setattr(localizer, "ClipLocalizer", lambda model, prompts: model)


@pytest.fixture
def resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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
            | {"licence": "Apache-2.0", "source": "shipped", "files": files, "trust": kind == "segmenter"}
            | {"format": "bundle" if kind == "segmenter" else "open_clip"}
        )
    (tmp_path / "models.json").write_text(json.dumps({"models": listed}), encoding="utf-8")
    monkeypatch.setattr(catalogue, "resource_path", tmp_path.joinpath)
    monkeypatch.setattr(entry_module, "resource_path", tmp_path.joinpath)
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path / "mine"))
    return tmp_path / "models"


# What ships


def test_every_entry_says_what_it_is_and_where_it_comes_from() -> None:
    listed = shipped_entries()
    assert [entry.name for entry in SHIPPED] == ["abdomen-ct", "anatomy-clip"]
    assert next(e.name for e in listed if e.kind == "localizer" and e.source != "shipped") == "biomedclip"
    for entry in listed:
        assert entry.source == "shipped" or entry.citation, entry.name
        assert entry.trust == (entry.name == "abdomen-ct"), "nobody has reviewed the code of another"
        if entry.source == "shipped":
            assert entry.structures and all(anatomy.resolve(name) for name in entry.structures)
        if isinstance(entry.source, dict):
            for remote in entry.source.values():
                assert remote.url.startswith("https://") and remote.size


@pytest.mark.parametrize(
    ("name", "folder"), [("brainchop-tissue", "model20chan3cls"), ("brainchop-subcortical", "model30chan18cls")]
)
def test_the_checksums_of_brainchop_are_those_of_its_files(name: str, folder: str, shared_data: Path) -> None:
    place = shared_data / "brain_mr" / folder
    if not place.is_dir():
        pytest.skip(f"{place} is not here")
    entry = find(name)
    assert isinstance(entry.source, dict)
    labels = json.loads((place / "colormap.json").read_text(encoding="utf-8"))["labels"][1:]
    assert entry.structures == tuple(label.replace("-", " ").lower() for label in labels)
    for path, remote in entry.source.items():
        assert remote == Remote(remote.url, sha256(place / path), (place / path).stat().st_size)


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
    with pytest.raises(InputError, match=rf"There is no model {name}: give .*folder of a MONAI bundle .* net\."):
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
    code = "import sys; from XAICLIPLib.commands.main import main; main(['models']); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_name_that_is_too_long_for_a_path_is_refused_like_any_other(resources: Path) -> None:
    with pytest.raises(InputError, match="There is no model"):
        load_segmenter("x" * 5000, CPU)


def test_open_clips_own_way_to_name_a_folder_does_not_go_round_the_checksums(resources: Path) -> None:
    (resources / "clip" / "open_clip_config.json").write_text("changed", encoding="utf-8")
    with pytest.raises(InputError, match="was changed"):
        load_localizer(f"local-dir:{resources / 'clip'}", CPU)


# What is not shipped


def own_catalogue(resources: Path, *given: dict[str, Any]) -> None:
    """Write the catalogue of a user."""
    plain = {
        "kind": "segmenter",
        "format": "bundle",
        "title": "x",
        "modality": "CT",
        "structures": [],
        "licence": "MIT",
    }
    path = resources.parent / "mine" / "catalogue.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"models": [plain | entry for entry in given]}), encoding="utf-8")


@pytest.mark.usefixtures("loaded")
def test_a_users_entry_is_found_and_its_code_only_runs_if_it_says_so_with_checksums(resources: Path) -> None:
    files = {"configs/metadata.json": "{}", "models/model.pt": "weights"}
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    folder = shutil.copytree(resources / "net", resources.parent / "elsewhere")
    source = {"source": {"path": str(folder)}}
    own_catalogue(
        resources,
        {"name": "plain"} | source,
        {"name": "checked", "files": sums} | source,
        {"name": "trusted", "files": sums, "trust": True} | source,
    )
    assert [entry.name for entry in entries()] == ["net", "clip", "plain", "checked", "trusted"]
    for name, trust in (("plain", False), ("checked", False), ("trusted", True)):
        found: Any = load_segmenter(name, CPU)
        assert (found.source, found.trust) == (folder, trust), name
        found = load_segmenter(name, CPU, trust=True)
        assert found.trust
    (folder / "models" / "model.pt").write_text("other", encoding="utf-8")
    load_segmenter("plain", CPU)
    for name in ("checked", "trusted"):
        with pytest.raises(InputError, match=f"{name} was changed"):
            load_segmenter(name, CPU)


@pytest.mark.usefixtures("loaded")
def test_a_users_entry_does_not_stand_in_for_a_shipped_one(resources: Path) -> None:
    own_catalogue(resources, {"name": "NET", "source": {"path": "/elsewhere"}})
    assert [entry.name for entry in entries()] == ["net", "clip"]


def test_a_change_of_the_users_catalogue_is_seen_at_once(resources: Path) -> None:
    for name in ("one", "other"):
        own_catalogue(resources, {"name": name, "source": {"path": "/elsewhere"}})
        assert entries()[-1].name == name


@pytest.mark.parametrize(
    ("name", "own", "licence"),
    [
        ("brainchop-tissue", "unknown", "MIT"),
        ("brainchop-tissue", "BSD-3-Clause", "BSD-3-Clause"),
        (None, "unknown", "Apache-2.0"),
        ("/elsewhere/net", "unknown", "unknown"),
        (object(), "unknown", "unknown"),
    ],
)
def test_the_catalogue_knows_the_licence_where_the_files_do_not(name: object, own: str, licence: str) -> None:
    told = catalogue.provenance_of(name, {"name": "net", "licence": own})
    assert told == {"name": "net", "licence": licence}


def test_what_is_not_downloaded_says_how_to_get_it(resources: Path) -> None:
    own_catalogue(
        resources,
        {"name": "zoo", "source": "monai:some_bundle@0.1.0", "size_mb": 12.4},
        {"name": "gone", "source": {"path": "/gone"}},
        {"name": "packed", "format": "deepbet", "source": "package:no-such-package"},
    )
    with pytest.raises(InputError, match=r"`xaiclip models download zoo` \(12 MB, licence MIT, from monai:some_bundle"):
        load_segmenter("zoo", CPU)
    with pytest.raises(InputError, match=r"gone is not at /gone any more"):
        load_segmenter("gone", CPU)
    with pytest.raises(InputError, match="needs the package no-such-package"):
        load_segmenter("packed", CPU)


@pytest.mark.usefixtures("loaded")
def test_an_archive_is_unpacked_once_under_its_checksum(resources: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "zip", resources, "net")
    archive = tmp_path / "packed.zip"
    place = resources.parent / "mine" / "unpacked" / sha256(archive) / "net"
    for _ in range(2):
        found: Any = load_segmenter(archive, CPU)
        assert (found.source, found.trust) == (place, False)
        written = (place / "models" / "model.pt").stat().st_mtime_ns
    load_segmenter(str(archive), CPU)
    assert (place / "models" / "model.pt").stat().st_mtime_ns == written


@pytest.mark.usefixtures("loaded")
def test_what_a_library_downloads_is_remembered_and_a_later_change_refused(
    resources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    own_catalogue(
        resources,
        {"name": "hub", "kind": "localizer", "format": "open_clip", "source": "hf-hub:someone/clip"},
    )
    assert not entries()[-1].installed
    load_localizer("hub", CPU)
    repository = tmp_path / "hub" / "models--someone--clip"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    (snapshot / "open_clip_config.json").write_text("{}", encoding="utf-8")
    assert not entries()[-1].installed, "without weights"
    (snapshot / "open_clip_model.safetensors").write_text("weights", encoding="utf-8")
    assert entries()[-1].installed
    found: Any = load_localizer("hub", CPU)
    assert found.source == "hf-hub:someone/clip"
    lock = json.loads((resources.parent / "mine" / "locks" / "hub.json").read_text(encoding="utf-8"))
    assert lock["files"]["open_clip_model.safetensors"] == hashlib.sha256(b"weights").hexdigest()
    (snapshot / "tokenizer.json").write_text("{}", encoding="utf-8")
    load_localizer("hub", CPU)
    (snapshot / "open_clip_model.safetensors").write_text("weightz", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"hub was changed, .*open_clip_model.safetensors .* `xaiclip models remove hub`"
    ):
        load_localizer("hub", CPU)


@pytest.mark.parametrize("trust", [False, True])
def test_a_network_of_a_package_hears_whether_it_is_trusted(
    resources: Path, monkeypatch: pytest.MonkeyPatch, trust: bool
) -> None:
    def load(name: str, device: torch.device, trust: bool = False) -> Loaded:
        return Loaded(name, device, trust)

    monkeypatch.setattr(formats, "load_registered", load)
    entry = {"name": "packaged", "kind": "segmenter", "format": "deepbet", "source": "package:numpy"}
    own_catalogue(resources, entry)
    for name in ("totalsegmentator:total_fast", "packaged"):
        found: Any = load_segmenter(name, CPU, trust)
        assert (found.source, found.trust) == (name, trust)


@pytest.mark.usefixtures("loaded")
def test_a_name_is_found_whatever_its_case(resources: Path) -> None:
    found: Any = load_segmenter("NET", CPU)
    assert found.source == resources / "net" == find("Net").folder


@pytest.mark.usefixtures("loaded")
def test_prompts_tuned_into_the_cache_of_a_library_may_be_tuned_again(
    resources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    own_catalogue(
        resources,
        {"name": "hub", "kind": "localizer", "format": "open_clip", "source": "hf-hub:someone/clip"},
    )
    repository = tmp_path / "hub" / "models--someone--clip"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (snapshot / name).write_text("{}", encoding="utf-8")
    load_localizer("hub", CPU)
    for content in ("tuned", "tuned again"):
        (snapshot / "prompts.safetensors").write_text(content, encoding="utf-8")
        load_localizer("hub", CPU)
