"""What replaces perturbed voxels."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from XAICLIPLib.errors import InputError

Baseline = Literal["air", "mean", "blur"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)

BLUR_MM = 12.0
"""Standard deviation of the blurred baseline: wide enough to wash out an organ's texture and border."""


def baseline_volume(
    kind: Baseline,
    volume: Tensor,
    region: Tensor,
    spacing_mm: tuple[float, float, float],
    outside: Tensor | None = None,
) -> Tensor:
    """The volume that perturbed voxels are taken from.

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
        The mean over a region without voxels.
    """
    if kind == "air" and outside is not None and bool(outside.any()):
        median = volume[:, outside.to(volume.device)].median(dim=1).values
        return median[:, None, None, None].expand_as(volume)
    if kind == "air":
        return volume.amin(dim=(1, 2, 3), keepdim=True).expand_as(volume)
    if kind == "mean":
        if not bool(region.any()):
            raise InputError("The region is empty, so its mean is no baseline: choose another region or baseline.")
        mean = volume[:, region.to(volume.device)].mean(dim=1)
        return mean[:, None, None, None].expand_as(volume)
    sigma = [BLUR_MM / s for s in spacing_mm]
    blurred = [gaussian_filter(channel.detach().cpu().numpy(), sigma) for channel in volume]
    return torch.stack([torch.from_numpy(channel) for channel in blurred]).to(volume.device)
