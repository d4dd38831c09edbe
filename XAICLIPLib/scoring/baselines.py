"""What replaces perturbed voxels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.boxes import Box
from XAICLIPLib.imaging.nearness import within
from XAICLIPLib.scoring.options import BASELINES, Baseline

__all__ = ["BASELINES", "Baseline", "Fill", "baseline_for", "baseline_volume", "infill", "with_held"]

Fill = Callable[[Box, float | Tensor], Tensor]
"""Makes the replacement (C, *box) of one perturbation from its box and its strength there."""

BLUR_MM = 12.0
"""Standard deviation of the blurred baseline: wide enough to wash out an organ's texture and border."""

BODY_MARGIN_MM = 6.0
"""Around the body: there, too, voxels are replaced, for the skin is not found to the millimetre."""

SURROUNDINGS_MM = 12.0
"""How far around a hidden place the surroundings are looked at at least."""


def baseline_for(
    kind: Baseline,
    volume: Tensor,
    region: Tensor,
    spacing_mm: tuple[float, float, float],
    body: Tensor | None = None,
) -> tuple[Tensor | Fill, Tensor]:
    """What replaces perturbed voxels, and where it does: the body and a margin. Air stays what it is.

    Parameters
    ----------
    kind
        As in `baseline_volume`; ``surroundings``: each hidden place is filled in smoothly from what lies around it.
    volume
        (C, X, Y, Z), in the segmenter's input space.
    region
        (X, Y, Z), bool.
    spacing_mm
        Voxel size along X, Y and Z.
    body
        (X, Y, Z), bool; None where it is not known, and everything is replaced.

    Returns
    -------
    Tensor or Fill
        (C, X, Y, Z), or a function that makes it for each perturbation.
    Tensor
        (X, Y, Z), bool, on the CPU: the voxels that perturbations can change.
    """
    if body is None or not bool(body.any()):
        near = torch.ones(volume.shape[1:], dtype=torch.bool)
    else:
        near = torch.from_numpy(within(body.cpu().numpy(), BODY_MARGIN_MM, spacing_mm))
    on_device = near.to(volume.device)
    if kind != "surroundings":
        outside = None if body is None or not bool(body.any()) else ~body
        return torch.where(on_device, baseline_volume(kind, volume, region, spacing_mm, outside), volume), near
    margin = tuple(max(2, round(SURROUNDINGS_MM / s)) for s in spacing_mm)

    def fill(box: Box, strength: float | Tensor) -> Tensor:
        wide = tuple(
            slice(max(0, s.start - m), min(n, s.stop + m)) for s, m, n in zip(box, margin, near.shape, strict=True)
        )
        inner = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, wide, strict=True))
        here = volume[(slice(None), *wide)]
        known = on_device[wide].to(here.dtype)
        known[inner] *= 1 - strength
        filled = torch.where(on_device[wide], infill(here, known), here)
        return filled[(slice(None), *inner)]

    return fill, near


def with_held(replacement: Tensor | Fill, held: Tensor | None) -> Tensor | Fill:
    """A replacement (C, ...) with further channels that stay what they are, (H, X, Y, Z): no perturbation sees them.

    They must lie on the device of what is replaced; None changes nothing.
    """
    if held is None:
        return replacement
    if isinstance(replacement, Tensor):
        return torch.cat([replacement, held])
    return lambda box, strength: torch.cat([replacement(box, strength), held[(slice(None), *box)]])


def baseline_volume(
    kind: Baseline,
    volume: Tensor,
    region: Tensor,
    spacing_mm: tuple[float, float, float],
    outside: Tensor | None = None,
) -> Tensor:
    """A baseline that is the same for all perturbations.

    Parameters
    ----------
    kind
        ``air``: each channel's median outside the body, or its minimum where nothing is known to lie outside;
        ``mean``: each channel's mean over the region; ``blur``: a copy blurred by `BLUR_MM`.
    volume
        (C, X, Y, Z), in the segmenter's input space.
    region
        (X, Y, Z), bool.
    spacing_mm
        Voxel size along X, Y and Z.
    outside
        (X, Y, Z), bool: what is not the body. The minimum alone would not do: z-scored air is not the lowest value, and
        scanners fill corners with less than air.

    Returns
    -------
    Tensor
        (C, X, Y, Z), on the device of ``volume``.

    Raises
    ------
    InputError
        The mean over a region without voxels, or a kind that differs from perturbation to perturbation.
    """
    if kind == "air" and outside is not None and bool(outside.any()):
        beyond = outside.to(volume.device)
        # Neither indexed nor along an axis: both would make whole numbers of eight bytes of each value.
        median = torch.stack([channel.masked_select(beyond).median() for channel in volume])
        return median[:, None, None, None].expand_as(volume)
    if kind == "air":
        return volume.amin(dim=(1, 2, 3), keepdim=True).expand_as(volume)
    if kind == "mean":
        if not bool(region.any()):
            raise InputError("The region is empty, so its mean is no baseline: choose another region or baseline.")
        mean = volume[:, region.to(volume.device)].mean(dim=1)
        return mean[:, None, None, None].expand_as(volume)
    if kind != "blur":
        raise InputError(f"The baseline {kind} is another one for each perturbation: choose air, mean or blur here.")
    sigma = [BLUR_MM / s for s in spacing_mm]
    blurred = [gaussian_filter(channel.detach().cpu().numpy(), sigma) for channel in volume]
    return torch.stack([torch.from_numpy(channel) for channel in blurred]).to(volume.device)


def infill(image: Tensor, known: Tensor) -> Tensor:
    """Fill in smoothly what is not known, from what is: the pull-push algorithm.

    Weighted means over ever larger blocks until every block knows something, then back to full resolution, each
    level keeping what it knows. What is wholly unknown has no influence.

    Parameters
    ----------
    image
        (C, X, Y, Z).
    known
        (X, Y, Z), in [0, 1]: how far each voxel counts.

    Returns
    -------
    Tensor
        (C, X, Y, Z): ``image`` where wholly known; 0 everywhere if nothing is known at all.

    References
    ----------
    S. J. Gortler et al. "The Lumigraph", SIGGRAPH 1996, section 3.4.
    """
    weight = known[None, None].to(image.dtype)
    return _pull_push(image[None] * weight, weight)[0]


def _pull_push(weighted: Tensor, weight: Tensor) -> Tensor:
    """Fill in (1, C, X, Y, Z), given times its weight (1, 1, X, Y, Z)."""
    mean = weighted / weight.clamp(min=1e-6)
    if max(weight.shape[2:]) == 1:  # by size alone: to look at the weights would make a GPU wait
        return mean
    block = [min(2, n) for n in weight.shape[2:]]
    pulled = [functional.avg_pool3d(x, block, ceil_mode=True, count_include_pad=False) for x in (weighted, weight)]
    # A block with an eighth of its voxels known, a corner, is known enough; the mean stays what it is.
    surer = (8 * pulled[1]).clamp(max=1)
    scale = surer / pulled[1].clamp(min=1e-6)
    coarse = _pull_push(pulled[0] * scale, surer)
    pushed = functional.interpolate(coarse, size=weight.shape[2:], mode="trilinear", align_corners=False)
    sure = weight.clamp(max=1)
    return sure * mean + (1 - sure) * pushed
