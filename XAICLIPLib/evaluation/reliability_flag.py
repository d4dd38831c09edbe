"""A check of reliability and what came of it, in words: what a reader must know before believing a map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

FlagName = Literal[
    "answers by chance",
    "answers the same",
    "unfamiliar modality",
    "unfamiliar intensities",
    "unfamiliar spacing",
    "mostly padding",
    "region disagrees",
    "like the null",
    "no more than the outline",
    "not converged",
    "unstable",
    "leans outside",
]
FLAG_NAMES: tuple[FlagName, ...] = get_args(FlagName)
"""In the order in which a reader should know them."""


@dataclass(frozen=True)
class ReliabilityFlag:
    """A check that was made.

    Attributes
    ----------
    name
        Of the check.
    sentence
        What was found, for a reader who knows no statistics.
    value, threshold
        What was measured, and where it becomes a flag.
    raised
        Whether the check has failed.
    """

    name: FlagName
    sentence: str
    value: float
    threshold: float
    raised: bool


def in_reading_order(flags: Iterable[ReliabilityFlag]) -> list[ReliabilityFlag]:
    """Flags in the order in which a reader should know them."""
    return sorted(flags, key=lambda flag: FLAG_NAMES.index(flag.name))
