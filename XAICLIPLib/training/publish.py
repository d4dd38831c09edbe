"""Put trained models where they ship from, and write their checksums into the catalogue.

``python -m XAICLIPLib.training.publish`` writes ``Resources/models.json`` anew from the files on disk; run it after a
training script has written its model there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from XAICLIPLib.checksums import sha256
from XAICLIPLib.resources import resource_path
from XAICLIPLib.training import data, localizer

ENTRIES: tuple[dict[str, Any], ...] = (
    {
        "name": "abdomen-ct",
        "kind": "segmenter",
        "title": "13 abdominal organs at 3 mm; a small network for demonstration and tests, not for diagnosis",
        "modality": "CT",
        "structures": list(data.ORGANS[1:]),
        "licence": "Apache-2.0",
        "source": "shipped",
    },
    {
        "name": "anatomy-clip",
        "kind": "localizer",
        "title": "small CLIP for organs of the abdomen; a demonstration and test model, not for diagnosis",
        "modality": "CT, MR",
        "structures": list(localizer.CLASSES),
        "licence": "Apache-2.0",
        "source": "shipped",
    },
    {
        "name": "biomedclip",
        "kind": "localizer",
        "title": "BiomedCLIP, trained on 15 million figures of the medical literature; needs timm and transformers",
        "modality": "CT, MR",
        "structures": [],
        "licence": "MIT",
        "source": "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    },
)
RUNS = (".json", ".pt", ".safetensors")
"""Endings of the files that decide what runs: model cards may be edited."""


def files(folder: Path) -> dict[str, str]:
    """Checksum by path of the files of a model that decide what runs."""
    found = sorted(p for p in folder.rglob("*") if p.suffix in RUNS)
    return {p.relative_to(folder).as_posix(): sha256(p) for p in found}


def main() -> None:
    """Write the catalogue."""
    listed = []
    for entry in ENTRIES:
        shipped = entry["source"] == "shipped"
        listed.append(entry | ({"files": files(resource_path("models", entry["name"]))} if shipped else {}))
    path = resource_path("models.json")
    path.write_text(json.dumps({"models": listed}, indent=2) + "\n", encoding="utf-8")
    print(f"{path}: {', '.join(entry['name'] for entry in listed)}")


if __name__ == "__main__":
    main()
