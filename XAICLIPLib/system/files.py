"""Checking that files exist, writing them completely or not at all, and checking that a folder can be written."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from XAICLIPLib.errors import InputError

LONGEST_NAME = 60
"""Characters in the name of a folder: at most 240 bytes, of 255 that file systems allow."""


def folder_name(words: str, otherwise: str) -> str:
    """A name for a folder: letters and digits of any script, and hyphens, so that it never leads out of its parent.

    Parameters
    ----------
    words
        What it is named after.
    otherwise
        Its name where nothing of the words is left.
    """
    name = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", words).lower())
    return name.strip("-")[:LONGEST_NAME].strip("-") or otherwise


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is inside a folder, with links and ``..`` resolved."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def check_exists(path: str | Path) -> None:
    """Raise an `InputError` if a file or folder does not exist, or an `OSError` if that cannot be found out."""
    if not Path(path).exists():
        raise InputError(f"There is no file or folder {path}: check the path.")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, which replaces ``path`` if the block ends without an error.

    Missing folders are made. The file gets the access rights of any new file of this user. Its name has the same ending
    as ``path``, because some writers choose the format by it.

    Raises
    ------
    OSError
        The folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix="".join(path.suffixes[-2:]), prefix=".writing-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())  # some drives report only now that they are full
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, and read it back to check it.

    Raises
    ------
    OSError
        It cannot be written, or does not hold what was written.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
        if temporary.read_bytes() != content:
            raise OSError(errno.EIO, "it does not hold what was written")


def ensure_writable_folder(folder: Path) -> None:
    """Make a folder if there is none, and check that it can be written: before a long computation, not after it.

    Raises
    ------
    OSError
        It cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, prefix=".writing-"):
        pass
