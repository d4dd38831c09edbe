"""One label map for classes that may overlap (sigmoid): each set of classes that share a voxel gets its own value."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BITS = 32
"""Classes that are encoded at once, as the bits of an integer."""


def combined_label_map(logits: Tensor) -> tuple[Tensor, dict[int, tuple[int, ...]]]:
    """The decision of a sigmoid network as one label map, overlapping classes included.

    Parameters
    ----------
    logits
        (K, X, Y, Z): a class is present where its logit is above 0.

    Returns
    -------
    Tensor
        (X, Y, Z) integers: 0 without a class, channel + 1 for a single class, and values from K + 1 on for several.
    dict
        The channels that each value from K + 1 on stands for.
    """
    best = logits.max(0)
    numbers = torch.where(best.values > 0, best.indices + 1, 0)
    count = (logits > 0).sum(0)
    overlapping = torch.nonzero(count.flatten() > 1).flatten()
    if not len(overlapping):
        return numbers, {}
    flat = logits.flatten(1)
    codes = torch.zeros(len(overlapping), dtype=torch.int64, device=logits.device)
    for number, channel in enumerate(flat):
        if number % BITS == 0:  # renumber the codes so far: there are no more than voxels
            codes = codes.unique(return_inverse=True)[1]
        codes = 2 * codes + (channel[overlapping] > 0)
    distinct_codes, codes = codes.unique(return_inverse=True)
    numbers.view(-1)[overlapping] = codes + len(logits) + 1
    one_of_each = torch.zeros(len(distinct_codes), dtype=torch.int64, device=logits.device).scatter_(
        0, codes, overlapping
    )
    sets = (flat[:, one_of_each] > 0).T.tolist()
    shared = {
        len(logits) + 1 + n: tuple(k for k, present in enumerate(members) if present) for n, members in enumerate(sets)
    }
    return numbers, shared


def values_containing(shared: Mapping[int, tuple[int, ...]], channel: int) -> list[int]:
    """The values from K + 1 on, of a map of `combined_label_map`, that contain a class."""
    return [number for number, channels in shared.items() if channel in channels]
