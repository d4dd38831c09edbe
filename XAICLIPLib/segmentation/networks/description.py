"""What has to be known of a network that does not say it itself: images, grid, intensities, window, labels.

A description is a small YAML file beside the weights, or a mapping with the same keys in Python.

```yaml
name: liver-net
network: {name: SegResNet, arguments: {init_filters: 16, in_channels: 1, out_channels: 2}}
weights: liver-net.pt            # or, instead of network and weights, torchscript: liver-net.ts
labels: {0: background, 1: liver}
activation: softmax              # sigmoid, where classes overlap and there is no background
modality: CT
inputs: [image]                  # names of the images it takes at once, one for each channel
orientation: RAS                 # of the array's axes
spacing_mm: [1.5, 1.5, 1.5]      # left out: the scan's own
intensity: {range: [-175, 250], to: [0, 1]}  # or {percentiles: [0.5, 99.5], to: [0, 1]}, z-score, nonzero z-score, none
window: {size: [96, 96, 96], overlap: 0.5, mode: gaussian}  # left out: the whole volume at once
licence: Apache-2.0
version: "1.0"
```
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, get_args

import yaml

from XAICLIPLib.errors import InputError, reason
from XAICLIPLib.segmentation.segmenter import Activation
from XAICLIPLib.segmentation.sliding_window import SlidingWindow
from XAICLIPLib.system.mappings import read_mapping

Scaling = Literal["range", "percentiles", "z-score", "nonzero z-score", "none"]

_GENERIC = ("net", "network", "model", "description")
"""Names of files that name no network: its folder's name tells more."""

LARGEST_FILE = 1 << 20
"""Bytes: a description is some lines of text."""


@dataclass(frozen=True)
class Intensity:
    """How grey values are brought to what the network was trained on.

    Attributes
    ----------
    scaling
        ``range``: ``bounds`` (HU on CT) are clipped at and brought to ``to``; ``percentiles``: the same with
        percentiles of the volume as bounds; ``z-score``: mean 0 and standard deviation 1, channel by channel;
        ``nonzero z-score``: the same over voxels that are not 0; ``none``.
    """

    scaling: Scaling = "none"
    bounds: tuple[float, float] = (0.0, 1.0)
    to: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Description:
    """What the network itself does not say. The keys of the YAML file are the fields' names.

    Attributes
    ----------
    labels
        Structure of each output channel, from 0; with ``softmax`` channel 0 is the background.
    inputs
        Names of the images it takes at once, one for each channel.
    orientation
        Directions in which the array's axes increase, such as RAS.
    spacing_mm
        Grid of the network's input; None for the scan's own.
    window
        None where it takes whole volumes.
    network, arguments, weights
        A MONAI network by its class, its arguments, and the file of its state, relative to the description.
    torchscript
        A TorchScript file, relative to the description, in place of the three.
    """

    name: str
    labels: Mapping[int, str]
    activation: Activation = "softmax"
    modality: str | None = None
    inputs: tuple[str, ...] = ("image",)
    orientation: str = "RAS"
    spacing_mm: tuple[float, float, float] | None = None
    intensity: Intensity = field(default_factory=Intensity)
    window: SlidingWindow | None = None
    network: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    torchscript: str | None = None
    licence: str = "unknown"
    version: str = "unknown"

    @classmethod
    def of(cls, given: Mapping[str, Any], source: str) -> Description:
        """A description from what YAML or Python gives.

        Parameters
        ----------
        given
            The keys of the module's example.
        source
            What the message calls it: the file, or the object.

        Raises
        ------
        InputError
            A key is missing, unknown or cannot be used; the sentence names it.
        """
        try:
            return cls(**_checked(given))
        except (TypeError, ValueError) as error:
            raise InputError(f"The description {source} cannot be used: {error}.") from error

    @classmethod
    def read(cls, path: Path) -> Description:
        """A description from its YAML file.

        Raises
        ------
        InputError
            The file cannot be read, or describes no network.
        """
        try:
            given = read_mapping(path, LARGEST_FILE)
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise InputError(f"The description {path} cannot be read ({reason(error)}).") from error
        stem = path.stem.lower() in _GENERIC
        return cls.of({"name": path.resolve().parent.name if stem else path.stem, **given}, str(path))


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Description`; a ValueError says which key is wrong and what it takes."""
    known = {f.name for f in fields(Description)} - {"arguments"}
    unknown = sorted(str(key) for key in set(given) - known)
    if unknown:
        raise ValueError(f"it has the unknown key {unknown[0]}; known are {', '.join(sorted(known))}")
    if "labels" not in given:
        raise ValueError("it lacks labels, the structure of each output channel")
    made: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    made["labels"] = _labels(given["labels"])
    if made.setdefault("activation", "softmax") not in get_args(Activation):
        raise ValueError(f"activation is {_short(made['activation'])}, give softmax or sigmoid")
    if made["activation"] == "softmax" and len(made["labels"]) < 2:
        raise ValueError("with softmax labels must name the background as 0 and a structure at least")
    for key in ("name", "modality", "weights", "torchscript", "licence", "version"):
        if key in made:
            made[key] = _text(made[key], key)
    if str(made.get("modality", "")).upper() in ("CT", "MR"):
        made["modality"] = made["modality"].upper()
    for key in ("weights", "torchscript"):
        # Windows' rules know more ways out: those of the other systems are among them.
        if key in made and (PureWindowsPath(made[key]).anchor or ".." in PureWindowsPath(made[key]).parts):
            raise ValueError(f"{key} is {_short(made[key])}, give a path that stays inside the description's folder")
    if "inputs" in made:
        made["inputs"] = _inputs(made["inputs"])
    if "orientation" in made:
        made["orientation"] = _orientation(made["orientation"])
    if "spacing_mm" in made:
        made["spacing_mm"] = _numbers(made["spacing_mm"], 3, "spacing_mm", above=0)
    if "intensity" in made:
        made["intensity"] = _intensity(made["intensity"])
    if "window" in made:
        made["window"] = _window(made["window"])
    if "network" in made:
        made["network"], made["arguments"] = _network(made["network"])
        if "weights" not in made:
            raise ValueError("it names a network but not its weights")
        if "torchscript" in made:
            raise ValueError("it has both network and torchscript, give one of them")
    return made


def _labels(given: Any) -> dict[int, str]:
    if isinstance(given, Sequence) and not isinstance(given, str):
        given = dict(enumerate(given))
    if not isinstance(given, Mapping) or not given:
        raise ValueError("labels is no list of names, and no mapping from channel to name")
    try:
        labels = {int(channel): _text(name, "labels") for channel, name in given.items()}
    except TypeError as error:
        raise ValueError("labels does not map channel numbers to names") from error
    if sorted(labels) != list(range(len(labels))):
        raise ValueError(f"labels must name the channels 0 to {len(labels) - 1}, each once")
    return dict(sorted(labels.items()))


def _inputs(given: Any) -> tuple[str, ...]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not names:
        raise ValueError("inputs is no list of names")
    found = tuple(_text(name, "inputs") for name in names)
    if len(set(found)) < len(found):
        raise ValueError("inputs names an image twice")
    return found


def _orientation(given: Any) -> str:
    text = given.upper() if isinstance(given, str) else ""
    if not re.fullmatch("[RLAPSI]{3}", text) or any(len(set(text) & set(pair)) != 1 for pair in ("RL", "AP", "SI")):
        raise ValueError(f"orientation is {_short(given)}, give three letters such as RAS or LPS")
    return text


def _intensity(given: Any) -> Intensity:
    if isinstance(given, str):
        simple = [name for name in get_args(Scaling) if name not in ("range", "percentiles")]
        if given not in simple:
            raise ValueError(f"intensity is {_short(given)}, give range, percentiles, {', '.join(simple)}")
        return Intensity(scaling=given)  # type: ignore[arg-type]
    if not isinstance(given, Mapping) or len(kinds := set(given) & {"range", "percentiles"}) != 1:
        raise ValueError("intensity has neither range nor percentiles")
    (kind,) = kinds
    if set(given) - {kind, "to"}:
        raise ValueError(f"intensity has the unknown key {sorted(map(str, set(given) - {kind, 'to'}))[0]}")
    bounds = _numbers(given[kind], 2, f"intensity {kind}")
    to = _numbers(given.get("to", (0, 1)), 2, "intensity to")
    if not bounds[0] < bounds[1] or not to[0] < to[1]:
        raise ValueError("the bounds of intensity are not in order")
    if kind == "percentiles" and not (bounds[0] >= 0 and bounds[1] <= 100):
        raise ValueError("the percentiles of intensity are not in 0 to 100")
    return Intensity("range" if kind == "range" else "percentiles", (bounds[0], bounds[1]), (to[0], to[1]))


def _window(given: Any) -> SlidingWindow:
    if not isinstance(given, Mapping) or "size" not in given or set(given) - {"size", "overlap", "mode"}:
        raise ValueError("window has other keys than size, overlap and mode, or lacks size")
    size = _numbers(given["size"], 3, "window size", above=0)
    if any(edge != int(edge) for edge in size):
        raise ValueError("window size is not in whole voxels")
    overlap, mode = given.get("overlap", 0.5), given.get("mode", "gaussian")
    if isinstance(overlap, bool) or not isinstance(overlap, (int, float)) or not 0 <= overlap < 1:
        raise ValueError(f"the window's overlap is {_short(overlap)}, give a share from 0 to below 1")
    if mode not in ("constant", "gaussian"):
        raise ValueError(f"the window's mode is {_short(mode)}, give constant or gaussian")
    return SlidingWindow(tuple(int(edge) for edge in size), float(overlap), mode)


def _network(given: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping) or set(given) - {"name", "arguments"} or "name" not in given:
        raise ValueError("network has other keys than name and arguments, or lacks name")
    arguments = given.get("arguments") or {}
    if not isinstance(arguments, Mapping):
        raise ValueError("the network's arguments are no keys and values")
    return _text(given["name"], "network"), {str(key): value for key, value in arguments.items()}


def _numbers(given: Any, count: int, what: str, above: float | None = None) -> tuple[Any, ...]:
    if above is not None and isinstance(given, (int, float)):
        given = [given] * count  # isotropic
    numbers = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    right = len(numbers) == count and all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers)
    if not right or not all(abs(n) < 1e9 and (above is None or n > above) for n in numbers):
        positive = "" if above is None else " above 0"
        raise ValueError(f"{what} is {_short(given)}, give {count} numbers{positive}")
    return tuple(float(n) for n in numbers)


def _text(given: Any, what: str) -> str:
    if isinstance(given, (bool, Mapping, list, tuple)) or not str(given).strip():
        raise ValueError(f"{what} holds {_short(given)}, which is no text")
    return str(given).strip()


def _short(given: Any) -> str:
    text = " ".join((given[:1000] if isinstance(given, str) else reprlib.repr(given)).split())
    return text if len(text) <= 60 else text[:60] + "…"
