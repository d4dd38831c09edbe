"""A map of embeddings for image towers without patch tokens: crops of several sizes, each embedded as an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

CELLS = 10
"""Rows and columns of the map."""

CROP_CELLS = (3, 5)
"""Edges of the crops, in cells: about an organ, and an organ with its surroundings."""


def crop_embeddings(encode: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 64) -> Tensor:
    """Embed overlapping crops and average them where they overlap.

    Parameters
    ----------
    encode
        Images (N, 3, H, W), normalised, to embeddings (N, D).
    images
        (N, 3, H, W), normalised.

    Returns
    -------
    Tensor
        (N, `CELLS`, `CELLS`, D), of unit length: at each cell the mean over the crops that hold it, those weighted more
        whose middle is near; first within a size, then over the sizes, so that cells at the edge, which few crops
        hold, weigh the sizes like all others.
    """
    side = images.shape[-1]
    edges = torch.linspace(0, side, CELLS + 1).round().int().tolist()
    maps = []
    for cells in CROP_CELLS:
        starts = range(CELLS - cells + 1)
        placed = [(i, j) for i in starts for j in starts]
        crops = [
            functional.interpolate(
                images[:, :, edges[i] : edges[i + cells], edges[j] : edges[j + cells]],
                size=images.shape[-2:],
                mode="bilinear",
                antialias=True,
            )
            for i, j in placed
        ]
        embedded = torch.cat([encode(part) for part in torch.cat(crops).split(batch_size)])
        embedded = functional.normalize(embedded.float(), dim=-1).reshape(len(placed), len(images), -1)
        near = torch.hann_window(cells + 2, periodic=False, device=images.device)[1:-1]
        weight = (near[:, None] * near)[:, :, None]
        total = torch.zeros(len(images), CELLS, CELLS, embedded.shape[-1], device=images.device)
        weights = torch.zeros(CELLS, CELLS, 1, device=images.device)
        for (i, j), embedding in zip(placed, embedded, strict=True):
            total[:, i : i + cells, j : j + cells] += weight * embedding[:, None, None]
            weights[i : i + cells, j : j + cells] += weight
        maps.append(total / weights)
    return functional.normalize(torch.stack(maps).mean(0), dim=-1)
