"""Whether to believe the map that was just computed.

`evidence_of` collects what is known without running the network again. `assess_map` tests the map on the network: it
takes `PERTURBATIONS` perturbations of the whole region for the deletion and insertion curves, about `REGION_CALLS` for
the regions that suffice or are necessary, and one more explanation, of the scan with a little noise added.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from XAICLIPLib.errors import Cancelled
from XAICLIPLib.evaluation.controls import GRAIN_MM, OUTLINE, centre_map, edge_map, outline_maps, random_map
from XAICLIPLib.evaluation.curves import DIRECTIONS, Curves, Faithfulness, removal_curves
from XAICLIPLib.evaluation.key_regions import KeyRegions, key_regions
from XAICLIPLib.evaluation.metrics import Share, outside_share
from XAICLIPLib.evaluation.reliability import Evidence
from XAICLIPLib.evaluation.stability import RADIUS, Stability, stability
from XAICLIPLib.explainers.base import Estimate, Method
from XAICLIPLib.explainers.setting import Setting
from XAICLIPLib.localization.region import Agreement

POINTS = 5
"""Points of each curve: from one cube to everything that was tried, each step larger than the last by one factor."""

ORDERS = 7
"""Removal orders that are compared: the map's, a random one, and those of five control maps, made without the network:
the target's mask, depth and border, the middle of the region, and the edges of the scan."""

SURE = 2.0
"""A value counts as an effect if it is more than this many standard errors from 0."""

PERTURBATIONS = ORDERS * (2 * POINTS - 1)

REGION_CALLS = 40
"""About how many perturbations the sufficient and necessary regions take, by the map and by the outline."""


@dataclass(frozen=True)
class Assessment:
    """The results of testing a map on its network. A test that was cancelled has None.

    Attributes
    ----------
    faithfulness
        Deletion and insertion curves of the map, of a random order and of control maps, over the probed voxels. Whole
        cubes of 12 mm are removed, so that no map wins because its values are scattered.
    regions
        How little of the scan suffices, and how little is necessary.
    stability
        Change of the map under noise in the input, from one noisy explanation.
    """

    faithfulness: Faithfulness | None = None
    regions: KeyRegions | None = None
    stability: Stability | None = None


def evidence_of(
    name: str, method: Method, setting: Setting, last: Estimate, saliency: Tensor, agreement: Agreement | None
) -> Evidence:
    """Collect what is known of a map without running the network again.

    Parameters
    ----------
    name
        Of the structure.
    method, setting, last
        The method that computed the map, its inputs, and its last estimate.
    saliency
        (X, Y, Z), on the segmenter's grid.
    agreement
        Overlap of the localizer's region with the prediction; None where the user gave the region.
    """
    probed = last.probed().cpu()
    errors = last.standard_error()
    # By NumPy, as PyTorch makes three whole numbers of each voxel of a mask.
    error = None if errors is None else errors.cpu().numpy()[probed.numpy()]
    return Evidence(
        name,
        agreement=agreement,
        outside=_outside(method, setting, last, saliency),
        margin_mm=method.reach_mm,
        saliency=None if error is None else saliency.cpu().numpy()[probed.numpy()],
        standard_error=error,
    )


def _outside(method: Method, setting: Setting, last: Estimate, saliency: Tensor) -> Share | None:
    """Share of the effect outside the target. Whole structures count by the score lost, not by their volume."""
    findings = last.findings()
    rows = findings.get("structures")
    if rows is not None:
        # A structure that overlaps the target cannot be removed without a part of the target: it is left out.
        parts = setting.parts
        target_parts = {part for number in setting.target_numbers for part in parts.get(number, (number,))}
        targets = {setting.names.get(number) for number in setting.target_numbers}
        overlapping = {setting.names.get(n) for n, shared in parts.items() if target_parts & set(shared)} - targets
        rows = [row for row in rows if row["structure"] not in overlapping]
        others = [row["share"] for row in rows if row["structure"] not in targets]
        total = sum(row["share"] for row in rows)
        known = len(rows) > len(others) and total > 0
        return Share(float(sum(others)) / total, len(others) / len(rows)) if known else None
    if "credit_of_organ" in findings:  # told apart by the method itself, and not by how many voxels each has
        organ, context = (abs(float(findings[f"credit_of_{part}"])) for part in ("organ", "context"))
        return Share(context / (organ + context), math.nan) if organ + context else None
    reference = setting.scorer.target.reference.cpu()
    if not bool((saliency != 0).any()) or not bool(reference.any()):
        return None
    errors = last.standard_error()
    if errors is not None:  # noise is everywhere, and most voxels lie outside the target
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
        The method that computed the map, its inputs, its last estimate, and the seed of all that is random.
    saliency
        (X, Y, Z), on the segmenter's grid.
    advance
        Called with the number of perturbations done and the total.
    cancelled
        Asked between perturbations; True ends the test with the results so far.
    """
    before = PERTURBATIONS + REGION_CALLS
    total, calls = before + last.planned, itertools.count(PERTURBATIONS)

    def between() -> None:
        advance(min(next(calls), before), total)
        if cancelled():
            raise Cancelled("The check was cancelled.")

    try:
        curves = _curves(setting, last, saliency, seed, lambda done: advance(done, total), cancelled)
    except Cancelled:
        return Assessment()
    try:
        regions = key_regions(setting.scorer, saliency, setting.spacing_mm, setting.changeable, between)
    except Cancelled:
        return Assessment(curves)
    original = setting.scorer.volume
    channels = len(setting.volume)

    def explain_again(volume: Tensor) -> Tensor:
        if volume is original:
            return saliency
        noisy = torch.cat([volume[:channels], original[channels:]])  # the channels of a prompt get no noise
        noisy_setting = replace(setting, scorer=replace(setting.scorer, volume=noisy), volume=noisy[:channels])
        estimate: Estimate | None = None
        for estimate in method.estimates(noisy_setting, seed):
            advance(before + min(estimate.done, last.planned), total)
            if cancelled():
                raise Cancelled("The check was cancelled.")
        assert estimate is not None
        return estimate.measured()

    low, high = np.percentile(setting.volume.cpu().numpy().ravel()[::7], (0.5, 99.5))
    try:
        radius = RADIUS * float(high - low or 1)
        noise = stability(explain_again, original, radius=radius, samples=1, seed=seed)
    except Cancelled:
        return Assessment(curves, regions)
    return Assessment(curves, regions, noise)


def _curves(
    setting: Setting,
    last: Estimate,
    saliency: Tensor,
    seed: int,
    advance: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> Faithfulness:
    """Curves over the probed voxels. The map says nothing elsewhere, so the controls are compared there alone too."""
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
    """The curves for the record, by soft Dice: volumes in mm³, scores, areas, and the map's lead over the controls."""
    if faithfulness is None:
        return None
    first = faithfulness.saliency.deletion["soft dice"]
    named: Mapping[str, Curves] = {"random": faithfulness.random[0], **faithfulness.controls}
    return {
        "score": "soft dice",
        "volumes_mm3": list(first.volumes_mm3),
        "map": _curves_record(faithfulness.saliency),
        "controls": {name: _curves_record(curves) for name, curves in named.items()},
        "lead": {direction: faithfulness.lead(direction) for direction in DIRECTIONS},
        "lead_over_outline": {
            direction: faithfulness.lead(direction, controls=OUTLINE, over_chance=False) for direction in DIRECTIONS
        },
    }


def _curves_record(curves: Curves) -> dict[str, Any]:
    both = {direction: curves.of(direction)["soft dice"] for direction in DIRECTIONS}
    return {direction: {"scores": list(curve.scores), "area": curve.area} for direction, curve in both.items()}


def stability_record(result: Stability | None) -> dict[str, Any] | None:
    """The stability for the record."""
    return None if result is None else asdict(result)
