"""2D networks that MONAI's ``SliceInferer`` moves through a volume, slice by slice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SliceNetwork(torch.nn.Module):
    """A 2D network as one of volumes that are a voxel thick.

    Parameters
    ----------
    network
        (N, C, X, Y) to (N, K, X, Y), or a list of such.
    axis
        The axis of the volume, 0 to 2, across which its slices lie.
    """

    def __init__(self, network: torch.nn.Module, axis: int) -> None:
        super().__init__()
        self.network, self.axis = network, axis

    def forward(self, patches: Tensor) -> Any:
        """(N, C, X, Y, Z) of one voxel along the axis to (N, K, X, Y, Z)."""
        axis = self.axis + 2
        output = self.network(patches.squeeze(axis))
        if isinstance(output, (list, tuple)):  # deep supervision: the first is at full resolution
            output = output[0]
        return output.unsqueeze(axis) if isinstance(output, Tensor) and output.ndim == 4 else output
