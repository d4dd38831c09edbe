"""Which sets of pieces are removed, and with what weight each takes part in the regression.

References
----------
M. T. Ribeiro, S. Singh, C. Guestrin. "'Why Should I Trust You?': Explaining the Predictions of Any Classifier",
KDD 2016.
S. M. Lundberg, S.-I. Lee. "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

WIDTH = 0.25
"""Of LIME's exponential kernel, in units of the cosine distance; that of the authors for images."""

CERTAIN = 1e6
"""Weight of what kernel SHAP's values have to add up to, where all other sets together weigh 1."""


@dataclass(frozen=True)
class Coalitions:
    """Sets of pieces, in the order in which they are evaluated; the first removes all.

    Attributes
    ----------
    removed
        (N, M) bool: whether set n lacks piece m.
    weight
        (N): in the regression.
    group
        (N): sets with the same number were drawn together.
    randomness
        (N): share of the variance of its group that chance is to blame for; 0 where the set had to come.
    """

    removed: NDArray[np.bool_]
    weight: NDArray[np.float64]
    group: NDArray[np.int64]
    randomness: NDArray[np.float64]

    def __getitem__(self, chosen: NDArray[np.bool_]) -> Coalitions:
        """Some of the sets (N) bool; the weight of the random ones stands for all that are drawn."""
        weight = self.weight.copy()
        if (self.random & chosen).any():
            weight[self.random] *= weight[self.random].sum() / weight[self.random & chosen].sum()
        return Coalitions(self.removed[chosen], weight[chosen], self.group[chosen], self.randomness[chosen])

    @property
    def random(self) -> NDArray[np.bool_]:
        """(N): whether chance chose the set."""
        return self.randomness > 0

    def __len__(self) -> int:
        return len(self.removed)


def all_sets(pieces: int) -> int:
    """How many sets there are, without the one that removes nothing."""
    return 2**pieces - 1


def exponential_weight(removed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """LIME's kernel for sets (N, M): by the cosine distance d of what is kept from all, exp(-d² / (2 `WIDTH`²)).

    The factor 2 is that of the authors' code, which takes the root of the kernel in their paper, and of captum.
    """
    kept = 1 - removed.mean(axis=1)
    weights: NDArray[np.float64] = np.exp(-((1 - np.sqrt(kept)) ** 2) / (2 * WIDTH**2))
    return weights


def exponential(pieces: int, samples: int, rng: np.random.Generator) -> Coalitions:
    """Different sets in which each piece is missing with probability 1/2; all where there are no more than asked for.

    Parameters
    ----------
    pieces
        M.
    samples
        N, besides the set that removes all.
    """
    full = np.ones((1, pieces), np.bool_)
    if all_sets(pieces) <= samples + 1:
        numbers = 1 + rng.permutation(all_sets(pieces) - 1)
        rows = (numbers[:, None] >> np.arange(pieces) & 1).astype(np.bool_)
        share = 0.0
    else:
        rows = _different(pieces, samples, rng)
        share = 1 - len(rows) / all_sets(pieces)  # without replacement
    removed = np.concatenate([full, rows])
    randomness = np.r_[0.0, np.full(len(rows), share)]
    return Coalitions(removed, exponential_weight(removed), np.arange(len(removed)), randomness)


def _different(pieces: int, samples: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Sets (N, M) drawn evenly without replacement, neither the empty nor the full one."""
    found: dict[bytes, NDArray[np.bool_]] = {}
    while len(found) < samples:
        for row in rng.random((samples, pieces)) < 0.5:
            if len(found) < samples and row.any() and not row.all():
                found.setdefault(row.tobytes(), row)
    return np.stack(list(found.values()))


def shapley_sizes(pieces: int) -> NDArray[np.float64]:
    """(M + 1): the Shapley kernel's weight of all sets of each size together, adding up to 1; 0 for 0 and M."""
    size = np.arange(1, pieces)
    mass = 1 / (size * (pieces - size))
    return np.r_[0.0, mass / mass.sum(), 0.0]


def shapley(pieces: int, samples: int, rng: np.random.Generator) -> Coalitions:
    """Sets weighted by the Shapley kernel: whole sizes where their weight pays for all their sets, others at random.

    The smallest and largest sets weigh most. As long as a size's share of the samples suffices for every set of that
    size and of its complement, all are taken; the rest is drawn by the kernel, each set together with its complement.
    What is drawn again weighs more and costs nothing.

    Parameters
    ----------
    pieces
        M, at least 1.
    samples
        N, besides the set that removes all.
    """
    rows: list[NDArray[np.bool_]] = [np.ones((1, pieces), np.bool_)]
    weights: list[NDArray[np.float64]] = [np.array([CERTAIN])]
    draws: list[NDArray[np.float64]] = [np.zeros(1)]
    mass = shapley_sizes(pieces)
    left, share, smallest = samples, 1.0, 1
    while smallest <= pieces // 2:
        sizes = sorted({smallest, pieces - smallest})
        count, weight = sum(math.comb(pieces, s) for s in sizes), float(mass[sizes].sum())
        if left * weight < (count - 1e-6) * share:
            break
        rows.append(_of_size(pieces, sizes, rng))
        weights.append(np.full(count, weight / count))
        draws.append(np.zeros(count))
        left, share, smallest = left - count, share - weight, smallest + 1
    if smallest <= pieces // 2 and left >= 2:
        unpaid = np.where(np.arange(pieces + 1) < smallest, 0, mass)[: pieces + 1 - smallest]
        pairs, times = _pairs(pieces, unpaid, left // 2, rng)
        rows.append(pairs)
        weights.append(share * times / times.sum())
        draws.append(times)
    drawn = np.concatenate(draws)
    group = np.arange(len(drawn))
    group[drawn > 0] = group[drawn > 0][::2].repeat(2)
    randomness = np.divide(1, drawn, out=np.zeros(len(drawn)), where=drawn > 0)
    return Coalitions(np.concatenate(rows), np.concatenate(weights), group, randomness)


def _of_size(pieces: int, sizes: list[int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """All sets of these sizes, in random order."""
    members = [c for size in sizes for c in combinations(range(pieces), size)]
    removed = np.zeros((len(members), pieces), np.bool_)
    for row, chosen in zip(removed, members, strict=True):
        row[list(chosen)] = True
    return rng.permutation(removed)


def _pairs(
    pieces: int, mass: NDArray[np.float64], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Different sets, each followed by its complement, sizes drawn by ``mass``; and how often each came."""
    times: dict[bytes, int] = {}
    chances = mass / mass.sum()
    for _ in range(20 * count):  # an end, should almost every set have been drawn
        row = np.zeros(pieces, np.bool_)
        row[rng.permutation(pieces)[: rng.choice(len(chances), p=chances)]] = True
        key = min(row.tobytes(), (~row).tobytes())
        if len(times) == count and key not in times:
            break
        times[key] = times.get(key, 0) + 1
    first = np.stack([np.frombuffer(key, np.bool_) for key in times])
    both = np.stack([first, ~first], axis=1).reshape(-1, pieces)
    return both, np.repeat(np.array(list(times.values()), np.float64), 2)
