"""The terminal: messages, output, progress bars and Ctrl-C."""

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

from XAICLIPLib.system.displaytext import for_terminal, one_line

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
"""Exit status of an interrupted command."""

HANDLED_WITHIN_S = 2.0
"""If Python's handler has not run this long after a signal, the main thread is in native code that may never return."""


def print_message(text: str) -> None:
    """Print a message for the user on stderr; control characters in it have no effect on the terminal."""
    if sys.stderr is not None:
        with _while_there_is_a_terminal():
            print(for_terminal(text), file=sys.stderr, flush=True)


def print_output(text: str = "") -> None:
    """Print a part of the command's output on stdout; control characters in it have no effect on the terminal."""
    print(for_terminal(text), flush=True)


def print_json(value: Any) -> None:
    """Print the command's output for a program as JSON, in which control characters are escaped."""
    print(json.dumps(value, indent=2).replace("\x7f", "\\u007f"), flush=True)


@contextlib.contextmanager
def _while_there_is_a_terminal() -> Iterator[None]:
    """Ignore that the terminal was lost: what was computed must still be saved."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        drop_output()


def drop_output() -> None:
    """Discard output that cannot be written any more: otherwise Python would report an error when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class Interrupt:
    """Whether an interrupt was requested within the block: by Ctrl-C, by SIGTERM, or because the terminal was lost.

    The first interrupt asks the command to end, the second ends it at once. While there is no result to keep, the first
    ends it at once too. To end at once is a `KeyboardInterrupt`; if the main thread is in native code that does not
    return (such as reading a file from a drive that has gone), another thread ends the process.

    Parameters
    ----------
    message
        Printed at the first interrupt.
    at_once
        Whether there is no result to keep yet.

    Attributes
    ----------
    asked
        Whether an interrupt was requested.
    at_once
        To be set to False when there is a result to keep.
    undo
        Functions that the other thread calls before it ends the process.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(
        self, message: str = "Ending with what is known so far; Ctrl-C again ends at once.", at_once: bool = False
    ) -> None:
        self.asked, self.at_once = False, at_once
        self.undo: list[Callable[[], object]] = []
        self._message = message
        self._handled = 0

    def __call__(self) -> bool:
        """Whether an interrupt was requested."""
        return self.asked

    def __enter__(self) -> Interrupt:
        self._before: dict[signal.Signals, Any] = {}
        self._terminals = [n for n in (1, 2) if os.isatty(n)]  # once lost, a terminal is no longer recognised as one
        if threading.current_thread() is threading.main_thread():
            # Python's handlers wait until native code returns; the wakeup file tells the watcher at once.
            self._wakeup_writer, wakeup_reader = socket.socketpair()
            self._wakeup_writer.setblocking(False)
            self._fd_before = signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(wakeup_reader,), daemon=True).start()
            for number in self.SIGNALS:
                before = signal.getsignal(number)
                if number == getattr(signal, "SIGHUP", None) and before == signal.SIG_IGN:
                    continue  # started by nohup: the process must outlive its terminal
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, *_: object) -> None:
        self._handled += 1
        if number == getattr(signal, "SIGHUP", None):
            self._leave_terminals()
        if self.asked or self.at_once:
            self.asked = True
            raise KeyboardInterrupt
        self.asked = True
        self._write(self._message)

    def _leave_terminals(self) -> None:
        """Stop writing to the terminal, which is gone."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in self._terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # not `print`, which may be running now
            os.write(sys.stderr.fileno(), f"\n{text}\n".encode())

    def _watch(self, wakeup_reader: socket.socket) -> None:
        """End the process if a signal that ends it at once is not handled: the main thread is in native code."""
        received = 0
        while numbers := wakeup_reader.recv(64):
            received += sum(number in self._before for number in numbers)
            ends, deadline = self.at_once or received > 1, time.monotonic() + HANDLED_WITHIN_S
            while self._handled < received and time.monotonic() < deadline:
                time.sleep(0.05)
            if ends and self._handled < received:
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
            self._wakeup_writer.close()  # this ends the watcher


class Bars:
    """A progress bar for each stage on a terminal; elsewhere a line for each tenth of it, at most every ten seconds.

    Within its block, output of packages goes to stderr too.

    Parameters
    ----------
    interrupt
        Learns from the progress that there is a result to keep: from the first perturbation on.
    """

    def __init__(self, interrupt: Interrupt | None = None) -> None:
        self._interrupt = interrupt
        self._warned: set[str] = set()
        self._output = contextlib.ExitStack()
        self._bar: Any = None
        self._stage = ""
        self._last_printed, self._tenth = 0.0, 0

    def __enter__(self) -> Bars:
        self._output.enter_context(output_to_stderr())
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._output.close()

    def show(self, progress: Progress) -> None:
        """Show the progress of an explanation."""
        if self._interrupt is not None and progress.stage == "explain":
            self._interrupt.at_once = False
        if sys.stderr is None:
            return
        with _while_there_is_a_terminal():
            self._show(progress)

    def warn(self, sentence: str) -> None:
        """Print a warning, between two bars; the same one is printed once."""
        if sentence not in self._warned:
            self._close()
            print_message(f"Warning: {one_line(sentence)}")
            self._warned.add(sentence)

    def warn_early(self, sentence: str) -> None:
        """Print a warning while the work goes on, which must not end where nobody reads it."""
        with contextlib.suppress(OSError):
            self.warn(sentence)

    def _show(self, progress: Progress) -> None:
        if not sys.stderr.isatty():
            self._print_line(progress)
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
                bar_format="{desc} {percentage:3.0f}%|{bar:30}| {n_fmt}/{total_fmt}{postfix}",
            )
        if progress.seconds_left is not None:  # not tqdm's own, which guesses from the first batch
            self._bar.set_postfix_str(f"{tqdm.format_interval(progress.seconds_left)} left", refresh=False)
        self._bar.total = progress.total
        self._bar.update(progress.done - self._bar.n)

    def _print_line(self, progress: Progress) -> None:
        """Print a line of text instead of a bar, which would fill a log file."""
        tenth, now = 10 * progress.done // max(progress.total, 1), time.monotonic()
        if progress.stage == self._stage and (tenth == self._tenth or now < self._last_printed + LINE_EVERY_S):
            return
        left = "" if not progress.seconds_left else f", {progress.seconds_left:.0f} s left"
        print_message(f"{STAGES[progress.stage]}: {progress.done} of {progress.total}{left}")
        self._stage, self._tenth, self._last_printed = progress.stage, tenth, now

    def _close(self) -> None:
        if self._bar is not None:
            with _while_there_is_a_terminal():
                self._bar.close()
            self._bar = None


@contextlib.contextmanager
def output_to_stderr() -> Iterator[None]:
    """Send what packages print within a block to stderr, so that stdout is free."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(sys.stderr or nowhere):
        yield


def _columns() -> int:
    """Width of the terminal in columns; 80 if it is not known (containers, CI)."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80
