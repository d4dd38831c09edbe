"""Files that list models: the one that ships, and those of users.

The rules for each value are written twice: here, as checks whose message says what is wrong, and for people and editors
in ``Resources/models.schema.json``. A test compares the two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from XAICLIPLib.errors import InputError, first_line
from XAICLIPLib.models.entry import FORMATS, KINDS, MODALITIES, ONE_IMAGE, Entry, Remote, Source
from XAICLIPLib.system import json_values
from XAICLIPLib.system.files import atomic_file

NAME = "[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?"
"""Names are also used as folder names."""

FILE = "(?:[A-Za-z0-9_](?:[A-Za-z0-9._+@ -]*[A-Za-z0-9_+@-])?/)*[A-Za-z0-9_](?:[A-Za-z0-9._+@ -]*[A-Za-z0-9_+@-])?"
"""A path that stays within a folder on every system."""

SHA256 = "[0-9a-f]{64}"

URL = r"(?:https://[^/\s@\\?#]+|http://(?:127\.0\.0\.1|localhost)(?::[0-9]+)?)(?:[/?#]\S*)?"
"""HTTPS, except for this machine itself. No user name before the host: it can be mistaken for the host."""

SOURCE_TEXT = (
    "shipped|hf-hub:[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*|monai:[A-Za-z0-9_]+@[A-Za-z0-9.]+"
    r"|package:[A-Za-z0-9][A-Za-z0-9._-]*|open_clip:[^:\s]+:[^:\s]+"
)
"""A source that is written as a text."""

REQUIRED_KEYS = ("name", "kind", "format", "title", "modality", "structures", "licence", "source")
MOST_INPUTS = 8
"""Images that a network may take together: more than any known network takes."""

OPTIONAL_KEYS = ("citation", "size_mb", "files", "trust", "inputs", "labels")


def read_catalogue(path: Path) -> tuple[Entry, ...]:
    """The entries of a catalogue file; paths of models in it may be relative to its folder.

    Raises
    ------
    InputError
        The file cannot be read, or an entry is not valid.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"The catalogue {path} cannot be read ({_reason(error)}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("models"), list) or len(content) > 1:
        raise InputError(f'The catalogue {path} must be {{"models": [...]}} with one object for each model.')
    entries: dict[str, Entry] = {}
    for number, item in enumerate(content["models"], 1):
        name = item.get("name") if isinstance(item, dict) else None
        label = f"The entry {name if isinstance(name, str) and name else number} of the catalogue {path}"
        entry = read_entry(item, label, path.parent)
        if entry.name.lower() in entries:
            raise InputError(f"{label} has a name that an entry before it has already.")
        entries[entry.name.lower()] = entry
    return tuple(entries.values())


def read_entry(content: Any, label: str, folder: Path = Path()) -> Entry:
    """An entry from its JSON.

    Parameters
    ----------
    content
        The entry as parsed from JSON.
    label
        How messages name the entry.
    folder
        The folder that paths are relative to.

    Raises
    ------
    InputError
        A key is missing or unknown, or a value is not allowed; the message names the key.
    """
    if not isinstance(content, dict):
        raise InputError(f"{label} must be an object.")
    for key in REQUIRED_KEYS:
        if key not in content:
            raise InputError(f"{label} has no {key}.")
    values = {}
    for key, value in content.items():
        if key not in _CHECKS:
            raise InputError(f"{label} has a key that is not known, {key}: it may have {', '.join(_CHECKS)}.")
        try:
            values[key] = _CHECKS[key](value)
        except ValueError as error:
            raise InputError(f"{label} must have as {key} {error}.") from None
    source = values["source"]
    if isinstance(source, Path):
        values["source"] = folder.absolute() / source
    if not isinstance(source, (str, Path, Remote)):
        if "files" in content:
            raise InputError(f"{label} has files and a source with files: leave out files.")
        values["files"] = {path: remote.sha256 for path, remote in source.items()}
    if source == "shipped" and not values.get("files"):
        raise InputError(f"{label} is shipped and must have files with their SHA-256.")
    if values.get("trust") and not values.get("files"):
        raise InputError(f"{label} has trust but no files with their SHA-256, without which it cannot be trusted.")
    if (values["kind"] == "localizer") != (values["format"] == "open_clip"):
        raise InputError(f"{label} must have the format open_clip where it is a localizer, and only there.")
    return Entry(**values)


def as_json(entry: Entry) -> dict[str, Any]:
    """An entry as JSON, in the form that `read_entry` takes."""
    values: dict[str, Any] = {**vars(entry), "structures": list(entry.structures), "source": _source_json(entry.source)}
    values["inputs"] = [] if entry.inputs == ONE_IMAGE else list(entry.inputs)  # empty ones are left out
    if not entry.files or not isinstance(entry.source, (str, Path, Remote)):
        del values["files"]
    else:
        values["files"] = dict(entry.files)
    return {key: value for key, value in values.items() if key in REQUIRED_KEYS or value}


def write_catalogue(path: Path, entries: Iterable[Entry]) -> None:
    """Write a catalogue file, all or nothing.

    Raises
    ------
    OSError
        It cannot be written.
    """
    text = json.dumps({"models": [as_json(entry) for entry in entries]}, indent=2, ensure_ascii=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _source_json(source: Source) -> Any:
    if isinstance(source, Path):
        return {"path": str(source)}
    if isinstance(source, Remote):
        return {"archive": _remote_json(source)}
    return (
        source
        if isinstance(source, str)
        else {"files": {path: _remote_json(remote) for path, remote in source.items()}}
    )


def _remote_json(remote: Remote) -> dict[str, Any]:
    return {key: value for key, value in vars(remote).items() if value is not None}


# --- checks of each value; the text of a ValueError says what is allowed --------------------------------------------


def _matching(pattern: str, what: str) -> json_values.Validator:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(what)
        return value

    return check


_file = _matching(FILE, "paths within its folder, of letters, digits and . _ + @ - between /")
_sha256 = _matching(SHA256, "a SHA-256, 64 hexadecimal digits in lower case")
_source_text = _matching(
    SOURCE_TEXT,
    'shipped, hf-hub:OWNER/NAME, monai:NAME@VERSION, package:NAME, open_clip:MODEL:WEIGHTS, {"archive": {"url": ..., '
    '"sha256": ...}}, {"files": {PATH: {"url": ..., "sha256": ...}}} or {"path": PATH}',
)


def _url(value: Any) -> str:
    url = _matching(URL, what := "a URL that starts with https:// and has no user name")(value)
    try:
        parts = urlsplit(url)
        is_local = parts.hostname in ("127.0.0.1", "localhost")
    except ValueError:  # a host that is none
        raise ValueError(what) from None
    if not parts.hostname or "@" in parts.netloc or not (parts.scheme == "https" or is_local):
        raise ValueError(what)
    return url


def _files(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError("an object with the SHA-256 of each file")
    return {_file(path): _sha256(checksum) for path, checksum in value.items()}


def _remote(value: Any) -> Remote:
    if not isinstance(value, Mapping) or not {"url", "sha256"} <= set(value) <= {"url", "sha256", "size"}:
        raise ValueError("for each file an object with url, sha256 and, if known, size")
    size = json_values.whole_number(0)(value["size"]) if "size" in value else None
    return Remote(_url(value["url"]), _sha256(value["sha256"]), size)


def _source(value: Any) -> Source:
    if not isinstance(value, Mapping) or len(value) != 1:
        return _source_text(value)
    ((key, inner),) = value.items()
    if key == "archive":
        return _remote(inner)
    if key == "path":
        return Path(json_values.path(inner))
    if key == "files" and isinstance(inner, Mapping) and inner:
        return {_file(path): _remote(remote) for path, remote in inner.items()}
    return _source_text(value)


def _inputs(value: Any) -> tuple[str, ...]:
    names = tuple(json_values.texts(value))
    if not 1 <= len(names) == len(set(names)) <= MOST_INPUTS:
        raise ValueError(f"a list of 1 to {MOST_INPUTS} names of images, each another")
    return names


_CHECKS: dict[str, json_values.Validator] = {
    "name": _matching(NAME, "a name of at most 64 letters, digits and . _ -"),
    "kind": json_values.choice(*KINDS),
    "format": json_values.choice(*FORMATS),
    "title": json_values.text,
    "modality": json_values.choice(*MODALITIES),
    "structures": json_values.texts,
    "licence": json_values.text,
    "source": _source,
    "citation": json_values.text,
    "size_mb": json_values.number(0),
    "files": _files,
    "trust": json_values.flag,
    "inputs": _inputs,
    "labels": lambda value: tuple(json_values.texts(value)),
}


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or first_line(error)
