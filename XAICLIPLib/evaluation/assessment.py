"""Whether to believe the map that was just made: what is known of it for nothing, and what a check finds out.

The check takes `PERTURBATIONS` perturbations of the whole region for the deletion and insertion curves, and one more
explanation, of the scan with a little noise in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from XAICLIPLib.errors import Cancelled
from XAICLIPLib.evaluation.controls import GRAIN_MM, OUTLINE, centre_map, edge_map, outline_maps, random_map
from XAICLIPLib.evaluation.curves import DIRECTIONS, Curves, Faithfulness, removal_curves
from XAICLIPLib.evaluation.metrics import Share, outside_share
from XAICLIPLib.evaluation.reliability import Evidence
from XAICLIPLib.evaluation.stability import RADIUS, Stability, stability
from XAICLIPLib.explainers.base import Estimate, Method
from XAICLIPLib.explainers.setting import Setting
from XAICLIPLib.localization.region import Agreement

POINTS = 5
"""Of each curve: from a thousandth of the region to all of it, each step removes 5.6 times what the one before did."""

ORDERS = 7
"""The map, chance, and maps that know nothing of the network: what it draws (mask, depth and border), the middle of the
region, and edges of the scan."""

SURE = 2.0
"""Standard errors beyond which a value counts as an effect."""

PERTURBATIONS = ORDERS * (2 * POINTS - 1)


@dataclass(frozen=True)
class Assessment:
    """What a check found; None where it was cancelled before.

    Attributes
    ----------
    faithfulness
        Curves of the map beside those of chance and of maps that know nothing, over the voxels that were tried; cubes
        of 12 mm are removed as wholes, so that no map wins by scatter.
    stability
        Under noise in the input, from one noisy explanation.
    """

    faithfulness: Faithfulness | None = None
    stability: Stability | None = None


def evidence_of(
    name: str, method: Method, setting: Setting, last: Estimate, saliency: Tensor, agreement: Agreement | None
) -> Evidence:
    """What is known of a map without asking the network again.

    Parameters
    ----------
    name
        Of the structure.
    method, setting, last
        What made the map, from what, and its last estimate.
    saliency
        (X, Y, Z), on the segmenter's grid.
    agreement
        Of a region that was found and the prediction; None where the region was given.
    """
    probed = last.probed().cpu()
    errors = last.standard_error()
    error = None if errors is None else errors.cpu()[probed].numpy()
    return Evidence(
        name,
        agreement=agreement,
        outside=_outside(method, setting, last, saliency),
        margin_mm=method.reach_mm,
        saliency=None if error is None else saliency.cpu()[probed].numpy(),
        standard_error=error,
    )


def _outside(method: Method, setting: Setting, last: Estimate, saliency: Tensor) -> Share | None:
    """Share of the effect outside the target; of structures by what each costs, not by how large each is."""
    rows = last.findings().get("structures")
    if rows is not None:
        # What overlaps the target cannot be removed without a part of it, and says nothing of what lies outside.
        parts = setting.parts
        held = {part for number in setting.target_numbers for part in parts.get(number, (number,))}
        own = {setting.names.get(number) for number in setting.target_numbers}
        across = {setting.names.get(number) for number, shared in parts.items() if held & set(shared)} - own
        rows = [row for row in rows if row["structure"] not in across]
        others = [row["share"] for row in rows if row["structure"] not in own]
        total = sum(row["share"] for row in rows)
        known = len(rows) > len(others) and total > 0
        return Share(float(sum(others)) / total, len(others) / len(rows)) if known else None
    reference = setting.scorer.target.reference.cpu()
    if not bool((saliency != 0).any()) or not bool(reference.any()):
        return None
    errors = last.standard_error()
    if errors is not None:  # noise is everywhere, and most places lie outside
        saliency = torch.where(saliency.abs() > SURE * errors.cpu(), saliency, 0.0)
        if not bool((saliency != 0).any()):
            return None
    return outside_share(saliency, reference, setting.spacing_mm, method.reach_mm)


def assess_map(
    method: Method,
    setting: Setting,
    last: Estimate,
    saliency: Tensor,
    seed: int,
    advance: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> Assessment:
    """Test a map on the network that it explains.

    Parameters
    ----------
    method, setting, last, seed
        What made the map, from what, its last estimate, and the seed of all that is random.
    saliency
        (X, Y, Z), on the segmenter's grid.
    advance
        Told how many perturbations are done, of how many.
    cancelled
        True ends with what is known.
    """
    total = PERTURBATIONS + last.planned
    try:
        curves = _curves(setting, last, saliency, seed, lambda done: advance(done, total), cancelled)
    except Cancelled:
        return Assessment()
    known = setting.scorer.volume
    channels = len(setting.volume)

    def again(volume: Tensor) -> Tensor:
        if volume is known:
            return saliency
        noisy = torch.cat([volume[:channels], known[channels:]])  # a prompt's channels are no scan
        there = replace(setting, scorer=replace(setting.scorer, volume=noisy), volume=noisy[:channels])
        found: Estimate | None = None
        for found in method.estimates(there, seed):
            advance(PERTURBATIONS + min(found.done, last.planned), total)
            if cancelled():
                raise Cancelled("The check was cancelled.")
        assert found is not None
        return found.measured()

    low, high = np.percentile(setting.volume.cpu().numpy().ravel()[::7], (0.5, 99.5))
    try:
        return Assessment(curves, stability(again, known, radius=RADIUS * float(high - low or 1), samples=1, seed=seed))
    except Cancelled:
        return Assessment(curves)


def _curves(
    setting: Setting,
    last: Estimate,
    saliency: Tensor,
    seed: int,
    advance: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> Faithfulness:
    """Curves over the voxels that were tried: elsewhere the map says nothing, and the controls should not either."""
    spacing, shape = setting.spacing_mm, tuple(saliency.shape)
    tried = last.probed().cpu() & setting.changeable.cpu()
    tried = tried if bool(tried.any()) else setting.changeable.cpu()
    controls = {
        **outline_maps(setting.scorer.target.reference, spacing),
        "centre": centre_map(tried, spacing),
        "edges": edge_map(setting.volume, spacing),
    }
    orders = {"map": saliency, "random": random_map(shape, spacing, seed), **controls}
    curves: dict[str, Curves] = {}
    for name, order in orders.items():
        advance(PERTURBATIONS * len(curves) // ORDERS)
        if cancelled():
            raise Cancelled("The check was cancelled.")
        curves[name] = removal_curves(
            setting.scorer, order, spacing, removable=tried, count=POINTS, seed=seed, grain_mm=GRAIN_MM
        )
    return Faithfulness(curves["map"], (curves["random"],), {name: curves[name] for name in controls})


def faithfulness_record(faithfulness: Faithfulness | None) -> dict[str, Any] | None:
    """The curves for the record, by soft Dice: volumes in mm³, scores, areas, and how far the map leads."""
    if faithfulness is None:
        return None
    first = faithfulness.saliency.deletion["soft dice"]
    named: Mapping[str, Curves] = {"random": faithfulness.random[0], **faithfulness.controls}
    return {
        "score": "soft dice",
        "volumes_mm3": list(first.volumes_mm3),
        "map": _curves_record(faithfulness.saliency),
        "controls": {name: _curves_record(curves) for name, curves in named.items()},
        "lead": {way: faithfulness.lead(way) for way in DIRECTIONS},
        "lead_over_outline": {way: faithfulness.lead(way, controls=OUTLINE) for way in DIRECTIONS},
    }


def _curves_record(curves: Curves) -> dict[str, Any]:
    both = {way: curves.of(way)["soft dice"] for way in DIRECTIONS}
    return {way: {"scores": list(curve.scores), "area": curve.area} for way, curve in both.items()}


def stability_record(found: Stability | None) -> dict[str, Any] | None:
    """The stability for the record."""
    return None if found is None else asdict(found)
