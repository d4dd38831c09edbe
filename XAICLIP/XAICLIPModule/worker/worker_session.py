"""The worker process: one Python that stays alive beside Slicer, asked by JSON lines over stdin and stdout.

The protocol is that of `XAICLIPLib.worker`. Slicer reads it through QProcess and never through a Python thread, which
Slicer's event loop would starve.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import qt
from slicer.i18n import tr as _

from XAICLIPLib.system import isolation
from XAICLIPLib.worker import protocol
from XAICLIPModule.installation import interpreter
from XAICLIPModule.worker.signals import Signal

LONGEST_LINE = 64 * 2**20
"""Bytes of an answer without an end of line after which the worker is taken to be out of its mind."""

HELLO_TIMEOUT_MS = 180_000
"""A first import of PyTorch from a slow disk takes minutes; what takes longer is broken."""

IDLE_SETTING = "XAICLIP/WorkerIdleMinutes"
"""QSettings key of the minutes after which a worker that nobody asks anything is ended."""

IDLE_MINUTES = 10
MINUTE_MS = 60_000
FAREWELL_MS = 10_000
"""What an idle worker gets to end by itself."""


def idleMinutes() -> int:
    """The setting, or its default where it is no number of minutes."""
    try:
        minutes = int(qt.QSettings().value(IDLE_SETTING) or IDLE_MINUTES)
    except (TypeError, ValueError):
        return IDLE_MINUTES
    return min(max(minutes, 1), 24 * 60)


@dataclass(frozen=True)
class Ended:
    """Stands for the answer that a request did not get: a `protocol.Error` of a kind that the worker cannot send.

    ``kind`` is ``stopped``, or ``cancelled`` where the worker was ended by the user's wish.
    """

    type: ClassVar[str] = "error"
    id: int
    kind: str
    message: str


Answer = protocol.Reply | Ended
Listener = Callable[[Any], None]

FINAL = frozenset({"region", "explanation", "reported", "described", "downloaded", "removed", "error", "bye"})
"""Types of answers after which a request is over."""


class Session(Protocol):
    """What the logic needs of a worker; tests give it one that they play themselves."""

    greeted: Signal
    stopped: Signal
    logged: Signal
    hello: protocol.Greeting | None

    @property
    def isBusy(self) -> bool:
        """Whether somebody waits for an answer: a worker computes one thing at a time."""

    def endOutdated(self) -> None:
        """End a worker that runs in another Python, or with other settings, than are chosen now."""

    def start(self) -> None:
        """Start the worker where none runs; `greeted` follows, or `stopped` with a sentence for the user."""

    def request(self, kind: str, listener: Listener, /, **fields: Any) -> int:
        """Ask; every answer goes to ``listener``, the last of them in any case. Returns the id of the request."""

    def requestAside(self, kind: str, listener: Listener, /, **fields: Any) -> int:
        """Ask something small on the side: it does not make the session busy, and what is asked meanwhile waits."""

    def cancel(self, request: int) -> None:
        """Ask the worker to end a request with what it has."""

    def refresh(self) -> None:
        """Have a worker that runs say hello anew; `greeted` follows."""

    def stop(self) -> None:
        """End the worker, whatever it does."""


class WorkerSession:
    """The worker as a child process.

    Attributes
    ----------
    greeted
        Emitted with the worker's hello.
    stopped
        Emitted with a sentence for the user when the worker ended, and "" when it was asked to.
    logged
        Emitted with each line that the worker or a package in it writes to stderr.
    hello
        The worker's hello, from `greeted` until it stops; what it learns later (``devices``) is put into it.
    """

    def __init__(self, choose: Callable[[], interpreter.Interpreter] = interpreter.chosen) -> None:
        self.greeted, self.stopped, self.logged = Signal(), Signal(), Signal()
        self.hello: protocol.Greeting | None = None
        self._choose = choose
        self._process: Any = None
        self._interpreter: interpreter.Interpreter | None = None
        self._idle = qt.QTimer()
        self._idle.setSingleShot(True)
        self._idle.connect("timeout()", self._onIdle)
        self._retired: list[Any] = []
        self._buffer = b""
        self._tail: deque[str] = deque(maxlen=40)
        self._listeners: dict[int, Listener] = {}
        self._waiting: list[protocol.Request] = []
        self._lastId = 0
        self._aside: int | None = None
        self._asked = False

    @property
    def isRunning(self) -> bool:
        """Whether there is a worker process."""
        return self._process is not None

    @property
    def isBusy(self) -> bool:
        """Whether somebody waits for an answer, other than to what was asked aside."""
        return bool(self._listeners.keys() - {self._aside})

    @property
    def log(self) -> list[str]:
        """The last lines that the worker wrote to stderr."""
        return list(self._tail)

    def endOutdated(self) -> None:
        """End a worker that runs in another Python, or another environment, than are chosen now.

        Raises
        ------
        InputError
            The interpreter of the settings does not exist.
        """
        if self._process is not None and not self.isBusy and self._choose() != self._interpreter:
            self.stop()

    def start(self) -> None:
        """Start the worker where none runs, and say hello.

        Raises
        ------
        InputError
            The interpreter of the settings does not exist.
        """
        if self._process is not None:
            return
        chosen = self._interpreter = self._choose()
        self._retired = [process for process in self._retired if process.state() != qt.QProcess.NotRunning]
        self._buffer, self._asked = b"", False
        self._idle.stop()
        self._tail.clear()
        environment = qt.QProcessEnvironment()
        for name, value in chosen.environment.items():
            environment.insert(name, value)
        process = qt.QProcess()
        process.setProcessEnvironment(environment)
        process.setWorkingDirectory(interpreter.emptyFolder())
        process.readyReadStandardOutput.connect(self._onOutput)
        process.readyReadStandardError.connect(self._onErrorOutput)
        process.finished.connect(lambda *_status: self._onFinished(process))
        process.errorOccurred.connect(self._onProcessError)
        self._process = process
        process.start(chosen.program, isolation.arguments("XAICLIPLib.worker"))
        if self._process is not None:  # a program that cannot be started may have ended already
            self._send(protocol.Hello(id=self._nextId(), protocol=protocol.PROTOCOL))
            qt.QTimer.singleShot(HELLO_TIMEOUT_MS, lambda: self._onHelloTimeout(process))

    def request(self, kind: str, listener: Listener, /, **fields: Any) -> int:
        """Ask the worker, once it has said hello.

        ``listener`` gets every answer of the request. Exactly one of them is final (`FINAL`): where the worker dies, it
        is an `Ended`.

        Raises
        ------
        XAICLIPLib.worker.protocol.ProtocolError
            The fields make no request of this kind.
        """
        number = self._nextId()
        message = protocol.REQUESTS[kind](id=number, **fields)
        self._listeners[number] = listener
        self._idle.stop()
        if self.hello is None or self._aside is not None:
            self._waiting.append(message)
        else:
            self._send(message)
        return number

    def requestAside(self, kind: str, listener: Listener, /, **fields: Any) -> int:
        """Ask something small: it does not make the session busy, and what is asked meanwhile waits for its end."""
        isFree = self.hello is not None and self._aside is None
        number = self.request(kind, listener, **fields)
        if isFree:
            self._aside = number
        return number

    def cancel(self, request: int) -> None:
        """Ask the worker to end a request; one that was not sent yet ends at once."""
        waiting = [message for message in self._waiting if message.id == request]
        for message in waiting:
            self._waiting.remove(message)
            self._answer(Ended(request, "cancelled", _("Cancelled before there was a result.")))
        if not waiting and request in self._listeners and self._process is not None:
            self._send(protocol.Cancel(id=self._nextId(), request=request))

    def refresh(self) -> None:
        """Have a worker that runs say hello anew, for example after a download; `greeted` follows."""
        if self._process is not None and self.hello is not None:
            self._send(protocol.Hello(id=self._nextId(), protocol=protocol.PROTOCOL))

    def stop(self, patience_ms: int = 1500) -> None:
        """End the worker: asked, by the end of its input, and, after ``patience_ms``, by force."""
        process = self._process
        if process is None:
            return
        self._asked = True
        self._idle.stop()
        if process.state() == qt.QProcess.Running:
            self._send(protocol.Shutdown(id=self._nextId()))
            process.closeWriteChannel()
            process.waitForFinished(patience_ms if not self._listeners else min(patience_ms, 300))
        if self._process is process:
            self._kill(process)
            self._onFinished(process)

    def _rest(self) -> None:
        """End the worker in a while, where nobody asks it anything until then."""
        if self._process is not None and not self._listeners:
            self._idle.start(idleMinutes() * MINUTE_MS)

    def _onIdle(self) -> None:
        """End the worker without waiting for it: Slicer's user is at something else."""
        process = self._process
        if process is None or self._listeners:
            return
        self._send(protocol.Shutdown(id=self._nextId()))
        process.closeWriteChannel()
        self._process, self.hello = None, None
        self._retired.append(process)
        qt.QTimer.singleShot(FAREWELL_MS, lambda: self._endForGood(process))
        self.stopped.emit("")

    def _endForGood(self, process: Any) -> None:
        if process.state() != qt.QProcess.NotRunning:
            self._kill(process)

    # --- the process ---

    def _nextId(self) -> int:
        self._lastId += 1
        return self._lastId

    def _send(self, message: protocol.Request) -> None:
        self._process.write(qt.QByteArray(protocol.encode(message)))

    @staticmethod
    def _kill(process: Any) -> None:
        """End a process and its children: PythonSlicer can be a launcher, and the worker its child.

        Where psutil is not installed, the child ends by itself, because its input ends.
        """
        children: list[Any] = []
        with suppress(ImportError):
            import psutil

            with suppress(psutil.Error):
                children = psutil.Process(process.processId()).children(recursive=True)
        process.kill()
        for child in children:
            with suppress(Exception):  # it has ended already
                child.kill()
        process.waitForFinished(2000)

    def _onFinished(self, process: Any) -> None:
        """The process has ended: whoever waits for an answer gets an error."""
        if self._process is not process:
            return  # one that was given up, or ended because it was idle
        self._idle.stop()
        self._onErrorOutput()
        self._onOutput()
        self._process, self.hello = None, None
        self._retired.append(process)  # its signal may still be on the stack: not destroyed before the next start
        message = "" if self._asked else self._epitaph(process)
        self._waiting.clear()
        for number in list(self._listeners):
            kind = "cancelled" if self._asked else "stopped"
            self._answer(Ended(number, kind, message or _("The computation was ended.")))
        self.stopped.emit(message)

    def _epitaph(self, process: Any) -> str:
        """Why the worker ended by itself, in a sentence for the user."""
        missing = next((line for line in reversed(self._tail) if line.startswith("ModuleNotFoundError")), "")
        if missing:
            package = missing.partition("'")[2].rpartition("'")[0] or missing
            return _(
                "The Python package {package} is missing in the Python that computes: install the packages under "
                "Device and installation."
            ).format(package=package)
        if process.exitStatus() == qt.QProcess.CrashExit or process.exitCode() < 0:
            return _(
                "The computation was ended from outside, or crashed (memory may have run out): click Apply to start it "
                "again."
            )
        return _(
            "The computation ended unexpectedly (exit status {status}): click Apply to start it again; the log under "
            "Device and installation says more."
        ).format(status=process.exitCode())

    def _onProcessError(self, *_error: Any) -> None:
        """QProcess tells of a crash before ``finished``, and emits no ``finished`` for what could not be started."""
        process = self._process
        if process is not None:
            qt.QTimer.singleShot(0, lambda: self._onNeverStarted(process))

    def _onNeverStarted(self, process: Any) -> None:
        if self._process is not process or process.state() != qt.QProcess.NotRunning:
            return
        self._tail.append(str(process.errorString()))
        self.logged.emit(self._tail[-1])
        self._fail(
            _(
                "The Python interpreter could not be started ({reason}): name another under Device and installation."
            ).format(reason=process.errorString())
        )

    def _onHelloTimeout(self, process: Any) -> None:
        if self._process is process and self.hello is None:
            self._fail(
                _("The worker did not answer within {seconds} s: check it under Device and installation.").format(
                    seconds=HELLO_TIMEOUT_MS // 1000
                )
            )

    def _fail(self, message: str) -> None:
        """Give the worker up for a reason that is known."""
        process, self._process, self.hello = self._process, None, None
        if process is None:
            return
        self._retired.append(process)
        if process.state() != qt.QProcess.NotRunning:
            process.kill()
        self._waiting.clear()
        for number in list(self._listeners):
            self._answer(Ended(number, "stopped", message))
        self.stopped.emit(message)

    # --- what it says ---

    def _onErrorOutput(self) -> None:
        if self._process is None:
            return
        text = bytes(self._process.readAllStandardError().data()).decode("utf-8", "replace")
        for line in filter(None, (line.rstrip() for line in text.splitlines())):
            self._tail.append(line)
            self.logged.emit(line)

    def _onOutput(self) -> None:
        process = self._process
        if process is None:
            return
        self._buffer += bytes(process.readAllStandardOutput().data())
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            if self._process is not process:
                return  # a listener ended the worker: what it still says answers nobody
            self._onLine(line)
        if len(self._buffer) > LONGEST_LINE:
            self._fail(_("The worker sent something that is no answer: click Apply to start it again."))

    def _onLine(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            reply = protocol.parse_reply(line)
        except protocol.ProtocolError as error:
            logging.warning("XAI-CLIP: the worker wrote a line that is no answer: %s", error)
            if error.id in self._listeners:
                self._answer(Ended(error.id, "stopped", _("The worker sent an answer that cannot be understood.")))
            return
        if isinstance(reply, protocol.Greeting):
            self._onHello(reply)
        elif isinstance(reply, protocol.Devices):
            if self.hello is not None:
                self.hello = replace(self.hello, devices=reply.devices, device_names=reply.device_names)
                self.greeted.emit(self.hello)
        elif reply.id in self._listeners:
            self._answer(reply)
        elif isinstance(reply, protocol.Error):
            self._onUnasked(reply)

    def _onUnasked(self, error: protocol.Error) -> None:
        """An error that answers no request of ours, or the hello: without a hello there is nothing to wait for."""
        self.logged.emit(error.message)
        if self.hello is None:
            self._fail(error.message)

    def _onHello(self, reply: protocol.Greeting) -> None:
        if reply.protocol != protocol.PROTOCOL:
            self._fail(
                _(
                    "The XAI-CLIP in the Python that computes is of another version than this module: install the same "
                    "version, or leave the interpreter empty to use Slicer's own."
                )
            )
            return
        self.hello = reply
        self.greeted.emit(reply)
        self._sendWaiting()
        self._rest()

    def _sendWaiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self._send(message)

    def _answer(self, reply: Answer) -> None:
        assert reply.id is not None
        listener = self._listeners.pop(reply.id) if reply.type in FINAL else self._listeners[reply.id]
        if reply.type in FINAL and reply.id == self._aside:
            self._aside = None
            if self._process is not None and self.hello is not None:
                self._sendWaiting()
        self._rest()
        listener(reply)
