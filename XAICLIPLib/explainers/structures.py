"""Removing what the network itself has found, to see how much one structure leans on each of the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

from XAICLIPLib.explainers.base import Captions, Estimate, Method, RunningMap, Scores
from XAICLIPLib.explainers.parameters import parameter
from XAICLIPLib.system.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from XAICLIPLib.explainers.pieces.pieces import Pieces
    from XAICLIPLib.explainers.setting import Setting
else:
    torch = lazy("torch")

REST = "rest of the body"
"""Name of what belongs to no structure, where it has none of its own."""


@dataclass(frozen=True)
class Structures(Method):
    """Remove each structure that the network segments, and the rest of the body, in turn."""

    name: ClassVar[str] = "structures"
    captions: ClassVar[Captions] = Captions(
        "removals", "by removing a whole structure", region="Region of interest", pieces=True
    )

    pairs: int = parameter(0, "also remove every two of this many most important structures together", 0, 20)

    def estimates(self, setting: Setting, seed: int) -> Iterator[Estimate]:
        """See `structures`; what the network draws nothing in is the rest of the body."""
        rest = max([*setting.names, int(setting.labels.max())]) + 1
        labels = torch.where(setting.changeable & (setting.labels == 0), rest, setting.labels.long())
        return structures(
            setting.scorer,
            labels,
            setting.names,
            setting.region,
            setting.spacing_mm,
            own=setting.target_numbers,
            pairs=self.pairs,
            rest=rest,
            parts=setting.parts,
        )


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
    parts: Mapping[int, Sequence[int]] | None = None,
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
    parts
        Where structures overlap: of a structure's number, all numbers in ``labels`` where it is. By default its own. A
        voxel of the map that several structures hold shows the smallest of them.

    Notes
    -----
    The findings are, sorted by the score lost, ``structures``: ``structure``, ``volume_ml``, ``score_lost`` and
    ``share`` (of the sum of all positive losses; 0 where nothing is lost by it), and with ``pairs``
    ``interactions``: two ``structures``, their ``score_lost`` together, and the ``interaction``, which is that less
    their losses one by one: positive where either can stand in for the other, negative where each needs the other.
    ``not_removed`` names the structures that were found but lie outside the region.
    """
    from XAICLIPLib.explainers.pieces.pieces import Pieces

    pieces = Pieces(labels)
    there = pieces.sizes if region is None else pieces.labels[region.cpu()].bincount(minlength=1).tolist()
    named = {**names, rest: names.get(rest, REST)}
    members = {
        n: [p for p in (parts or {}).get(n, (n,)) if 0 < p < len(pieces.sizes) and pieces.sizes[p]] for n in named
    }
    present = [n for n in named if n > 0 and members[n]]
    numbers = [n for n in present if n in own or any(p < len(there) and there[p] for p in members[n])]
    left_out = [named[n] for n in present if n not in numbers]
    running = _StructuresMap(pieces, members, named, left_out, math.prod(spacing_mm) / 1000, pairs > 0)
    chosen = min(pairs, len(numbers))
    planned = len(numbers) + math.comb(chosen, 2)

    if not numbers:
        yield Estimate(0, planned, running)
    for batch in scorer.lost(pieces.without(members[n]) for n in numbers):
        running.lost.update((numbers[index], value) for index, value in batch)
        yield Estimate(running.done, planned, running)
    couples = list(combinations(running.by_loss()[:chosen], 2))
    for batch in scorer.lost(pieces.without({p for n in couple for p in members[n]}) for couple in couples):
        running.together.update((couples[index], value) for index, value in batch)
        yield Estimate(running.done, planned, running)


@dataclass
class _StructuresMap(RunningMap):
    """What the removals so far say.

    Attributes
    ----------
    pieces
        What structures are made of.
    members, names
        The pieces and the name of each structure, by its number.
    left_out
        Names of structures outside the region, which are not removed.
    voxel_ml
        Volume of a voxel.
    in_pairs
        Whether pairs are removed as well.
    lost, together
        Score lost without each structure, and without two.
    """

    pieces: Pieces
    members: Mapping[int, Sequence[int]]
    names: Mapping[int, str]
    left_out: list[str]
    voxel_ml: float
    in_pairs: bool
    lost: dict[int, float] = field(default_factory=dict)
    together: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Number of removals."""
        return len(self.lost) + len(self.together)

    def by_loss(self) -> list[int]:
        """Numbers of the structures, the one with the largest loss first."""
        return sorted(self.lost, key=lambda n: -self.lost[n])

    def size(self, number: int) -> int:
        """Voxels of a structure."""
        return sum(self.pieces.sizes[p] for p in self.members[number])

    def saliency(self) -> Tensor:
        return self._painted(self.lost)

    def probed(self) -> Tensor:
        return self._painted(dict.fromkeys(self.lost, 1.0)) > 0

    def _painted(self, values: Mapping[int, float]) -> Tensor:
        """A value for each structure on its voxels, the smallest structures last."""
        of_piece = {p: values[n] for n in sorted(values, key=lambda n: -self.size(n)) for p in self.members[n]}
        return self.pieces.paint(of_piece.keys(), list(of_piece.values()))

    def findings(self) -> dict[str, Any]:
        total = math.fsum(value for value in self.lost.values() if value > 0)
        table = [
            {
                "structure": self.names[n],
                "volume_ml": self.size(n) * self.voxel_ml,
                "score_lost": self.lost[n],
                "share": max(self.lost[n], 0.0) / total if total else 0.0,
            }
            for n in self.by_loss()
        ]
        interactions = [
            {
                "structures": [self.names[a], self.names[b]],
                "score_lost": both,
                "interaction": both - self.lost[a] - self.lost[b],
            }
            for (a, b), both in sorted(self.together.items(), key=lambda item: -item[1])
        ]
        rows = {"structures": table, "not_removed": self.left_out}
        return {**rows, **({"interactions": interactions} if self.in_pairs else {})}
