"""The worker process, which computes for 3D Slicer: Slicer neither freezes during a computation nor crashes with it.

``python -m XAICLIPLib.worker`` reads requests from stdin and writes replies to stdout; `XAICLIPLib.worker.protocol` is
the reference of both. Three threads share the work:

- the reader reads every request at once, also during a computation, and answers those that need no computation;
- the main thread computes, one request after the other, and keeps the models loaded in between;
- the watcher checks whether the parent process is still alive.

The end of stdin, the death of the parent, SIGTERM, SIGHUP and Ctrl-C all remove the private folder and end the worker:
at once if nothing is computed, otherwise as soon as the running request notices, and after `GRACE_S` at the latest.

To try it by hand, start it in a terminal and type requests, one on each line::

    {"id": 1, "type": "hello", "protocol": 1}
    {"id": 2, "type": "explain", "volume": "scan.nrrd", "prompt": "liver"}
    {"id": 3, "type": "cancel", "request": 2}
    {"id": 4, "type": "shutdown"}
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from XAICLIPLib.errors import InputError
from XAICLIPLib.system import scratch
from XAICLIPLib.system.packages import packages_quiet
from XAICLIPLib.worker import protocol
from XAICLIPLib.worker.failures import failure
from XAICLIPLib.worker.protocol import Describe, Download, Explain, Localize, ProtocolError, Remove, Report, SaveDicom
from XAICLIPLib.worker.service import RequestHandler

GRACE_S = 5.0
"""How long a running computation may take to stop, after the end of stdin or a signal."""

PARENT_EVERY_S = 1.0
CHUNK = 1 << 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the process that started this one. Returns the exit status: 0, or 1 if no private folder can be made."""
    options = _parser().parse_args(arguments)
    parent = os.getppid()
    requests, replies = _claim_streams()
    faulthandler.enable()  # after a crash of native code the log shows the place, and no data
    try:
        scratch.remove_leftovers(options.folder)
        folder = scratch.make(options.folder)
    except InputError as error:
        replies.write(protocol.encode(protocol.Error(kind="input", message=str(error))))
        return 1
    worker = Worker(requests, replies, folder, parent=parent, verbose=options.verbose)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: worker.end())
    try:
        with packages_quiet():
            worker.serve()
    finally:
        scratch.remove(folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m XAICLIPLib.worker",
        description="The process that 3D Slicer talks to: JSON requests on stdin, JSON replies on stdout, each on a "
        "line. It ends with its stdin.",
        epilog='To try it, start it in a terminal and type {"id": 1, "type": "hello", "protocol": 1} and then '
        '{"id": 2, "type": "explain", "volume": "scan.nrrd", "prompt": "liver"}; Ctrl-D ends it. All messages: '
        'python -c "import XAICLIPLib.worker.protocol as p; print(p.__doc__)"',
    )
    parser.add_argument(
        "--folder", metavar="FOLDER", help="where the private temporary folder is made; default: the system's place"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="print internal errors in full on stderr; they may quote paths of scans"
    )
    return parser


def _claim_streams() -> tuple[io.FileIO, io.FileIO]:
    """Keep the process's stdin and stdout for the protocol alone.

    All other output, of Python and of native code, goes to stderr; all other reading of stdin gets the end of a file.
    Without this, loading a library on Windows would also wait until a pending read of the real stdin returns.
    """
    if sys.stderr is None:  # the process was started without one: the log is discarded
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        os.dup2(sys.stderr.fileno(), 2)
    requests = io.FileIO(os.dup(0), "rb")
    replies = io.FileIO(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return requests, replies


def lines(stream: io.RawIOBase, longest: int = protocol.LONGEST_LINE) -> Iterator[bytes | None]:
    """Yield the lines of a stream without their line ends, each as soon as it is complete.

    A line that is too long is discarded, and None is yielded for it.
    """
    line, skipping = bytearray(), False
    while chunk := stream.read(CHUNK):
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            line += part
            yield None if skipping or len(line) > longest else bytes(line)
            line, skipping = bytearray(), False
        line += rest
        if len(line) > longest:
            line, skipping = bytearray(), True
    if line or skipping:
        yield None if skipping else bytes(line)


@dataclass
class Job:
    """A request that needs a computation, and an event that asks it to stop."""

    request: Localize | Explain | Report | SaveDicom | Describe | Download | Remove
    cancelled: threading.Event = field(default_factory=threading.Event)


class Worker:
    """The worker process at work: it reads requests and writes replies until it is asked to end.

    Parameters
    ----------
    requests, replies
        Streams of lines, unbuffered.
    folder
        The private folder. The worker removes it only when it has to end the process by force.
    parent
        Number (PID) of the process whose death ends this one; None for none.
    verbose
        Log internal errors in full.
    """

    def __init__(
        self,
        requests: io.RawIOBase,
        replies: io.RawIOBase,
        folder: Path,
        parent: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.folder = folder
        self._requests, self._replies = requests, replies
        self._parent = parent
        self._handler, self._verbose = RequestHandler(folder, self._send), verbose
        self._jobs: queue.SimpleQueue[Job | protocol.Hello | None] = queue.SimpleQueue()
        self._running: Job | None = None
        self._claim, self._writing = threading.Lock(), threading.Lock()
        self._ending, self._ended = threading.Event(), threading.Event()
        self._goodbye: protocol.Bye | None = None

    def serve(self) -> None:
        """Answer requests until the worker ends; to be called by the main thread."""
        for task in (self._read, self._watch):
            threading.Thread(target=task, daemon=True).start()
        while (job := self._jobs.get()) is not None:
            if isinstance(job, Job):
                self._compute(job)
            elif not self._ending.is_set():
                self._send_devices(job)
        if self._goodbye is not None:
            self._send(self._goodbye)
        self._ended.set()

    def end(self) -> None:
        """End soon: a running request is asked to stop, and has `GRACE_S` for it."""
        if not self._ending.is_set():
            self._ending.set()
            self._jobs.put(None)
            threading.Thread(target=self._force, daemon=True).start()

    def _force(self) -> None:
        """End the process, also if its main thread does not return from native code."""
        scratch.remove(self.folder)  # at once: the client may kill the process before the time is over
        if not self._ended.wait(GRACE_S):
            scratch.remove(self.folder)
            if self._goodbye is not None:
                self._send(self._goodbye)
            os._exit(0)

    def _watch(self) -> None:
        """End when the parent has died: another process may still hold the other end of stdin."""
        while self._parent is not None and not self._ending.wait(PARENT_EVERY_S):
            # The parent of an orphan is another process; on Windows it stays the dead one.
            if os.getppid() != self._parent or (sys.platform == "win32" and not scratch.is_alive(self._parent)):
                self.end()

    # Reading requests and answering them

    def _read(self) -> None:
        with suppress(OSError):  # a stream that cannot be read any more has ended too
            for line in lines(self._requests):
                if line is None:
                    message = f"The request is longer than {protocol.LONGEST_LINE} bytes: hand volumes over as files."
                    self._send(protocol.Error(kind="protocol", message=message))
                elif line.strip():
                    self._handle_line(line)
        self.end()

    def _handle_line(self, line: bytes) -> None:
        request = None
        try:
            request = protocol.parse_request(line)
            self._answer(request)
        except ProtocolError as error:
            self._send(protocol.Error(id=request.id if request else error.id, kind="protocol", message=str(error)))
        except Exception as error:  # the reader must go on reading
            self._send(failure(error, request, self._verbose))

    def _answer(self, request: protocol.Request) -> None:
        if isinstance(request, protocol.Hello):
            if request.protocol != protocol.PROTOCOL:
                raise ProtocolError(
                    f"The worker speaks version {protocol.PROTOCOL} of the protocol and was asked for version "
                    f"{request.protocol}: install the same version of XAI-CLIP on both sides."
                )
            self._send(self._handler.greeting(request.id))
            self._jobs.put(request)
        elif isinstance(request, (Localize, Explain, Report, SaveDicom, Describe, Download, Remove)):
            self._accept(Job(request))
        elif isinstance(request, protocol.Cancel):
            self._cancel(request)
        else:
            self._goodbye = protocol.Bye(id=request.id)
            self.end()

    def _accept(self, job: Job) -> None:
        with self._claim:
            running = self._running
            if running is None:
                self._running = job
                self._jobs.put(job)
                return
        # An error under the id of the running request would be taken for its end.
        same = running.request.id == job.request.id
        message = "The worker is busy with another request: wait for its end, or cancel it."
        self._send(protocol.Error(id=None if same else job.request.id, kind="protocol", message=message))

    def _cancel(self, request: protocol.Cancel) -> None:
        with self._claim:
            running = self._running
            if running is None or running.request.id != request.request:
                raise ProtocolError(f"The request {request.request} is not running: there is nothing to cancel.")
            self._send(protocol.Cancelling(id=request.id))  # before the reply to what is cancelled
            running.cancelled.set()

    def _send(self, message: protocol.Reply) -> None:
        left = memoryview(protocol.encode(message))
        try:
            with self._writing:
                while left:
                    left = left[self._replies.write(left) or 0 :]
        except (OSError, ValueError):  # the client does not read any more
            self.end()

    def _compute(self, job: Job) -> None:
        reply: protocol.Reply
        try:
            reply = self._handler.compute(
                job.request,
                cancelled=lambda: job.cancelled.is_set() or self._ending.is_set(),
                abandoned=self._ending.is_set,
            )
        except Exception as error:
            reply = failure(error, job.request, self._verbose)
        with self._claim:
            self._running = None  # before the reply: the client may send the next request at once
        self._send(reply)

    def _send_devices(self, request: protocol.Hello) -> None:
        reply: protocol.Reply
        try:
            reply = self._handler.devices(request.id)
        except Exception as error:
            reply = failure(error, request, self._verbose)
        self._send(reply)


if __name__ == "__main__":
    sys.exit(main())
