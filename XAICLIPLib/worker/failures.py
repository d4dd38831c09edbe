"""From an exception to what the user is told, and to what is logged: never a patient's data."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from XAICLIPLib.errors import Cancelled, InputError, first_line
from XAICLIPLib.system.displaytext import for_terminal
from XAICLIPLib.worker import protocol
from XAICLIPLib.worker.protocol import Mask, Request


def failure(error: Exception, request: Request | None, verbose: bool = False) -> protocol.Error:
    """The reply to a request that failed; a mistake of ours is logged on stderr as well.

    Parameters
    ----------
    error
        Why.
    request
        What was asked; None where that is not known.
    verbose
        Log what an error says even where it may quote paths.
    """
    kind, message = _cause(error)
    if kind == "internal":
        said = _harmless(error, request)
        frames = traceback.extract_tb(error.__traceback__)
        where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
        message = (
            f"Something went wrong inside XAI-CLIP ({type(error).__name__}{where}{': ' + said if said else ''}): "
            "please report it, with the log."
        )
        _log(error, request, verbose)
    ways = tuple(asdict(way) for way in error.ways) if isinstance(error, InputError) else ()
    return protocol.Error(id=request.id if request else None, kind=kind, message=message, ways=ways or None)


def _cause(error: Exception) -> tuple[protocol.ErrorKind, str]:
    """What kind of failure it is, and what to tell the user; a mistake of ours has no words yet."""
    if isinstance(error, InputError):
        return "input", str(error)
    if isinstance(error, Cancelled):
        return "cancelled", str(error)
    if isinstance(error, ImportError):
        reason = first_line(error)
        return "missing package", f"A package is missing or broken ({reason}): install the packages of XAI-CLIP again."
    if _is_out_of_memory(error):
        return "memory", "There is not enough memory: crop the scan, lower the batch size, or choose the CPU."
    if isinstance(error, OSError):
        name = error.filename or "A file"
        return "input", f"{name} cannot be read or written ({error.strerror or error}): check its folder and the disk."
    return "internal", ""


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:  # which is what that needs
        return isinstance(error, MemoryError)
    from XAICLIPLib.segmentation.batching import out_of_memory

    return out_of_memory(error)


def _log(error: BaseException, request: Request | None, verbose: bool) -> None:
    """Write where an error arose, and what led to it, to stderr: lines of programs, not the data they were given."""
    with suppress(OSError, ValueError, AttributeError):  # no stderr is no reason to end
        while True:
            said = str(error) if verbose else _harmless(error, request)
            print(for_terminal(f"{type(error).__qualname__}{': ' + said if said else ''}"), file=sys.stderr)
            print("".join(traceback.format_tb(error.__traceback__)), file=sys.stderr, flush=True)
            before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
            if before is None:
                return
            error = before


def _harmless(error: BaseException, request: Request | None) -> str:
    """The first line of an error, or nothing where it may quote a path or the header of a scan."""
    said = first_line(error)
    asked: Mapping[str, Any] = vars(request) if request is not None else {}
    values = [v.mask if isinstance(v, Mask) else v for v in asked.values()]
    parts = {part for value in values if isinstance(value, str) for part in (value, *Path(value).parts)}
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    reading = any(frame.parts[-3:-1] == ("XAICLIPLib", "imaging") or "SimpleITK" in frame.parts for frame in frames)
    quoting = "/" in said or "\\" in said or any(len(part) > 2 and part in said for part in parts)
    return "" if reading or quoting else said
