"""Infidelity: how badly a map predicts the score that is lost when a cube of the scan is hidden.

References
----------
C.-K. Yeh et al. "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats.qmc import Halton
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.controls import Spacing
from XAICLIPLib.imaging.boxes import Box
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer

SAMPLES = 128
"""Cubes that are hidden. Where the evidence is small most cubes miss it and tell little, so many are needed."""

DRAWS = 64
"""Candidate points for each cube: enough where the mask fills a few hundredths of its bounding box."""


@dataclass(frozen=True)
class HiddenCubes:
    """Cubes, and the score that the target loses when each is hidden. They can be used for every map of this target.

    Attributes
    ----------
    shape
        X, Y, Z of the volume.
    boxes
        Bounds of each cube.
    lost
        Score lost by each.
    """

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    lost: tuple[float, ...]


@dataclass(frozen=True)
class Infidelity:
    """How badly the sums of a map over cubes predict the score lost.

    Attributes
    ----------
    mean_squared_error
        Of the best positive multiple of the map, in the score's unit squared: what captum gives with
        ``normalize=True`` where the best multiple is positive. Low is good.
    relative
        The same over the mean squared loss, from 0 (the map predicts every loss) to 1 (no better than a map of
        zeros, or of opposite sign). None where hiding loses no score.
    """

    mean_squared_error: float
    relative: float | None


def hide_cubes(
    scorer: Scorer,
    spacing_mm: Spacing,
    *,
    edge_mm: float,
    samples: int = SAMPLES,
    centres: Tensor | None = None,
    seed: int = 0,
) -> HiddenCubes:
    """Hide cubes, one after another, at random places that are evenly spread.

    Independent random places would leave gaps, and miss small evidence.

    Parameters
    ----------
    scorer
        Of the target.
    spacing_mm
        Voxel size along X, Y and Z.
    edge_mm
        Of a cube.
    samples
        How many cubes, at least 2.
    centres
        (X, Y, Z) bool: voxels where the centre of a cube may lie; all by default. Cubes are cut at the border.
    seed
        Of the places.

    Raises
    ------
    InputError
        There are too few cubes, or there is no place for them.
    """
    shape = tuple(scorer.volume.shape[1:])
    if samples < 2:
        raise InputError(f"samples is {samples}: give at least 2.")
    allowed = np.ones(shape, bool) if centres is None else centres.cpu().numpy().astype(bool)
    if not allowed.any():
        raise InputError("No cube may be hidden anywhere: give a mask that is not empty.")
    edges = [max(1, round(edge_mm / s)) for s in spacing_mm]
    boxes = tuple(
        tuple(slice(max(0, c - e // 2), min(n, c - e // 2 + e)) for c, e, n in zip(centre, edges, shape, strict=True))
        for centre in _spread(allowed, samples, seed)
    )
    lost = dict(pair for batch in scorer.lost(Perturbation(box) for box in boxes) for pair in batch)
    return HiddenCubes(shape, boxes, tuple(lost[n] for n in range(samples)))


def infidelity(saliency: Tensor, hidden: HiddenCubes) -> Infidelity:
    """Compare the score lost by hiding each cube with the sum of a map over it.

    Parameters
    ----------
    saliency
        (X, Y, Z), on the scorer's grid.
    hidden
        By `hide_cubes`.

    Raises
    ------
    InputError
        The map is not on that grid.
    """
    if tuple(saliency.shape) != hidden.shape:
        raise InputError("The saliency does not lie on the network's grid: give the map as it was computed.")
    predicted = [float(saliency[box].double().sum()) for box in hidden.boxes]
    product = math.fsum(a * b for a, b in zip(predicted, hidden.lost, strict=True))
    squared, losses = math.fsum(a * a for a in predicted), math.fsum(b * b for b in hidden.lost)
    # With a negative multiple, the opposite of the true map would count as perfect.
    explained = product**2 / squared if product > 0 else 0.0
    unexplained = max(0.0, losses - explained)
    return Infidelity(unexplained / len(predicted), unexplained / losses if losses else None)


def _spread(allowed: NDArray[np.bool_], count: int, seed: int) -> list[list[int]]:
    """Evenly spread voxels of a mask, by a scrambled Halton sequence; random ones where that meets too few."""
    places = np.argwhere(allowed)
    low, size = places.min(axis=0), np.ptp(places, axis=0) + 1
    points = low + (Halton(allowed.ndim, seed=seed).random(DRAWS * count) * size).astype(int)
    inside = points[allowed[tuple(points.T)]][:count]
    random_voxels = np.random.default_rng(seed).choice(places, count - len(inside))
    voxels: list[list[int]] = np.concatenate([inside, random_voxels]).tolist()
    return voxels
