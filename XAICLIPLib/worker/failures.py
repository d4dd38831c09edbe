"""Turn an exception into a message for the user and a log entry; neither ever holds a patient's data."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from XAICLIPLib.errors import Cancelled, InputError, NotEnoughMemory, first_line
from XAICLIPLib.system.displaytext import for_terminal
from XAICLIPLib.system.memory import out_of_memory, ran_out
from XAICLIPLib.worker import protocol
from XAICLIPLib.worker.protocol import Mask, Request


def failure(error: Exception, request: Request | None, verbose: bool = False) -> protocol.Error:
    """The reply to a request that failed. An internal error is logged on stderr as well.

    Parameters
    ----------
    error
        The reason of the failure.
    request
        The request that failed; None where it is not known.
    verbose
        Log the full text of an error even where it may quote paths.
    """
    if out_of_memory(error) and not isinstance(error, NotEnoughMemory):
        error = ran_out(error)
    kind, message = _kind_and_message(error)
    if kind == "internal":
        text = _text_without_paths(error, request)
        frames = traceback.extract_tb(error.__traceback__)
        place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
        message = (
            f"Something went wrong inside XAI-CLIP ({type(error).__name__}{place}{': ' + text if text else ''}): "
            "please report it, with the log."
        )
        _log(error, request, verbose)
    ways = tuple(asdict(way) for way in error.ways) if isinstance(error, InputError) else ()
    return protocol.Error(id=request.id if request else None, kind=kind, message=message, ways=ways or None)


def _kind_and_message(error: Exception) -> tuple[protocol.ErrorKind, str]:
    """The kind of failure and the message for the user; the message of an internal error is empty here."""
    if isinstance(error, NotEnoughMemory):
        return "memory", str(error)
    if isinstance(error, InputError):
        return "input", str(error)
    if isinstance(error, Cancelled):
        return "cancelled", str(error)
    if isinstance(error, ImportError):
        reason = first_line(error)
        return "missing package", f"A package is missing or broken ({reason}): install the packages of XAI-CLIP again."
    if isinstance(error, OSError):
        name = error.filename or "A file"
        return "input", f"{name} cannot be read or written ({error.strerror or error}): check its folder and the disk."
    return "internal", ""


def _log(error: BaseException, request: Request | None, verbose: bool) -> None:
    """Write the traceback of an error, and of its causes, to stderr: lines of source code, but no values of data."""
    with suppress(OSError, ValueError, AttributeError):  # the worker must go on even without a stderr
        while True:
            text = str(error) if verbose else _text_without_paths(error, request)
            print(for_terminal(f"{type(error).__qualname__}{': ' + text if text else ''}"), file=sys.stderr)
            print("".join(traceback.format_tb(error.__traceback__)), file=sys.stderr, flush=True)
            cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
            if cause is None:
                return
            error = cause


def _text_without_paths(error: BaseException, request: Request | None) -> str:
    """The first line of an error; empty where it may quote a path or the header of a scan."""
    text = first_line(error)
    arguments: Mapping[str, Any] = vars(request) if request is not None else {}
    values = [v.mask if isinstance(v, Mask) else v for v in arguments.values()]
    parts = {part for value in values if isinstance(value, str) for part in (value, *Path(value).parts)}
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    reading = any(frame.parts[-3:-1] == ("XAICLIPLib", "imaging") or "SimpleITK" in frame.parts for frame in frames)
    quoting = "/" in text or "\\" in text or any(len(part) > 2 and part in text for part in parts)
    return "" if reading or quoting else text
