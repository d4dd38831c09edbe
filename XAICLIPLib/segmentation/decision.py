"""What a network draws, from its logits part by part: one label map, also for classes that overlap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from XAICLIPLib.imaging.boxes import Box
from XAICLIPLib.segmentation.overlap import combined_label_map
from XAICLIPLib.segmentation.segmenter import Activation

SMALLEST, LARGEST = torch.uint8, torch.int32
"""A byte for each voxel while the numbers fit; of a whole body, four would be half a gigabyte more."""


class Decision:
    """A label map that grows with the logits. A voxel's logits are looked at once, and not kept.

    Parameters
    ----------
    shape
        Of the volume.
    activation
        How logits become probabilities.
    device
        Where the map lies.

    Attributes
    ----------
    channels
        How many the logits have; 0 before the first.
    """

    def __init__(self, shape: Sequence[int], activation: Activation, device: torch.device) -> None:
        self._activation, self.channels = activation, 0
        self._map = torch.zeros(tuple(shape), dtype=SMALLEST, device=device)
        self._numbers: dict[tuple[int, ...], int] = {}

    def add(self, box: Box, logits: Tensor) -> None:
        """Decide the voxels of a box by their logits (K, *box)."""
        self.channels = len(logits)
        if self._activation == "softmax":
            self._put(box, logits.argmax(0))
            return
        numbers, shared = combined_label_map(logits)
        own = torch.arange(self.channels + 1 + len(shared))
        for number, members in shared.items():
            own[number] = self._numbers.setdefault(members, self.channels + 1 + len(self._numbers))
        self._put(box, own.to(numbers.device)[numbers] if shared else numbers)

    def finished(self) -> tuple[Tensor, dict[int, tuple[int, ...]]]:
        """The label map and the channels of each number that stands for several, as of `combined_label_map`.

        Returns
        -------
        Tensor
            (X, Y, Z), uint8 or int32.
        dict
            Empty with softmax. The numbers do not hang on the order in which the parts came.
        """
        first = self.channels + 1
        # A class that is there comes before one that is not, from the last channel set to the first.
        ordered = sorted(self._numbers, key=lambda members: [channel in members for channel in range(self.channels)])
        new = torch.arange(first + len(ordered))
        for place, members in enumerate(ordered):
            new[self._numbers[members]] = first + place
        if self._numbers:
            table = new.to(self._map.device, self._map.dtype)
            for layer in self._map:  # layer by layer: an index takes eight bytes a voxel
                layer.copy_(table[layer.long()])
        return self._map, {first + place: members for place, members in enumerate(ordered)}

    def _put(self, box: Box, numbers: Tensor) -> None:
        if self.channels + len(self._numbers) >= 255 and self._map.dtype == SMALLEST:
            with torch.inference_mode(False):  # the map outlives the prediction, and may be changed after it
                self._map = self._map.to(LARGEST)
        self._map[box] = numbers.to(self._map.dtype)
