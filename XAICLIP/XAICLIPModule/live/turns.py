"""Long work on the scene in turns, a few milliseconds at a time, so that Slicer stays usable.

A thread would not do: the scene belongs to the main thread, and Slicer's event loop starves the others. The work is a
generator that yields where it may be interrupted, which is between slabs of a large array; with a small one it never
yields, and is done when `Turns` is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import qt
from numpy.typing import NDArray

from XAICLIPLib.errors import InputError

Work = Generator[None, None, Any]
"""Yields where it may be interrupted, and returns what came of it."""

SLAB_BYTES = 4 * 2**20
TURN_S = 0.02
"""How long a turn may last before Slicer gets its turn; a slab more at most."""


class Turns:
    """Does work in turns, of which the first is done at once.

    Parameters
    ----------
    work
        What is to be done.
    done
        Called with what it returns.
    failed
        Called with the `InputError` that ended it.
    """

    def __init__(self, work: Work, done: Callable[[Any], None], failed: Callable[[InputError], None]) -> None:
        self._work, self._done, self._failed = work, done, failed
        self._isStopped = self._isWorking = False
        self._turn()

    def stop(self) -> None:
        """Do no more, and call nobody."""
        self._isStopped = True
        if not self._isWorking:
            self._work.close()

    def _turn(self) -> None:
        end = time.perf_counter() + TURN_S
        self._isWorking = True
        try:
            while not self._isStopped:
                next(self._work)
                if time.perf_counter() >= end:
                    break
        except StopIteration as result:
            self._isWorking = False
            if not self._isStopped:
                self._done(result.value)
            return
        except InputError as error:
            self._isWorking = False
            if not self._isStopped:
                self._failed(error)
            return
        finally:
            self._isWorking = False
        if self._isStopped:
            self._work.close()
        else:
            qt.QTimer.singleShot(0, self._turn)


def slabs(array: NDArray[Any]) -> Iterator[slice]:
    """Slices along the first axis of an array that together cover it, of a few MB each; of a small array only one."""
    count = max(1, SLAB_BYTES // max(array[:1].nbytes, 1))
    for start in range(0, len(array), count):
        yield slice(start, min(start + count, len(array)))


def isLarge(size: int) -> bool:
    """Whether this many bytes take a while to work on."""
    return size > SLAB_BYTES


def wholly(work: Work) -> Any:
    """What comes of work that is done without a pause."""
    try:
        while True:
            next(work)
    except StopIteration as result:
        return result.value
