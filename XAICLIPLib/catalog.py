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

    from XAICLIPLib.localization.localizer import Localizer
    from XAICLIPLib.segmentation.bundle import BundleSegmenter

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


def load_segmenter(name: str | Path | None, device: torch.device, trust: bool = False) -> BundleSegmenter:
    """A segmentation network by its name in the catalogue or the folder of a MONAI bundle.

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
    from XAICLIPLib.segmentation.bundle import BundleSegmenter, is_bundle

    entry = _find("segmenter", name)
    if entry is not None and entry.folder is not None:
        entry.check()
        return BundleSegmenter(entry.folder, device, trust=True)
    folder = Path(str(name))
    if not (os.path.isdir(folder) and is_bundle(folder)):  # false, not an error, for what is too long for a path
        known = ", ".join(e.name for e in entries() if e.kind == "segmenter")
        raise InputError(
            f"There is no model {name}: give the folder of a MONAI bundle (it has configs/metadata.json), or one of "
            f"{known}."
        )
    return BundleSegmenter(folder, device, trust)


def load_localizer(name: str | Path | None, device: torch.device, prompts: str | Path | None = None) -> Localizer:
    """A localizer by its name in the catalogue or among the installed plugins, or whatever `openclip.load_model` takes.

    Parameters
    ----------
    name
        None for the default.
    prompts
        A file of learned prompts (see `XAICLIPLib.localization.context`); by default the one in the model's folder, if
        any.

    Raises
    ------
    InputError
        There is no such model, it does not load, or the prompts are not for it.
    """
    from XAICLIPLib.localization import plugins
    from XAICLIPLib.localization.context import load
    from XAICLIPLib.localization.localizer import ClipLocalizer
    from XAICLIPLib.localization.openclip import PROMPTS_FILE, load_model

    entry = _find("localizer", name)
    if entry is not None:
        entry.check()
    elif (plugin := plugins.find(str(name))) is not None:
        if prompts is not None:
            raise InputError(f"The localizer {name} takes no learned prompts: leave --prompts out.")
        return plugins.load(plugin, device)
    model = load_model(str(name) if entry is None else entry.folder or entry.source, device)
    if prompts is None and model.folder is not None and (model.folder / PROMPTS_FILE).is_file():
        prompts = model.folder / PROMPTS_FILE
    return ClipLocalizer(model, contexts=None if prompts is None else load(prompts, model))


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
