"""Boxes of voxels: their bounds along each axis, and their intersection. Nothing here needs PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[slice, ...]
"""Bounds along each spatial axis, in voxels; every slice has a start and a stop."""


def intersect(a: Box, b: Box) -> Box | None:
    """The common part of two boxes; None where they do not overlap."""
    common = tuple(slice(max(i.start, j.start), min(i.stop, j.stop)) for i, j in zip(a, b, strict=True))
    return common if all(s.start < s.stop for s in common) else None


def shift(box: Box, offset: Sequence[int]) -> Box:
    """The box moved by ``offset`` voxels."""
    return tuple(slice(s.start + o, s.stop + o) for s, o in zip(box, offset, strict=True))


def bounds(voxels: Tensor) -> Box:
    """The smallest box around all voxels of a mask (X, Y, Z) that is not empty."""
    sides = []
    for axis in range(voxels.ndim):
        along = voxels.movedim(axis, 0).flatten(1).any(1) if voxels.ndim > 1 else voxels
        places = along.nonzero().flatten()
        sides.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(sides)
