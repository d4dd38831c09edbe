"""Models that can be used: those that ship, those of the user's catalogue, and any that a user names by path or hub id.

``Resources/models.json`` lists what ships and what can be downloaded, with checksums where they are known, so that
only reviewed code runs. Anything else comes from the user and is not trusted
(`XAICLIPLib.segmentation.networks.bundle`).
PyTorch is imported only where a model is loaded, so that listing models is fast.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from XAICLIPLib.errors import InputError, downloading, removing
from XAICLIPLib.localization import PROMPTS_FILE
from XAICLIPLib.models.archives import is_archive, only_folder, unpack
from XAICLIPLib.models.catalogue_file import read_catalogue
from XAICLIPLib.models.entry import OPEN_CLIP_WEIGHTS, Entry, Kind
from XAICLIPLib.models.folder import file_checksums, hub_snapshot, models_folder, read_lock, user_catalogue, write_lock
from XAICLIPLib.resources import resource_path
from XAICLIPLib.system.checksums import sha256

if TYPE_CHECKING:
    import torch

    from XAICLIPLib.localization.localizer import Localizer
    from XAICLIPLib.localization.openclip import ImageTextModel
    from XAICLIPLib.segmentation.segmenter import Segmenter

__all__ = ["Entry", "entries", "find", "load_localizer", "load_segmenter", "shipped_entries"]


def shipped_entries() -> tuple[Entry, ...]:
    """The entries of the catalogue that ships, in order; the first of each kind is the default."""
    return _read(resource_path("models.json"))


def entries() -> tuple[Entry, ...]:
    """The whole catalogue; the entries that the user added come last.

    Raises
    ------
    InputError
        The user's catalogue is damaged.
    """
    shipped = shipped_entries()
    path = user_catalogue()
    if not path.exists():
        return shipped
    taken = {entry.name.lower() for entry in shipped}  # a later release may ship the name of a user's entry
    return shipped + tuple(entry for entry in _read(path) if entry.name.lower() not in taken)


def find(name: str) -> Entry:
    """The entry of this name.

    Raises
    ------
    InputError
        There is none.
    """
    for entry in entries():
        if entry.name.lower() == name.lower():
            return entry
    raise InputError(f"There is no model {name} in the catalogue: `xaiclip models` lists those that there are.")


def load_segmenter(
    name: str | Path | None,
    device: torch.device,
    trust: bool = False,
    labels: Mapping[int, str] | None = None,
) -> Segmenter:
    """A segmentation network by its name in the catalogue, its path, or the name under which a package offers it.

    Parameters
    ----------
    name
        None for the default. An archive is unpacked once, into a folder named by its SHA-256 among the models.
    trust
        Run code in the network's files although the catalogue does not mark it as reviewed (see `BundleSegmenter`).
    labels
        Names of the output channels of a bundle, in place of those in the catalogue or in its metadata.

    Raises
    ------
    InputError
        There is no such model, it is not on this machine, was changed, or does not load.
    """
    from XAICLIPLib.segmentation.networks import formats

    entry = _find_entry("segmenter", name)
    if entry is None:
        path = Path(str(name))
        segmenter = _load_path(path, device, trust, labels) or formats.load_registered(str(name), device, trust)
    elif package := entry.fetched_as("package"):
        segmenter = formats.load_registered(entry.name, device, trust)
        if segmenter is None:
            raise InputError(
                f"The model {entry.name} needs the package {package}, whose network is not found here: `xaiclip models "
                f"download {entry.name}` says what to install."
            )
    else:
        path = _installed_path(entry)
        entry.check()
        labels = labels or dict(enumerate(entry.labels)) or None
        segmenter = _load_path(path, device, trust or (entry.trust and bool(entry.files)), labels)
        if segmenter is None:
            raise InputError(
                f"The model {entry.name} at {path} is none that is known: give {formats.accepted_formats()}."
            )
    if segmenter is None:
        known = ", ".join([e.name for e in entries() if e.kind == "segmenter"] + formats.registered_names())
        raise InputError(f"There is no model {name}: give {formats.accepted_formats()}; or one of {known}.")
    return segmenter


def listed_structures(name: str | Path | None) -> tuple[str, ...]:
    """What a shipped segmentation network draws, known before it is loaded; nothing of any other.

    Parameters
    ----------
    name
        As of `load_segmenter`.
    """
    entry = _find_entry("segmenter", name)
    return entry.structures if entry is not None and entry.source == "shipped" else ()


class NoNetworkError(InputError):
    """An archive without a network."""


def _load_path(
    path: Path, device: torch.device, trust: bool, labels: Mapping[int, str] | None = None
) -> Segmenter | None:
    from XAICLIPLib.segmentation.networks import formats

    if not is_archive(path):
        return formats.load(path, device, trust, labels)
    folder = models_folder() / "unpacked" / sha256(path)
    inside = only_folder(folder if folder.is_dir() else unpack(path, folder))
    segmenter = formats.load(inside, device, trust, labels)
    if segmenter is None:
        shutil.rmtree(folder, ignore_errors=True)
        raise NoNetworkError(f"The archive {path} holds no network: give an archive of {formats.accepted_formats()}.")
    return segmenter


def load_localizer(name: str | Path | None, device: torch.device, prompts: str | Path | None = None) -> Localizer:
    """A localizer by its name in the catalogue or among the installed plugins, or as `openclip.load_model` takes it.

    Parameters
    ----------
    name
        None for the default.
    prompts
        A file of learned prompts (see `XAICLIPLib.localization.learned_prompts`); by default the one in the
        model's folder, if any.

    Raises
    ------
    InputError
        There is no such model, it was changed, it does not load, or the prompts are not for it.
    """
    from XAICLIPLib.localization import plugins
    from XAICLIPLib.localization.learned_prompts import load
    from XAICLIPLib.localization.localizer import ClipLocalizer

    entry = _find_entry("localizer", name)
    if entry is None and (plugin := plugins.find(str(name))) is not None:
        if prompts is not None:
            raise InputError(f"The localizer {name} takes no learned prompts: leave --prompts out.")
        return plugins.load(plugin, device)
    model = _image_text_model(entry, name, device)
    if prompts is None and model.folder is not None and (model.folder / PROMPTS_FILE).is_file():
        prompts = model.folder / PROMPTS_FILE
    return ClipLocalizer(model, prompts=None if prompts is None else load(prompts, model))


def _image_text_model(entry: Entry | None, name: str | Path | None, device: torch.device) -> ImageTextModel:
    from XAICLIPLib.localization.openclip import hub_repository, load_model

    if entry is None:
        return load_model(str(name), device)
    entry.check()
    if entry.folder is not None:
        return load_model(entry.folder, device)
    named = entry.fetched_as("open_clip")
    if named is None and entry.fetched_as("hf-hub") is None:
        _installed_path(entry)
    _check_cached(entry)
    model = load_model(named or str(entry.source), device)
    if named and read_lock(entry.name) is None and (repository := hub_repository(named)):
        _write_cache_lock(entry, repository)
    _check_cached(entry)  # once more: the library may just have downloaded something else
    return model


def provenance_of(name: object, provenance: Mapping[str, str]) -> dict[str, str]:
    """The provenance of a segmenter, with the catalogue's licence where its files name none.

    Parameters
    ----------
    name
        What it was loaded from: as for `load_segmenter`, or a segmenter object, which is not in the catalogue.
    told
        The segmenter's ``provenance``.
    """
    entry = None
    if name is None or isinstance(name, (str, Path)):
        entry = _find_entry("segmenter", name) or next((e for e in entries() if e.origin == str(name)), None)
    if entry is None or provenance.get("licence", "unknown") != "unknown":
        return dict(provenance)
    return {**provenance, "licence": entry.licence}


def modality_of_localizer(name: str) -> str | None:
    """The modality for which a localizer is listed; None for one that is not in the catalogue."""
    return next((e.modality for e in entries() if e.kind == "localizer" and e.name == name), None)


def _find_entry(kind: Kind, name: str | Path | None) -> Entry | None:
    """The entry of this name or folder, the default for None; None for a model that is not in the catalogue."""
    listed = [entry for entry in entries() if entry.kind == kind]
    if name is None:
        return listed[0]
    folder = os.path.realpath(str(name).removeprefix("local-dir:"))
    for entry in listed:
        if entry.name.lower() == str(name).lower() or (
            entry.folder is not None and folder == os.path.realpath(entry.folder)
        ):
            return entry
    return None


def _installed_path(entry: Entry) -> Path:
    """The folder or file of a model.

    Raises
    ------
    InputError
        It is not on this machine.
    """
    if entry.folder is not None and entry.folder.exists():
        return entry.folder
    if (cached := entry.cached) is not None:
        _check_cached(entry)
        return cached
    if isinstance(entry.source, Path):
        raise InputError(
            f"The model {entry.name} is not at {entry.source} any more: bring it back, or {removing(entry.name)}.",
            removing(entry.name),
        )
    size = "" if entry.size_mb is None else f"{entry.size_mb:,.0f} MB, "
    raise InputError(
        f"The model {entry.name} is not on this machine: {downloading(entry.name)} ({size}licence "
        f"{entry.licence}, from {entry.origin}).",
        downloading(entry.name),
    )


def _check_cached(entry: Entry) -> None:
    """Compare the files in a library's cache with their recorded checksums; the first time, record these."""
    snapshot = entry.cached
    if snapshot is None:
        return
    lock = read_lock(entry.name)
    if lock is None:
        _write_cache_lock(entry, entry.fetched_as("hf-hub") or "")
        return
    checksums = file_checksums(snapshot)
    for name, expected in lock.files.items():
        if name == PROMPTS_FILE and entry.format == "open_clip":  # tuned here, and checked when they are read
            continue
        if checksums.get(name, expected) != expected:
            raise InputError(
                f"The model {entry.name} was changed, {snapshot / name} is not the file that was first downloaded: if "
                f"that is meant, {removing(entry.name)}, which accepts the new one.",
                removing(entry.name),
            )
    if set(checksums) - set(lock.files):  # downloaded later than the others, when they were first needed
        write_lock(entry.name, entry.origin, snapshot, lock.repository)


def _write_cache_lock(entry: Entry, repository: str) -> None:
    snapshot = entry.cached or hub_snapshot(repository, *OPEN_CLIP_WEIGHTS)
    if snapshot is not None:
        try:
            write_lock(entry.name, entry.origin, snapshot, repository)
        except OSError as error:
            raise InputError(
                f"The checksums of the model {entry.name} cannot be written to {models_folder()} "
                f"({error.strerror or error}): name another folder in the variable XAICLIP_MODELS."
            ) from error


def _read(path: Path) -> tuple[Entry, ...]:
    try:
        status = path.stat()
    except OSError:
        return read_catalogue(path)  # says why
    return _read_once(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _read_once(path: Path, _modified: int, _size: int) -> tuple[Entry, ...]:
    return read_catalogue(path)
