"""One worker for all logics of this Slicer: the panel's, and those that the Python console makes.

A worker takes hundreds of MB, and memory of the graphics card, so that a second one is never started. It ends when it
has been idle for a while (`worker_session.IDLE_SETTING`), when another Python is chosen, and with its last logic.
"""

from __future__ import annotations

import weakref
from typing import Any

from XAICLIPModule.worker.worker_session import Session, WorkerSession


class SharedSession:
    """A session, and who uses it.

    A logic that is let go of without `leave`, as that of ``XAICLIPLogic().explain(...)``, counts no more; its worker
    stays for the next one until it has been idle long enough.
    """

    def __init__(self) -> None:
        self._session: Session | None = None
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()

    def join(self, user: Any) -> Session:
        """The session, from now on also for ``user``."""
        if self._session is None:
            self._session = WorkerSession()
        self._users.add(user)
        return self._session

    def leave(self, user: Any) -> None:
        """``user`` needs the session no more; with the last one its worker ends."""
        self._users.discard(user)
        if not self._users and self._session is not None:
            self._session.stop()


SHARED = SharedSession()
