"""What a person at a terminal sees and presses: messages, progress bars, Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
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


def say(text: str) -> None:
    """Tell the user something that is not the command's output; nothing in it commands the terminal."""
    if sys.stderr is not None:
        print(for_terminal(text), file=sys.stderr, flush=True)


def tell(text: str = "") -> None:
    """Write a part of the command's output, for a person; nothing in it commands the terminal."""
    print(for_terminal(text), flush=True)


def tell_json(value: Any) -> None:
    """Write the command's output for a program: JSON, which has an escape for whatever commands a terminal."""
    print(json.dumps(value, indent=2).replace("\x7f", "\\u007f"), flush=True)


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
    """Whether Ctrl-C was pressed or SIGTERM sent: within the block, the first time asks to end, the second ends."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, told: str = "Ending with what is known so far; Ctrl-C again ends at once.") -> None:
        self.asked = False
        self._told = told

    def __call__(self) -> bool:
        """Whether it was pressed."""
        return self.asked

    def __enter__(self) -> Interrupt:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        with contextlib.suppress(OSError, ValueError, AttributeError):  # not print: this may have interrupted one
            os.write(sys.stderr.fileno(), f"\n{self._told}\n".encode())

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


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
            self._bar.close()
            self._bar = None


def _columns() -> int:
    """Width of the terminal that the bars are drawn on; where it has none to tell (containers, CI), a usual one."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80
