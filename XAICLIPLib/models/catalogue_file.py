"""Files that list models: the one that ships, and those of users.

What each value must be is written twice: here, in checks that say what is wrong in one sentence, and for people and
editors in ``Resources/models.schema.json``. A test keeps the two alike.
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
"""A name becomes that of a folder."""

FILE = "(?:[A-Za-z0-9_](?:[A-Za-z0-9._+@ -]*[A-Za-z0-9_+@-])?/)*[A-Za-z0-9_](?:[A-Za-z0-9._+@ -]*[A-Za-z0-9_+@-])?"
"""A path that stays within a folder on every system."""

SHA256 = "[0-9a-f]{64}"

URL = r"(?:https://[^/\s@\\?#]+|http://(?:127\.0\.0\.1|localhost)(?::[0-9]+)?)(?:[/?#]\S*)?"
"""Encrypted, but for this machine itself; before its host stands no user name, which can pass for the host."""

WORDS = (
    "shipped|hf-hub:[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*|monai:[A-Za-z0-9_]+@[A-Za-z0-9.]+"
    r"|package:[A-Za-z0-9][A-Za-z0-9._-]*|open_clip:[^:\s]+:[^:\s]+"
)
"""A source in words."""

REQUIREMENTS = ("name", "kind", "format", "title", "modality", "structures", "licence", "source")
MOST_INPUTS = 8
"""Images that a network may take at once: more than any that is known."""

MAY_HAVE = ("citation", "size_mb", "files", "trust", "inputs")


def read_catalogue(path: Path) -> tuple[Entry, ...]:
    """The entries of a catalogue file; paths of models in it may be relative to its folder.

    Raises
    ------
    InputError
        The file cannot be read, or an entry is not as it must be.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"The catalogue {path} cannot be read ({_reason(error)}).") from error
    if not isinstance(listed, dict) or not isinstance(listed.get("models"), list) or len(listed) > 1:
        raise InputError(f'The catalogue {path} must be {{"models": [...]}} with one object for each model.')
    entries: dict[str, Entry] = {}
    for number, given in enumerate(listed["models"], 1):
        name = given.get("name") if isinstance(given, dict) else None
        which = f"The entry {name if isinstance(name, str) and name else number} of the catalogue {path}"
        entry = read_entry(given, which, path.parent)
        if entry.name.lower() in entries:
            raise InputError(f"{which} has a name that an entry before it has already.")
        entries[entry.name.lower()] = entry
    return tuple(entries.values())


def read_entry(given: Any, which: str, beside: Path = Path()) -> Entry:
    """An entry from its JSON.

    Parameters
    ----------
    given
        What JSON gave.
    which
        What a message calls it.
    beside
        The folder that paths are relative to.

    Raises
    ------
    InputError
        A key is missing, unknown, or not what it must be; the message names it.
    """
    if not isinstance(given, dict):
        raise InputError(f"{which} must be an object.")
    for key in REQUIREMENTS:
        if key not in given:
            raise InputError(f"{which} has no {key}.")
    values = {}
    for key, value in given.items():
        if key not in _CHECKS:
            raise InputError(f"{which} has a key that is not known, {key}: it may have {', '.join(_CHECKS)}.")
        try:
            values[key] = _CHECKS[key](value)
        except ValueError as error:
            raise InputError(f"{which} must have as {key} {error}.") from None
    source = values["source"]
    if isinstance(source, Path):
        values["source"] = beside.absolute() / source
    if not isinstance(source, (str, Path, Remote)):
        if "files" in given:
            raise InputError(f"{which} has files and a source with files: leave out files.")
        values["files"] = {path: remote.sha256 for path, remote in source.items()}
    if source == "shipped" and not values.get("files"):
        raise InputError(f"{which} is shipped and must have files with their SHA-256.")
    if values.get("trust") and not values.get("files"):
        raise InputError(f"{which} has trust but no files with their SHA-256, without which it cannot be trusted.")
    if (values["kind"] == "localizer") != (values["format"] == "open_clip"):
        raise InputError(f"{which} must have the format open_clip where it is a localizer, and only there.")
    return Entry(**values)


def as_json(entry: Entry) -> dict[str, Any]:
    """An entry as `read_entry` takes it."""
    told: dict[str, Any] = {**vars(entry), "structures": list(entry.structures), "source": _source_json(entry.source)}
    told["inputs"] = [] if entry.inputs == ONE_IMAGE else list(entry.inputs)  # empty ones are left out
    if not entry.files or not isinstance(entry.source, (str, Path, Remote)):
        del told["files"]
    else:
        told["files"] = dict(entry.files)
    return {key: value for key, value in told.items() if key in REQUIREMENTS or value}


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
    return source if isinstance(source, str) else {"files": {p: _remote_json(r) for p, r in source.items()}}


def _remote_json(remote: Remote) -> dict[str, Any]:
    return {key: value for key, value in vars(remote).items() if value is not None}


# --- what each value must be; a ValueError says it ------------------------------------------------------------------


def _matching(pattern: str, what: str) -> json_values.Validator:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(what)
        return value

    return check


_file = _matching(FILE, "paths within its folder, of letters, digits and . _ + @ - between /")
_sha256 = _matching(SHA256, "a SHA-256, 64 hexadecimal digits in lower case")
_words = _matching(
    WORDS,
    'shipped, hf-hub:OWNER/NAME, monai:NAME@VERSION, package:NAME, open_clip:MODEL:WEIGHTS, {"archive": {"url": ..., '
    '"sha256": ...}}, {"files": {PATH: {"url": ..., "sha256": ...}}} or {"path": PATH}',
)


def _url(value: Any) -> str:
    url = _matching(URL, what := "a URL that starts with https:// and has no user name")(value)
    try:
        parts = urlsplit(url)
        here = parts.hostname in ("127.0.0.1", "localhost")
    except ValueError:  # a host that is none
        raise ValueError(what) from None
    if not parts.hostname or "@" in parts.netloc or not (parts.scheme == "https" or here):
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
        return _words(value)
    ((key, inner),) = value.items()
    if key == "archive":
        return _remote(inner)
    if key == "path":
        return Path(json_values.path(inner))
    if key == "files" and isinstance(inner, Mapping) and inner:
        return {_file(path): _remote(remote) for path, remote in inner.items()}
    return _words(value)


def _inputs(value: Any) -> tuple[str, ...]:
    found = tuple(json_values.texts(value))
    if not 1 <= len(found) == len(set(found)) <= MOST_INPUTS:
        raise ValueError(f"a list of 1 to {MOST_INPUTS} names of images, each another")
    return found


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
}


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or first_line(error)
