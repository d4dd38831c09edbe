"""Blended logits part by part: no more of them is in memory than what patches to come will still change.

The volume is cut wherever a patch begins or ends. Each of these cells is summed over the patches that hold it, given
away with the last of them, and forgotten. In the order of the patches, cells wait only where one layer of patches
overlaps the next. Where that is still too much (a hundred classes over a large cross-section), the cross-section is
swept in blocks, one after the other, and the patches on the border of two blocks are computed for both.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from XAICLIPLib.imaging.boxes import Box, shift
from XAICLIPLib.segmentation.batching import Batches
from XAICLIPLib.segmentation.sliding_window import Tiling

WAITING_BYTES = 2**30
"""How much may wait for patches to come; a cross-section of 512 × 512 voxels with 20 classes has as much."""

Cell = tuple[int, ...]
"""The number of a cell along each axis."""


@dataclass(frozen=True)
class Cells:
    """The cells that the borders of all patches cut a volume into, in the padded volume's indices.

    Attributes
    ----------
    tiling
        The patches.
    cuts
        Along each axis where cells begin and end; no cell lies in the padding.
    """

    tiling: Tiling
    cuts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tiling: Tiling) -> Cells:
        """The cells of a tiling."""
        cuts = []
        for axis, whole in enumerate(tiling.inner):
            ends = {end for patch in tiling.patches for end in (patch[axis].start, patch[axis].stop)}
            cuts.append(tuple(sorted({whole.start, whole.stop, *(e for e in ends if whole.start < e < whole.stop)})))
        return cls(tiling, tuple(cuts))

    @property
    def all(self) -> tuple[range, ...]:
        """Every cell, as a block."""
        return tuple(range(len(cut) - 1) for cut in self.cuts)

    def box(self, cell: Cell) -> Box:
        """Where a cell lies."""
        return tuple(slice(cut[n], cut[n + 1]) for cut, n in zip(self.cuts, cell, strict=True))

    def of_patch(self, patch: Box, block: Sequence[range]) -> list[Cell]:
        """The cells of a block that a patch holds."""
        axes = []
        for cut, inside, part in zip(self.cuts, patch, block, strict=True):
            low, high = bisect_left(cut, inside.start), bisect_left(cut, min(inside.stop, cut[-1]))
            axes.append(range(max(low, part.start), min(high, part.stop)))
        return list(itertools.product(*axes))

    def waiting(self, block: Sequence[range]) -> int:
        """About how many voxels of a block wait at once: the overlap of two layers, of two rows, of two patches."""
        voxels, inside = 0, 1
        for axis in reversed(range(len(self.cuts))):  # the patches' order: the last axis is the fastest
            thickest = 1
            for slower in range(axis):
                thickest *= max(patch[slower].stop - patch[slower].start for patch in self.tiling.patches)
            voxels += self._overlap(axis) * inside * thickest
            inside *= self.cuts[axis][block[axis].stop] - self.cuts[axis][block[axis].start]
        return voxels

    def _overlap(self, axis: int) -> int:
        """How far a patch reaches into the next one along an axis, at most."""
        sides = sorted({(patch[axis].start, patch[axis].stop) for patch in self.tiling.patches})
        return max([0, *(before[1] - after[0] for before, after in itertools.pairwise(sides))])

    def blocks(self, bytes_per_voxel: int, most_bytes: int) -> list[tuple[range, ...]]:
        """All cells in as few blocks as keep the waiting ones below ``most_bytes``; each block is whole along axis 0.

        Along the longer side of the cross-section first, where a border has the fewest patches.
        """
        parts = [1] * len(self.cuts)
        blocks = [self.all]
        while max(map(self.waiting, blocks)) * bytes_per_voxel > most_bytes:
            length = {
                axis: (cut[-1] - cut[0]) / parts[axis]
                for axis, cut in enumerate(self.cuts)
                if axis > 0 and parts[axis] < len(cut) - 1
            }
            if not length:
                break
            parts[max(length, key=lambda axis: length[axis])] += 1
            blocks = list(itertools.product(*(self._split(axis, count) for axis, count in enumerate(parts))))
        return blocks

    def _split(self, axis: int, count: int) -> list[range]:
        """The cells along an axis in ``count`` parts of about the same length."""
        cut = self.cuts[axis]
        borders = [0]
        for part in range(1, count):
            wanted = cut[0] + (cut[-1] - cut[0]) * part / count
            nearest = min(range(len(cut)), key=lambda n: abs(cut[n] - wanted))
            borders.append(min(max(nearest, borders[-1] + 1), len(cut) - 1 - (count - part)))
        return [range(a, b) for a, b in itertools.pairwise([*borders, len(cut) - 1])]


def stream_logits(
    forward: Callable[[Tensor], Tensor],
    volume: Tensor,
    tiling: Tiling,
    batch_size: int | None = None,
    after_batch: Callable[[int, int], None] = lambda done, total: None,
    channels: int | None = None,
    waiting_bytes: int = WAITING_BYTES,
) -> Iterator[tuple[Box, Tensor]]:
    """Blended logits of a volume (C, *shape), box after box, each as soon as no later patch changes it.

    Gradients are tracked as they are set where the iterator is advanced.

    Parameters
    ----------
    forward
        The network: patches (N, C, *size) to logits (N, K, *size).
    volume
        (C, *shape), on the device.
    tiling
        The network's patches over it.
    batch_size
        See `Batches`.
    after_batch
        Called with the number of patches done and of all; an exception from it stops the prediction.
    channels
        K, where it is known before the network has run: batches are cut to it.
    waiting_bytes
        How much may wait for patches to come, about.

    Yields
    ------
    Box
        In the volume's indices. The boxes do not overlap, and cover what the patches cover.
    Tensor
        (K, *box): the same sums, in the same order, as over the whole volume.
    """
    padded, weight = tiling.pad(volume), tiling.weight.to(volume.device)
    batches, cells = Batches(forward, volume.device, batch_size, channels=channels), Cells.of(tiling)

    def run(boxes: Sequence[Box]) -> Tensor:
        return batches.run([padded[(slice(None), *box)] for box in boxes])

    # The number of channels, which the blocks follow from, is known with the first batch; it is not computed again.
    size = batches.size_for(padded[(slice(None), *tiling.patches[0])])
    first = tiling.patches[:size]
    computed: Tensor | None = run(first)
    assert computed is not None
    blocks = cells.blocks(computed.shape[1] * computed.element_size(), waiting_bytes)
    of_block = [[patch for patch in tiling.patches if cells.of_patch(patch, block)] for block in blocks]
    done, total = 0, sum(map(len, of_block))
    for block, patches in zip(blocks, of_block, strict=True):
        sums = _Sums(cells, block, patches, weight)
        at = 0
        while at < len(patches):
            size = batches.size_for(padded[(slice(None), *patches[at])])
            boxes = tuple(patches[at : at + size])
            if computed is not None and tuple(patches[: len(first)]) == first:
                boxes, output = first, computed
            else:
                output = run(boxes)
            computed = None
            for box, logits in zip(boxes, output, strict=True):
                yield from sums.add(box, logits)
            at, done = at + len(boxes), done + len(boxes)
            del output, logits
            after_batch(done, total)


class _Sums:
    """The weighted sums of a block's cells that are not complete yet."""

    def __init__(self, cells: Cells, block: Sequence[range], patches: Sequence[Box], weight: Tensor) -> None:
        self._cells, self._block, self._weight = cells, block, weight
        self._left: dict[Cell, int] = {}
        for patch in patches:
            for cell in cells.of_patch(patch, block):
                self._left[cell] = self._left.get(cell, 0) + 1
        self._waiting: dict[Cell, tuple[Tensor, Tensor]] = {}

    def add(self, patch: Box, logits: Tensor) -> Iterator[tuple[Box, Tensor]]:
        """Add what the network says of a patch (K, *size); yields the cells that it completes."""
        to_volume = [-offset for offset in self._cells.tiling.offset]
        for cell in self._cells.of_patch(patch, self._block):
            box = self._cells.box(cell)
            inside = shift(box, [-side.start for side in patch])
            part, weight = logits[(slice(None), *inside)] * self._weight[inside], self._weight[inside]
            if cell in self._waiting:
                total, weights = self._waiting.pop(cell)
                part, weight = total.add_(part) if not part.requires_grad else total + part, weights + weight
            self._left[cell] -= 1
            if self._left[cell]:
                self._waiting[cell] = part, weight
            else:
                yield shift(box, to_volume), part / weight if part.requires_grad else part.div_(weight)
