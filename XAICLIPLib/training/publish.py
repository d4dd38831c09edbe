"""Put trained models where they ship from, and write their checksums into the catalogue.

``python -m XAICLIPLib.training.publish`` updates ``Resources/models.json`` to the files on disk; run it after a
training script has written its model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from XAICLIPLib.models.catalogue_file import read_catalogue, write_catalogue
from XAICLIPLib.resources import resource_path
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.training import data, localizer

STRUCTURES = {"abdomen-ct": data.ORGANS[1:], "anatomy-clip": localizer.CLASSES}
"""Structures of each model that is trained here."""

DECISIVE_ENDINGS = (".json", ".pt", ".safetensors")
"""Endings of the files that determine what a model computes; model cards may be edited."""


def decisive_file_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 by path of the files of a model that determine what it computes."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix in DECISIVE_ENDINGS)
    return {p.relative_to(folder).as_posix(): sha256(p) for p in paths}


def main() -> None:
    """Write the checksums of what ships into the catalogue; its other entries stay as they are."""
    path = resource_path("models.json")
    entries = [
        replace(
            entry,
            files=decisive_file_checksums(resource_path("models", entry.name)),
            structures=tuple(STRUCTURES.get(entry.name, entry.structures)),
        )
        if entry.source == "shipped"
        else entry
        for entry in read_catalogue(path)
    ]
    write_catalogue(path, entries)
    print(f"{path}: {', '.join(entry.name for entry in entries if entry.source == 'shipped')}")


if __name__ == "__main__":
    main()
