"""What a MONAI bundle's metadata say: whether it segments at all, its channels, and what it needs installed.

Plain values only: nothing of the bundle is imported or run, and PyTorch is not imported.

References
----------
MONAI bundle specification, https://docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from XAICLIPLib.errors import InputError, reason
from XAICLIPLib.system.mappings import UNREADABLE, read_mapping

_CHANNEL_NAMES = ("channel_def", "label_def")
"""Keys under which bundles name their channels; the specification knows the first only."""

_GENERATOR_FORMATS = ("autoencoder_data_format", "generator_data_format", "diffusion_data_format")
"""Keys of the metadata of bundles that make images out of noise."""

_CLASSES = ("classes", "class", "classification", "labels", "label")
_IMAGES = ("magnitude", "image", "intensity", "hounsfield", "rgb")
_POINTS = ("points", "landmarks", "keypoints", "coordinates")


class NoSegmentationError(InputError):
    """A bundle of something that draws no structures in a scan, so that there is nothing to explain."""


def read_metadata(folder: Path) -> dict[str, Any]:
    """The content of ``configs/metadata.json``.

    Raises
    ------
    InputError
        It cannot be read.
    """
    path = folder / "configs" / "metadata.json"
    try:
        return read_mapping(path)
    except UNREADABLE as error:
        raise InputError(f"{folder} is no MONAI bundle: {path} cannot be read ({reason(error)}).") from error


def refuse_other_tasks(metadata: Mapping[str, Any], bundle: str) -> None:
    """Refuse a bundle whose metadata say that it detects, classifies, generates or registers.

    Raises
    ------
    NoSegmentationError
        The metadata say so.
    """
    kind = other_task(metadata)
    if kind is not None:
        raise NoSegmentationError(
            f"The bundle {bundle} is {kind}, as its metadata say, and draws no structures that could be explained: "
            "choose one that segments."
        )


def other_task(metadata: Mapping[str, Any]) -> str | None:
    """What a bundle is that does not segment, such as "a detector"; None where it may be a segmentation network.

    Parameters
    ----------
    metadata
        As `read_metadata` gives it; what is malformed counts as not said.
    """
    data_format = _mapping(metadata.get("network_data_format"))
    inputs = [_mapping(given) for given in _mapping(data_format.get("inputs")).values()]
    outputs = _mapping(data_format.get("outputs"))
    if any(_word(given, "type") == "noise" or _word(given, "format") == "latent" for given in inputs):
        return "a generator of images"
    if not data_format and any(key in metadata for key in _GENERATOR_FORMATS):
        return "a generator of images"
    if len(outputs) > 1 and "pred" not in outputs:
        return f"a network of several results at once ({', '.join(map(str, outputs))})"
    output = _mapping(outputs.get("pred")) or _mapping(next(iter(outputs.values()), None))
    kind, written = _word(output, "type"), _word(output, "format")
    if kind == "object" or written in ("boxes", "box", "detection"):
        return "a detector"
    if written in _POINTS:
        return "a finder of landmarks"
    if written in _CLASSES and (kind != "image" or not _is_volume(output)):
        return "a classifier"
    if kind in ("image", "feature") and written in _IMAGES and not _is_named_segmentation(metadata):
        return "a network that makes images"
    return None


def _is_named_segmentation(metadata: Mapping[str, Any]) -> bool:
    """Whether the task or the name says that it segments: some call the format of their output "image" all the same."""
    return any("segment" in str(metadata.get(key) or "").lower() for key in ("task", "name"))


def _is_volume(described: Mapping[str, Any]) -> bool:
    """Whether the values lie in a grid of two or three axes, rather than one for each class."""
    shape = described.get("spatial_shape")
    return isinstance(shape, list) and len(shape) >= 2 and shape[0] != 1


def takes_pictures(metadata: Mapping[str, Any]) -> str | None:
    """The size of the single 2D pictures that a network takes, as "736 × 480"; None where it takes volumes."""
    inputs = _mapping(_mapping(metadata.get("network_data_format")).get("inputs"))
    image = _mapping(inputs.get("image")) or _mapping(next(iter(inputs.values()), None))
    shape = image.get("spatial_shape")
    return " × ".join(map(str, shape)) if isinstance(shape, list) and len(shape) == 2 else None


def output_names(metadata: Mapping[str, Any]) -> dict[int, str]:
    """Structure of each output channel; empty where the metadata do not name them.

    Raises
    ------
    AttributeError, TypeError, ValueError
        The metadata are not of the specification's form.
    """
    output = ((metadata.get("network_data_format") or {}).get("outputs") or {}).get("pred") or {}
    named: Mapping[Any, Any] = next((output[key] for key in _CHANNEL_NAMES if output.get(key)), {})
    return {int(channel): str(name) for channel, name in named.items()}


def output_count(metadata: Mapping[str, Any]) -> int | None:
    """How many output channels the metadata say that there are."""
    outputs = _mapping(_mapping(metadata.get("network_data_format")).get("outputs"))
    count = _mapping(outputs.get("pred")).get("num_channels")
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None


def needed_packages(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The Python packages that a bundle says it needs, with the version of each. They are told, never installed."""
    packages: dict[str, str] = {}
    for key in ("required_packages_version", "optional_packages_version"):
        for name, version in _mapping(metadata.get(key)).items():
            if re.fullmatch(r"[A-Za-z0-9][\w.-]{0,60}", str(name)):
                packages[str(name)] = str(version)[:20]
    return packages


def named_packages(packages: Mapping[str, str]) -> str:
    """Packages with their versions, in words."""
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _word(described: Mapping[str, Any], key: str) -> str:
    return str(described.get(key) or "").strip().lower()
