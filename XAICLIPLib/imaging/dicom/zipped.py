"""Zip files of DICOM slices, as hospital portals give them out. File names and sizes in them are not trusted."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from XAICLIPLib.errors import InputError

MAX_FILES = 50_000
MAX_BYTES = 20_000_000_000

_BLOCK = 1 << 20


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """A private folder with the files of a zip file, removed when the block ends.

    The unpacked files are numbered: their names in the archive, which could lead out of the folder, are not used.

    Raises
    ------
    InputError
        It is damaged, encrypted, or larger than any scan or than the free space on the disk.
    """
    with tempfile.TemporaryDirectory(prefix="xaiclip-") as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(archive) as opened:
                members = [member for member in opened.infolist() if not member.is_dir()]
                _check_size(archive, members, shutil.disk_usage(folder).free)
                for number, member in enumerate(members):
                    _write(opened, member, folder / f"{number:06d}")
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{archive} cannot be unpacked, it is damaged, encrypted or no zip file.") from error
        yield folder


def _check_size(archive: Path, members: list[zipfile.ZipInfo], free: int) -> None:
    if len(members) > MAX_FILES:
        raise InputError(f"{archive} holds {len(members)} files, more than a scan has: give a zip file of one series.")
    total = sum(member.file_size for member in members)
    if total > min(MAX_BYTES, free):
        raise InputError(
            f"{archive} needs {total / 1e6:,.0f} MB unpacked, more than a scan or than is free on the disk: "
            f"unpack it yourself and give the folder."
        )


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Write a member, with no more bytes than the archive states."""
    remaining = member.file_size
    with opened.open(member) as source, path.open("wb") as target:
        while remaining and (block := source.read(min(_BLOCK, remaining))):
            remaining -= target.write(block)
        if remaining or source.read(1):
            raise zipfile.BadZipFile
