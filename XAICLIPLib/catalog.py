"""Models that can be had: those that ship, and those that a user names by folder or hub id.

``Resources/models.json`` lists the shipped ones with the checksum of every file, so that what runs is what was
reviewed. Anything else is the user's own and is treated with care (`XAICLIPLib.segmentation.bundle`).
PyTorch is imported only where a model is loaded, so that they are listed at once.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from XAICLIPLib.checksums import sha256
from XAICLIPLib.errors import InputError
from XAICLIPLib.resources import resource_path

if TYPE_CHECKING:
    import torch

    from XAICLIPLib.localization.localizer import ClipLocalizer
    from XAICLIPLib.segmentation.segmenter import Segmenter

Kind = Literal["segmenter", "localizer"]

COULD_RUN = (".json", ".yaml", ".yml", ".pt", ".pth", ".ts", ".bin", ".safetensors", ".py")
"""Endings of configurations, weights and code: among a shipped model's files, only those with a checksum are let in."""


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue.

    Attributes
    ----------
    name
        What the user calls it.
    kind
        ``segmenter`` or ``localizer``.
    title
        One line on what it is.
    modality
        ``CT``, ``MR`` or ``CT, MR``.
    structures
        What it segments or finds.
    licence
        SPDX identifier.
    source
        ``shipped``, or where open_clip downloads it from (``hf-hub:...``).
    files
        SHA-256 by path within the folder, for shipped ones.
    """

    name: str
    kind: Kind
    title: str
    modality: str
    structures: tuple[str, ...]
    licence: str
    source: str
    files: dict[str, str]

    @property
    def folder(self) -> Path | None:
        """Where a shipped model lies; None for the others."""
        return resource_path("models", self.name) if self.source == "shipped" else None

    def check(self) -> None:
        """Compare every file with its checksum.

        Raises
        ------
        InputError
            A file is missing, was changed, or lies there that did not ship and could run in the place of one that did.
        """
        if self.folder is None:
            return
        for name, expected in self.files.items():
            path = self.folder / name
            if not path.is_file():
                raise InputError(f"The model {self.name} is incomplete, {path} is missing: install XAI-CLIP again.")
            if sha256(path) != expected:
                raise InputError(
                    f"The model {self.name} was changed, {path} is not the file that was shipped: install XAI-CLIP "
                    "again, or give a copy of its folder, elsewhere, to use it as a model of your own."
                )
        for path in sorted(self.folder.rglob("*")):
            if path.suffix in COULD_RUN and path.relative_to(self.folder).as_posix() not in self.files:
                raise InputError(f"The model {self.name} was changed, {path} did not ship with it: remove that file.")


@cache
def entries() -> tuple[Entry, ...]:
    """The catalogue, shipped models first; the first of each kind is the default."""
    listed = json.loads(resource_path("models.json").read_text(encoding="utf-8"))["models"]
    return tuple(
        Entry(**{**entry, "structures": tuple(entry["structures"]), "files": entry.get("files", {})})
        for entry in listed
    )


def load_segmenter(name: str | Path | None, device: torch.device, trust: bool = False) -> Segmenter:
    """A segmentation network by its name in the catalogue, its path, or the name under which a package offers it.

    Parameters
    ----------
    name
        None for the default.
    trust
        Run the code in the configuration of a bundle that does not ship (see `BundleSegmenter`).

    Raises
    ------
    InputError
        There is no such model, or it does not load.
    """
    from XAICLIPLib.segmentation import formats

    entry = _find("segmenter", name)
    if entry is not None and entry.folder is not None:
        entry.check()
        found = formats.load(entry.folder, device, trust=True)
    else:
        found = formats.load(Path(str(name)), device, trust) or formats.load_registered(str(name), device)
    if found is None:
        known = ", ".join([e.name for e in entries() if e.kind == "segmenter"] + formats.registered())
        raise InputError(f"There is no model {name}: give {formats.what_to_give()}; or one of {known}.")
    return found


def load_localizer(name: str | Path | None, device: torch.device) -> ClipLocalizer:
    """A localizer by its name in the catalogue, or whatever `openclip.load_model` takes.

    Raises
    ------
    InputError
        There is no such model, or it does not load.
    """
    from XAICLIPLib.localization.localizer import ClipLocalizer
    from XAICLIPLib.localization.openclip import load_model

    entry = _find("localizer", name)
    if entry is None:
        return ClipLocalizer(load_model(str(name), device))
    entry.check()
    return ClipLocalizer(load_model(entry.folder or entry.source, device))


def _find(kind: Kind, name: str | Path | None) -> Entry | None:
    """The entry of this name, the default where there is none; None for a model that is the user's own."""
    listed = [entry for entry in entries() if entry.kind == kind]
    if name is None:
        return listed[0]
    folder = os.path.realpath(str(name).removeprefix("local-dir:"))
    for entry in listed:
        if entry.name == str(name) or (entry.folder is not None and folder == os.path.realpath(entry.folder)):
            return entry
    return None
