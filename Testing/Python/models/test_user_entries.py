"""A user's own entries: added, listed and removed, and nothing of theirs deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from XAICLIPLib.errors import InputError
from XAICLIPLib.models.catalogue import entries, find, shipped_entries
from XAICLIPLib.models.folder import write_lock
from XAICLIPLib.models.user_entries import add, remove, user_entries
from XAICLIPLib.resources import resource_path

SHIPPED = shipped_entries()
SUM = "0" * 64


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's models."""
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path / "mine"))
    return tmp_path / "mine"


def catalogue(path: Path, *given: dict[str, Any]) -> Path:
    plain = {"kind": "segmenter", "format": "auto", "title": "x", "modality": "any", "structures": [], "licence": "MIT"}
    path.write_text(json.dumps({"models": [plain | entry for entry in given]}), encoding="utf-8")
    return path


def test_a_bundle_is_described_by_its_own_metadata() -> None:
    folder = resource_path("models", "abdomen-ct")
    (entry,) = add(folder, SHIPPED, "my-copy")
    assert entry == user_entries()[0] == entries()[-1] == find("MY-COPY")
    assert (entry.name, entry.kind, entry.format, entry.modality) == ("my-copy", "segmenter", "bundle", "CT")
    assert set(entry.structures) == set(SHIPPED[0].structures)
    assert entry.source == folder == entry.folder and entry.installed and not entry.trust


def test_a_localizer_is_recognised() -> None:
    (entry,) = add(resource_path("models", "anatomy-clip"), SHIPPED, "my-clip")
    assert (entry.kind, entry.format) == ("localizer", "open_clip")


@pytest.mark.parametrize(
    ("file", "name"),
    [("net.pt", "net"), ("My net (2).ts", "My-net-2"), ("net.tar.gz", "net"), ("_x.zip", "x"), ("é-net.yaml", "net")],
)
def test_a_file_is_named_after_itself(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_bytes(b"weights")
    (entry,) = add(tmp_path / file, SHIPPED)
    assert (entry.name, entry.format, entry.source) == (name, "auto", tmp_path / file)


def test_a_damaged_bundle_can_be_added_and_is_told_when_it_is_loaded(tmp_path: Path) -> None:
    for number, text in enumerate(("", "[]", '{"network_data_format": 3}', '{"network_data_format": {"outputs": []}}')):
        folder = tmp_path / f"net{number}"
        (folder / "configs").mkdir(parents=True)
        (folder / "configs" / "metadata.json").write_text(text, encoding="utf-8")
        (entry,) = add(folder, SHIPPED)
        assert (entry.structures, entry.modality, entry.licence) == ((), "any", "unknown")


def test_a_catalogue_brings_all_its_entries_and_relative_paths_are_its_own(tmp_path: Path) -> None:
    path = catalogue(
        tmp_path / "team.json",
        {"name": "one", "source": {"path": "nets/one"}},
        {"name": "two", "source": "hf-hub:team/two"},
    )
    added = add(path, SHIPPED)
    assert [entry.name for entry in added] == ["one", "two"]
    path.unlink()
    assert user_entries() == tuple(added)
    assert user_entries()[0].source == tmp_path / "nets" / "one"


@pytest.mark.parametrize("trust", [True, False])
def test_a_catalogue_is_only_believed_about_code_where_the_user_says_so(tmp_path: Path, trust: bool) -> None:
    path = catalogue(
        tmp_path / "team.json", {"name": "one", "source": {"path": "x"}, "files": {"a": SUM}, "trust": True}
    )
    add(path, SHIPPED, trust=trust)
    assert user_entries()[0].trust is trust


def test_what_cannot_be_added_is_told_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"weights")
    (tmp_path / "---").mkdir()
    add(tmp_path / "net.pt", SHIPPED)
    before = user_entries()
    taken = catalogue(
        tmp_path / "taken.json", {"name": "new", "source": {"path": "x"}}, {"name": "NET", "source": {"path": "x"}}
    )
    for path, name, told in (
        (tmp_path / "nosuch", None, "There is no .*nosuch to add"),
        (tmp_path / "net.pt", None, "There is a model net already: choose another with --name"),
        (tmp_path / "net.pt", "Abdomen-CT", "There is a model Abdomen-CT already"),
        (tmp_path / "net.pt", "a/b", "a/b cannot be a name"),
        (tmp_path / "---", None, "choose one with --name"),
        (taken, None, "There is a model NET already: rename it there"),
        (taken, "x", "leave out --name"),
        (catalogue(tmp_path / "bad.json", {"name": "x"}), None, "entry x of the catalogue .*bad.json has no source"),
        (
            catalogue(tmp_path / "as.json", {"name": "x", "source": "shipped", "files": {"a": SUM}}),
            None,
            "must have another source than shipped",
        ),
    ):
        with pytest.raises(InputError, match=told):
            add(path, SHIPPED, name)
        assert user_entries() == before


def test_removing_forgets_an_entry_and_keeps_the_users_files(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"weights")
    add(tmp_path / "net.pt", SHIPPED)
    assert remove(find("net")) == []
    assert user_entries() == () and (tmp_path / "net.pt").exists()


def test_removing_deletes_what_was_downloaded_and_its_checksums(mine: Path) -> None:
    entry = find("brats-mri")
    folder = mine / "models" / "brats-mri"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"weights")
    write_lock("brats-mri", entry.origin, folder)
    assert entry.installed
    assert remove(entry) == [folder]
    assert not entry.installed and not folder.exists() and not list((mine / "locks").iterdir())
    assert find("brats-mri") == entry, "it can be downloaded again"


def test_a_damaged_lock_is_removed_too(mine: Path) -> None:
    (mine / "locks").mkdir(parents=True)
    (mine / "locks" / "brats-mri.json").write_text("{", encoding="utf-8")
    entry = find("brats-mri")
    (mine / "models" / "brats-mri").mkdir(parents=True)
    assert not entry.installed
    with pytest.raises(InputError, match="xaiclip models remove brats-mri"):
        entry.check()
    remove(entry)
    assert not list((mine / "locks").iterdir())


@pytest.mark.parametrize(
    ("name", "told"), [("abdomen-ct", "ships with XAI-CLIP"), ("brats-mri", "not on this machine")]
)
def test_there_may_be_nothing_to_remove(name: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        remove(find(name))
    assert resource_path("models", "abdomen-ct", "models", "model.pt").is_file()


def test_a_damaged_catalogue_of_the_user_is_told_with_its_path(mine: Path) -> None:
    mine.mkdir()
    (mine / "catalogue.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"catalogue\.json cannot be read"):
        entries()


def test_a_folder_that_cannot_be_written_is_told(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"weights")
    mine.write_text("a file", encoding="utf-8")
    with pytest.raises(InputError, match="XAICLIP_MODELS"):
        add(tmp_path / "net.pt", SHIPPED)


def bundle_saying(folder: Path, **metadata: Any) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    return folder


@pytest.mark.parametrize("licence", ["", " ", "\t\n", None])
def test_a_blank_licence_is_an_unknown_one(tmp_path: Path, licence: str | None) -> None:
    (entry,) = add(bundle_saying(tmp_path / "net", license=licence), SHIPPED)
    assert entry.licence == "unknown" and entries()[-1] == entry


def test_an_entry_that_could_not_be_read_again_is_not_written(tmp_path: Path, mine: Path) -> None:
    halves = bundle_saying(tmp_path / "net", license="\ud800")  # half a character
    with pytest.raises(InputError, match=r"The entry net of .*net must have as licence text that is valid Unicode\.$"):
        add(halves, SHIPPED)
    assert entries() == SHIPPED and not (mine / "catalogue.json").exists()
