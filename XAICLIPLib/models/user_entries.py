"""Entries that the user adds: a model's folder or file, or all entries of a catalogue file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.modality import modalities_named
from XAICLIPLib.models.catalogue_file import NAME, as_json, read_catalogue, read_entry, write_catalogue
from XAICLIPLib.models.entry import Entry, Format
from XAICLIPLib.models.folder import download_folder, read_lock, remove_lock, user_catalogue
from XAICLIPLib.segmentation.bundles.licence import UNKNOWN, licence_of
from XAICLIPLib.segmentation.bundles.metadata import output_names

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


def add(
    path: Path,
    shipped: tuple[Entry, ...],
    name: str | None = None,
    trust: bool = False,
    labels: Sequence[str] = (),
) -> list[Entry]:
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
        Accept it when the catalogue says that the code of a model was reviewed.
    labels
        Names of the output channels of a bundle that does not name them, from 0.

    Raises
    ------
    InputError
        The path does not exist, the catalogue is damaged, or a name is taken or not allowed.
    """
    path = path.expanduser().absolute()
    if not path.exists():
        raise InputError(f"There is no {path} to add: give the folder or file of a model, or a catalogue.")
    if path.is_file() and path.suffix.lower() == ".json":
        if name is not None:
            raise InputError(f"{path} is a catalogue, whose models have their names: leave out --name.")
        if labels:
            raise InputError(f"{path} is a catalogue, whose models have their labels: leave out --labels.")
        new = [entry if trust else replace(entry, trust=False) for entry in read_catalogue(path)]
        if wrong := next((entry.name for entry in new if entry.source == "shipped"), None):
            raise InputError(f"The entry {wrong} of the catalogue {path} must have another source than shipped.")
    else:
        new = [replace(entry_for_path(path, _chosen_name(path, name)), labels=tuple(labels))]
    for entry in new:  # one that cannot be read again would make the whole catalogue unreadable
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
    """Replace the user's entry of the same name.

    Raises
    ------
    InputError
        The entry is not valid.
    """
    read_entry(as_json(entry), f"The entry {entry.name}")
    _write(tuple(entry if other.name == entry.name else other for other in user_entries()))


def remove(entry: Entry) -> list[Path]:
    """Remove a model of the user, or the downloaded files of any model. A folder that the user named is kept.

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
    remaining = tuple(other for other in known if other.name != entry.name)
    folder = download_folder(entry.name)
    is_locked = _is_locked(entry.name)
    if len(remaining) == len(known) and not folder.exists() and not is_locked:
        state = "ships with XAI-CLIP" if entry.source == "shipped" else "is not on this machine"
        raise InputError(f"The model {entry.name} {state}: there is nothing to remove.")
    deleted = []
    if folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise InputError(f"{folder} cannot be removed ({error.strerror or error}).") from error
        deleted.append(folder)
    remove_lock(entry.name)
    if len(remaining) < len(known):
        _write(remaining)
    return deleted


def _is_locked(name: str) -> bool:
    """Whether there is a lock; a damaged one counts, so that it can be removed."""
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


def _chosen_name(path: Path, requested: str | None) -> str:
    if requested is not None:
        if not re.fullmatch(NAME, requested):
            raise InputError(f"{requested} cannot be a name: use at most {LONGEST_NAME} letters, digits and . _ -.")
        return requested
    stem = path.name if path.is_dir() else path.name.split(".")[0]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:LONGEST_NAME].strip("._-")
    if not name:
        raise InputError(f"{path} has a name that no model can have: choose one with --name.")
    return name


def entry_for_path(path: Path, name: str) -> Entry:
    """An entry for a model of the user, with what can be read quickly from its files."""
    format_ = _format(path)
    metadata = _read(path / "configs" / "metadata.json") if format_ == "bundle" else {}
    structures, modality = _structures_and_modality(metadata)
    return Entry(
        name=name,
        kind="localizer" if format_ == "open_clip" else "segmenter",
        format=format_,
        title=f"{metadata.get('name') or path.name}, a model of your own",
        modality=modality,
        structures=structures,
        licence=licence_of(path, metadata) if format_ == "bundle" else UNKNOWN,
        source=path,
    )


def listed_modality(words: str | None) -> str:
    """A network's own words for its modality ("MRI", "T1w") as the catalogue has them."""
    return ", ".join(sorted(modalities_named(words))) or "any"


def _format(path: Path) -> Format:
    if (path / "open_clip_config.json").is_file():
        return "open_clip"
    if (path / "configs" / "metadata.json").is_file():
        return "bundle"
    return "auto"


def _structures_and_modality(metadata: dict[str, object]) -> tuple[tuple[str, ...], str]:
    """Structures and modality of a bundle from its metadata; empty and ``any`` where the metadata are malformed."""
    try:
        data_format = cast(dict, metadata["network_data_format"])  # type: ignore[type-arg]
        modality = data_format["inputs"]["image"].get("modality")
        names = tuple(name for name in output_names(metadata).values() if name.strip().lower() != "background")
        return tuple(name for name in names if name.strip()), listed_modality(
            None if modality is None else str(modality)
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        return (), "any"


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}
