"""Where the patches of a sliding window lie and how their outputs are blended, patch by patch.

The geometry and the weights are those of ``monai.inferers.sliding_window_inference`` (a test compares the two); that
function hides the patches, which exact incremental scoring must see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch import Tensor
from torch.nn import functional

from XAICLIPLib.errors import InputError
from XAICLIPLib.segmentation.batching import Batches
from XAICLIPLib.segmentation.segmenter import Window

Box = tuple[slice, ...]
"""Bounds along each spatial axis, in voxels; every slice has a start and a stop."""


def intersect(a: Box, b: Box) -> Box | None:
    """The common part of two boxes, None where they do not meet."""
    common = tuple(slice(max(i.start, j.start), min(i.stop, j.stop)) for i, j in zip(a, b, strict=True))
    return common if all(s.start < s.stop for s in common) else None


def shift(box: Box, offset: Sequence[int]) -> Box:
    """The box moved by ``offset`` voxels."""
    return tuple(slice(s.start + o, s.stop + o) for s, o in zip(box, offset, strict=True))


@dataclass(frozen=True)
class Tiling:
    """The patches that cover a volume.

    Attributes
    ----------
    shape
        Spatial shape of the volume.
    padding
        Voxels added before and after each axis where the volume is smaller than the window.
    patches
        Bounds of each patch in the padded volume.
    weight
        Blending weight of each voxel of a patch, on the CPU.
    padding_value
        Value of the added voxels.
    """

    shape: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    patches: tuple[Box, ...]
    weight: Tensor
    padding_value: float = 0.0

    @classmethod
    def of(cls, shape: Sequence[int], window: Window | None) -> Tiling:
        """Patches of ``window`` over a volume of spatial ``shape``; one patch, the volume, where it is None."""
        shape = tuple(int(s) for s in shape)
        if window is None:
            whole = tuple(slice(0, s) for s in shape)
            return cls(shape, tuple((0, 0) for _ in shape), (whole,), torch.ones(shape))
        if callable(window):
            return window(shape)
        roi = fall_back_tuple(window.roi_size, shape)
        missing = [max(r - s, 0) for r, s in zip(roi, shape, strict=True)]
        if any(missing) and window.padding_mode != "constant":
            raise InputError(
                f"The volume, {' × '.join(map(str, shape))} voxels on the network's grid, is smaller than its "
                f"window, {' × '.join(map(str, roi))}, and to pad by {window.padding_mode} is not supported: give a "
                "larger part of the scan."
            )
        padding = tuple((m // 2, m - m // 2) for m in missing)
        padded = tuple(max(r, s) for r, s in zip(roi, shape, strict=True))
        overlap = ensure_tuple_rep(window.overlap, len(shape))
        step = [r if r == s else max(1, int(r * (1 - o))) for r, s, o in zip(roi, padded, overlap, strict=True)]
        found = dense_patch_slices(padded, roi, step, return_slice=True)
        patches = tuple(tuple(slice(int(s.start), int(s.stop)) for s in patch) for patch in found)
        weight = compute_importance_map(roi, mode=window.mode, sigma_scale=window.sigma_scale)
        return cls(shape, padding, patches, weight, window.padding_value)

    @property
    def offset(self) -> tuple[int, ...]:
        """What turns indices of the volume into indices of the padded volume."""
        return tuple(before for before, _ in self.padding)

    @property
    def inner(self) -> Box:
        """Where the volume lies in the padded one."""
        return tuple(slice(o, o + s) for o, s in zip(self.offset, self.shape, strict=True))

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """Spatial shape of the padded volume."""
        return tuple(before + s + after for (before, after), s in zip(self.padding, self.shape, strict=True))

    def pad(self, volume: Tensor) -> Tensor:
        """The volume (C, *shape) with the voxels that the window needs around it."""
        if not any(before or after for before, after in self.padding):
            return volume
        flat = [side for pair in reversed(self.padding) for side in pair]
        return functional.pad(volume, flat, value=self.padding_value)

    def touching(self, box: Box) -> list[int]:
        """Patches that meet a box given in the volume's indices."""
        moved = shift(box, self.offset)
        return [n for n, patch in enumerate(self.patches) if intersect(patch, moved)]


def bounds(voxels: Tensor) -> Box:
    """The smallest box that holds all voxels of a mask (X, Y, Z) that is not empty."""
    places = torch.nonzero(voxels)
    ends = zip(places.amin(0).tolist(), places.amax(0).tolist(), strict=True)
    return tuple(slice(a, b + 1) for a, b in ends)


def around(shape: Sequence[int], target_voxels: Tensor, reach: Sequence[int]) -> Tiling:
    """The one patch that a fully convolutional network needs to be right at a target's voxels.

    Where no input voxel farther than ``reach`` changes an output voxel, neither does what a crop cuts off, nor the
    zeros that the network pads it with: at the target its output is that of the whole volume.

    Parameters
    ----------
    shape
        Spatial shape of the volume.
    target_voxels
        (X, Y, Z) bool, not empty.
    reach
        Voxels along each axis.
    """
    shape = tuple(int(s) for s in shape)
    core = bounds(target_voxels)
    patch = tuple(slice(max(c.start - r, 0), min(c.stop + r, s)) for c, r, s in zip(core, reach, shape, strict=True))
    weight = torch.ones([s.stop - s.start for s in patch])
    return Tiling(shape, tuple((0, 0) for _ in shape), (patch,), weight)


def predict_logits(
    forward: Callable[[Tensor], Tensor],
    volume: Tensor,
    tiling: Tiling,
    batch_size: int | None = None,
    after_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Blended logits (K, *shape) of a volume (C, *shape), on the volume's device.

    Gradients are followed only where the volume asks for its own: the graph of every patch would fill the memory.
    ``after_batch`` is called with the number of patches done and in all; what it raises stops the prediction. For
    ``batch_size`` see `Batches`.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and volume.requires_grad):
        padded = tiling.pad(volume)
        weight = tiling.weight.to(volume.device)
        total = torch.zeros(padded.shape[1:], device=volume.device)
        blended: Tensor | None = None
        batches, done = Batches(forward, volume.device, batch_size), 0
        while done < len(tiling.patches):
            size = batches.size_for(padded[(slice(None), *tiling.patches[done])])
            boxes = tiling.patches[done : done + size]
            output = batches.run([padded[(slice(None), *box)] for box in boxes])
            if blended is None:
                blended = torch.zeros((output.shape[1], *padded.shape[1:]), device=volume.device)
            for box, logits in zip(boxes, output, strict=True):
                blended[(slice(None), *box)] += logits * weight
                total[box] += weight
            done += len(boxes)
            after_batch(done, len(tiling.patches))
        assert blended is not None  # a tiling has at least one patch
        inner = tuple(slice(b, b + s) for b, s in zip(tiling.offset, tiling.shape, strict=True))
        if blended.requires_grad:
            return blended[(slice(None), *inner)] / total[inner]
        blended /= total  # in place: of a hundred classes, two copies are too many
        return blended[(slice(None), *inner)]
