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


def baseline_volume(kind: Baseline, volume: Tensor, region: Tensor, spacing_mm: tuple[float, float, float]) -> Tensor:
    """The volume that perturbed voxels are taken from.

    Parameters
    ----------
    kind
        ``air``: each channel's minimum (zero of a normalised CT window); ``mean``: each channel's mean over the
        region; ``blur``: a copy blurred by `BLUR_MM`.
    volume
        (C, X, Y, Z), in the segmenter's input space.
    region
        (X, Y, Z), bool.
    spacing_mm
        Voxel size along X, Y and Z.

    Returns
    -------
    Tensor
        (C, X, Y, Z), on the device of ``volume``.

    Raises
    ------
    InputError
        The mean over a region without voxels.
    """
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
