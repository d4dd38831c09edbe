"""Unpacking zip and tar archives from untrusted sources.

Every member is checked before the first is written: names that lead out of the folder or collide, links and devices,
and sizes that no model has are refused. The folder appears only when all members are written.
"""

from __future__ import annotations

import gzip
import re
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from XAICLIPLib.errors import InputError

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
MOST_MEMBERS = 10_000
MOST_NESTED = 32
MOST_BYTES = 20_000_000_000
LARGE, MOST_RATIO = 100_000_000, 200
"""A member larger than ``LARGE`` bytes that was compressed more than ``MOST_RATIO`` times counts as a zip bomb: weights
hardly compress."""

LARGEST_READ = 1 << 24
"""Bytes that may be read at once: tarfile reads a member's headers in one piece, and a header can claim any size."""

BLOCK = 1 << 20

_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True)
class _Member:
    """A file or folder in an archive: its checked path, its size in bytes, and its header in the archive."""

    path: str
    size: int
    is_folder: bool
    packed: int | None
    header: Any


def is_archive(path: Path) -> bool:
    """Whether `unpack` reads a file. Its name counts too, because PyTorch's own files are zip files."""
    if not path.name.lower().endswith(ENDINGS):
        return False
    try:
        with _opened(path):
            return True
    except (OSError, *_DAMAGED):
        return False


def unpack(archive: Path, folder: Path, most_bytes: int = MOST_BYTES, most_members: int = MOST_MEMBERS) -> Path:
    """Unpack a zip, tar or tar.gz archive into a new folder.

    Parameters
    ----------
    archive
        The file; its kind is recognised by its contents.
    folder
        The folder to create; it must not exist.
    most_bytes, most_members
        An archive with more is refused.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        The archive is damaged or not safe, the folder exists, or the disk is full; nothing is left behind.
    """
    if folder.exists():
        raise InputError(f"{archive} cannot be unpacked: {folder} exists already.")
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _opened(archive) as opened:
            members = _checked_members(archive, opened, most_bytes, most_members)
            total = sum(member.size for member in members)
            if total > (free := shutil.disk_usage(folder.parent).free):
                raise InputError(
                    f"{archive} cannot be unpacked: it needs {total / 1e6:,.0f} MB, and the disk of {folder.parent} "
                    f"has {free / 1e6:,.0f} MB left."
                )
            temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
            contents = temporary / "contents"
            contents.mkdir()  # a new folder gets the usual access rights, unlike that of mkdtemp
            for member in members:
                _write_member(opened, member, contents / member.path)
            if isinstance(opened, tarfile.TarFile) and opened.fileobj is not None:
                _read_to_the_end(opened.fileobj)
        contents.rename(folder)
    except OSError as error:  # gzip's for damaged data is one of them, without a number
        reason = error.strerror or "it is damaged"
        raise InputError(f"{archive} cannot be unpacked to {folder} ({reason}).") from error
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(f"{archive} cannot be unpacked: it is damaged, encrypted or no zip or tar file.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def only_folder(folder: Path) -> Path:
    """The innermost folder of an unpacked archive, past folders that hold one folder and nothing else."""
    while True:
        inside = [path for path in folder.iterdir() if path.name != "__MACOSX"]
        if len(inside) != 1 or not inside[0].is_dir():
            return folder
        folder = inside[0]


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    with archive.open("rb") as stream:
        if zipfile.is_zipfile(stream):
            stream.seek(0)
            with zipfile.ZipFile(stream) as zip_file:
                yield zip_file
            return
        stream.seek(0)
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        plain: Any = gzip.GzipFile(fileobj=stream) if packed else stream
        bounded: Any = _BoundedStream(plain)
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            yield tar


class _BoundedStream:
    """A stream that refuses to read much at once, because a tar header can ask for any amount of memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_READ:
            raise tarfile.ReadError("a header of an unreasonable size")
        return self._stream.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _checked_members(
    archive: Path, opened: zipfile.ZipFile | tarfile.TarFile, most_bytes: int, most_members: int
) -> list[_Member]:
    """All members of an archive, after checking that none can do harm."""

    def refuse(why: str) -> InputError:
        return InputError(f"{archive} is not unpacked: {why}.")

    members: list[_Member] = []
    total = 0
    for member in _members(opened):
        name = member.path
        if len(members) >= most_members:
            raise refuse(f"it has more than {most_members:,} members")
        if problem := _problem_with(member):
            raise refuse(f"its member {name[:200]!r} {problem}")
        total += member.size
        if total > most_bytes:
            raise refuse(f"its contents are larger than {most_bytes / 1e9:,.0f} GB")
        if member.packed is not None and member.size > LARGE and member.size > MOST_RATIO * max(member.packed, 1):
            raise refuse(f"its member {name[:200]!r} claims to have shrunk more than {MOST_RATIO} times")
        path = "/".join(part for part in name.split("/") if part not in ("", "."))
        if path:
            members.append(_Member(path, member.size, member.is_folder, member.packed, member.header))
    # A tar file is packed as a whole, and a zip file can hold many bombs that are small by themselves.
    if total > LARGE and total > MOST_RATIO * archive.stat().st_size:
        raise refuse(f"it claims to have shrunk more than {MOST_RATIO} times")
    if problem := _collision(members):
        raise refuse(problem)
    return members


def _members(opened: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            yield _Member(info.orig_filename, info.file_size, info.is_dir(), info.compress_size, info)
    else:
        for header in opened:
            yield _Member(header.name, header.size, header.isdir(), None, header)


def _problem_with(member: _Member) -> str:
    """What is unsafe about a member, as the end of a sentence; empty where nothing is."""
    header = member.header
    if isinstance(header, zipfile.ZipInfo):
        kind = stat.S_IFMT(header.external_attr >> 16)
        plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
        if header.flag_bits & 1:
            return "is encrypted"
    else:
        plain = header.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and not header.issparse()
    if not plain:
        return "is a link, a device or another special file"
    name = member.path
    if not name or name.startswith("/"):
        return "has an absolute path or none"
    if "\\" in name or ":" in name or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        return "has a name with a drive letter, backslash or control character"
    if len(name.strip("/").split("/")) > MOST_NESTED:
        return f"lies more than {MOST_NESTED} folders deep"
    for part in name.split("/"):
        if part == "..":
            return "leads out of the folder"
        if part not in ("", ".") and (part[-1] in ". " or len(part.encode()) > 255 or _RESERVED.fullmatch(part)):
            return "has a name that not every system can have"
    return ""


def _collision(members: list[_Member]) -> str:
    """What is wrong where two members get the same path on a system that ignores case; empty where none do."""
    spelled: dict[str, str] = {}
    kinds: dict[str, bool] = {}
    for member in members:
        parts = member.path.split("/")
        for length in range(1, len(parts) + 1):
            path = "/".join(parts[:length])
            is_folder = member.is_folder or length < len(parts)
            key = unicodedata.normalize("NFC", path).casefold()
            if spelled.setdefault(key, path) != path:
                return f"its members {spelled[key][:200]!r} and {path[:200]!r} differ in capitals alone"
            if key in kinds and not (is_folder and kinds[key]):
                return f"it has {path[:200]!r} twice"
            kinds[key] = is_folder
    return ""


def _read_to_the_end(stream: Any) -> None:
    """Read on to the end, so that gzip verifies its checksum, which follows a little padding."""
    for _ in range(LARGEST_READ // BLOCK):
        if not stream.read(BLOCK):
            return
    raise tarfile.ReadError("much more than the members")


def _write_member(opened: zipfile.ZipFile | tarfile.TarFile, member: _Member, path: Path) -> None:
    if member.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source: Any = (
        opened.open(member.header) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(member.header)
    )
    remaining = member.size
    with source, path.open("xb") as target:
        while block := source.read(BLOCK):
            remaining -= len(block)
            if remaining < 0:
                raise zipfile.BadZipFile("more than declared")
            target.write(block)
    if remaining:
        raise EOFError("less than declared")
