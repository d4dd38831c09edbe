"""Reliability flags: what a reader must know before believing a map, in plain words, each with its number.

A flag says that a check has failed. That none is raised does not make a map true: what was not measured is not flagged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.curves import DIRECTIONS, Faithfulness
from XAICLIPLib.evaluation.metrics import Share
from XAICLIPLib.evaluation.stability import Stability
from XAICLIPLib.localization.region import Agreement

FlagName = Literal[
    "region disagrees",
    "leans outside",
    "not converged",
    "like the null",
    "unstable",
    "unfamiliar intensities",
    "unfamiliar spacing",
]

REGION_RECALL = 0.5
"""Share of the prediction in the region below which they disagree: the region has a margin, so that even a shifted one
holds most of the organ; where it holds less than half, the two models mean different places."""

OUTSIDE = 0.5
"""Share of the effect outside the organ above which the target leans "mostly" on other tissue: more than on itself."""

NOISE = 0.5
"""Root mean square of a map's error over that of the map, from which it is too noisy.

Signal and error add in squares, so that a map with this ratio r correlates with the true one by sqrt(1 - r²): 0.87 at
0.5, about what a gradient preview reaches at the cost of four forwards; a map worse than that was not worth its time.
The same holds for the change of the map under noise in the input."""

ALL_NOISE = 10.0
"""Beyond this ratio nothing of a map is left, and JSON has no infinity."""

LEAD = 0.1
"""Share of the way from random to ideal order by which a map must lead the best map that knows nothing.

Noise of other seeds gets areas that scatter by a standard deviation of 0.05 to 0.15 in the planted-truth study
(Testing/benchmarks/planted.py), where occlusion leads by 0.2 to 0.4; the best of several controls lies above chance
already, and by that scatter once more a map could lead by luck."""

UNFAMILIAR = 0.5
"""Share of the body's voxels outside the network's intensity range: lungs, bowel gas and bone may lie outside it in any
scan, half of a body does not unless its units or its modality are others."""

SPACING_FACTOR = 2.0
"""How many times coarser or finer than the network has seen: a voxel twice as long leaves half of the detail that it
learned from; resampling cannot give it back."""


@dataclass(frozen=True)
class Flag:
    """A check that has failed.

    Attributes
    ----------
    name
        Of the check.
    sentence
        What it means, for a reader who knows no statistics.
    number, threshold
        What was measured, and where it becomes a flag.
    """

    name: FlagName
    sentence: str
    number: float
    threshold: float


@dataclass(frozen=True)
class Declared:
    """What a network says that it was made for, as far as it says so.

    Attributes
    ----------
    intensities
        Lowest and highest, in the units of the scan (HU).
    spacing_mm
        Finest and coarsest voxel size, each along three axes in any order: they are compared by size.
    """

    intensities: tuple[float, float] | None = None
    spacing_mm: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None


@dataclass(frozen=True)
class Evidence:
    """What is known about a map; what is None is not checked.

    Attributes
    ----------
    name
        Of the structure.
    agreement
        Of region and prediction.
    outside
        Share of the effect outside the organ, by `XAICLIPLib.evaluation.metrics.outside_share`; with half a window of
        margin, where the method is occlusion.
    saliency, standard_error
        The map, where it is known, and its standard error there: (n,) or any one shape.
    faithfulness
        Curves beside those of maps that know nothing.
    stability
        Under noise in the input.
    body_intensities
        Of the scan's voxels in the body, (n,) or a sample of them, in the units of `Declared.intensities`.
    spacing_mm
        Of the scan.
    declared
        By the network.
    """

    name: str
    agreement: Agreement | None = None
    outside: Share | None = None
    saliency: ArrayLike | None = None
    standard_error: ArrayLike | None = None
    faithfulness: Faithfulness | None = None
    stability: Stability | None = None
    body_intensities: ArrayLike | None = None
    spacing_mm: tuple[float, float, float] | None = None
    declared: Declared | None = None


def flags(evidence: Evidence) -> tuple[Flag, ...]:
    """All checks that fail, in the order in which a reader should know them.

    Raises
    ------
    InputError
        Map and standard error have different shapes.
    """
    checks = (
        unfamiliar_intensities,
        unfamiliar_spacing,
        region_disagrees,
        like_the_null,
        not_converged,
        unstable,
        leans_outside,
    )
    return tuple(flag for check in checks if (flag := check(evidence)) is not None)


def region_disagrees(evidence: Evidence) -> Flag | None:
    """Whether most of the prediction lies outside the region."""
    if evidence.agreement is None or evidence.agreement.recall >= REGION_RECALL:
        return None
    recall = evidence.agreement.recall
    sentence = (
        f"Only {recall:.0%} of what the network calls {evidence.name} lies in the region that was searched: either the "
        "region or the network's drawing is in the wrong place."
    )
    return Flag("region disagrees", sentence, recall, REGION_RECALL)


def leans_outside(evidence: Evidence) -> Flag | None:
    """Whether more of the effect lies outside the organ than in it."""
    if evidence.outside is None or evidence.outside.value <= OUTSIDE:
        return None
    sentence = (
        f"{evidence.outside.value:.0%} of the effect lies outside the {evidence.name}: the network draws it mostly "
        f"because of other tissue (a map that knows nothing would have {evidence.outside.chance:.0%} there)."
    )
    return Flag("leans outside", sentence, evidence.outside.value, OUTSIDE)


def not_converged(evidence: Evidence) -> Flag | None:
    """Whether chance makes up too much of the map."""
    if evidence.saliency is None or evidence.standard_error is None:
        return None
    values, error = (np.asarray(a, np.float64) for a in (evidence.saliency, evidence.standard_error))
    if values.shape != error.shape:
        raise InputError("The saliency and its standard error have different shapes: give both at the same voxels.")
    size = _root_mean_square(values)
    noise = _root_mean_square(error)
    ratio = min(noise / size, ALL_NOISE) if size else (ALL_NOISE if noise else 0.0)
    if ratio <= NOISE:
        return None
    sentence = (
        f"The map has not settled: with another seed its values would differ by about {ratio:.0%} of their usual size, "
        "so ask for more samples before reading it."
    )
    return Flag("not converged", sentence, ratio, NOISE)


def like_the_null(evidence: Evidence) -> Flag | None:
    """Whether removing voxels in the map's order does hardly better than in that of a map that knows nothing.

    The number is the mean lead in deletion and insertion, by soft Dice.
    """
    if evidence.faithfulness is None or not evidence.faithfulness.controls:
        return None
    leads = [lead for way in DIRECTIONS if (lead := evidence.faithfulness.lead(way)) is not None]
    if not leads or (number := float(np.mean(leads))) > LEAD:
        return None
    sentence = (
        f"The map explains the {evidence.name} no better than a picture that knows nothing of the network "
        "(noise, edges or the middle of the region): do not read it."
    )
    return Flag("like the null", sentence, number, LEAD)


def unstable(evidence: Evidence) -> Flag | None:
    """Whether noise that no reader would see changes the map."""
    if evidence.stability is None or evidence.stability.max_sensitivity <= NOISE:
        return None
    number = evidence.stability.max_sensitivity
    sentence = (
        f"A little noise in the scan, less than a reader would see, changes the map by {number:.0%} of its size: "
        "details of it mean nothing."
    )
    return Flag("unstable", sentence, number, NOISE)


def unfamiliar_intensities(evidence: Evidence) -> Flag | None:
    """Whether most of the body is darker or brighter than what the network declares."""
    if evidence.declared is None or evidence.declared.intensities is None or evidence.body_intensities is None:
        return None
    low, high = evidence.declared.intensities
    values = np.asarray(evidence.body_intensities)
    if not values.size:
        return None
    share = float(((values < low) | (values > high)).mean())
    if share <= UNFAMILIAR:
        return None
    sentence = (
        f"{share:.0%} of the body is darker or brighter than anything the network was made for ({low:g} to {high:g}): "
        "is this the right kind of scan, in the right units?"
    )
    return Flag("unfamiliar intensities", sentence, share, UNFAMILIAR)


def unfamiliar_spacing(evidence: Evidence) -> Flag | None:
    """Whether voxels are far finer or coarser than what the network declares."""
    if evidence.declared is None or evidence.declared.spacing_mm is None or evidence.spacing_mm is None:
        return None
    own, fine, coarse = (np.sort(axes) for axes in (evidence.spacing_mm, *evidence.declared.spacing_mm))
    factor = float(max((own / coarse).max(), (fine / own).max()))
    if factor <= SPACING_FACTOR:
        return None
    way = "coarser" if (own / coarse).max() > (fine / own).max() else "finer"
    size = " × ".join(f"{s:.2g}" for s in evidence.spacing_mm)
    sentence = (
        f"The scan's voxels ({size} mm) are {factor:.1f} times {way} than any the network was made for: its drawing "
        "may be poor."
    )
    return Flag("unfamiliar spacing", sentence, factor, SPACING_FACTOR)


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0
