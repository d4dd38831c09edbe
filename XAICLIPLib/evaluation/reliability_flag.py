"""The result of one reliability check, in words: what a reader must know before believing a map."""

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
    "unusual volume",
    "region disagrees",
    "like the null",
    "no more than the outline",
    "not converged",
    "unstable",
    "leans outside",
]
FLAG_NAMES: tuple[FlagName, ...] = get_args(FlagName)
"""The most important for a reader first."""


@dataclass(frozen=True)
class ReliabilityFlag:
    """The result of one reliability check, passed or failed.

    Attributes
    ----------
    name
        Of the check.
    sentence
        The result, for a reader who knows no statistics.
    value, threshold
        The measured number, and the limit beyond which the check fails.
    raised
        Whether the check has failed.
    """

    name: FlagName
    sentence: str
    value: float
    threshold: float
    raised: bool


def in_reading_order(flags: Iterable[ReliabilityFlag]) -> list[ReliabilityFlag]:
    """Sort flags, the most important for a reader first: in the order of `FLAG_NAMES`."""
    return sorted(flags, key=lambda flag: FLAG_NAMES.index(flag.name))
