"""The user's own entries: a folder or file of their own, or all that a catalogue of theirs lists."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

from XAICLIPLib.errors import InputError
from XAICLIPLib.models.catalogue_file import NAME, as_json, read_catalogue, read_entry, write_catalogue
from XAICLIPLib.models.entry import Entry, Format
from XAICLIPLib.models.folder import downloaded, read_lock, remove_lock, user_catalogue

LONGEST_NAME = 64


def user_entries() -> tuple[Entry, ...]:
    """The user's own entries.

    Raises
    ------
    InputError
        Their catalogue is damaged.
    """
    path = user_catalogue()
    return read_catalogue(path) if path.exists() else ()


def add(path: Path, shipped: tuple[Entry, ...], name: str | None = None, trust: bool = False) -> list[Entry]:
    """Add a model, or all models of a catalogue file, to the user's own.

    Parameters
    ----------
    path
        A model's folder or file, which stays where it is; or a catalogue, which ends with ``.json``.
    shipped
        The entries that ship, whose names are taken.
    name
        What to call the model; default: as its folder or file.
    trust
        Believe a catalogue that says of a model that its code was reviewed.

    Raises
    ------
    InputError
        There is nothing there, the catalogue is damaged, or a name is taken or cannot be one.
    """
    path = path.expanduser().absolute()
    if not path.exists():
        raise InputError(f"There is no {path} to add: give the folder or file of a model, or a catalogue.")
    if path.is_file() and path.suffix.lower() == ".json":
        if name is not None:
            raise InputError(f"{path} is a catalogue, whose models have their names: leave out --name.")
        new = [entry if trust else replace(entry, trust=False) for entry in read_catalogue(path)]
        if wrong := next((entry.name for entry in new if entry.source == "shipped"), None):
            raise InputError(f"The entry {wrong} of the catalogue {path} must have another source than shipped.")
    else:
        new = [_described(path, _name(path, name))]
    for entry in new:  # what cannot be read again would lock the user out of the whole catalogue
        read_entry(as_json(entry), f"The entry {entry.name} of {path}")
    known = user_entries()
    taken = {entry.name.lower() for entry in (*shipped, *known)}
    if clash := next((entry.name for entry in new if entry.name.lower() in taken), None):
        way_out = "choose another with --name" if len(new) == 1 and path.suffix != ".json" else "rename it there"
        raise InputError(
            f"There is a model {clash} already: {way_out}, or run `xaiclip models remove {clash}` if it is yours."
        )
    _write((*known, *new))
    return new


def update(entry: Entry) -> None:
    """Put an entry in the place of the user's entry of that name.

    Raises
    ------
    InputError
        It could not be read again.
    """
    read_entry(as_json(entry), f"The entry {entry.name}")
    _write(tuple(entry if other.name == entry.name else other for other in user_entries()))


def remove(entry: Entry) -> list[Path]:
    """Remove a model of the user, and what was downloaded of any; a folder of the user's own stays.

    Returns
    -------
    list of Path
        What was deleted.

    Raises
    ------
    InputError
        There is nothing to remove.
    """
    known = user_entries()
    left = tuple(other for other in known if other.name != entry.name)
    place = downloaded(entry.name)
    is_locked = _is_locked(entry.name)
    if len(left) == len(known) and not place.exists() and not is_locked:
        how = "ships with XAI-CLIP" if entry.source == "shipped" else "is not on this machine"
        raise InputError(f"The model {entry.name} {how}: there is nothing to remove.")
    deleted = []
    if place.exists():
        try:
            shutil.rmtree(place)
        except OSError as error:
            raise InputError(f"{place} cannot be removed ({error.strerror or error}).") from error
        deleted.append(place)
    remove_lock(entry.name)
    if len(left) < len(known):
        _write(left)
    return deleted


def _is_locked(name: str) -> bool:
    """Whether there is a lock, a damaged one included, which removing mends."""
    try:
        return read_lock(name) is not None
    except InputError:
        return True


def _write(entries: tuple[Entry, ...]) -> None:
    path = user_catalogue()
    try:
        write_catalogue(path, entries)
    except OSError as error:
        raise InputError(
            f"The catalogue {path} cannot be written ({error.strerror or error}): name another folder in the variable "
            "XAICLIP_MODELS."
        ) from error


def _name(path: Path, given: str | None) -> str:
    if given is not None:
        if not re.fullmatch(NAME, given):
            raise InputError(f"{given} cannot be a name: use at most {LONGEST_NAME} letters, digits and . _ -.")
        return given
    stem = path.name if path.is_dir() else path.name.split(".")[0]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:LONGEST_NAME].strip("._-")
    if not name:
        raise InputError(f"{path} has a name that no model can have: choose one with --name.")
    return name


def _described(path: Path, name: str) -> Entry:
    """An entry for a model of the user, as far as its files tell at once what it is."""
    format_ = _format(path)
    metadata = _read(path / "configs" / "metadata.json") if format_ == "bundle" else {}
    structures, modality = _bundle_says(metadata)
    return Entry(
        name=name,
        kind="localizer" if format_ == "open_clip" else "segmenter",
        format=format_,
        title=f"{metadata.get('name') or path.name}, a model of your own",
        modality=modality,
        structures=structures,
        licence=str(metadata.get("license") or "").strip() or "unknown",
        source=path,
    )


def _format(path: Path) -> Format:
    if (path / "open_clip_config.json").is_file():
        return "open_clip"
    if (path / "configs" / "metadata.json").is_file():
        return "bundle"
    return "auto"


def _bundle_says(metadata: dict[str, object]) -> tuple[tuple[str, ...], str]:
    """Structures and modality of a bundle by its metadata; what is not as it should be is left out."""
    try:
        data_format = cast(dict, metadata["network_data_format"])  # type: ignore[type-arg]
        channels = data_format["outputs"]["pred"]["channel_def"]
        modality = data_format["inputs"]["image"].get("modality")
        names = tuple(str(name) for name in channels.values() if str(name).strip().lower() != "background")
        return tuple(name for name in names if name.strip()), modality if modality in ("CT", "MR") else "any"
    except (KeyError, TypeError, AttributeError):
        return (), "any"


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}
