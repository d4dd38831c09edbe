"""Where in a map the effect lies: found while the map is copied, and remembered with it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PLACE_ATTRIBUTE = "XAICLIP.Place"
"""Indices of the voxel with the largest effect (i, j, k), and the bounds of what has half of it (low, high each)."""

SHARE = 0.5

Place = tuple[tuple[int, int, int], tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]


class Survey:
    """Looks at a map (k, j, i) in slabs along k: its smallest and largest value, and where effects of either sign lie.

    Parameters
    ----------
    shape
        Of the whole map.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.extremes = (0.0, 0.0)
        self._largest = np.zeros(shape[0], np.float32)  # of each slice
        self._above = np.zeros(shape[1:], np.float32)  # of each column along k
        self._at = np.zeros(shape[0], np.int64)

    def look(self, part: NDArray[Any], at: slice) -> None:
        """Look at the slices ``at`` of the map."""
        low, high = float(part.min()), float(part.max())
        self.extremes = min(self.extremes[0], low), max(self.extremes[1], high)
        size = np.abs(part) if low < 0 else part
        flat = size.reshape(len(size), -1)
        self._at[at] = flat.argmax(axis=1)
        self._largest[at] = flat[np.arange(len(flat)), self._at[at]]
        np.maximum(self._above, size.max(axis=0), out=self._above)

    def place(self) -> Place:
        """Where the effect is largest, and the bounds of what has half of it."""
        k = int(self._largest.argmax())
        j, i = divmod(int(self._at[k]), self._above.shape[1])
        level = SHARE * float(self._largest[k])
        strong = self._above >= level
        lines: list[NDArray[Any]] = [strong.max(axis=0), strong.max(axis=1), self._largest >= level]
        low = [int(line.argmax()) for line in lines]
        high = [len(line) - 1 - int(line[::-1].argmax()) for line in lines]
        return (i, j, k), ((low[0], high[0]), (low[1], high[1]), (low[2], high[2]))


def note(saliencyNode: Any, survey: Survey) -> None:
    """Remember with a map where its effect lies."""
    peak, bounds = survey.place()
    numbers = (*peak, *(edge for pair in bounds for edge in pair))
    saliencyNode.SetAttribute(PLACE_ATTRIBUTE, " ".join(map(str, numbers)))


def placeOf(saliencyNode: Any, array: NDArray[Any]) -> Place:
    """Where the effect of a map lies, as it was noted; else it is found now, in its voxels (k, j, i)."""
    try:
        numbers = [int(number) for number in (saliencyNode.GetAttribute(PLACE_ATTRIBUTE) or "").split()]
    except ValueError:
        numbers = []
    sizes = array.shape[::-1]
    if len(numbers) == 9 and all(0 <= n < sizes[(0, 1, 2, 0, 0, 1, 1, 2, 2)[at]] for at, n in enumerate(numbers)):
        i, j, k, *edges = numbers
        return (i, j, k), ((edges[0], edges[1]), (edges[2], edges[3]), (edges[4], edges[5]))
    survey = Survey(array.shape)
    survey.look(array, slice(None))
    return survey.place()
