"""The models that can be chosen: from the library's list at once, and from the worker once it has said hello."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from slicer.i18n import tr as _

from XAICLIPLib.resources import resource_path

Kind = Literal["segmenter", "localizer"]


@dataclass(frozen=True)
class Model:
    """A segmentation network or a localizer; `name` is what the worker calls it.

    Attributes
    ----------
    modality
        ``CT``, ``MR`` or ``CT, MR``.
    structures
        What it segments or finds; empty for one that takes any words.
    licence
        SPDX identifier.
    source
        ``shipped``, or where it comes from.
    installed
        Whether it can be used without a network.
    """

    name: str
    title: str = ""
    modality: str = ""
    structures: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""
    installed: bool = False

    def description(self) -> str:
        """A few lines on what it is, for the panel."""
        lines = [self.title or self.name]
        if self.modality:
            lines.append(_("For {modality}.").format(modality=self.modality))
        if self.structures:
            lines.append(_("Knows: {structures}.").format(structures=", ".join(self.structures)))
        if self.licence:
            lines.append(_("Licence: {licence}.").format(licence=self.licence))
        if not self.installed and self.source.startswith("open_clip:"):
            lines.append(_("Not installed: downloaded from {source} on first use.").format(source=self.source))
        elif not self.installed:
            told = _("Not installed: `xaiclip models download {name}` gets it from {source}.")
            lines.append(told.format(name=self.name, source=self.source))
        return "\n".join(lines)


def shipped(kind: Kind) -> list[Model]:
    """The models of the library's own list, the default first; no worker is needed."""
    listed = json.loads(resource_path("models.json").read_text(encoding="utf-8"))["models"]
    return [
        fromReply({**entry, "source": _origin(entry["source"]), "installed": entry["source"] == "shipped"})
        for entry in listed
        if entry["kind"] == kind
    ]


def fromReply(entry: Mapping[str, Any]) -> Model:
    """A model as the worker's hello describes it; what is not known of it here is left out."""
    known = {field.name for field in fields(Model)}
    given = {key: value for key, value in entry.items() if key in known}
    return Model(**{**given, "structures": tuple(entry.get("structures") or ())})


def _origin(source: str | Mapping[str, Any]) -> str:
    """Where a model comes from in words, until the worker says it better: files are listed by their addresses."""
    if isinstance(source, str):
        return source
    remotes = [source["archive"]] if "archive" in source else list(source.get("files", {}).values())
    return str(remotes[0]["url"]) if remotes else ""
