"""The patches of a sliding window, and how their outputs are blended.

The geometry and the weights are those of ``monai.inferers.sliding_window_inference`` (a test compares the two); that
function hides the patches, which exact incremental scoring needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.utils import ensure_tuple_rep, fall_back_tuple
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.boxes import Box, bounds, intersect, shift
from XAICLIPLib.segmentation.batching import Batches

Index = tuple[slice, ...] | tuple[Tensor, ...]
"""An index into a tensor (X, Y, Z): slices, or index tensors for each axis, shaped to broadcast."""

PADDING_MODES = {"constant": "constant", "replicate": "edge", "reflect": "reflect", "circular": "wrap"}
"""NumPy's name for each of PyTorch's padding modes."""


@dataclass(frozen=True)
class SlidingWindow:
    """A sliding window: how a network is moved over a volume larger than its input, in voxels of the network's grid.

    The meaning of every field is that of ``monai.inferers.sliding_window_inference``; a size of 0 in ``roi_size``
    means the whole axis.
    """

    roi_size: tuple[int, ...]
    overlap: float | tuple[float, ...] = 0.25
    mode: Literal["constant", "gaussian"] = "constant"
    sigma_scale: float | tuple[float, ...] = 0.125
    padding_value: float = 0.0
    padding_mode: str = "constant"


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
        Value of the added voxels, where ``padding_mode`` is ``constant``.
    padding_mode
        Their source, a key of ``PADDING_MODES``. All but ``constant`` copy voxels of the volume, so that a change of
        the volume changes the padding too.
    """

    shape: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    patches: tuple[Box, ...]
    weight: Tensor
    padding_value: float = 0.0
    padding_mode: str = "constant"

    @classmethod
    def of(cls, shape: Sequence[int], window: Window | None) -> Tiling:
        """Patches of ``window`` over a volume of spatial ``shape``; a single patch, the whole volume, for None."""
        shape = tuple(int(s) for s in shape)
        if window is None:
            whole = tuple(slice(0, s) for s in shape)
            return cls(shape, tuple((0, 0) for _ in shape), (whole,), torch.ones(shape))
        if callable(window):
            return window(shape)
        roi = fall_back_tuple(window.roi_size, shape)
        padding = tuple((m // 2, m - m // 2) for m in (max(r - s, 0) for r, s in zip(roi, shape, strict=True)))
        _refuse_padding(shape, roi, padding, window.padding_mode)
        padded = tuple(max(r, s) for r, s in zip(roi, shape, strict=True))
        overlap = ensure_tuple_rep(window.overlap, len(shape))
        step = [r if r == s else max(1, int(r * (1 - o))) for r, s, o in zip(roi, padded, overlap, strict=True)]
        patch_slices = dense_patch_slices(padded, roi, step, return_slice=True)
        patches = tuple(tuple(slice(int(s.start), int(s.stop)) for s in patch) for patch in patch_slices)
        weight = compute_importance_map(roi, mode=window.mode, sigma_scale=window.sigma_scale)
        return cls(shape, padding, patches, weight, window.padding_value, window.padding_mode)

    @property
    def offset(self) -> tuple[int, ...]:
        """What to add to indices of the volume to get indices of the padded volume."""
        return tuple(before for before, _ in self.padding)

    @property
    def inner(self) -> Box:
        """The box of the volume in the padded volume."""
        return tuple(slice(o, o + s) for o, s in zip(self.offset, self.shape, strict=True))

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """Spatial shape of the padded volume."""
        return tuple(before + s + after for (before, after), s in zip(self.padding, self.shape, strict=True))

    @cached_property
    def sources(self) -> tuple[NDArray[np.intp], ...] | None:
        """For each axis, the index in the volume that each index of the padded volume copies; None for a constant.

        Padding takes one axis after the other, so that each index of a voxel has its source independently.
        """
        if self.padding_mode == "constant" or not any(before or after for before, after in self.padding):
            return None
        modes: Any = PADDING_MODES[self.padding_mode]
        return tuple(np.pad(np.arange(s), p, modes) for s, p in zip(self.shape, self.padding, strict=True))

    def pad(self, volume: Tensor) -> Tensor:
        """The volume (C, *shape) with the voxels that the window needs around it."""
        if self.sources is not None:
            # By index, as PyTorch's own padding is not made for every device and number of axes.
            for axis, source in enumerate(self.sources, 1):
                volume = volume.index_select(axis, torch.from_numpy(source).to(volume.device))
            return volume
        if not any(before or after for before, after in self.padding):
            return volume
        flat = [side for pair in reversed(self.padding) for side in pair]
        return functional.pad(volume, flat, value=self.padding_value)

    def unpad_gradient(self, gradient: Tensor) -> Tensor:
        """Turn the gradient by the padded volume (C, *padded_shape) into that by the volume (C, *shape)."""
        if self.sources is None:
            return gradient[(slice(None), *self.inner)]
        for axis, (source, size) in enumerate(zip(self.sources, self.shape, strict=True), 1):
            shape = (*gradient.shape[:axis], size, *gradient.shape[axis + 1 :])
            index = torch.from_numpy(source).to(gradient.device)
            gradient = torch.zeros(shape, dtype=gradient.dtype, device=gradient.device).index_add(axis, index, gradient)
        return gradient

    def patches_touching(self, box: Box) -> list[int]:
        """Numbers of the patches that change when a box, in the volume's indices, changes."""
        return [n for n, patch in enumerate(self.patches) if self.meets(patch, box)]

    def meets(self, patch: Box, box: Box) -> bool:
        """Whether a patch (padded indices) meets a box (the volume's indices) or a copy of it in the padding."""
        if self.sources is None:
            return intersect(patch, shift(box, self.offset)) is not None
        return all(len(in_patch) for in_patch, _ in self._copied_indices(patch, box))

    def source_box(self, patch: Box) -> Box:
        """The smallest box, in the volume's indices, that holds all voxels a patch (padded indices) takes from it."""
        if self.sources is None:
            moved = shift(patch, [-o for o in self.offset])
            return tuple(slice(max(0, b.start), min(b.stop, s)) for b, s in zip(moved, self.shape, strict=True))
        parts = [source[b] for source, b in zip(self.sources, patch, strict=True)]
        return tuple(slice(int(part.min()), int(part.max()) + 1) for part in parts)

    def shared_voxels(self, patch: Box, box: Box) -> tuple[Index, Index] | None:
        """The voxels that a box and a patch share, copies in the padding included.

        Parameters
        ----------
        patch, box
            The patch in the padded volume's indices, the box in the volume's.

        Returns
        -------
        (Index, Index) or None
            The shared voxels as an index into the patch and into the box; None where there are none.
        """
        if self.sources is None:
            common = intersect(patch, shift(box, self.offset))
            if common is None:
                return None
            within = [-o - b.start for o, b in zip(self.offset, box, strict=True)]
            return shift(common, [-s.start for s in patch]), shift(common, within)
        pairs = self._copied_indices(patch, box)
        if not all(len(in_patch) for in_patch, _ in pairs):
            return None
        in_patch, in_box = (tuple(map(torch.from_numpy, np.ix_(*axes))) for axes in zip(*pairs, strict=True))
        return in_patch, in_box

    def _copied_indices(self, patch: Box, box: Box) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """For each axis, the indices in a patch that copy indices of a box, and those indices in the box."""
        assert self.sources is not None
        pairs = []
        for source, p, b in zip(self.sources, patch, box, strict=True):
            part = source[p]
            in_patch = np.flatnonzero((part >= b.start) & (part < b.stop))
            pairs.append((in_patch, part[in_patch] - b.start))
        return pairs


Window = SlidingWindow | Callable[[tuple[int, ...]], Tiling]
"""How a network is moved over a volume: as MONAI does it, or a function from a spatial shape to the patches."""


def _refuse_padding(
    shape: tuple[int, ...], roi: tuple[int, ...], padding: tuple[tuple[int, int], ...], mode: str
) -> None:
    """Refuse padding that PyTorch does not support."""
    largest_excess = {"reflect": -1, "circular": 0}.get(mode)
    too_small = largest_excess is not None and any(
        max(p) > s + largest_excess for p, s in zip(padding, shape, strict=True)
    )
    if any(max(p) > 0 for p in padding) and (mode not in PADDING_MODES or too_small):
        why = f"it is too small to pad it by {mode}" if too_small else f"to pad by {mode} is not supported"
        raise InputError(
            f"The volume, {' × '.join(map(str, shape))} voxels on the network's grid, is smaller than its "
            f"window, {' × '.join(map(str, roi))}, and {why}: give a larger part of the scan."
        )


def patch_around(shape: Sequence[int], target_voxels: Tensor, reach: Sequence[int]) -> Tiling:
    """The one patch from which a fully convolutional network gives its exact output at a target's voxels.

    No input voxel farther away than ``reach`` changes an output voxel. So neither the cropped part nor the zeros that
    the network pads the crop with matter: at the target the output is that of the whole volume.

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

    Gradients are tracked only where the volume requires them: the graphs of all patches would fill the memory.
    ``after_batch`` is called with the number of patches done and of all; an exception from it stops the prediction. For
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
