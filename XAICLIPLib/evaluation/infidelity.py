"""Infidelity: whether a map foretells what hiding a place costs, place after place.

References
----------
C.-K. Yeh et al. "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.controls import Spacing
from XAICLIPLib.perturbation.perturbation import Perturbation
from XAICLIPLib.scoring import Scorer

SAMPLES = 64
"""Cubes that are hidden."""


@dataclass(frozen=True)
class Infidelity:
    """How badly sums of a map foretell the score lost.

    Attributes
    ----------
    mean_squared_error
        Of the best multiple of the map, in the score's unit squared: that of captum with ``normalize=True`` where the
        multiple is positive. Low is good.
    relative
        The same over the mean squared loss, from 0 (the map foretells every loss) to 1 (no better than a map of
        zeros, or the wrong way round). None where hiding costs nothing.
    samples
        Cubes that were hidden.
    """

    mean_squared_error: float
    relative: float | None
    samples: int


def infidelity(
    scorer: Scorer, saliency: Tensor, spacing_mm: Spacing, *, edge_mm: float, samples: int = SAMPLES, seed: int = 0
) -> Infidelity:
    """Hide random cubes, and compare what each costs with the sum of the map over it.

    Parameters
    ----------
    scorer
        Of the target that the map explains. Cubes are drawn within all that its patches see.
    saliency
        (X, Y, Z), on the scorer's grid.
    spacing_mm
        Voxel size along X, Y and Z.
    edge_mm
        Of a cube.
    samples
        How many cubes, at least 2.
    seed
        Of where they lie.

    Raises
    ------
    InputError
        The map is not on the scorer's grid, or there are too few cubes.
    """
    shape = tuple(scorer.volume.shape[1:])
    if tuple(saliency.shape) != shape:
        raise InputError("The saliency does not lie on the network's grid: give the map as it was computed.")
    if samples < 2:
        raise InputError(f"samples is {samples}: give at least 2.")
    generator = np.random.default_rng(seed)
    edges = [min(n, max(1, round(edge_mm / s))) for n, s in zip(shape, spacing_mm, strict=True)]
    hidden = []
    for _ in range(samples):
        starts = [int(generator.integers(n - e + 1)) for n, e in zip(shape, edges, strict=True)]
        hidden.append(Perturbation(tuple(slice(a, a + e) for a, e in zip(starts, edges, strict=True))))
    lost = dict(pair for batch in scorer.lost(hidden) for pair in batch)
    cost = [lost[n] for n in range(samples)]
    foretold = [float(saliency[p.box].double().sum()) for p in hidden]
    product = math.fsum(a * b for a, b in zip(foretold, cost, strict=True))
    squared, losses = math.fsum(a * a for a in foretold), math.fsum(b * b for b in cost)
    # A negative multiple would make of the opposite of the truth a perfect map.
    explained = product**2 / squared if product > 0 else 0.0
    left = max(0.0, losses - explained)
    return Infidelity(left / samples, left / losses if losses else None, samples)
