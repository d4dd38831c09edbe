"""The record of an explanation: what was explained, with what, and what came of it; nothing that names the patient."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from XAICLIPLib.errors import InputError
from XAICLIPLib.files import whole_file
from XAICLIPLib.localization.region import Region
from XAICLIPLib.versions import versions

PACKAGES = ("torch", "monai", "open_clip_torch", "SimpleITK", "numpy", "scipy", "scikit-image")
"""What a result depends on."""


def build(
    *,
    prompt: str,
    target: Mapping[str, Any],
    labels: Mapping[int, str],
    image: sitk.Image,
    modality: str | None,
    region: Region,
    measurements: Mapping[str, Any],
    models: Mapping[str, Any],
    parameters: Mapping[str, Any],
    timings: Mapping[str, float],
    warnings: list[str],
    complete: bool,
    further_images: Mapping[str, sitk.Image] | None = None,
) -> dict[str, Any]:
    """The record, ready for JSON.

    Of the input it keeps the grid's size and spacing and a checksum of the voxels, by which the holder of the scan can
    recognise it; no path, name, date or position. So of the further images that the network took, by its names for
    them.
    """
    kept = {
        "format": "XAI-CLIP explanation 1",
        "prompt": prompt,
        "target": dict(target),
        "labels": {str(label): name for label, name in labels.items()},
        "input": {
            "size": list(image.GetSize()),
            "spacing_mm": [round(s, 4) for s in image.GetSpacing()],
            "modality": modality,
            "voxels_sha256": _checksum(image),
        },
        "further_images": {
            name: {"voxels_sha256": _checksum(further)} for name, further in (further_images or {}).items()
        },
        "region": {
            "source": region.source,
            "volume_ml": region.volume_ml,
            "share_of_body": region.share_of_body,
            "agreement_with_prediction": asdict(region.agreement) if region.agreement else None,
        },
        "measurements": dict(measurements),
        "models": dict(models),
        "parameters": dict(parameters),
        "versions": versions(PACKAGES),
        "timings_s": dict(timings),
        "warnings": list(warnings),
        "complete": complete,
    }
    return {key: _plain(value) for key, value in kept.items()}


def _checksum(image: sitk.Image) -> str:
    return hashlib.sha256(np.ascontiguousarray(sitk.GetArrayViewFromImage(image)).tobytes()).hexdigest()


def write(record: Mapping[str, Any], path: Path) -> Path:
    """Write a record as JSON, all or nothing.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    text = json.dumps(_plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with whole_file(path) as temporary:
            # A prompt from a terminal may hold bytes that are no text: written as the escapes that JSON has for them.
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another folder.") from error
    return path


def _plain(value: Any) -> Any:
    """The same as JSON can hold it: NumPy's numbers as Python's, null for NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
