"""The output folder of an explanation: one run at a time writes to it, all or nothing, and the user's files are safe.

Files of an earlier explanation are recognised by its ``explanation.json``, which holds the checksum of each file. Only
files that have not changed since they were written are ever replaced.
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
    "sufficient.nrrd",
    "necessary.nrrd",
    "region.nrrd",
    "segmentation.nrrd",
    "target.nrrd",
    "figure.png",
)
"""All files that an explanation may have: a reader of the folder takes any of these for a part of it."""

DICOM_FILES = (
    RECORD,
    "parametric_map.dcm",
    "standard_error.dcm",
    "segmentation.dcm",
    "structured_report.dcm",
    "report.dcm",
    "figure.dcm",
)
"""All files of an explanation as DICOM objects (`XAICLIPLib.reporting.dicom`), in a folder of its own."""

DICOM_FORMAT = "XAI-CLIP explanation as DICOM 1"
"""Format of the record in such a folder, which holds checksums alone."""

LOCK, WORKPLACE = ".xaiclip-lock", ".xaiclip-writing"
"""A file in the folder while a run uses it, and a folder in it while the run replaces files."""

NEW, OLD, REPLACED = "new", "old", "replaced"
"""Folders in the workplace: the new files, the old files while they are moved there, and the old files when all are."""

HEARTBEAT_S, DEAD_AFTER_S = 15.0, 60.0
"""Interval at which a run touches its lock file, and the age from which another machine's lock counts as abandoned."""

LOCKED_BYTE = 1 << 20
"""Position of the byte that is locked. It lies beyond the text, because on Windows a locked byte cannot be read."""

_claimed: dict[tuple[Path, int], int] = {}
"""Folders that this process has claimed, by thread: a claim within a claim belongs to the same run."""


@contextmanager
def claimed(folder: Path, inputs: Iterable[object] = (), names: Iterable[str] = FILES) -> Iterator[None]:
    """Make a folder, check that it can be written, and keep other runs out of it until the block ends.

    Parameters
    ----------
    folder
        Where an explanation will be written.
    inputs
        The inputs of the run. No path among them may be that of a file which the run would write.
    names
        The files that the run may write.

    Raises
    ------
    InputError
        The folder cannot be made or written, another run uses it, or a result would replace a file of the user's own.
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
            with _as_input_error(folder):
                _recover(folder)
                _check_kind(folder, names)
                _check_no_foreign_files(folder, names)
                _check_inputs(folder, inputs)
            yield
        finally:
            del _claimed[key]


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A temporary folder for a new explanation. If the block succeeds, its files replace the earlier explanation.

    It lies within ``folder`` and so on the same disk. Either all files of the earlier explanation are replaced by the
    new ones, or nothing changes. If a run dies in between, the next run completes or undoes the replacement.

    Raises
    ------
    InputError
        As `claimed`; or a file cannot be moved.
    """
    with claimed(folder):
        workplace = folder / WORKPLACE
        try:
            with _as_input_error(folder):
                (workplace / NEW).mkdir(parents=True)
            try:
                yield workplace / NEW
            except InputError as error:  # the writer named the temporary folder, which the user does not know
                raise InputError(str(error).replace(str(workplace / NEW), str(folder))) from error
            names = sorted(path.name for path in (workplace / NEW).iterdir())
            with _as_input_error(folder):
                _check_no_foreign_files(folder, names)
                _swap(folder)
        finally:
            with suppress(OSError):
                _recover(folder)


def abandon(folder: Path) -> None:
    """Remove the lock and the unfinished files: for a process that is about to end in the middle of its run."""
    with suppress(OSError):
        _recover(folder)
    with suppress(OSError):
        (folder / LOCK).unlink()


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder, by name. In the record, they are used to recognise the files later."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD}


def written_by_us(folder: Path) -> set[str]:
    """Names of the files in a folder that an explanation wrote, according to its record, and that are unchanged."""
    saved_record = _record_of(folder)
    if not saved_record:
        return set()
    written: Any = saved_record.get("written")
    sums = written if isinstance(written, dict) else {}
    paths = {name: folder / name for name in sums if Path(str(name)).name == name}  # never outside the folder
    return {RECORD} | {name for name, path in paths.items() if path.is_file() and sha256(path) == sums[name]}


def _record_of(folder: Path) -> dict[str, Any]:
    """The record of the explanation in a folder; empty where there is none."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(content, dict) and str(content.get("format")).startswith("XAI-CLIP explanation ")
    return content if ours else {}


def _check_kind(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder of the other kind of results, which would be lost: they do not replace each other."""
    saved_record = _record_of(folder)
    if saved_record and (saved_record["format"] == DICOM_FORMAT) != (names is DICOM_FILES):
        kind = "DICOM objects" if saved_record["format"] == DICOM_FORMAT else "other results"
        raise InputError(
            f"{folder} holds {kind} of an earlier explanation, which would be lost: choose another folder."
        )


def _check_no_foreign_files(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder that holds files of these names which no explanation wrote."""
    existing = [name for name in names if os.path.lexists(folder / name)]
    foreign = sorted(set(existing) - written_by_us(folder)) if existing else []
    if foreign:
        raise InputError(
            f"{folder} holds {', '.join(foreign)}, which no explanation wrote or which was changed since, and which "
            "would be lost: choose another folder, or move the file elsewhere."
        )


def _check_inputs(folder: Path, inputs: Iterable[object]) -> None:
    for value in inputs:
        name = next((name for name in FILES if _same_file(value, folder / name)), None)
        if name is not None:
            raise InputError(f"{value} is an input of the run, which would write {name} there: choose another folder.")


def _same_file(value: object, path: Path) -> bool:
    """Whether an input is this file; False for words, boxes, images and paths that do not exist."""
    try:
        return isinstance(value, (str, Path)) and os.path.samefile(value, path)
    except (OSError, ValueError):
        return False


# --- replacing --------------------------------------------------------------------------------------------------------


def _swap(folder: Path) -> None:
    """Move the earlier explanation out and the new one in; on an error, everything is moved back."""
    workplace = folder / WORKPLACE
    (workplace / OLD).mkdir()
    # If the run dies before the renaming below, `_recover` undoes the swap; afterwards, it completes it.
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
    """Undo or complete the swap of a run that ended in the middle of it, and remove its workplace."""
    workplace = folder / WORKPLACE
    if (workplace / OLD).is_dir():
        _move_all(workplace / OLD, folder)
    if (workplace / REPLACED).is_dir():
        _move_all(workplace / NEW, folder)
    if os.path.lexists(workplace):
        shutil.rmtree(workplace)


def _move_all(source: Path, folder: Path) -> None:
    """Move files, the record last: if the record is in the new place, so are all the others."""
    for path in sorted(source.iterdir(), key=lambda path: path.name == RECORD):
        os.replace(path, folder / path.name)


@contextmanager
def _as_input_error(folder: Path) -> Iterator[None]:
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
    """Hold the folder's lock. The operating system releases that of a dead process, on most network drives too."""
    path = folder / LOCK
    with _as_input_error(folder):
        stream = _take(folder, path)
    released = threading.Event()
    threading.Thread(target=_heartbeat, args=(path, released), daemon=True).start()
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
            owner, locked = _owner(stream), _lock(stream)
            if locked is False or (owner is not None and _is_at_work(folder, path, owner, locked)):
                name = "" if owner is None else f" (process {owner[1]} on {owner[0]})"
                raise InputError(
                    f"Another run{name} writes to {folder} at the moment: wait for its end, or choose another folder."
                )
            if not _is_same_file(path, stream):  # its owner removed it between our opening and locking it
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
        content = json.loads(stream.read(LOCKED_BYTE))
        return str(content["machine"]), int(content["process"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _is_at_work(folder: Path, path: Path, owner: tuple[str, int], locked: bool | None) -> bool:
    """Whether the owner named in a lock file is still at work, although the system lets us lock the file.

    Some network drives have no locks, or keep them separately on each machine. There the content of the file counts:
    of a process of this machine the system knows whether it lives, and one of another machine touches its lock file as
    long as it lives.
    """
    machine, process = owner
    if machine == scratch.machine():
        return locked is None and scratch.is_alive(process)
    clock = folder / f"{LOCK}-{os.getpid()}"  # its time of change is by the drive's clock, which may differ from ours
    try:
        clock.touch()
        return clock.stat().st_mtime - path.stat().st_mtime < DEAD_AFTER_S
    finally:
        clock.unlink(missing_ok=True)


def _is_same_file(path: Path, stream: IO[bytes]) -> bool:
    """Whether an open file is the one that the path names now."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _lock(stream: IO[bytes]) -> bool | None:
    """Lock an open file: True if it is locked, False if another process holds it, None if the drive has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            stream.seek(LOCKED_BYTE)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _heartbeat(path: Path, released: threading.Event) -> None:
    while not released.wait(HEARTBEAT_S):
        with suppress(OSError):
            os.utime(path)
