"""The progress of a computation, its warnings, and whether the user has cancelled it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from XAICLIPLib.errors import Cancelled

PACE_AFTER_S, PACE_AFTER_SHARE = 3.0, 0.05
"""The time left is told once a stage has gone on for this long, and through this share of its work, after its first
batch. That one does not count: memory is allocated and caches are cold then. After ten times as long it is told in any
case."""

Stage = Literal["localize", "segment", "explain", "check"]


@dataclass(frozen=True)
class Progress:
    """The progress of an explanation.

    Attributes
    ----------
    stage
        ``localize`` counts slices, ``segment`` patches, ``explain`` and ``check`` perturbations.
    done, total
        Of this stage.
    seconds_left
        Of this stage, from its pace so far; None until that can be trusted (`PACE_AFTER_S`, `PACE_AFTER_SHARE`).
    """

    stage: Stage
    done: int
    total: int
    seconds_left: float | None


def seconds_left(elapsed: float, done: int, left: int) -> float | None:
    """The time that the rest of a stage will take; None while that cannot be trusted.

    Parameters
    ----------
    elapsed, done
        Seconds and work since the first batch.
    left
        Work that is left.
    """
    if left <= 0:
        return 0.0
    settled = elapsed >= PACE_AFTER_S and done >= PACE_AFTER_SHARE * (done + left)
    return elapsed / done * left if done > 0 and (settled or elapsed >= 10 * PACE_AFTER_S) else None


@dataclass
class Run:
    """Timings, progress, cancellation and warnings of one call.

    Attributes
    ----------
    report
        Called with the progress.
    cancelled
        Tells whether the user has cancelled.
    on_warning
        Called with a warning that the user should read at once.
    warnings
        For the user, in the order in which they arise.
    timings
        Seconds of each stage.
    """

    report: Callable[[Progress], None] | None
    cancelled: Callable[[], bool]
    on_warning: Callable[[str], None] | None = None
    warnings: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    _first_batch: tuple[float, int] | None = None
    _told: set[str] = field(default_factory=set)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        started, self._first_batch = time.perf_counter(), None
        yield
        self.timings[stage] = round(self.timings.get(stage, 0.0) + time.perf_counter() - started, 3)

    def advance(self, stage: Stage, done: int, total: int, has_result: bool = False) -> None:
        """Report the progress of a stage; raise `Cancelled` if the user cancelled and there is no result yet."""
        if self.report is not None:
            now = time.perf_counter()
            began, done_then = self._first_batch or (now, done)
            if done:
                self._first_batch = began, done_then
            self.report(Progress(stage, done, total, seconds_left(now - began, done - done_then, total - done)))
        if not has_result:
            self.raise_if_cancelled()

    def warn(self, sentence: str) -> None:
        """Note a warning, and tell it at once."""
        self.warnings.append(sentence)
        self.tell(sentence)

    def tell(self, sentence: str) -> None:
        """Tell the user something at once, and once only."""
        if self.on_warning is not None and sentence not in self._told:
            self._told.add(sentence)
            self.on_warning(sentence)

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` if the user has cancelled."""
        if self.cancelled():
            raise Cancelled("Cancelled before there was a result.")
