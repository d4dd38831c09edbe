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
        (N, `CELLS`, `CELLS`, D), of unit length: for each cell the weighted mean over the crops that contain it. Crops
        whose centre is near weigh more. The mean is taken within each size first and then over the sizes, so that both
        sizes count equally also at the edge, where few crops contain a cell.
    """
    side = images.shape[-1]
    edges = torch.linspace(0, side, CELLS + 1).round().int().tolist()
    maps = []
    for cells in CROP_CELLS:
        starts = range(CELLS - cells + 1)
        crop_starts = [(i, j) for i in starts for j in starts]
        crops = [
            functional.interpolate(
                images[:, :, edges[i] : edges[i + cells], edges[j] : edges[j + cells]],
                size=images.shape[-2:],
                mode="bilinear",
                antialias=True,
            )
            for i, j in crop_starts
        ]
        embedded = torch.cat([encode(part) for part in torch.cat(crops).split(batch_size)])
        embedded = functional.normalize(embedded.float(), dim=-1).reshape(len(crop_starts), len(images), -1)
        taper = torch.hann_window(cells + 2, periodic=False, device=images.device)[1:-1]
        weight = (taper[:, None] * taper)[:, :, None]
        total = torch.zeros(len(images), CELLS, CELLS, embedded.shape[-1], device=images.device)
        weights = torch.zeros(CELLS, CELLS, 1, device=images.device)
        for (i, j), embedding in zip(crop_starts, embedded, strict=True):
            total[:, i : i + cells, j : j + cells] += weight * embedding[:, None, None]
            weights[i : i + cells, j : j + cells] += weight
        maps.append(total / weights)
    return functional.normalize(torch.stack(maps).mean(0), dim=-1)
