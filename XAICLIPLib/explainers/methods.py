"""What can be asked of each explainer: the parameters, their units, defaults and bounds.

Nothing here needs PyTorch, so that the command line and the panel can offer the choices at once. How a method works
is told where it lives: `XAICLIPLib.perturbation` and `XAICLIPLib.explainers.gradients`.

>>> method("rise", samples=500)
Rise(cell_mm=None, samples=500, keep=0.5, estimator='ridge', wanted_error=0.05)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from XAICLIPLib.errors import InputError

Score = Literal["soft dice", "hard dice", "mean probability", "logit margin"]
SCORES: tuple[Score, ...] = get_args(Score)
"""How well the target survives a perturbation; see `XAICLIPLib.scoring.scorer.target_score`."""

Baseline = Literal["air", "mean", "blur", "surroundings"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
"""What replaces perturbed voxels; see `XAICLIPLib.scoring.baselines`."""

Precision = Literal["auto", "full", "reduced"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""In which precision a network runs; see `XAICLIPLib.scoring.scorer.Scorer`."""

Estimator = Literal["ridge", "debiased", "mean"]
Supervoxels = Literal["slic", "felzenszwalb"]
Kernel = Literal["exponential", "shap"]


def _parameter(default: Any, says: str, least: float | None = None, most: float | None = None, unit: str = "") -> Any:
    """A field with what a person needs to know of it. ``least`` and ``most`` are allowed values themselves."""
    return field(default=default, metadata={"help": says, "least": least, "most": most, "unit": unit})


@dataclass(frozen=True)
class Occlusion:
    """Hide a cube, place after place: first on a coarse grid, then closely where the score moves."""

    window_mm: float | None = _parameter(
        None, "edge of the hidden cubes; default: by the size of the structure, 16 to 48", 1, 500, "mm"
    )
    stride_mm: float | None = _parameter(
        None, "distance from one cube to the next, at most the edge; default: half of it", 0.5, 500, "mm"
    )
    exhaustive: bool = _parameter(False, "evaluate every cube, also where a coarse grid already tells enough")
    tolerance: float = _parameter(
        0.1, "look no closer when cubes lose what was expected, to this share of the largest effect", 0, 1
    )


@dataclass(frozen=True)
class Rise:
    """Hide random smooth patterns, and work out from all of them what each place contributes."""

    cell_mm: float | None = _parameter(
        None, "size of the pattern's cells; default: as the cubes of occlusion", 1, 500, "mm"
    )
    samples: int = _parameter(2000, "patterns at most", 2, 1_000_000)
    keep: float = _parameter(0.5, "share of the cells that each pattern leaves visible", 0.05, 0.95)
    estimator: Estimator = _parameter(
        "ridge", "how the map is worked out: ridge regression, debiased, or the plain weighted mean of the RISE paper"
    )
    wanted_error: float = _parameter(
        0.05, "stop when the standard error is this share of the largest effect; 0: use all patterns", 0, 1
    )


@dataclass(frozen=True)
class Lime:
    """Hide random sets of supervoxels, and fit a linear model of what each contributes."""

    size_mm: float | None = _parameter(
        None, "edge of a cube as large as a supervoxel; default: as the cubes of occlusion", 1, 500, "mm"
    )
    samples: int | None = _parameter(
        None, "sets to hide; default: eight for each supervoxel, at least 200", 2, 1_000_000
    )
    supervoxels: Supervoxels = _parameter("slic", "how the region is cut into pieces")
    kernel: Kernel = _parameter("exponential", "weights of the sets: LIME's exponential kernel, or kernel SHAP's")


@dataclass(frozen=True)
class Structures:
    """Remove each structure that the network segments, and the rest of the body, in turn."""

    pairs: int = _parameter(0, "also remove every two of this many most important structures together", 0, 20)


@dataclass(frozen=True)
class IntegratedGradients:
    """For comparison: gradients of the score along the way from the baseline to the scan."""

    steps: int = _parameter(32, "points on the way", 2, 1000)


@dataclass(frozen=True)
class SegGradCam:
    """For comparison: feature maps of a layer, weighted by the gradient of the score."""

    layer: str | None = _parameter(None, "name of the layer; default: the deepest convolution")


Method = Occlusion | Rise | Lime | Structures | IntegratedGradients | SegGradCam

METHODS: Mapping[str, type[Method]] = {
    "occlusion": Occlusion,
    "rise": Rise,
    "lime": Lime,
    "structures": Structures,
    "integrated-gradients": IntegratedGradients,
    "seg-grad-cam": SegGradCam,
}
"""Every method by its name; the first is the default."""


@dataclass(frozen=True)
class Reading:
    """How the results of a method read.

    Attributes
    ----------
    counted
        What the perturbations, or steps, of the method are called.
    value
        What a voxel's value is, to follow "score lost"; empty where it is not a score lost.
    label
        Of the colours, with ``{score}`` for the score.
    region
        Of the region's outline.
    pieces
        Whether a whole piece has one value, so that nothing lies between those of two neighbours.
    """

    counted: str
    value: str
    label: str
    region: str = "Region of interest (no colour outside: not tried)"
    pieces: bool = False


READINGS: Mapping[str, Reading] = {
    "occlusion": Reading("hidden cubes", "mean over the hidden cubes that hold a place", "score lost ({score})"),
    "rise": Reading("random patterns", "by hiding the cell around a place", "score lost ({score})"),
    "lime": Reading(
        "sets of supervoxels",
        "because of a supervoxel, were their effects to add up",
        "score lost ({score})",
        pieces=True,
    ),
    "structures": Reading(
        "removals", "by removing a whole structure", "score lost ({score})", "Region of interest", pieces=True
    ),
    "integrated-gradients": Reading("steps", "", "attribution per voxel (share of the {score})", "Region of interest"),
    "seg-grad-cam": Reading("patches", "", "activation (no unit)", "Region of interest"),
}
"""Of every method by its name."""


def method(name: str, /, **parameters: Any) -> Method:
    """A method with its parameters, checked; those that are not given, or None, keep their default.

    Raises
    ------
    InputError
        There is no such method or parameter, or a value is out of bounds.
    """
    if name not in METHODS:
        raise InputError(f"There is no method {name!r}: choose one of {', '.join(METHODS)}.")
    kind = METHODS[name]
    known = {f.name: f for f in fields(kind)}
    types = get_type_hints(kind)
    given: dict[str, Any] = {}
    for key, value in parameters.items():
        if key not in known:
            raise InputError(f"The method {name} has no parameter {key}: it has {', '.join(known)}.")
        if value is not None:
            given[key] = _checked(known[key], types[key], value)
    made = kind(**given)
    if isinstance(made, Occlusion) and made.window_mm and made.stride_mm and made.stride_mm > made.window_mm:
        raise InputError(
            f"stride_mm is {made.stride_mm:g}, more than window_mm, {made.window_mm:g}: that leaves gaps, give a "
            "shorter stride."
        )
    return made


def describe() -> dict[str, dict[str, Any]]:
    """Every method with its parameters, as plain data for a panel or JSON.

    ``{"rise": {"summary": ..., "parameters": [{"name", "help", "type": "number" | "integer" | "flag" | "choice" |
    "text", "default", "least", "most", "unit", "choices"}]}}``. A default of None means that it is worked out.
    """
    return {
        name: {"summary": (kind.__doc__ or "").strip(), "parameters": [_described(f, kind) for f in fields(kind)]}
        for name, kind in METHODS.items()
    }


def _described(parameter: Field[Any], kind: type[Method]) -> dict[str, Any]:
    wanted, choices = _wanted(get_type_hints(kind)[parameter.name])
    names = {bool: "flag", int: "integer", float: "number", str: "text"}
    assert parameter.default is not MISSING
    return {
        "name": parameter.name,
        "type": "choice" if choices else names[wanted],
        "default": parameter.default,
        "choices": list(choices),
        **parameter.metadata,
    }


def _wanted(hint: Any) -> tuple[type, tuple[str, ...]]:
    """The type that a parameter takes besides None, and its choices where it has any."""
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    return next((kind for kind in get_args(hint) if kind is not type(None)), hint), ()


def _checked(parameter: Field[Any], hint: Any, value: Any) -> Any:
    """The value as the parameter takes it."""
    wanted, choices = _wanted(hint)
    least, most, name = parameter.metadata["least"], parameter.metadata["most"], parameter.name
    if choices:
        if value not in choices:
            raise InputError(f"There is no {name} {value!r}: choose one of {', '.join(choices)}.")
        return value
    if wanted in (bool, str):
        if not isinstance(value, wanted):
            raise InputError(f"{name} is {value!r}: give {'true or false' if wanted is bool else 'a name'}.")
        return value
    what = (
        "a whole number"
        if wanted is int
        else f"a number{' in ' + parameter.metadata['unit'] if parameter.metadata['unit'] else ''}"
    )
    try:
        number = wanted(value)
        right = not isinstance(value, (bool, str)) and number == value and math.isfinite(number)
    except (TypeError, ValueError, OverflowError):
        right = False
    if not right or not least <= number <= most:
        raise InputError(f"{name} is {value}: give {what} from {least:g} to {most:g}.")
    return number
