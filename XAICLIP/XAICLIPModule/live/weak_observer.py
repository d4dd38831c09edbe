"""Observers that do not keep their owner alive: VTK holds what it calls for as long as it lives itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


def observe(subject: Any, event: int, method: Callable[..., Any], priority: float = 0.0) -> Callable[[], Any]:
    """Call a bound method on an event of a VTK object, while somebody else holds the method's owner.

    Returns
    -------
    callable
        Ends it; it also ends by itself when the owner goes.
    """
    held = weakref.WeakMethod(method)

    def call(*arguments: Any) -> None:
        alive = held()
        if alive is not None:
            alive(*arguments)

    if hasattr(method, "CallDataType"):  # what VTK looks at to hand over what the event is about
        call.CallDataType = method.CallDataType  # type: ignore[attr-defined]
    end = weakref.finalize(method.__self__, subject.RemoveObserver, subject.AddObserver(event, call, priority))  # type: ignore[attr-defined]
    end.atexit = False  # scenes go before Python does
    return end
