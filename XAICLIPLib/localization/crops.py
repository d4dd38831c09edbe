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
        (N, `CELLS`, `CELLS`, D), of unit length: at each cell the mean over the crops that hold it, crops weighted by
        how near their middle the cell lies.
    """
    side = images.shape[-1]
    edges = torch.linspace(0, side, CELLS + 1).round().int().tolist()
    placed = [(cells, i, j) for cells in CROP_CELLS for i in _starts(cells) for j in _starts(cells)]
    crops = [
        functional.interpolate(
            images[:, :, edges[i] : edges[i + cells], edges[j] : edges[j + cells]],
            size=images.shape[-2:],
            mode="bilinear",
            antialias=True,
        )
        for cells, i, j in placed
    ]
    flat = torch.cat(crops)
    embedded = torch.cat([encode(part) for part in flat.split(batch_size)])
    embedded = functional.normalize(embedded.float(), dim=-1).reshape(len(placed), len(images), -1)
    total = torch.zeros(len(images), CELLS, CELLS, embedded.shape[-1], device=images.device)
    for (cells, i, j), embedding in zip(placed, embedded, strict=True):
        near = torch.hann_window(cells + 2, periodic=False, device=images.device)[1:-1]
        weight = (near[:, None] * near)[None, :, :, None]
        total[:, i : i + cells, j : j + cells] += weight * embedding[:, None, None]
    return functional.normalize(total, dim=-1)


def _starts(cells: int) -> range:
    return range(0, CELLS - cells + 1)
