"""Classes that overlap (sigmoid) in one map: every set of classes that meet in a voxel has a number of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BITS = 32
"""Classes that are told apart at once, as the bits of a whole number."""


def numbered(logits: Tensor) -> tuple[Tensor, dict[int, tuple[int, ...]]]:
    """What a sigmoid network decides, without loss, as one map.

    Parameters
    ----------
    logits
        (K, X, Y, Z): each class is where its own logit is above 0.

    Returns
    -------
    Tensor
        (X, Y, Z) whole numbers: 0 where there is no class, its channel plus one where there is a single class, and from
        K + 1 on where there are several.
    dict
        The channels that each of these further numbers stands for.
    """
    best = logits.max(0)
    numbers = torch.where(best.values > 0, best.indices + 1, 0)
    count = torch.zeros_like(numbers)
    for channel in logits:
        count += channel > 0
    meeting = torch.nonzero(count.flatten() > 1).flatten()
    if not len(meeting):
        return numbers, {}
    flat = logits.flatten(1)
    codes = torch.zeros(len(meeting), dtype=torch.int64, device=logits.device)
    for number, channel in enumerate(flat):
        if number % BITS == 0:  # what differs so far in as few bits as it needs: fewer than there are voxels
            codes = codes.unique(return_inverse=True)[1]
        codes = 2 * codes + (channel[meeting] > 0)
    kinds, codes = codes.unique(return_inverse=True)
    numbers.view(-1)[meeting] = codes + len(logits) + 1
    one_of_each = torch.zeros(len(kinds), dtype=torch.int64, device=logits.device).scatter_(0, codes, meeting)
    sets = (flat[:, one_of_each] > 0).T.tolist()
    shared = {len(logits) + 1 + n: tuple(k for k, there in enumerate(s) if there) for n, s in enumerate(sets)}
    return numbers, shared


def holding(shared: Mapping[int, tuple[int, ...]], channel: int) -> list[int]:
    """The numbers of a map of `numbered`, besides its own, where a class is."""
    return [number for number, channels in shared.items() if channel in channels]
