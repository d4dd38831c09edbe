"""How far a computation is, what it warns of, and whether the user wants it to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from XAICLIPLib.errors import Cancelled

Stage = Literal["localize", "segment", "explain", "check"]


@dataclass(frozen=True)
class Progress:
    """How far an explanation is.

    Attributes
    ----------
    stage
        ``localize`` counts slices, ``segment`` patches, ``explain`` and ``check`` perturbations.
    done, total
        Of this stage.
    seconds_left
        Of this stage, from its pace so far; None until something is done.
    """

    stage: Stage
    done: int
    total: int
    seconds_left: float | None


@dataclass
class Run:
    """Clock, progress, cancel and warnings of one call.

    Attributes
    ----------
    report
        Called with how far it is.
    cancelled
        Whether the user asked to end.
    warnings
        For the user, as they come.
    timings
        Seconds of each stage.
    """

    report: Callable[[Progress], None] | None
    cancelled: Callable[[], bool]
    warnings: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    _begun: float = 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        self._begun = time.perf_counter()
        yield
        self.timings[stage] = round(self.timings.get(stage, 0.0) + time.perf_counter() - self._begun, 3)

    def advance(self, stage: Stage, done: int, total: int, may_end: bool = False) -> None:
        """Tell how far the stage is; raises `Cancelled` where the user asked for it and there is nothing to return."""
        if self.report is not None:
            elapsed = time.perf_counter() - self._begun
            self.report(Progress(stage, done, total, elapsed / done * (total - done) if done else None))
        if not may_end:
            self.go_on()

    def go_on(self) -> None:
        """Raise `Cancelled` where the user asked for it."""
        if self.cancelled():
            raise Cancelled("Cancelled before there was a result.")
