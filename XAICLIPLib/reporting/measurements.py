"""Numbers about an explanation, and warnings about its target and region."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk

from XAICLIPLib import anatomy, imaging
from XAICLIPLib.explainers.base import Estimate
from XAICLIPLib.localization.region import Region
from XAICLIPLib.scoring.scorer import Scorer

SMALL_ML, UNSURE = 0.5, 0.5
"""Below this volume, or this score of the unperturbed scan, a drawing is probably not the organ."""


SMALLEST_ISLAND_ML = 0.1
"""From this volume on, what is drawn outside the region, apart from the rest, is told: a few voxels are noise."""


def measure(
    saliency: sitk.Image, probed: sitk.Image, explained: sitk.Image, scorer: Scorer, last: Estimate, patches: int
) -> dict[str, Any]:
    """Numbers about an explanation; the README says what each means.

    Parameters
    ----------
    saliency, probed, explained
        The map, the mask of where it was probed, and the target, all in the input's geometry.
    scorer, last
        The scorer of the perturbations, and the explainer's last estimate.
    patches
        Number of patches for one inference over the whole volume.
    """
    values = sitk.GetArrayViewFromImage(saliency)
    effect = np.abs(values)
    inside = sitk.GetArrayViewFromImage(explained) != 0
    probed_mask = sitk.GetArrayViewFromImage(probed) != 0
    total = float(effect.sum(dtype=np.float64))
    return {
        "score_unperturbed": scorer.full_score,
        "target_volume_ml": imaging.volume_ml(explained),
        "largest_score_lost": float(values.max()),
        "smallest_score_lost": float(values.min()),
        "effect_inside_target": float(effect[inside].sum(dtype=np.float64)) / total if total else None,
        "effect_inside_target_if_uniform": float((inside & probed_mask).sum() / probed_mask.sum())
        if probed_mask.any()
        else None,
        "probed_volume_ml": float(probed_mask.sum() * np.prod(saliency.GetSpacing()) / 1000),
        "perturbations": last.done,
        "perturbations_planned": last.planned,
        "patches_computed": scorer.forwards,
        "patches_full_inference_would_compute": last.done * patches,
        **last.findings(),
    }


def correction(words: str) -> str:
    """What a user should know of words that had to be corrected; empty where they are spelled right."""
    if anatomy.is_spelled_right(words):
        return ""
    return (
        f'"{words}" is not a known spelling and was understood as {anatomy.name_of(words)}: check that this is meant.'
    )


def touches_edge(mask: sitk.Image) -> bool:
    """Whether a mask touches the border of its volume, so that some of what it shows may lie outside."""
    voxels = sitk.GetArrayViewFromImage(mask)
    return any(bool(voxels.take(end, axis).any()) for axis in range(3) for end in (0, -1))


def cautions(
    name: str, prompt: str, explained: sitk.Image, region: Region, score: float, bounded_score: bool = True
) -> list[str]:
    """Warnings for a reader, one sentence each.

    Parameters
    ----------
    name, prompt, explained
        The target's name, the user's words for it, and the mask.
    score
        Of the unperturbed scan.
    bounded_score
        Whether the score lies in [0, 1]: if so, a low score means that the network is unsure.
    """
    sentences = [corrected] if (corrected := correction(prompt)) else []
    structure = anatomy.resolve(prompt)
    if structure is not None and anatomy.joint_labels(structure, {0: name}):
        sentences.append(
            f"The network has no class for the {structure.name} alone: what is explained is its class {name}."
        )
    volume = imaging.volume_ml(explained)
    doubt = "the organ may lie outside the scan and the drawing be a false positive, so do not interpret this map."
    if volume < SMALL_ML:
        sentences.append(f"Only {volume:.2g} ml of {name} with a score of {score:.2f} are explained: {doubt}")
    elif score < (UNSURE if bounded_score else 0):
        sentences.append(
            f"The network is unsure of the {volume:.0f} ml of {name} that it draws (score {score:.2f}): {doubt}"
        )
    if touches_edge(explained):
        sentences.append(f"The {name} touches the edge of the scan: volume and map cover only the part inside.")
    island_ml = _islands_ml(explained, region)
    if island_ml >= SMALLEST_ISLAND_ML:
        sentences.append(
            f"{island_ml:.2g} ml of what is drawn as {name} lie apart from the rest, outside the region: they may be "
            f"no {name}, and count in the score all the same."
        )
    if region.source == "file" and (region.agreement is None or region.agreement.recall < 0.5):
        share = region.agreement.recall if region.agreement else 0.0
        sentences.append(f"Only {share:.0%} of the {name} lies in the given region: most of it was not tried.")
    return sentences


def _islands_ml(explained: sitk.Image, region: Region) -> float:
    """Volume of the parts of a target that do not touch the region; 0 where no part does, as for a region elsewhere."""
    components = sitk.ConnectedComponent(sitk.Cast(explained != 0, sitk.sitkUInt8), True)
    parts = sitk.GetArrayViewFromImage(components)  # a view: the image must outlive it
    within = np.unique(parts[sitk.GetArrayViewFromImage(region.mask) != 0])
    if not within.any():
        return 0.0
    apart = int(np.count_nonzero(parts)) - int(np.isin(parts, within[within > 0]).sum())
    return apart * float(np.prod(explained.GetSpacing())) / 1000
