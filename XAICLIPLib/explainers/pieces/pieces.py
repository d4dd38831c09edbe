"""A volume cut into numbered pieces, any set of which can be removed whole."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.ndimage import find_objects
from torch import Tensor

from XAICLIPLib.imaging.boxes import Box
from XAICLIPLib.scoring.perturbation import Perturbation


class Pieces:
    """The pieces of a volume, as perturbations and as a map.

    The label volume is shared by all perturbations and goes to each device once; a perturbation itself is no more than
    the numbers of its pieces.

    Parameters
    ----------
    labels
        (X, Y, Z) whole numbers: the piece of each voxel, from 1; 0 belongs to no piece. Numbers may be left out.

    Attributes
    ----------
    labels
        (X, Y, Z) int32, on the CPU.
    sizes
        (n + 1): voxels of each number up to the largest.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels.detach().to("cpu", torch.int32)
        self.sizes: list[int] = np.bincount(self.labels.numpy().ravel()).tolist()
        self._bounds = find_objects(self.labels.numpy())
        self._copies = {self.labels.device: self.labels}

    def without(self, numbers: Iterable[int]) -> Perturbation:
        """The perturbation that replaces these pieces, at least one and each with a voxel, and nothing else."""
        removed = list(numbers)
        lookup = torch.zeros(len(self.sizes))
        lookup[removed] = 1

        def pattern(box: Box, device: torch.device) -> Tensor:
            here = self._on(device)[box]
            # Waiting perturbations keep their table on the CPU: it is small, and only those under way need it.
            return lookup.to(device).index_select(0, here.reshape(-1)).reshape(here.shape)

        return Perturbation(self._around(removed), pattern)

    def paint(self, numbers: Iterable[int], values: ArrayLike) -> Tensor:
        """(X, Y, Z) float32, on the CPU: the value of each piece on its voxels, 0 on others."""
        lookup = torch.zeros(len(self.sizes))
        lookup[list(numbers)] = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        return lookup[self.labels]

    def _around(self, numbers: list[int]) -> Box:
        """The smallest box that holds the pieces."""
        bounds = [self._bounds[n - 1] for n in numbers]
        return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*bounds, strict=True))

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            self._copies[device] = self.labels.to(device)
        return self._copies[device]
