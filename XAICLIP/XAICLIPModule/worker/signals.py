"""Signals between the parts of the module, so that logic and session need not know who listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Signal:
    """A list of functions to be called.

    ``qt.Signal`` would need a QObject for every owner, and carries only types that Qt knows.

    >>> moved = Signal()
    >>> moved.connect(print)
    >>> moved.emit("here")
    here
    """

    def __init__(self) -> None:
        self._slots: list[Callable[..., Any]] = []

    def connect(self, slot: Callable[..., Any]) -> None:
        """Call ``slot`` whenever the signal is emitted; once, however often it is connected."""
        if slot not in self._slots:
            self._slots.append(slot)

    def disconnect(self, slot: Callable[..., Any]) -> None:
        """Stop calling ``slot``; nothing happens where it was not connected."""
        if slot in self._slots:
            self._slots.remove(slot)

    def emit(self, *values: Any) -> None:
        """Call every connected function, in the order in which they were connected."""
        for slot in list(self._slots):
            slot(*values)
