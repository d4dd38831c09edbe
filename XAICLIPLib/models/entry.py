"""A model of the catalogue: what it is, where it comes from, where its files are, and whether they are unchanged.

PyTorch is not imported, so that listing models is fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, get_args
from urllib.parse import urlsplit

from XAICLIPLib.errors import InputError, downloading, removing
from XAICLIPLib.localization import PROMPTS_FILE
from XAICLIPLib.models.folder import download_folder, hub_snapshot, read_lock
from XAICLIPLib.resources import resource_path
from XAICLIPLib.segmentation.networks.trained_folders import trained_datasets
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.system.packages import installed as package_version

Kind = Literal["segmenter", "localizer"]
Format = Literal[
    "bundle",
    "torchscript",
    "network",
    "nnunet",
    "sam",
    "meshnet",
    "deepbet",
    "totalsegmentator",
    "open_clip",
    "auto",
]
"""How a model is loaded: a MONAI bundle, a TorchScript file, a network described in YAML, a trained folder of nnU-Net,
a SAM of `transformers`, a MeshNet of brainchop, the packages deepbet and TotalSegmentator, an open_clip model, or
``auto``: recognised by its files when it is loaded."""

KINDS: tuple[str, ...] = get_args(Kind)
FORMATS: tuple[str, ...] = get_args(Format)
MODALITIES = ("CT", "MR", "CT, MR", "any")
COULD_RUN = (".json", ".yaml", ".yml", ".pt", ".pth", ".ts", ".bin", ".safetensors", ".py")
"""Endings of configurations, weights and code. A file with such an ending is accepted only with a checksum."""


OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Weight files. For a model of its own list, open_clip downloads just one of them."""


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    Attributes
    ----------
    url, sha256
        Its address, and the checksum that it must have.
    size
        In bytes; None where it is not known.
    """

    url: str
    sha256: str
    size: int | None = None

    @property
    def name(self) -> str:
        """The last part of its address; empty where that has none."""
        return PurePosixPath(urlsplit(self.url).path).name


ONE_IMAGE = ("image",)
"""The inputs of a network that takes one image, as most do."""

Source = str | Path | Remote | Mapping[str, Remote]
"""``shipped``; ``hf-hub:OWNER/NAME``, ``monai:NAME@VERSION``, ``open_clip:MODEL:WEIGHTS`` or ``package:NAME``, which
other libraries fetch; a path of the user; an archive; or single files by their path in the model's folder."""


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue.

    Attributes
    ----------
    name
        What the user calls it.
    kind
        ``segmenter`` or ``localizer``.
    format
        How it is loaded.
    title
        One line on what it is.
    modality
        ``CT``, ``MR``, ``CT, MR`` or ``any``.
    structures
        What it segments or finds.
    licence
        SPDX identifier, or a few words.
    source
        Where it comes from.
    citation
        What to cite.
    size_mb
        What has to be downloaded, in MB; None where it is not known.
    files
        SHA-256 by path within the folder; empty where the catalogue has none.
    trust
        Its code was reviewed and may run, as long as its files have these checksums.
    inputs
        Names of the images that a segmenter takes together, in order; most take one.
    labels
        Names of the output channels of a bundle, from 0, where its metadata do not name them.
    """

    name: str
    kind: Kind
    format: Format
    title: str
    modality: str
    structures: tuple[str, ...]
    licence: str
    source: Source
    citation: str = ""
    size_mb: float | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    trust: bool = False
    inputs: tuple[str, ...] = ONE_IMAGE
    labels: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Where it comes from, in a few words: the source as it is written, a URL or a path."""
        if isinstance(self.source, Remote):
            return self.source.url
        if isinstance(self.source, Mapping):
            return next(iter(self.source.values())).url + (" and others" if len(self.source) > 1 else "")
        return str(self.source)

    @property
    def remotes(self) -> Mapping[str, Remote]:
        """The files that are downloaded from a server, by the name under which progress is reported."""
        if isinstance(self.source, Remote):
            return {self.source.name or self.name: self.source}
        return self.source if isinstance(self.source, Mapping) else {}

    @property
    def download_mb(self) -> float | None:
        """Size of the download in MB, from the catalogue or as the sum of the files; None where it is not known."""
        sizes = [remote.size for remote in self.remotes.values()]
        if self.size_mb is not None or not sizes or None in sizes:
            return self.size_mb
        return sum(size or 0 for size in sizes) / 1e6

    @property
    def knows_inputs(self) -> bool:
        """Whether ``inputs`` is known: at a path of the user there can be any network."""
        return self.inputs != ONE_IMAGE or not isinstance(self.source, Path)

    def fetched_as(self, scheme: str) -> str | None:
        """The part of the source after ``scheme:``; None where the source has another scheme."""
        text = self.source if isinstance(self.source, str) else ""
        return text.removeprefix(f"{scheme}:") if text.startswith(f"{scheme}:") else None

    @property
    def folder(self) -> Path | None:
        """Its folder or single file; None where it is not on this machine, or in another library's cache."""
        if self.source == "shipped":
            return resource_path("models", self.name)
        if isinstance(self.source, Path):
            return self.source
        folder = download_folder(self.name)
        return folder if folder.is_dir() else None

    @property
    def checksums(self) -> Mapping[str, str]:
        """SHA-256 by path: the catalogue's, else those taken at the first download, else none."""
        if self.files or self.source == "shipped" or isinstance(self.source, Path):
            return self.files
        lock = read_lock(self.name)
        return lock.files if lock and not lock.repository else {}

    @property
    def installed(self) -> bool:
        """Whether it can be loaded without an internet connection."""
        folder = self.folder
        if folder is not None:
            try:
                return folder.exists() and all((folder / name).is_file() for name in self.checksums)
            except InputError:  # its checksums are damaged: it has to be downloaded again
                return False
        if self.format == "totalsegmentator":
            return bool(trained_datasets())
        if package := self.fetched_as("package"):
            return bool(package_version(package))
        return self.cached is not None

    @property
    def cached(self) -> Path | None:
        """The folder in another library's cache with configuration and weights; None where they are not downloaded."""
        names: tuple[str, ...] = ()
        if repository := self.fetched_as("hf-hub"):
            names = ("open_clip_config.json",) if self.format == "open_clip" else ("config.json",)
        elif self.fetched_as("open_clip") and (lock := read_lock(self.name)):
            repository, names = lock.repository, OPEN_CLIP_WEIGHTS
        snapshot = hub_snapshot(repository, *names) if repository else None
        if snapshot and any(path.suffix in (".safetensors", ".bin", ".pth") for path in snapshot.iterdir()):
            return snapshot
        return None

    def check(self) -> None:
        """Compare every file with its checksum, where there are any.

        Raises
        ------
        InputError
            A file is missing or was changed, or there is a file that does not belong to the model and could run
            instead of one that does.
        """
        folder, checksums = self.folder, self.checksums
        if folder is None or not checksums:
            return
        ways = removing(self.name), downloading(self.name)
        for name, expected in checksums.items():
            path = folder / name
            if not path.is_file():
                raise InputError(f"The model {self.name} is incomplete, {path} is missing: {self._remedy()}.", *ways)
            if sha256(path) != expected:
                was = "was shipped" if self.source == "shipped" else "was meant"
                raise InputError(
                    f"The model {self.name} was changed, {path} is not the file that {was}: {self._remedy()}, or give "
                    "a copy of its folder, elsewhere, to use it as a model of your own.",
                    *ways,
                )
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if name == PROMPTS_FILE and self.format == "open_clip":  # tuned here, and checked when they are read
                continue
            if path.suffix in COULD_RUN and name not in checksums:
                how = "did not ship with it" if self.source == "shipped" else "does not belong to it"
                raise InputError(f"The model {self.name} was changed, {path} {how}: remove that file.")

    def _remedy(self) -> str:
        if self.source == "shipped":
            return "install XAI-CLIP again"
        if isinstance(self.source, Path):
            return f"bring it back, or {removing(self.name)}"
        return f"{removing(self.name)} and {downloading(self.name)}"
