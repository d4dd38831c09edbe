"""The private temporary folder of a process, and removing those of crashed processes.

The folder's name holds the machine and the process number, so that the next process on the same machine can remove it
if its owner has ended: a crash, a power cut or a killed process must not leave a patient's scan on the disk.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from XAICLIPLib.errors import InputError

PREFIX = "xaiclip-worker"


def make(parent: str | Path | None = None) -> Path:
    """Make a folder that only this user can enter (mode 0700), in ``parent`` or the system's temporary folder.

    Raises
    ------
    InputError
        The parent is no folder, or cannot be written.
    """
    try:
        return Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{machine()}-{os.getpid()}-", dir=parent)).resolve()
    except OSError as error:
        raise InputError(
            f"The folder {parent or tempfile.gettempdir()} cannot be written ({error.strerror or error}): choose "
            "another one for temporary files."
        ) from error


def remove(folder: Path) -> None:
    """Remove a folder and its contents, as far as that is possible."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: str | Path | None = None) -> list[Path]:
    """Remove the folders of this user's ended processes on this machine; returns the removed folders."""
    name_pattern = re.compile(rf"{PREFIX}-{re.escape(machine())}-(\d{{1,9}})-[^-]+")
    removed = []
    try:
        entries = list(os.scandir(parent or tempfile.gettempdir()))
    except OSError:
        return []
    for entry in entries:
        match = name_pattern.fullmatch(entry.name)
        if match and _is_own_folder(entry) and not is_alive(int(match[1])):
            removed.append(Path(entry.path))
            remove(removed[-1])
    return removed


def _is_own_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder of this user, and no link to one: all users may share the parent."""
    try:
        user = getattr(os, "getuid", lambda: None)()
        return entry.is_dir(follow_symlinks=False) and user in (None, entry.stat(follow_symlinks=False).st_uid)
    except OSError:
        return False


def is_alive(process: int) -> bool:
    """Whether a process of this number runs; if that cannot be found out, it counts as running."""
    if sys.platform == "win32":
        return _is_alive_on_windows(process)
    try:
        os.kill(process, 0)  # sends no signal, only checks
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # a process of another user, or no valid process number
        return True
    return True


def _is_alive_on_windows(process: int) -> bool:
    """As `is_alive`, by the Windows API: on Windows, ``os.kill`` would end the process."""
    import ctypes

    synchronize, invalid_parameter, timed_out = 0x00100000, 87, 0x102
    kernel: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined, unused-ignore]
    kernel.OpenProcess.restype = ctypes.c_void_p  # a handle has the size of a pointer
    handle = kernel.OpenProcess(synchronize, False, process)
    if not handle:
        return bool(ctypes.get_last_error() != invalid_parameter)  # type: ignore[attr-defined, unused-ignore]
    try:
        return bool(kernel.WaitForSingleObject(ctypes.c_void_p(handle), 0) == timed_out)
    finally:
        kernel.CloseHandle(ctypes.c_void_p(handle))


def machine() -> str:
    """The machine's name, shortened for a file name: process numbers of another machine mean nothing on this one."""
    return re.sub(r"\W+", "", platform.node())[:32] or "here"
