"""Occlusion: windows on a grid, each replaced by the baseline in turn.

References
----------
M. D. Zeiler, R. Fergus. "Visualizing and Understanding Convolutional Networks", ECCV 2014.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.perturbation.perturbation import Estimate, Perturbation, Scores

SMALLEST_MM, LARGEST_MM = 16.0, 48.0
"""Bounds of the window that `window_for` chooses."""


def window_for(volume_ml: float) -> float:
    """Edge in mm of the window for a structure of this volume: half the edge of a cube of as much, within bounds.

    About 48 mm for a liver and 28 mm for a kidney: as many windows for the one as for the other.
    """
    return round(min(max(0.5 * (1000 * volume_ml) ** (1 / 3), SMALLEST_MM), LARGEST_MM), 1)


def in_voxels(size_mm: float, spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """A length in mm as whole voxels along each axis, at least one."""
    return tuple(max(1, round(size_mm / s)) for s in spacing_mm)


def windows(region: Tensor, size: Sequence[int], stride: Sequence[int]) -> list[Perturbation]:
    """The windows of a grid over the volume that meet the region.

    A window that meets the region reaches up to its own size beyond it, so the context beside an organ is probed as
    well. The grid belongs to the volume, not to the region: guided and whole-volume occlusion evaluate the same
    windows where both do.

    Parameters
    ----------
    region
        (X, Y, Z) bool.
    size, stride
        Voxels along X, Y and Z. Windows are cut at the volume's border; the last one reaches it.
    """
    starts = [
        range(0, (math.ceil(max(0, extent - width) / step) + 1) * step, step)
        for extent, width, step in zip(region.shape, size, stride, strict=True)
    ]
    found = []
    for corner in itertools.product(*starts):
        box = tuple(
            slice(start, min(start + width, extent))
            for start, width, extent in zip(corner, size, region.shape, strict=True)
        )
        if bool(region[box].any()):
            found.append(Perturbation(box))
    return found


def occlusion(
    scorer: Scores,
    region: Tensor,
    spacing_mm: Sequence[float],
    *,
    window_mm: float,
    stride_mm: float,
    seed: int = 0,
) -> Iterator[Estimate]:
    """Occlude window after window; the saliency of a voxel is the mean score lost over the windows that hold it.

    The windows are evaluated in random order, so that a running estimate covers the region evenly. Yields an estimate
    after every network batch; the last one is complete. Close the iterator to cancel.

    Parameters
    ----------
    scorer
        What scores the perturbations, usually a `XAICLIPLib.scoring.Scorer`.
    region
        (X, Y, Z) bool, on the segmenter's grid; all true for the whole volume.
    spacing_mm
        Voxel size along X, Y and Z.
    window_mm, stride_mm
        Edge of the window and distance between windows.
    seed
        Of the order.

    Raises
    ------
    InputError
        A size is no positive length, or the windows leave gaps between them.
    """
    if not 0 < stride_mm <= window_mm < math.inf:
        raise InputError(
            f"Windows of {window_mm:g} mm every {stride_mm:g} mm do not cover the region: "
            "both must be above zero and the stride at most the window."
        )
    planned = windows(region.cpu(), in_voxels(window_mm, spacing_mm), in_voxels(stride_mm, spacing_mm))
    order = torch.randperm(len(planned), generator=torch.Generator().manual_seed(seed)).tolist()
    planned = [planned[n] for n in order]
    lost = torch.zeros(region.shape)
    covered = torch.zeros(region.shape)
    done = 0

    def estimate() -> Estimate:
        return Estimate(done, len(planned), lambda: lost / covered.clamp(min=1), lambda: covered > 0)

    if not planned:
        yield estimate()
    for batch in scorer.lost(planned):
        for number, value in batch:
            lost[planned[number].box] += value
            covered[planned[number].box] += 1
        done += len(batch)
        yield estimate()
