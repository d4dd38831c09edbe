"""Removing what the network itself has found, to see how much one structure leans on each of the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from XAICLIPLib.explainers.pieces import Pieces
from XAICLIPLib.scoring.perturbation import Estimate, Scores

REST = "rest of the body"
"""Name of what belongs to no structure, where it has none of its own."""


def structures(
    scorer: Scores,
    labels: Tensor,
    names: Mapping[int, str],
    region: Tensor | None,
    spacing_mm: Sequence[float],
    *,
    own: Sequence[int] = (),
    pairs: int = 0,
    rest: int,
) -> Iterator[Estimate]:
    """Remove each structure whole; the saliency of its voxels is the score lost.

    Yields an estimate after every network batch; the last one is complete. Close the iterator to cancel.

    Parameters
    ----------
    scorer
        What scores the perturbations, usually a `XAICLIPLib.scoring.scorer.Scorer`.
    labels
        (X, Y, Z) whole numbers on the segmenter's grid: the structure of each voxel; 0 is never removed.
    names
        The structure of each number. What has no name is not removed, but for ``rest``.
    region
        (X, Y, Z) bool: only structures that meet it are removed, as a whole; None: all.
    spacing_mm
        Voxel size along X, Y and Z.
    own
        Numbers of what is explained: removed wherever it lies.
    pairs
        Every two of this many structures with the largest losses are also removed together.
    rest
        Number of the body outside all structures.

    Notes
    -----
    The findings are, sorted by the score lost, ``structures``: ``structure``, ``volume_ml``, ``score_lost`` and
    ``share`` (of the sum of all positive losses; 0 where nothing is lost by it), and with ``pairs``
    ``interactions``: two ``structures``, their ``score_lost`` together, and the ``interaction``, which is that less
    their losses one by one: positive where either can stand in for the other, negative where each needs the other.
    ``not_removed`` names the structures that were found but lie outside the region.
    """
    pieces = Pieces(labels)
    there = pieces.sizes if region is None else pieces.labels[region.cpu()].bincount(minlength=1).tolist()
    named = {**names, rest: names.get(rest, REST)}
    found = [n for n in named if 0 < n < len(pieces.sizes) and pieces.sizes[n]]
    numbers = [n for n in found if n in own or (n < len(there) and there[n])]
    chosen = min(pairs, len(numbers))
    planned = len(numbers) + math.comb(chosen, 2)
    lost: dict[int, float] = {}
    together: dict[tuple[int, int], float] = {}

    def by_loss() -> list[int]:
        return sorted(lost, key=lambda n: -lost[n])

    def findings() -> dict[str, Any]:
        total = math.fsum(value for value in lost.values() if value > 0)
        voxel_ml = math.prod(spacing_mm) / 1000
        table = [
            {
                "structure": named[n],
                "volume_ml": pieces.sizes[n] * voxel_ml,
                "score_lost": lost[n],
                "share": max(lost[n], 0.0) / total if total else 0.0,
            }
            for n in by_loss()
        ]
        interactions = [
            {"structures": [named[a], named[b]], "score_lost": both, "interaction": both - lost[a] - lost[b]}
            for (a, b), both in sorted(together.items(), key=lambda item: -item[1])
        ]
        left_out = [named[n] for n in found if n not in numbers]
        return {"structures": table, "not_removed": left_out, **({"interactions": interactions} if pairs else {})}

    def estimate() -> Estimate:
        return Estimate(
            len(lost) + len(together),
            planned,
            lambda: pieces.paint(lost.keys(), list(lost.values())),
            lambda: pieces.paint(lost.keys(), torch.ones(len(lost))) > 0,
            findings=findings,
        )

    if not numbers:
        yield estimate()
    for batch in scorer.lost(pieces.without([n]) for n in numbers):
        lost.update((numbers[index], value) for index, value in batch)
        yield estimate()
    couples = list(combinations(by_loss()[:chosen], 2))
    for batch in scorer.lost(pieces.without(couple) for couple in couples):
        together.update((couples[index], value) for index, value in batch)
        yield estimate()
