"""The record of an explanation: its inputs, settings and results. Nothing in it identifies the patient."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.reliability_flag import FLAG_NAMES, ReliabilityFlag
from XAICLIPLib.explainers.methods import METHODS
from XAICLIPLib.localization.region import Region
from XAICLIPLib.system import json_values
from XAICLIPLib.system.files import write_atomically
from XAICLIPLib.system.packages import versions

FORMAT = "XAI-CLIP explanation 1"

PACKAGES = ("torch", "monai", "open_clip_torch", "SimpleITK", "numpy", "scipy", "scikit-image")
"""Packages that a result depends on."""


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
    reliability: Sequence[ReliabilityFlag] = (),
    faithfulness: Mapping[str, Any] | None = None,
    stability: Mapping[str, Any] | None = None,
    key_regions: Mapping[str, Any] | None = None,
    further_images: Mapping[str, sitk.Image] | None = None,
) -> dict[str, Any]:
    """The record, ready for JSON.

    Of the input it holds the size and spacing of the grid, and a checksum of the voxels by which the scan can be
    recognised; no path, name, date or position. Of further images that the network took, it holds the checksums, by the
    network's names for them.
    """
    content = {
        "format": FORMAT,
        "prompt": prompt,
        "target": dict(target),
        "labels": {str(label): name for label, name in labels.items()},
        "input": {
            "size": list(image.GetSize()),
            "spacing_mm": [round(s, 4) for s in image.GetSpacing()],
            "modality": modality,
            "voxels_sha256": voxels_sha256(image),
        },
        "further_images": {
            name: {"voxels_sha256": voxels_sha256(further)} for name, further in (further_images or {}).items()
        },
        "region": {
            "source": region.source,
            "volume_ml": region.volume_ml,
            "share_of_body": region.share_of_body,
            "agreement_with_prediction": asdict(region.agreement) if region.agreement else None,
            # Of what the localizer found, where that was replaced or extended.
            **({"localizer_agreement": asdict(region.localizer_agreement)} if region.localizer_agreement else {}),
        },
        "measurements": dict(measurements),
        "models": dict(models),
        "parameters": dict(parameters),
        "versions": versions(PACKAGES),
        "timings_s": dict(timings),
        "warnings": list(warnings),
        "reliability": [asdict(flag) for flag in reliability],
        "faithfulness": faithfulness,
        "stability": stability,
        "key_regions": key_regions,
        "complete": complete,
    }
    return {key: _plain(value) for key, value in content.items()}


def voxels_sha256(image: sitk.Image) -> str:
    """Checksum of an image's voxels as they are stored, without its geometry."""
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
        # A prompt from a terminal may hold bytes that are no valid text: they are written as escapes.
        write_atomically(path, text.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another folder.") from error
    return path


def read(path: Path) -> dict[str, Any]:
    """Read a record that `write` wrote, and check all values that others rely on.

    Raises
    ------
    InputError
        It is missing, damaged, or of another format.
    """
    advice = "explain the scan again, or name the folder of another explanation"
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} holds no explanation.json: name the folder of an explanation.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): check the file.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {advice}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f'{path} is no record of the format "{FORMAT}": {advice}.')
    try:
        _check_record(content)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({_fault(error)}): {advice}.") from error
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _fault(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else f"it should have {error}"


def _check_record(content: dict[str, Any]) -> None:
    """Raise an error if a value that readers of the record rely on is missing or wrong."""
    json_values.text(content["prompt"])
    json_values.flag(content["complete"])
    content["warnings"] = list(json_values.texts(content["warnings"]))
    for key in ("target", "labels", "input", "region", "measurements", "models", "parameters", "versions", "timings_s"):
        json_values.mapping(content[key])
    json_values.text(content["target"]["name"])
    json_values.choice("predicted", "predicted in a box", "given")(content["target"]["voxels"])
    label = content["target"]["label"]
    for number in label if isinstance(label, list) else [label]:
        json_values.whole_number(0)(number)
    json_values.text(content["input"]["voxels_sha256"])
    json_values.text(content["input"]["modality"] or "CT")
    spacing, size = content["input"]["spacing_mm"], content["input"]["size"]
    _check_numbers(spacing, len(size))
    _check_numbers(size, len(spacing))
    json_values.text(json_values.mapping(content["models"]["segmenter"])["name"])
    json_values.mapping(content["models"].get("localizer") or {})
    json_values.choice(*METHODS)(content["parameters"]["method"])
    for key in ("described", "baseline", "score", "region"):
        json_values.text(content["parameters"][key])
    for key in ("volume_ml", "share_of_body"):
        json_values.number(0)(content["region"][key])
    for key, value in json_values.mapping(content["region"].get("agreement_with_prediction") or {}).items():
        json_values.text(key), json_values.number(0)(value)
    for flag in json_values.objects(content.setdefault("reliability", [])):
        json_values.text(flag["sentence"]), json_values.flag(flag["raised"])
        json_values.choice(*FLAG_NAMES)(flag["name"])
    for row in json_values.objects(content["measurements"].get("structures") or []):
        (
            json_values.text(row["structure"]),
            json_values.number(-math.inf)(row["score_lost"]),
            json_values.number(0)(row["volume_ml"]),
        )
    for row in json_values.objects(content["measurements"].get("context_credits") or []):
        json_values.text(row["structure"]), json_values.number(-math.inf)(row["credit"])
        json_values.number(0)(row["volume_ml"])
    if content.setdefault("faithfulness", None) is not None:
        _check_faithfulness(json_values.mapping(content["faithfulness"]))
    json_values.mapping(content.setdefault("stability", None) or {})
    if content.setdefault("key_regions", None) is not None:
        _check_key_regions(json_values.mapping(content["key_regions"]))
    for name, checksum in json_values.mapping(content.setdefault("written", {})).items():
        json_values.text(name), json_values.text(checksum)


def _check_faithfulness(faithfulness: Mapping[str, Any]) -> None:
    points = len(faithfulness["volumes_mm3"])
    _check_numbers(faithfulness["volumes_mm3"], points)
    for direction in ("deletion", "insertion"):
        lead = json_values.mapping(faithfulness["lead"])[direction]
        json_values.number(-math.inf)(0 if lead is None else lead)
        for curves in (faithfulness["map"], *json_values.mapping(faithfulness["controls"]).values()):
            _check_numbers(curves[direction]["scores"], points)
            json_values.number(-math.inf)(curves[direction]["area"])


def _check_key_regions(regions: Mapping[str, Any]) -> None:
    for key in ("keeps", "costs", "target_shown_alone", "target_hidden_alone"):
        json_values.number(-math.inf)(regions[key])
    for kind in ("sufficient", "necessary"):
        for region in json_values.mapping(regions[kind]).values():
            for key in ("volume_ml", "in_target_ml", "score") if region is not None else ():
                json_values.number(-math.inf)(json_values.mapping(region)[key])


def _check_numbers(values: Any, count: int) -> None:
    if not isinstance(values, list) or len(values) != count or not values:
        raise ValueError(f"{count} numbers")
    for value in values:
        json_values.number(-math.inf)(value)


def _plain(value: Any) -> Any:
    """The value in a form that JSON can hold: NumPy's numbers as Python's, None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
