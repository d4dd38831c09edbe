"""The models that can be chosen: from the library's list at once, and from the worker once it has said hello."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from slicer.i18n import tr as _

from XAICLIPLib.resources import resource_path

Kind = Literal["segmenter", "localizer"]


KINDS = {
    "bundle": "MONAI bundle",
    "torchscript": "TorchScript",
    "network": "Described network",
    "nnunet": "nnU-Net",
    "sam": "SAM, drawn from a box around the words' place",
    "meshnet": "MeshNet",
    "deepbet": "deepbet",
    "totalsegmentator": "TotalSegmentator",
    "open_clip": "CLIP (open_clip)",
}
"""What a person calls a format of the library's catalogue."""

DOWNLOADED = ("hf-hub:", "monai:", "open_clip:", "https://", "http://")
"""How the sources of models begin that the worker can download."""

FREE = frozenset(
    name.upper()
    for name in (
        *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "Unlicense", "CC0-1.0"),
        *("CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-4.0", "MPL-2.0", "GPL-3.0", "LGPL-3.0"),
    )
)
"""SPDX identifiers of licences that leave the use to the user."""

MOST_STRUCTURES = 20
"""More than these are counted, not listed."""


@dataclass(frozen=True)
class Model:
    """A segmentation network or a localizer; `name` is what the worker calls it.

    Attributes
    ----------
    format
        How it lies on disk, one of `KINDS`.
    modality
        ``CT``, ``MR``, ``CT, MR`` or ``any``.
    structures
        What it segments or finds; empty for one that takes any words.
    licence
        SPDX identifier.
    citation
        What to cite.
    source
        ``shipped``, or where it comes from.
    size_mb
        What has to be downloaded, in MB; None where it is not known.
    inputs
        Names of the images that it takes at once; None where they are not known.
    installed
        Whether it can be used without a network.
    """

    name: str
    title: str = ""
    format: str = ""
    modality: str = ""
    structures: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""
    source: str = ""
    size_mb: float | None = None
    inputs: tuple[str, ...] | None = None
    installed: bool = False

    @property
    def package(self) -> str:
        """The Python package that it comes with; empty for most."""
        return self.source.removeprefix("package:") if self.source.startswith("package:") else ""

    @property
    def isDownloadable(self) -> bool:
        """Whether the worker can bring it onto this machine."""
        return not self.installed and self.source.startswith(DOWNLOADED)

    @property
    def isRemovable(self) -> bool:
        """Whether it was downloaded, and can be again."""
        return self.installed and self.source.startswith(DOWNLOADED)

    @property
    def restriction(self) -> str:
        """Its licence, where that may forbid clinical or commercial use, or is not known; empty for a free one."""
        names = [name for name in re.split(r"\s+(?:AND|OR)\s+|[,;()]", self.licence) if name.strip()]
        if names and all(name.strip().upper() in FREE for name in names):
            return ""
        return self.licence or _("not known")

    def description(self) -> str:
        """A few lines on what it is, for the panel."""
        modality = _("any modality") if self.modality == "any" else self.modality
        facts = [
            _("{kind}.").format(kind=KINDS[self.format]) if self.format in KINDS else "",
            _("For {modality}.").format(modality=modality) if modality else "",
            _("Licence: {licence}.").format(licence=self.licence) if self.licence else "",
        ]
        lines = [self.title or self.name, " ".join(filter(None, facts))]
        if self.structures:
            names, rest = ", ".join(self.structures[:MOST_STRUCTURES]), len(self.structures) - MOST_STRUCTURES
            more = _(" and {count} more").format(count=rest) if rest > 0 else ""
            lines.append(_("Knows: {structures}.").format(structures=names + more))
        if self.citation:
            lines.append(_("Cite: {citation}").format(citation=self.citation))
        return "\n".join(filter(None, lines))

    def absence(self) -> str:
        """What it takes to have it on this machine, in a sentence; empty where it is here."""
        if self.installed:
            return ""
        if self.package:
            told = _(
                "Not on this machine: it comes with the Python package {package}. Install that where XAI-CLIP runs."
            )
            return told.format(package=self.package)
        if not self.isDownloadable:
            return _("Not on this machine.")
        return _("Not on this machine: {size}, licence {licence}, from {source}.").format(
            size=_("size not known") if self.size_mb is None else f"{self.size_mb:,.3g} MB",
            licence=self.licence or _("not known"),
            source=self.source,
        )


def shipped(kind: Kind) -> list[Model]:
    """The models of the library's own list, the default first; no worker is needed."""
    listed = json.loads(resource_path("models.json").read_text(encoding="utf-8"))["models"]
    more = {"inputs": ("image",)} if kind == "segmenter" else {}
    return [
        fromReply({**more, **entry, "source": _origin(entry["source"]), "installed": entry["source"] == "shipped"})
        for entry in listed
        if entry["kind"] == kind
    ]


def fromReply(entry: Mapping[str, Any]) -> Model:
    """A model as the worker's hello describes it; what is not known of it here is left out."""
    known = {field.name for field in fields(Model)}
    given = {key: value for key, value in entry.items() if key in known}
    inputs = entry.get("inputs")
    given["inputs"] = None if inputs is None else tuple(inputs)
    return Model(**{**given, "structures": tuple(entry.get("structures") or ())})


def _origin(source: str | Mapping[str, Any]) -> str:
    """Where a model comes from in words, until the worker says it better: files are listed by their addresses."""
    if isinstance(source, str):
        return source
    remotes = [source["archive"]] if "archive" in source else list(source.get("files", {}).values())
    return str(remotes[0]["url"]) if remotes else ""
