"""The folder of an explanation: one run at a time writes to it, all or nothing, and no file of the user's own is lost.

What an earlier explanation wrote is known by its ``explanation.json``, which has the checksum of each file. Only files
that are still as they were written are ever replaced.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from XAICLIPLib.errors import InputError
from XAICLIPLib.system import scratch
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.system.files import ensure_writable_folder

RECORD = "explanation.json"

FILES = (
    RECORD,
    "saliency.nrrd",
    "probed.nrrd",
    "standard_error.nrrd",
    "region.nrrd",
    "segmentation.nrrd",
    "target.nrrd",
    "figure.png",
)
"""What belongs to an explanation: a reader of the folder takes any of these for a part of it."""

LOCK, WORKPLACE = ".xaiclip-lock", ".xaiclip-writing"
"""Beside the results while a run writes to the folder, and while it replaces files."""

NEW, OLD, REPLACED = "new", "old", "replaced"
"""In the workplace: what was written, what is being moved away, and what was moved away in whole."""

BEAT_S, DEAD_AFTER_S = 15.0, 60.0
"""A run touches its lock so often; the lock of another machine that was not touched for so long is a dead run's."""

LOCK_AT = 1 << 20
"""The byte that is locked, beyond the text: on Windows a locked byte cannot be read."""

_claimed: dict[tuple[Path, int], int] = {}
"""How often this process claims a folder, by thread: a claim within a claim is the same run."""


@contextmanager
def claimed(folder: Path, inputs: Iterable[object] = ()) -> Iterator[None]:
    """Make a folder, try that it can be written, and keep other runs out of it until the block ends.

    Parameters
    ----------
    folder
        Where an explanation will be written.
    inputs
        What the run reads; those that are paths of files must not be what it writes.

    Raises
    ------
    InputError
        It cannot be made or written, another run writes to it, or a file of the user's own lies where a result would.
    """
    try:
        ensure_writable_folder(folder)
        key = folder.resolve(), threading.get_ident()
    except OSError as error:
        raise _cannot_write(folder, error) from error
    if key in _claimed:
        yield
        return
    with _locked(folder):
        _claimed[key] = 1
        try:
            with _told(folder):
                _recover(folder)
                _check_own(folder, FILES)
                _check_inputs(folder, inputs)
            yield
        finally:
            del _claimed[key]


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write an explanation into, which takes the place of the earlier one where the block ends well.

    It lies within ``folder`` and so on the same disk. All that the earlier explanation wrote goes, all that was written
    comes, or nothing changes: a run that dies in between is put right by the next one.

    Raises
    ------
    InputError
        As `claimed`; or a file cannot be moved.
    """
    with claimed(folder):
        workplace = folder / WORKPLACE
        try:
            with _told(folder):
                (workplace / NEW).mkdir(parents=True)
            try:
                yield workplace / NEW
            except InputError as error:  # of a writer, which knows no other place
                raise InputError(str(error).replace(str(workplace / NEW), str(folder))) from error
            names = sorted(path.name for path in (workplace / NEW).iterdir())
            with _told(folder):
                _check_own(folder, names)
                _swap(folder)
        finally:
            with suppress(OSError):
                _recover(folder)


def abandon(folder: Path) -> None:
    """Take the lock and what was being written away, where the process is about to end in the middle of its run."""
    with suppress(OSError):
        _recover(folder)
    with suppress(OSError):
        (folder / LOCK).unlink()


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder by its name, for the record: by these the files are known again."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD}


def written_by_us(folder: Path) -> set[str]:
    """Names of the files in a folder that an explanation wrote, by its own record, and that are as it wrote them."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    if not isinstance(record, dict) or not str(record.get("format")).startswith("XAI-CLIP explanation "):
        return set()
    kept: Any = record.get("written")
    sums = kept if isinstance(kept, dict) else {}
    with_path = {name: folder / name for name in sums if Path(str(name)).name == name}  # never beyond the folder
    return {RECORD} | {name for name, path in with_path.items() if path.is_file() and sha256(path) == sums[name]}


def _check_own(folder: Path, names: Iterable[str]) -> None:
    there = [name for name in names if os.path.lexists(folder / name)]
    foreign = sorted(set(there) - written_by_us(folder)) if there else []
    if foreign:
        raise InputError(
            f"{folder} holds {', '.join(foreign)}, which no explanation wrote or which was changed since, and which "
            "would be lost: choose another folder, or move the file elsewhere."
        )


def _check_inputs(folder: Path, inputs: Iterable[object]) -> None:
    for given in inputs:
        name = next((name for name in FILES if _same(given, folder / name)), None)
        if name is not None:
            raise InputError(f"{given} is an input of the run, which would write {name} there: choose another folder.")


def _same(given: object, path: Path) -> bool:
    """Whether an input is this file; words, boxes, images and paths that are not there are none."""
    try:
        return isinstance(given, (str, Path)) and os.path.samefile(given, path)
    except (OSError, ValueError):
        return False


# --- replacing --------------------------------------------------------------------------------------------------------


def _swap(folder: Path) -> None:
    """Move the earlier explanation away and the new one in; on an error everything is as it was."""
    workplace = folder / WORKPLACE
    (workplace / OLD).mkdir()
    # From here on a dead run is undone, from the renaming on it is finished: see `_recover`.
    for name in sorted(written_by_us(folder), key=lambda name: name == RECORD):
        os.replace(folder / name, workplace / OLD / name)
    names = [path.name for path in (workplace / NEW).iterdir()]
    os.rename(workplace / OLD, workplace / REPLACED)
    try:
        _move_all(workplace / NEW, folder)
    except BaseException:
        for name in names:
            if not os.path.lexists(workplace / NEW / name):
                os.replace(folder / name, workplace / NEW / name)
        os.rename(workplace / REPLACED, workplace / OLD)
        raise


def _recover(folder: Path) -> None:
    """Undo, or finish, the replacing of a run that ended in the middle of it, and remove its workplace."""
    workplace = folder / WORKPLACE
    if (workplace / OLD).is_dir():
        _move_all(workplace / OLD, folder)
    if (workplace / REPLACED).is_dir():
        _move_all(workplace / NEW, folder)
    if os.path.lexists(workplace):
        shutil.rmtree(workplace)


def _move_all(source: Path, folder: Path) -> None:
    """Move files; the record last, so that where it is the others are too."""
    for path in sorted(source.iterdir(), key=lambda path: path.name == RECORD):
        os.replace(path, folder / path.name)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"The results cannot be written to {folder} ({error.strerror or error}): choose another folder or free some "
        "space."
    )


# --- one run at a time ------------------------------------------------------------------------------------------------


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The operating system drops that of a dead process, also over most network drives."""
    path = folder / LOCK
    with _told(folder):
        stream = _take(folder, path)
    released = threading.Event()
    threading.Thread(target=_beat, args=(path, released), daemon=True).start()
    try:
        yield
    finally:
        released.set()
        # On Windows an open file cannot be removed; elsewhere it must be removed while it is still locked.
        if sys.platform == "win32":
            stream.close()
        with suppress(OSError):
            path.unlink()
        stream.close()


def _take(folder: Path, path: Path) -> IO[bytes]:
    """The lock file, open and locked."""
    while True:
        stream = open(path, "a+b")  # noqa: SIM115  it stays open as long as the lock is held
        try:
            owner, free = _owner(stream), _lock(stream)
            if free is False or (owner is not None and _holds(folder, path, owner, free)):
                name = "" if owner is None else f" (process {owner[1]} on {owner[0]})"
                raise InputError(
                    f"Another run{name} writes to {folder} at the moment: wait for its end, or choose another folder."
                )
            if not _is_still(path, stream):  # its owner removed it between our opening and locking it
                stream.close()
                continue
            stream.truncate(0)
            stream.write(json.dumps({"machine": scratch.machine(), "process": os.getpid()}).encode())
            stream.flush()
            return stream
        except BaseException:
            stream.close()
            raise


def _owner(stream: IO[bytes]) -> tuple[str, int] | None:
    """Machine and process that wrote a lock file; None for a new or unreadable one."""
    try:
        stream.seek(0)
        kept = json.loads(stream.read(LOCK_AT))
        return str(kept["machine"]), int(kept["process"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _holds(folder: Path, path: Path, owner: tuple[str, int], free: bool | None) -> bool:
    """Whether the owner of a lock that the system does not hold against us is at work nevertheless.

    Some network drives have no locks, or keep them on each machine to itself. There the file's own words count: a
    process of this machine is asked for, one of another machine touches its lock as long as it lives.
    """
    machine, process = owner
    if machine == scratch.machine():
        return free is None and scratch.is_alive(process)
    clock = folder / f"{LOCK}-{os.getpid()}"  # the drive's clock may differ from ours
    try:
        clock.touch()
        return clock.stat().st_mtime - path.stat().st_mtime < DEAD_AFTER_S
    finally:
        clock.unlink(missing_ok=True)


def _is_still(path: Path, stream: IO[bytes]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _lock(stream: IO[bytes]) -> bool | None:
    """Lock an open file: True; False where another holds it; None where the drive has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            stream.seek(LOCK_AT)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _beat(path: Path, released: threading.Event) -> None:
    while not released.wait(BEAT_S):
        with suppress(OSError):
            os.utime(path)
