"""Stability: how much a map changes when noise too weak for a reader to see is added to the input.

References
----------
C.-K. Yeh et al. "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019: max-sensitivity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from XAICLIPLib.errors import InputError

RADIUS = 0.02
"""Largest noise, in units of the input, after normalisation to [0, 1]; captum's default. Of a CT window of 400 HU that
is 8 HU, less than the noise of a scan. Scale it where inputs are z-scored."""

SAMPLES = 4
"""Each costs a whole explanation."""


@dataclass(frozen=True)
class Stability:
    """How much a map changes under noise in the input.

    Attributes
    ----------
    max_sensitivity
        Largest ‖e(x + noise) - e(x)‖ / ‖e(x)‖, at least 0; low is good, but a map that ignores the network has 0. For
        a map that is 0 everywhere, the numerator alone. The same as captum's ``sensitivity_max``.
    mean_sensitivity
        The mean of the same.
    lowest_correlation
        Smallest rank correlation (Spearman) of a noisy map with the map, at most 1; high is good. None where one of
        them is constant.
    samples
        Noisy inputs that were explained.
    """

    max_sensitivity: float
    mean_sensitivity: float
    lowest_correlation: float | None
    samples: int


def stability(
    explain: Callable[[Tensor], Tensor],
    volume: Tensor,
    *,
    radius: float = RADIUS,
    samples: int = SAMPLES,
    seed: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
) -> Stability:
    """Explain an input again with uniform noise added, and compare the maps.

    One explanation of the input and ``samples`` of noisy ones are computed; no more than two maps are in memory.
    Captum's function gives the same number, but forbids gradients in ``explain``.

    Parameters
    ----------
    explain
        Returns the map, of any shape, for an input such as ``volume``: for the same target, not a new prediction of
        it, and with the same seed.
    volume
        (C, X, Y, Z), in the network's input space.
    radius
        Noise is uniform in [-radius, radius].
    samples
        How many noisy inputs, at least 1.
    seed
        Of the noise.
    cancelled
        Asked before each explanation; True ends with the explanations computed so far.

    Raises
    ------
    InputError
        The radius or the number of samples is not positive, a map is not finite, or nothing was made before the end.
    """
    if radius <= 0 or samples < 1:
        raise InputError(f"A radius of {radius:g} and {samples} samples make no noise: give positive ones.")
    generator = torch.Generator().manual_seed(seed)
    original = _finite_map(explain, volume)
    norm = float(original.norm()) or 1.0
    changes, correlations = [], []
    for _ in range(samples):
        if cancelled():
            break
        noise = (2 * torch.rand(volume.shape, generator=generator) - 1) * radius
        noisy = _finite_map(explain, volume + noise.to(volume))
        changes.append(float((noisy - original).norm()) / norm)
        correlations.append(rank_correlation(noisy, original))
    if not changes:
        raise InputError("The measurement of stability was cancelled before there was a result.")
    known = [c for c in correlations if c is not None]
    return Stability(
        max(changes), float(np.mean(changes)), min(known) if len(known) == len(correlations) else None, len(changes)
    )


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Spearman's correlation of two maps; None where one of them is constant."""
    if bool((first == first.flatten()[0]).all()) or bool((second == second.flatten()[0]).all()):
        return None
    return float(spearmanr(first.flatten().numpy(), second.flatten().numpy()).statistic)


def _finite_map(explain: Callable[[Tensor], Tensor], volume: Tensor) -> Tensor:
    saliency = explain(volume).detach().cpu().double()
    if not bool(torch.isfinite(saliency).all()):
        raise InputError("A map holds values that are not finite, so that its stability cannot be measured.")
    return saliency
