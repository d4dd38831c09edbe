"""Metrics of a saliency map alone, or of a map and a mask; the network is not run.

A map that lies on the organ is not therefore true: the network may rely on tissue beside it. Metrics that compare with
a mask measure truth only if the mask is known to be the evidence (Arras et al. plant it). Each is therefore returned
with the value expected by chance. The overlap, which can be high because of the region alone, is returned with that of
control maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.controls import Spacing, centre_map, random_map, smooth_noise
from XAICLIPLib.imaging.nearness import within

HALF = 0.5
"""Threshold of the paper: a voxel counts as marked from this share of the map's maximum."""


@dataclass(frozen=True)
class Share:
    """A share of something that lies inside (or outside) a mask.

    Attributes
    ----------
    value
        From 0 to 1.
    chance
        The value of a uniform or random map. The value above says something only in comparison with it.
    """

    value: float
    chance: float


@dataclass(frozen=True)
class Pointing:
    """Whether the highest value of a map lies in a mask.

    Attributes
    ----------
    hit
        1 where the maximum lies in the mask or within the tolerance, 0 where not; where several voxels share the
        maximum, the share of them that does. High is good.
    chance
        The expected value for a random voxel.
    distance_mm
        From the maximum to the mask, 0 inside; the mean, where several voxels share the maximum.
    """

    hit: float
    chance: float
    distance_mm: float


@dataclass(frozen=True)
class MaskOverlap:
    """Overlap of two masks, each number from 0 to 1."""

    dice: float
    iou: float


@dataclass(frozen=True)
class Overlap:
    """How a thresholded map overlaps an organ, and how control maps in the same region do.

    Attributes
    ----------
    saliency
        Of the map within the region. A high value is good only if it is higher than those of the controls.
    controls
        Of ``uniform`` (the region itself), ``centre`` (how deep a voxel lies in the region), ``white noise`` and
        ``smooth noise``, each cut to the region and thresholded exactly as the map.
    """

    saliency: MaskOverlap
    controls: Mapping[str, MaskOverlap]

    @property
    def lead(self) -> float:
        """The map's Dice less the best control's, -1 to 1. At or below 0 the overlap comes from the region alone."""
        return self.saliency.dice - max(control.dice for control in self.controls.values())


@dataclass(frozen=True)
class Completeness:
    """How far the sum of Shapley-type values is from the change of the score.

    Attributes
    ----------
    total
        Sum of the values.
    change
        Score of the input minus score of the baseline.
    gap
        ``total - change``; 0 is good.
    relative
        ``|gap|`` over ``|change|``; None where the change is 0.
    """

    total: float
    change: float
    gap: float
    relative: float | None


def pointing_game(
    saliency: ArrayLike | Tensor, mask: ArrayLike | Tensor, spacing_mm: Spacing, tolerance_mm: float = 0.0
) -> Pointing:
    """Whether the highest value of a map lies in a mask.

    Parameters
    ----------
    saliency, mask
        (X, Y, Z).
    spacing_mm
        Voxel size along X, Y and Z.
    tolerance_mm
        A maximum within this distance of the mask is still a hit.

    Raises
    ------
    InputError
        The map is not finite, the mask empty, or their shapes differ.

    References
    ----------
    J. Zhang et al. "Top-down Neural Attention by Excitation Backprop", ECCV 2016.
    """
    values, inside = _pair(saliency, mask)
    distance = distance_transform_edt(~inside, sampling=spacing_mm)
    distance_of_maximum = distance[values == values.max()]
    return Pointing(
        float((distance_of_maximum <= tolerance_mm).mean()),
        float((distance <= tolerance_mm).mean()),
        float(distance_of_maximum.mean()),
    )


def relevance_mass(saliency: ArrayLike | Tensor, mask: ArrayLike | Tensor) -> Share:
    """Share of a map's positive values that lies in a mask, 0 to 1; high is good where the mask is the evidence.

    A map without a positive value has no such share: its value is that expected by chance.

    Parameters
    ----------
    saliency, mask
        (X, Y, Z).

    Raises
    ------
    InputError
        As for `pointing_game`.

    References
    ----------
    L. Arras, A. Osman, W. Samek. "CLEVR-XAI: A benchmark dataset for the ground truth evaluation of neural network
    explanations", Information Fusion 81, 2022: relevance mass accuracy.
    """
    values, inside = _pair(saliency, mask)
    return _mass(np.maximum(values, 0), inside)


def outside_share(
    saliency: ArrayLike | Tensor, mask: ArrayLike | Tensor, spacing_mm: Spacing, margin_mm: float = 0.0
) -> Share:
    """Share of a map's absolute values that lies outside a mask and a margin, from 0 to 1.

    Neither high nor low is good: it is the share of the effect that a map restricted to the mask would hide.

    Parameters
    ----------
    saliency, mask
        (X, Y, Z).
    spacing_mm
        Voxel size along X, Y and Z.
    margin_mm
        Width of the margin around the mask. Occlusion blurs an effect over its window: half a window is fair.

    Raises
    ------
    InputError
        As for `pointing_game`.
    """
    values, inside = _pair(saliency, mask, np.float32)
    if margin_mm > 0:
        inside = within(inside, margin_mm, spacing_mm)
    return _mass(np.abs(values), ~inside)


def relevance_rank(saliency: ArrayLike | Tensor, mask: ArrayLike | Tensor) -> Share:
    """Share of the K highest values that lies in a mask of K voxels, from 0 to 1; high where the mask is the evidence.

    Where several voxels share the K-th highest value, the expected number for a random choice among them counts.

    Parameters
    ----------
    saliency, mask
        (X, Y, Z).

    Raises
    ------
    InputError
        As for `pointing_game`.

    References
    ----------
    Arras et al. (see `relevance_mass`): relevance rank accuracy.
    """
    values, inside = _pair(saliency, mask)
    size = int(inside.sum())
    last = np.partition(values.ravel(), values.size - size)[values.size - size]
    above, ties = values > last, values == last
    share_of_ties = (size - above.sum()) / ties.sum()
    hits = (above & inside).sum() + share_of_ties * (ties & inside).sum()
    return Share(float(hits / size), size / values.size)


def overlap(
    saliency: ArrayLike | Tensor,
    organ: ArrayLike | Tensor,
    region: ArrayLike | Tensor,
    spacing_mm: Spacing,
    *,
    threshold: float = HALF,
    seed: int = 0,
) -> Overlap:
    """Dice and IoU of a thresholded map with an organ, as in the XAI-CLIP paper, and the same of control maps.

    Within the region, negative values are set to 0 and all are divided by the maximum; outside it nothing is marked.
    The network is not run, so that this is no measure of truth: any map cut to a good region gets a high value. For a
    map that was computed everywhere give a region of ones.

    Parameters
    ----------
    saliency, organ, region
        (X, Y, Z).
    spacing_mm
        Voxel size along X, Y and Z.
    threshold
        Normalised values from this one on are marked.
    seed
        Of the noise.

    Raises
    ------
    InputError
        As for `pointing_game`.

    References
    ----------
    Alzubaidi et al. "XAI-CLIP", arXiv 2602.07017, 2026.
    """
    values, inside = _pair(saliency, organ)
    _, allowed = _pair(saliency, region)
    white = random_map(values.shape, spacing_mm, seed, grain_mm=0)
    smooth = smooth_noise(values.shape, spacing_mm, seed)
    control_maps = {
        "uniform": np.ones(values.shape),
        "centre": centre_map(torch.from_numpy(allowed), spacing_mm).numpy(),
        "white noise": white.numpy(),
        "smooth noise": smooth.numpy(),
    }

    def overlap_of(array: NDArray[np.floating]) -> MaskOverlap:
        positive = np.where(allowed, np.maximum(array, 0), 0)
        highest = positive.max()
        marked = (positive >= threshold * highest) & allowed & (positive > 0)
        shared, total = float((marked & inside).sum()), float(marked.sum() + inside.sum())
        return MaskOverlap(2 * shared / total, shared / (total - shared))

    return Overlap(overlap_of(values), {name: overlap_of(array) for name, array in control_maps.items()})


def gini(saliency: ArrayLike | Tensor, mask: ArrayLike | Tensor | None = None) -> float:
    """Sparseness: the Gini index of the absolute values, from 0 (all the same) to 1 (a single voxel).

    Neither high nor low is good in itself: a map of one random voxel has the highest. 0 for a map of zeros.

    Parameters
    ----------
    saliency
        (X, Y, Z).
    mask
        (X, Y, Z) bool: the voxels that are used, by default all. The zeros around a probed region raise the index.

    Raises
    ------
    InputError
        As for `pointing_game`.

    References
    ----------
    P. Chalasani et al. "Concise Explanations of Neural Networks using Adversarial Training", ICML 2020.
    """
    values = _finite(saliency)
    if mask is not None:
        values = values[_pair(saliency, mask)[1]]
    effect = np.sort(np.abs(values).ravel())
    total, n = float(effect.sum()), effect.size
    if not total:
        return 0.0
    return float(((2 * np.arange(1, n + 1) - n - 1) * effect).sum() / (n * total))


def completeness(values: ArrayLike | Tensor, score: float, baseline_score: float) -> Completeness:
    """Whether Shapley-type values add up to the score lost when everything is removed.

    Parameters
    ----------
    values
        One value for each piece that can be removed. If a map repeats a piece's value in all its voxels, give the
        value of each piece once.
    score, baseline_score
        Of the input, and with all pieces removed.

    Raises
    ------
    InputError
        A value is not finite.

    References
    ----------
    S. M. Lundberg, S.-I. Lee. "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017: local accuracy.
    M. Sundararajan, A. Taly, Q. Yan. "Axiomatic Attribution for Deep Networks", ICML 2017: completeness.
    """
    total, change = math.fsum(_finite(values).ravel()), score - baseline_score
    gap = total - change
    return Completeness(total, change, gap, abs(gap / change) if change else None)


def _mass(amount: NDArray[np.floating], mask: NDArray[np.bool_]) -> Share:
    chance, total = float(mask.mean()), float(amount.sum(dtype=np.float64))
    inside = float(amount.sum(dtype=np.float64, where=mask))
    return Share(inside / total if total else chance, chance)


def _pair(
    saliency: ArrayLike | Tensor, mask: ArrayLike | Tensor, dtype: type[np.floating] = np.float64
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A map and a mask on one grid, the mask not empty."""
    values, inside = _finite(saliency, dtype), _array(mask) != 0
    if values.shape != inside.shape:
        raise InputError(
            f"The saliency has {' × '.join(map(str, values.shape))} voxels and the mask "
            f"{' × '.join(map(str, inside.shape))}: give both on one grid."
        )
    if not inside.any():
        raise InputError("The mask is empty, so that nothing can be compared with it: give another one.")
    return values, inside


def _finite(saliency: ArrayLike | Tensor, dtype: type[np.floating] = np.float64) -> NDArray[Any]:
    values = np.asarray(_array(saliency), dtype)
    if not values.size or not np.isfinite(values).all():
        raise InputError("The saliency is empty or holds values that are not finite, so that it cannot be measured.")
    return values


def _array(values: ArrayLike | Tensor) -> NDArray[np.generic]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
