"""What a person at a terminal sees and presses: messages, progress bars, Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from XAICLIPLib.system.displaytext import for_terminal

if TYPE_CHECKING:
    from XAICLIPLib.progress import Progress

STAGES = {
    "localize": "finding the prompt",
    "segment": "segmenting",
    "explain": "explaining",
    "check": "checking the map",
}

LINE_EVERY_S = 10.0

INTERRUPTED = 130
"""Exit status."""

HEARD_AFTER_S = 2.0
"""A signal that Python has not heard of after so long has met native code that may never come back."""


def say(text: str) -> None:
    """Tell the user something that is not the command's output; nothing in it commands the terminal."""
    if sys.stderr is not None:
        with _while_there_is_a_terminal():
            print(for_terminal(text), file=sys.stderr, flush=True)


def tell(text: str = "") -> None:
    """Write a part of the command's output, for a person; nothing in it commands the terminal."""
    print(for_terminal(text), flush=True)


def tell_json(value: Any) -> None:
    """Write the command's output for a program: JSON, which has an escape for whatever commands a terminal."""
    print(json.dumps(value, indent=2).replace("\x7f", "\\u007f"), flush=True)


@contextlib.contextmanager
def _while_there_is_a_terminal() -> Iterator[None]:
    """Do without a terminal that was lost: what was computed for its user is still to be saved."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        drop_output()


def drop_output() -> None:
    """Send what is still to be written nowhere, where it cannot be written: Python would complain as it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class Interrupt:
    """Whether Ctrl-C was pressed, SIGTERM sent or the terminal lost: within the block the first time asks to end.

    The second time ends at once, and so does the first as long as there is nothing to keep: with a `KeyboardInterrupt`,
    or, where native code (the reading of a file from a drive that has gone) does not come back, without.

    Parameters
    ----------
    told
        What the user is told the first time.
    at_once
        Whether there is nothing to keep yet.

    Attributes
    ----------
    asked
        Whether it was pressed.
    at_once
        To be set to False when there is something to keep.
    undo
        What is called before the process ends without a `KeyboardInterrupt`, by another thread.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(
        self, told: str = "Ending with what is known so far; Ctrl-C again ends at once.", at_once: bool = False
    ) -> None:
        self.asked, self.at_once = False, at_once
        self.undo: list[Callable[[], object]] = []
        self._told = told
        self._heard = 0

    def __call__(self) -> bool:
        """Whether it was pressed."""
        return self.asked

    def __enter__(self) -> Interrupt:
        self._before: dict[signal.Signals, Any] = {}
        self._terminals = [n for n in (1, 2) if os.isatty(n)]  # a lost one would not say that it is one
        if threading.current_thread() is threading.main_thread():
            # Python's handlers wait for native code, the system's own tells the watcher at once.
            self._wakes, self._woken = socket.socketpair()
            self._wakes.setblocking(False)
            self._fd_before = signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self._woken,), daemon=True).start()
            for number in self.SIGNALS:
                before = signal.getsignal(number)
                if number == getattr(signal, "SIGHUP", None) and before == signal.SIG_IGN:
                    continue  # by nohup: it shall outlive its terminal
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, *_: object) -> None:
        self._heard += 1
        if number == getattr(signal, "SIGHUP", None):
            self._leave_terminals()
        if self.asked or self.at_once:
            self.asked = True
            raise KeyboardInterrupt
        self.asked = True
        self._write(self._told)

    def _leave_terminals(self) -> None:
        """Write to a terminal no more: it is not there."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in self._terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # not print: this may have interrupted one
            os.write(sys.stderr.fileno(), f"\n{text}\n".encode())

    def _watch(self, woken: socket.socket) -> None:
        """End the process where a signal that ends at once is not heard: its main thread is in native code."""
        came = 0
        while numbers := woken.recv(64):
            came += sum(number in self._before for number in numbers)
            ends, deadline = self.at_once or came > 1, time.monotonic() + HEARD_AFTER_S
            while self._heard < came and time.monotonic() < deadline:
                time.sleep(0.05)
            if ends and self._heard < came:
                for undo in self.undo:
                    with contextlib.suppress(Exception):
                        undo()
                self._write("Interrupted while the system was busy; nothing was written.")
                os._exit(INTERRUPTED)

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._fd_before)
            self._wakes.close()  # by which the watcher ends


class Bars:
    """A progress bar for each stage on a terminal; elsewhere a line for each tenth of it, at most every ten seconds."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""
        self._told, self._tenth = 0.0, 0

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def show(self, progress: Progress) -> None:
        """Draw how far an explanation is."""
        if sys.stderr is None:
            return
        with _while_there_is_a_terminal():
            self._show(progress)

    def _show(self, progress: Progress) -> None:
        if not sys.stderr.isatty():
            self._tell(progress)
            return
        from tqdm import tqdm

        if self._bar is None or progress.stage != self._stage:
            self._close()
            self._stage = progress.stage
            self._bar = tqdm(
                desc=f"{STAGES[progress.stage]:>18}",
                file=sys.stderr,
                total=progress.total,
                ncols=_columns(),
                nrows=24,  # likewise: a terminal of 0 rows would get no bar
                bar_format="{desc} {percentage:3.0f}%|{bar:30}| {n_fmt}/{total_fmt}, {remaining} left",
            )
        self._bar.total = progress.total
        self._bar.update(progress.done - self._bar.n)

    def _tell(self, progress: Progress) -> None:
        """A line of text, where a bar would fill a log file."""
        tenth, now = 10 * progress.done // max(progress.total, 1), time.monotonic()
        if progress.stage == self._stage and (tenth == self._tenth or now < self._told + LINE_EVERY_S):
            return
        left = "" if not progress.seconds_left else f", {progress.seconds_left:.0f} s left"
        say(f"{STAGES[progress.stage]}: {progress.done} of {progress.total}{left}")
        self._stage, self._tenth, self._told = progress.stage, tenth, now

    def _close(self) -> None:
        if self._bar is not None:
            with _while_there_is_a_terminal():
                self._bar.close()
            self._bar = None


def _columns() -> int:
    """Width of the terminal that the bars are drawn on; where it has none to tell (containers, CI), a usual one."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80
