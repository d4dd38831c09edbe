"""Files that have to be there, writing them all or nothing, and into folders that were tried."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from XAICLIPLib.errors import InputError


def check_there(path: str | Path) -> None:
    """Raise an `InputError` where a file or folder is not there; an `OSError` where that cannot be told."""
    if not Path(path).exists():
        raise InputError(f"There is no file or folder {path}: check the path.")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place where the block ends without an error.

    Missing folders are made. The file gets the rights that any new file of this user gets. Its name ends like
    ``path``, by which some writers choose the format.

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
            os.fsync(written.fileno())  # some drives tell only now that they are full
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file all or nothing, and read back what was written.

    Raises
    ------
    OSError
        It cannot be written, or holds something else than was written.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
        if temporary.read_bytes() != content:
            raise OSError(errno.EIO, "it does not hold what was written")


def try_folder(folder: Path) -> None:
    """Make a folder where there is none, and try that it can be written: before the work, not after it.

    Raises
    ------
    OSError
        It cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, prefix=".writing-"):
        pass
