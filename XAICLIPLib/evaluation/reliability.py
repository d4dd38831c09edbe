"""Reliability checks of a map: what a reader must know before believing it, in plain words, each with its number.

A raised flag says that a check has failed. If no flag is raised, the map is not therefore true: only what was measured
can be flagged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from XAICLIPLib import anatomy
from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.controls import OUTLINE
from XAICLIPLib.evaluation.curves import DIRECTIONS, Faithfulness
from XAICLIPLib.evaluation.metrics import Share
from XAICLIPLib.evaluation.reliability_flag import FlagName, ReliabilityFlag, in_reading_order
from XAICLIPLib.evaluation.stability import Stability
from XAICLIPLib.localization.region import ANOTHER_PLACE, Agreement

REGION_RECALL = ANOTHER_PLACE
"""Region and prediction disagree if less than this share of the prediction lies in the localizer's region."""

OUTSIDE = 0.5
"""If more than this share of the effect lies outside the organ, the network relies more on other tissue than on it."""

NOISE = 0.5
"""A map is too noisy if the root mean square of its error is more than this share of that of the map.

Signal and error add in squares, so that a map with this ratio r correlates with the true one by sqrt(1 - r²): 0.87 at
0.5, about what a gradient preview reaches at the cost of four forward passes; a map that is worse was not worth its
time. The same limit is used for the change of the map under noise in the input."""

ALL_NOISE = 10.0
"""The highest ratio of noise to signal that is recorded: JSON has no infinity, and such a map is worthless anyway."""

LEAD = 0.1
"""By how much a map must lead the best control map, on a scale on which the random order is 0 and the ideal order 1.

Noise of other seeds gets areas that scatter by a standard deviation of 0.05 to 0.15 in the planted-truth study
(Testing/benchmarks/planted.py), where occlusion leads by 0.2 to 0.4. The best of several controls already lies above
chance by that scatter; a map could lead it by the same amount by luck."""

OUTLINE_LEAD = LEAD
"""By how much a map must lead the best map made of the outline: that, too, may be the best of several by luck."""

SUFFICIENT_SHARE = 0.75
"""A map says more than the outline if, in its order, at most this share of what the outline's takes is enough."""

UNFAMILIAR = 0.5
"""Largest share of the body's voxels outside the network's intensity range. Lungs, bowel gas and bone may lie outside
it in any scan; half of a body does only if the units or the modality are wrong."""

SPACING_FACTOR = 2.0
"""How many times coarser or finer than the training data the scan may be. A voxel twice as long keeps half of the
detail that the network learned from, and resampling cannot restore it."""


@dataclass(frozen=True)
class DeclaredInputs:
    """The inputs that a network was made for, by its own declaration; None where it declares nothing.

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
    """What is known about a map; fields that are None are not checked.

    Attributes
    ----------
    name
        Of the structure.
    agreement
        Of the localizer's region and the prediction.
    outside
        Share of the effect outside the organ and a margin, by `XAICLIPLib.evaluation.metrics.outside_share`. Its chance
        is NaN for the credits of organ and context, of which no map that knows nothing has any.
    saliency, standard_error
        Values of the map at the probed voxels, and their standard errors: both (n,), or both of any other shape.
    faithfulness
        Curves of the map and of control maps.
    stability
        Change of the map under noise in the input.
    body_intensities
        Of the scan's voxels in the body, (n,) or a sample of them, in the units of `DeclaredInputs.intensities`.
    spacing_mm
        Of the scan.
    declared
        By the network.
    margin_mm
        The margin of ``outside``: half the size of what was hidden at once, over which a method blurs an effect.
    sufficient_ml
        How much of the scan is enough for the drawing, in the order of the map and in that of the outline.
    volume_ml
        Of the whole structure as the network draws it; None where only a part of it is meant.
    is_cut
        Whether it touches the border of the scan, so that some of it may lie outside.
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
    declared: DeclaredInputs | None = None
    margin_mm: float = 0.0
    sufficient_ml: tuple[float, float] | None = None
    volume_ml: float | None = None
    is_cut: bool = False


def reliability_flags(evidence: Evidence) -> tuple[ReliabilityFlag, ...]:
    """Make all checks that are possible with this evidence. Passed ones are returned too, the most important first.

    Raises
    ------
    InputError
        Map and standard error have different shapes.
    """
    checks = (
        unfamiliar_intensities,
        unfamiliar_spacing,
        unusual_volume,
        region_disagrees,
        like_the_null,
        no_more_than_the_outline,
        not_converged,
        unstable,
        leans_outside,
    )
    return tuple(in_reading_order(flag for check in checks if (flag := check(evidence)) is not None))


def raised_flags(evidence: Evidence) -> tuple[ReliabilityFlag, ...]:
    """Only the flags of checks that failed; see `reliability_flags`."""
    return tuple(flag for flag in reliability_flags(evidence) if flag.raised)


def _flag(name: FlagName, value: float, threshold: float, raised: bool, bad: str, good: str) -> ReliabilityFlag:
    return ReliabilityFlag(name, bad if raised else good, value, threshold, raised)


def unusual_volume(evidence: Evidence) -> ReliabilityFlag | None:
    """Whether the drawing is smaller or larger than such a structure of an adult; of one that is cut, only larger.

    The flag's value is the volume in ml, its threshold the bound of the vocabulary that it passed, or the upper one.
    """
    structure = anatomy.resolve(evidence.name)
    if evidence.volume_ml is None or structure is None or structure.volume_ml is None:
        return None
    volume, (least, most) = evidence.volume_ml, structure.volume_ml
    small = volume < least and not evidence.is_cut
    subject, usual = f"The network draws {volume:,.3g} ml of {evidence.name}", f"{least:,g} to {most:,g} ml in adults"
    if volume >= 1000:
        subject = f"The network draws {volume / 1000:.1f} l of {evidence.name}"
    return _flag(
        "unusual volume",
        volume,
        least if small else most,
        small or volume > most,
        f"{subject}, which has {usual}: it may have drawn something else, or the spacing of the scan may be wrong.",
        f"{subject}{', as far as the scan shows it' if evidence.is_cut else ''}; usual are {usual}.",
    )


def region_disagrees(evidence: Evidence) -> ReliabilityFlag | None:
    """Whether most of the prediction lies outside the region."""
    if evidence.agreement is None:
        return None
    recall = evidence.agreement.recall
    return _flag(
        "region disagrees",
        recall,
        REGION_RECALL,
        recall < REGION_RECALL,
        f"Region and prediction disagree: only {recall:.0%} of what the network calls {evidence.name} lies where the "
        "localizer finds it. Look at both: one of them may be wrong.",
        f"{recall:.0%} of what the network calls {evidence.name} lies where the localizer finds it.",
    )


def leans_outside(evidence: Evidence) -> ReliabilityFlag | None:
    """Whether more of the effect lies outside the organ than in it."""
    if evidence.outside is None:
        return None
    share, chance = evidence.outside.value, evidence.outside.chance
    place = f"more than {evidence.margin_mm:.0f} mm outside" if evidence.margin_mm else "outside"
    by_chance = "" if math.isnan(chance) else f" (a map that knows nothing would have {chance:.0%} there)"
    return _flag(
        "leans outside",
        share,
        OUTSIDE,
        share > OUTSIDE,
        f"{share:.0%} of the effect lies {place} the {evidence.name}: the network draws it mostly because of other "
        f"tissue{by_chance}.",
        f"{share:.0%} of the effect lies {place} the {evidence.name}{by_chance}.",
    )


def not_converged(evidence: Evidence) -> ReliabilityFlag | None:
    """Whether too much of the map is chance."""
    if evidence.saliency is None or evidence.standard_error is None:
        return None
    values, error = (np.asarray(a, np.float64) for a in (evidence.saliency, evidence.standard_error))
    if values.shape != error.shape:
        raise InputError("The saliency and its standard error have different shapes: give both at the same voxels.")
    size = _root_mean_square(values)
    noise = _root_mean_square(error)
    ratio = min(noise / size, ALL_NOISE) if size else (ALL_NOISE if noise else 0.0)
    differ = f"with another seed its values would differ by {_about(ratio)} of their usual size"
    return _flag(
        "not converged",
        ratio,
        NOISE,
        ratio > NOISE,
        f"The map has not settled: {differ}, so ask for more samples before reading it.",
        f"The map has settled: {differ}.",
    )


def like_the_null(evidence: Evidence) -> ReliabilityFlag | None:
    """Whether removing tissue in the map's order is hardly better than in the order of noise or edges.

    The flag's value is the mean lead in deletion and insertion, by soft Dice.
    """
    lead = _mean_lead(evidence, outline=False)
    if lead is None:
        return None
    return _flag(
        "like the null",
        lead,
        LEAD,
        lead <= LEAD,
        f"The map explains the {evidence.name} no better than a picture that knows nothing of the network "
        "(noise, or edges of the scan): do not read it.",
        f"Hiding what the map marks first destroys the {evidence.name} sooner and showing it first restores it "
        "sooner, both taken together, than in the order of pictures that know nothing of the network.",
    )


def no_more_than_the_outline(evidence: Evidence) -> ReliabilityFlag | None:
    """Whether the map says no more than outlines do: the network's drawing, its depth, its border, and the region.

    The flag's value is the mean lead in deletion and insertion, by soft Dice. Most of both is the organ itself, which
    the outline knows as well. So a map that does not lead is not condemned where, in its order, much less of the scan
    suffices for the drawing. If region and prediction disagree, the map was computed elsewhere and is not compared:
    `region_disagrees` says so.
    """
    lead = _mean_lead(evidence, outline=True)
    if lead is None or (evidence.agreement is not None and evidence.agreement.recall < REGION_RECALL):
        return None
    enough = evidence.sufficient_ml
    if lead <= OUTLINE_LEAD and enough is not None and enough[0] < SUFFICIENT_SHARE * enough[1]:
        return _flag(
            "no more than the outline",
            lead,
            OUTLINE_LEAD,
            False,
            "",
            f"The map says more than the outline of the {evidence.name}: the first {enough[0]:.0f} ml of the scan in "
            f"its order are enough for the network to draw it, in the order of the outline it takes {enough[1]:.0f} "
            "ml.",
        )
    if lead <= 0:
        bad = (
            f"The map says no more than the outline of the {evidence.name}: removing tissue in the order of the "
            f"outline alone does better, by {-lead:.0%} of the way from chance to an ideal order. Read it as where the "
            "network draws, and not as why."
        )
    else:
        bad = (
            f"The map says hardly more than the outline of the {evidence.name}: it leads the outline by {lead:.0%} of "
            "the way from chance to an ideal order, which may be luck."
        )
    return _flag(
        "no more than the outline",
        lead,
        OUTLINE_LEAD,
        lead <= OUTLINE_LEAD,
        bad,
        f"The map says more than the outline of the {evidence.name}: it leads the best order made of the outline by "
        f"{lead:.0%} of the way from chance to an ideal order.",
    )


def _mean_lead(evidence: Evidence, outline: bool) -> float | None:
    """Mean lead in deletion and insertion over the controls that are made of outlines, or over the others."""
    faithfulness = evidence.faithfulness
    if faithfulness is None:
        return None
    names = [name for name in faithfulness.controls if (name in OUTLINE) == outline]
    curves = [faithfulness.lead(d, controls=names, over_chance=not outline) for d in DIRECTIONS]
    leads = [lead for lead in curves if lead is not None]
    return float(np.mean(leads)) if names and leads else None


def unstable(evidence: Evidence) -> ReliabilityFlag | None:
    """Whether noise too weak for a reader to see changes the map."""
    if evidence.stability is None:
        return None
    change = evidence.stability.max_sensitivity
    little = (
        f"A little noise in the scan, less than a reader would see, changes the map by {_about(change)} of its size"
    )
    return _flag("unstable", change, NOISE, change > NOISE, f"{little}: details of it mean nothing.", f"{little}.")


def unfamiliar_intensities(evidence: Evidence) -> ReliabilityFlag | None:
    """Whether most of the body is darker or brighter than the range that the network declares."""
    if evidence.declared is None or evidence.declared.intensities is None or evidence.body_intensities is None:
        return None
    low, high = evidence.declared.intensities
    values = np.asarray(evidence.body_intensities)
    if not values.size:
        return None
    share = float(((values < low) | (values > high)).mean())
    outside = f"{share:.0%} of the body is darker or brighter than anything the network was made for"
    return _flag(
        "unfamiliar intensities",
        share,
        UNFAMILIAR,
        share > UNFAMILIAR,
        f"{outside} ({low:g} to {high:g}): is this the right kind of scan, in the right units?",
        f"{outside} ({low:g} to {high:g}).",
    )


def unfamiliar_spacing(evidence: Evidence) -> ReliabilityFlag | None:
    """Whether voxels are far finer or coarser than the range that the network declares."""
    if evidence.declared is None or evidence.declared.spacing_mm is None or evidence.spacing_mm is None:
        return None
    scan, finest, coarsest = (np.sort(axes) for axes in (evidence.spacing_mm, *evidence.declared.spacing_mm))
    factor = float(max((scan / coarsest).max(), (finest / scan).max()))
    comparison = "coarser" if (scan / coarsest).max() > (finest / scan).max() else "finer"
    size = " × ".join(f"{s:.2g}" for s in evidence.spacing_mm)
    return _flag(
        "unfamiliar spacing",
        factor,
        SPACING_FACTOR,
        factor > SPACING_FACTOR,
        f"The scan's voxels ({size} mm) are {factor:.1f} times {comparison} than any the network was made for: its "
        "drawing may be poor.",
        f"The scan's voxels ({size} mm) are of a size that the network was made for.",
    )


def _about(share: float) -> str:
    """A share in words, of which little is not told as nothing."""
    return "less than 1%" if share < 0.005 else f"about {share:.0%}"


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0
