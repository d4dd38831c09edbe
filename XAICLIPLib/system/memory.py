"""How much memory there is and is free, here and on a device, and whether an error means that it ran out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from XAICLIPLib.errors import CPU, FEWER_SLICES, NotEnoughMemory

if TYPE_CHECKING:
    import torch

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")

_WORDS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "failed to allocate memory",  # ITK
    "bad_alloc",
    "bad allocation",  # on Windows
    "cudnn_status_alloc_failed",
    "unable to find a valid cudnn algorithm",
    "unable to find an engine",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, itself or what it was raised from.

    Only CUDA has an exception class for it, and MONAI's transforms wrap what is raised in them.
    """
    return any(
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"  # PyTorch's, which may not be imported
        or (isinstance(cause, RuntimeError) and any(words in str(cause).lower() for words in _WORDS))
        for cause in _causes(error)
    )


def on_device(error: BaseException) -> bool:
    """Whether the memory that ran out is that of a GPU."""
    return any(
        type(cause).__name__ == "OutOfMemoryError"
        or any(word in str(cause).lower() for word in ("cuda", "cudnn", "mps backend"))
        for cause in _causes(error)
    )


def ran_out(error: BaseException, doing: str = "", takes: str = "") -> NotEnoughMemory:
    """What to tell of an error by which memory ran out: no fault of the network's files, and what helps.

    Parameters
    ----------
    error
        As it was raised.
    doing
        What was going on, "while the network ran".
    takes
        What it was known to take, as a clause.
    """
    gpu = on_device(error)
    place = "The memory of the GPU" if gpu else "The memory of this computer"
    told = f"{place} ran out{' ' + doing if doing else ''}{', ' + takes if takes else ''}"
    if gpu:
        return NotEnoughMemory(f"{told}: {CPU}, or {FEWER_SLICES}.", CPU, FEWER_SLICES)
    return NotEnoughMemory(f"{told}: {FEWER_SLICES}, or close other programs.", FEWER_SLICES)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def free_memory(device: torch.device | None = None) -> int | None:
    """Bytes that can still be had: by this process here, or on a CUDA device; None where that is not known.

    Here it is the least of what the system has, what the limits of its control groups leave, and what its own limit of
    address space leaves.
    """
    if device is not None and device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    known = [free for free in (_free_on_system(), *_left_by_control_groups(), _left_of_address_space()) if free]
    return min(known, default=None)


def total_memory(device: torch.device | None = None) -> int | None:
    """Bytes that this machine, or a CUDA device, has, less what a control group keeps from us; None: not known."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    known = [*(limit for limit, _ in _control_groups())]
    with suppress(ValueError, OSError, AttributeError):
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(known, default=None)


def _free_on_system() -> int | None:
    """What the system says is available: without swap, and with what it holds of files and would give."""
    with suppress(OSError, ValueError, IndexError):
        lines = (_PROC / "meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    if sys.platform == "win32":
        return _free_on_windows()
    with suppress(OSError, ValueError, AttributeError):  # macOS has no count of what is available
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _free_on_windows() -> int | None:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "a", "b", "c", "d", "e")),
        )

    status = Status(length=ctypes.sizeof(Status))
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 -- only there on Windows
    return int(status.free) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def _left_by_control_groups() -> list[int]:
    return [max(1, limit - used) for limit, used in _control_groups()]


def _control_groups() -> list[tuple[int, int]]:
    """Limit and use of each control group of this process and of those around it, where they have a limit."""
    groups: list[tuple[int, int]] = []
    with suppress(OSError, ValueError):
        for line in (_PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":  # version 2
                groups += _limits(_CGROUP, path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
                groups += _limits(_CGROUP / "memory", path, *names)
    return groups


def _limits(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> list[tuple[int, int]]:
    """Limit and use of a group and of all around it; in a container the group's own path may be that of the root."""
    groups: list[tuple[int, int]] = []
    folder = root / path.strip("/")
    for place in [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]:
        with suppress(OSError, ValueError):
            allowed = int((place / limit).read_text(encoding="ascii"))  # "max" is no number: no limit
            used = int((place / usage).read_text(encoding="ascii"))
            with suppress(OSError, ValueError, StopIteration):
                lines = (place / "memory.stat").read_text(encoding="ascii").splitlines()
                used -= next(int(line.split()[1]) for line in lines if line.split()[0] == reclaimable)
            if allowed < 2**62:  # as version 1 writes no limit
                groups.append((allowed, max(0, used)))
    return groups


def _left_of_address_space() -> int | None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int((_PROC / "self" / "statm").read_text(encoding="ascii").split()[0])
            return max(1, limit - pages * resource.getpagesize())
    return None
