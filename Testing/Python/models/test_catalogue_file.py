"""Catalogue files: each mistake is told in a sentence with the entry and the key, and the JSON Schema agrees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from XAICLIPLib.errors import InputError
from XAICLIPLib.models.catalogue_file import (
    FILE,
    NAME,
    SHA256,
    SOURCE_TEXT,
    URL,
    as_json,
    read_catalogue,
    read_entry,
    write_catalogue,
)
from XAICLIPLib.models.entry import FORMATS, KINDS, MODALITIES, Remote
from XAICLIPLib.resources import resource_path

SCHEMA = json.loads(resource_path("models.schema.json").read_text(encoding="utf-8"))
SUM = "0123456789abcdef" * 4
ENTRY: dict[str, Any] = {
    "name": "net",
    "kind": "segmenter",
    "format": "bundle",
    "title": "a network",
    "modality": "CT",
    "structures": ["liver"],
    "licence": "MIT",
    "source": "shipped",
    "files": {"models/model.pt": SUM},
}
NO_FILES = {key: value for key, value in ENTRY.items() if key != "files"}
REMOTE = {"url": "https://example.org/net.zip", "sha256": SUM}

GOOD: list[dict[str, Any]] = [
    ENTRY,
    ENTRY | {"trust": True, "citation": "Someone, 2026", "size_mb": 0.5},
    ENTRY | {"trust": False, "size_mb": 12},
    ENTRY | {"modality": "CT, MR", "structures": []},
    *[ENTRY | {"inputs": names} for names in (["T1"], ["T1c", "T1", "T2", "FLAIR"], list("abcdefgh"))],
    ENTRY | {"files": {"a b/c+d@e-f_g.h": SUM, "x": SUM}},
    ENTRY | {"kind": "localizer", "format": "open_clip"},
    *[NO_FILES | {"format": word, "source": {"path": "/mine"}} for word in FORMATS if word != "open_clip"],
    *[NO_FILES | {"name": name, "source": {"path": "m"}} for name in ("a", "0", "A.b_c-d", "x" * 64)],
    *[
        NO_FILES | {"source": source}
        for source in (
            "hf-hub:facebook/sam-vit-base",
            "monai:spleen_ct_segmentation@0.5.9",
            "package:deepbet",
            "open_clip:ViT-B-16:laion2b_s34b_b88k",
            {"archive": REMOTE},
            {"archive": REMOTE | {"size": 10}},
            {"archive": REMOTE | {"url": "http://127.0.0.1:8000/x"}},
            {"archive": REMOTE | {"url": "http://localhost/x"}},
            {"files": {"model.bin": REMOTE, "configs/model.json": REMOTE | {"size": 0}}},
            {"path": "relative/folder"},
            {"path": "C:\\\\models\\\\mine"},
        )
    ],
    ENTRY | {"source": {"archive": REMOTE}, "trust": True},
    NO_FILES | {"source": {"files": {"model.bin": REMOTE}}, "trust": True},
    ENTRY | {"source": "monai:spleen_ct_segmentation@0.5.9", "trust": True},
]

BAD: list[tuple[Any, str]] = [
    *[({k: v for k, v in ENTRY.items() if k != key}, f"has no {key}") for key in NO_FILES],
    (ENTRY | {"licence_url": "x"}, "not known, licence_url"),
    *[
        (ENTRY | {"name": name}, "as name")
        for name in ("", "a/b", "..", ".a", "a.", "a b", "x" * 65, "é", 3, None, "a\n")
    ],
    *[(ENTRY | {"kind": kind}, "as kind") for kind in ("detector", "Segmenter", "", None, ["segmenter"])],
    *[(ENTRY | {"format": word}, "as format") for word in ("pickle", "", None)],
    (ENTRY | {"format": "open_clip"}, "format open_clip"),
    (ENTRY | {"kind": "localizer"}, "format open_clip"),
    *[(ENTRY | {"title": title}, "as title") for title in ("", " ", 1, None)],
    *[(ENTRY | {"modality": modality}, "as modality") for modality in ("ct", "PET", "", None, ["CT"])],
    *[(ENTRY | {"structures": names}, "as structures") for names in ("liver", [""], [1], None, {"0": "liver"})],
    *[(ENTRY | {"inputs": names}, "as inputs") for names in ([], "T1", [""], [1], None, ["a", "a"], list("abcdefghi"))],
    (ENTRY | {"licence": ""}, "as licence"),
    (ENTRY | {"citation": ""}, "as citation"),
    *[(ENTRY | {"size_mb": size}, "as size_mb") for size in (-1, "12", None, True)],
    *[(ENTRY | {"trust": trust}, "as trust") for trust in (1, "yes", None)],
    (NO_FILES, "shipped and must have files"),
    *[
        (ENTRY | {"files": files}, "as files")
        for files in (
            {},
            [],
            None,
            {"model.pt": "abc"},
            {"model.pt": SUM.upper()},
            {"model.pt": None},
            *[
                {path: SUM}
                for path in (
                    "../x",
                    "/x",
                    "a/../x",
                    "a//b",
                    "./x",
                    "a\\b",
                    "C:x",
                    "",
                    "a/",
                    ".x",
                    "x.",
                    "x ",
                    "é",
                    "x\n",
                )
            ],
        )
    ],
    *[
        (NO_FILES | {"source": source}, "as source")
        for source in (
            "",
            "ship",
            "shipped\n",
            "hf-hub:nobody",
            "hf-hub:../x",
            "monai:bundle",
            "monai:../x@1",
            "open_clip:ViT-B-16",
            "https://example.org/net.zip",
            "package:",
            None,
            [],
            {},
            {"archive": REMOTE, "path": "x"},
            {"archive": "https://example.org/net.zip"},
            {"archive": {"url": REMOTE["url"]}},
            {"archive": {"sha256": SUM}},
            {"archive": REMOTE | {"md5": "x"}},
            {"archive": REMOTE | {"size": -1}},
            {"archive": REMOTE | {"size": "10"}},
            {"archive": REMOTE | {"url": "http://example.org/net.zip"}},
            {"archive": REMOTE | {"url": "http://127.0.0.1.example.org/net.zip"}},
            {"archive": REMOTE | {"url": "file:///etc/passwd"}},
            {"archive": REMOTE | {"url": "https://"}},
            {"archive": REMOTE | {"sha256": "sha256:" + SUM}},
            {"files": {}},
            {"files": []},
            {"files": {"../x": REMOTE}},
            {"files": {"x": SUM}},
            {"path": ""},
            {"path": 3},
        )
    ],
    (ENTRY | {"source": {"files": {"model.bin": REMOTE}}}, "leave out files"),
    (NO_FILES | {"source": {"archive": REMOTE}, "trust": True}, "cannot be trusted"),
    (NO_FILES | {"source": {"path": "x"}, "trust": True}, "cannot be trusted"),
    (NO_FILES | {"source": "monai:spleen_ct_segmentation@0.5.9", "trust": True}, "cannot be trusted"),
    ([], "must be an object"),
    ("net", "must be an object"),
]


@pytest.fixture(scope="module")
def valid() -> Callable[[Any], bool]:
    """Whether the JSON Schema takes a catalogue with this one entry."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema, which only this test needs, is not installed")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return lambda entry: bool(validator.is_valid({"models": [entry]}))


@pytest.mark.parametrize("given", GOOD, ids=range(len(GOOD)))
def test_a_good_entry_is_read_and_written_back_as_it_was(given: dict[str, Any]) -> None:
    entry = read_entry(given, "The entry")
    left_out = {key for key in given if given[key] is False}
    written = as_json(entry)
    if isinstance(given["source"], dict) and "path" in given["source"]:
        assert written["source"] == {"path": str(Path(given["source"]["path"]).absolute())}
        written["source"] = given["source"]
    assert written == {key: value for key, value in given.items() if key not in left_out}


@pytest.mark.parametrize("given", GOOD, ids=range(len(GOOD)))
def test_the_schema_takes_a_good_entry(given: dict[str, Any], valid: Callable[[Any], bool]) -> None:
    assert valid(given)


@pytest.mark.parametrize(("given", "told"), BAD, ids=range(len(BAD)))
def test_a_bad_entry_is_refused_in_a_sentence(given: Any, told: str) -> None:
    with pytest.raises(InputError) as error:
        read_entry(given, "The entry net of the catalogue")
    text = str(error.value)
    assert text.startswith("The entry net of the catalogue") and text.endswith(".") and "\n" not in text
    assert told in text


@pytest.mark.parametrize(("given", "told"), BAD, ids=range(len(BAD)))
def test_the_schema_refuses_a_bad_entry(given: Any, told: str, valid: Callable[[Any], bool]) -> None:
    if "\\n" in json.dumps(given):
        pytest.skip("Python's $ also stands before a last line end, that of JSON Schema does not")
    assert not valid(given)


def test_the_schema_has_the_same_patterns_and_words() -> None:
    entry = SCHEMA["$defs"]["entry"]["properties"]
    assert entry["name"]["pattern"] == f"^{NAME}$"
    assert SCHEMA["$defs"]["file"]["pattern"] == f"^{FILE}$"
    assert SCHEMA["$defs"]["sha256"]["pattern"] == f"^{SHA256}$"
    assert SCHEMA["$defs"]["remote"]["properties"]["url"]["pattern"] == f"^{URL}$"
    assert entry["source"]["oneOf"][0]["pattern"] == f"^(?:{SOURCE_TEXT})$"
    assert [entry[key]["enum"] for key in ("kind", "format", "modality")] == [
        list(KINDS),
        list(FORMATS),
        list(MODALITIES),
    ]


def test_the_catalogue_that_ships_agrees_with_the_schema_and_is_written_back_as_it_is(
    tmp_path: Path, valid: Callable[[Any], bool]
) -> None:
    assert all(valid(entry) for entry in json.loads(resource_path("models.json").read_text(encoding="utf-8"))["models"])


def test_the_catalogue_that_ships_is_written_back_as_it_is(tmp_path: Path) -> None:
    write_catalogue(tmp_path / "models.json", read_catalogue(resource_path("models.json")))
    assert (tmp_path / "models.json").read_bytes() == resource_path("models.json").read_bytes()


def test_the_checksums_of_single_files_are_those_of_the_entry() -> None:
    entry = read_entry(NO_FILES | {"source": {"files": {"a/b": REMOTE}}}, "x")
    assert entry.files == {"a/b": SUM}
    assert entry.source == {"a/b": Remote(REMOTE["url"], SUM)}


def test_paths_are_relative_to_the_catalogue(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"models": [NO_FILES | {"source": {"path": "net"}}]}), encoding="utf-8")
    (entry,) = read_catalogue(path)
    assert entry.source == tmp_path / "net"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", 'must be {"models": [...]}'),
        ('{"models": {}}', 'must be {"models": [...]}'),
        ('{"models": [], "more": 1}', 'must be {"models": [...]}'),
        ('{"models": [1]}', "The entry 1 of the catalogue"),
        (json.dumps({"models": [ENTRY, ENTRY | {"name": "second", "kind": "x"}]}), "The entry second of the catalogue"),
        (json.dumps({"models": [ENTRY, ENTRY | {"name": "NET"}]}), "an entry before it has already"),
    ],
)
def test_a_damaged_catalogue_is_told_with_its_path(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_catalogue(path)
    assert told in str(error.value) and str(path) in str(error.value)


def test_a_catalogue_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_catalogue(tmp_path / "nosuch.json")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:80@evil.example/x", "http://localhost:a@evil.example/", "https://me:you@host.example/x"]
)
def test_a_user_name_cannot_pass_for_the_host(url: str) -> None:
    with pytest.raises(InputError, match="no user name"):
        read_entry(NO_FILES | {"source": {"files": {"a/b": REMOTE | {"url": url}}}}, "x")
