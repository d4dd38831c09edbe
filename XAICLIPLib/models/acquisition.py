"""Getting a model of the catalogue onto this machine: by another library, from a server, or from the user's files.

Models without checksums in the catalogue get them at the first download (`XAICLIPLib.models.folder.Lock`), so that a
later change is noticed.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from XAICLIPLib.errors import InputError, installing
from XAICLIPLib.models import archives, libraries
from XAICLIPLib.models.downloads import FileDownload, fetch
from XAICLIPLib.models.entry import Entry, Remote
from XAICLIPLib.models.folder import download_folder, models_folder, write_lock
from XAICLIPLib.system import scratch
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.system.files import atomic_file

Progress = Callable[[str, int, int | None], None]
"""Takes the name of a file, the bytes downloaded so far, and its size in bytes (None where that is not known)."""

SPARE = 1.1
"""Factor on a size in MB, which is rounded."""

MOST_BYTES = 20_000_000_000
"""The largest file to download where the catalogue gives no size."""


def download(
    entry: Entry,
    on_progress: Progress = lambda name, done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Download a model, unless it is on this machine; a download that was cut off continues.

    Returns
    -------
    Path or None
        Its folder or file; None where another library keeps it in its own cache.

    Raises
    ------
    InputError
        It cannot be downloaded; the message says what to do instead.
    Cancelled
        ``cancelled`` said so; what came so far is kept.
    """
    if entry.installed:
        entry.check()
        return entry.folder or entry.cached
    source = entry.source
    if source == "shipped":
        raise InputError(f"The model {entry.name} ships with XAI-CLIP and is incomplete: install XAI-CLIP again.")
    if isinstance(source, Path):
        raise InputError(f"The model {entry.name} is a path of your own, and {source} is not there any more.")
    if package := entry.fetched_as("package"):
        raise _package_error(entry, package)
    if isinstance(source, Remote):
        return _download_archive(entry, source, on_progress, cancelled)
    if isinstance(source, Mapping):
        return _download_files(entry, source, on_progress, cancelled)
    return _download_by_library(entry, on_progress, cancelled)


def install(entry: Entry, path: Path) -> Path:
    """Install a model from the user's files: an archive, a folder, or one of its files.

    Parameters
    ----------
    entry
        The model. Where the catalogue has checksums, the files must agree with them.
    path
        The archive, folder or file, which is left as it is.

    Raises
    ------
    InputError
        The files are not those of the model, or it needs none.
    """
    if entry.source == "shipped" or isinstance(entry.source, Path):
        raise InputError(f"The model {entry.name} is here already and takes no files.")
    if package := entry.fetched_as("package"):
        raise _package_error(entry, package)
    if entry.fetched_as("open_clip"):
        raise InputError(
            f"The model {entry.name} is one of open_clip's own list: give a folder with open_clip_config.json and "
            "weights as --localizer instead."
        )
    if not path.exists():
        raise InputError(f"There is no {path} to install the model {entry.name} from.")
    if isinstance(entry.source, Remote) and path.is_file() and sha256(path) != entry.source.sha256:
        raise InputError(
            f"{path} is not the archive of the model {entry.name}, its SHA-256 differs: get it from {entry.origin}."
        )
    if path.is_dir():
        return _move_into_place(entry, path)
    if isinstance(entry.source, Remote) or archives.is_archive(path):
        with _work_folder() as work:
            return _move_into_place(entry, archives.only_folder(archives.unpack(path, work / "unpacked")))
    with _work_folder() as work:  # one file: with those that came before it, perhaps all
        before = entry.folder
        if before is not None:
            shutil.copytree(before, work / "files", ignore=shutil.ignore_patterns("*.part", "*.part-version"))
        name = _name_by_checksum(entry, path)
        (work / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, work / "files" / name)
        missing = [name for name in entry.files if not (work / "files" / name).is_file()]
        if missing:
            with atomic_file(download_folder(entry.name) / name) as temporary:
                shutil.copyfile(path, temporary)
            raise InputError(
                f"{path} is now part of the model {entry.name}, which still lacks {', '.join(missing)}: get these "
                f"from {entry.origin}, and give them the same way."
            )
        return _move_into_place(entry, work / "files")


def _name_by_checksum(entry: Entry, path: Path) -> str:
    """The name of the one of a model's files that has the checksum of ``path``."""
    checksum = sha256(path)
    for name, expected in entry.files.items():
        if checksum == expected:
            return name
    if entry.files:
        raise InputError(
            f"{path} is none of the files of the model {entry.name}, whose SHA-256 differ: get them from "
            f"{entry.origin}."
        )
    raise InputError(f"{path} is no zip or tar archive: give an archive or folder of the model {entry.name}.")


def _package_error(entry: Entry, package: str) -> InputError:
    more = ", then `totalseg_download_weights -t total_fast`," if entry.format == "totalsegmentator" else ""
    command = installing(package)
    return InputError(
        f"The model {entry.name} comes with a Python package: run `{command}`{more} where XAI-CLIP is installed.",
        command,
    )


# --- from a server --------------------------------------------------------------------------------------------------


def _download_files(
    entry: Entry, files: Mapping[str, Remote], on_progress: Progress, cancelled: Callable[[], bool]
) -> Path:
    folder = download_folder(entry.name)
    for name, remote in files.items():
        target = folder / name
        otherwise = (
            f"get that file on another computer, then run `xaiclip models download {entry.name} --from FILE` or put it "
            f"at {target}"
        )
        file = FileDownload(remote.url, remote.sha256, target, _most_bytes(entry, remote), otherwise)
        fetch(file, lambda done, total, name=name: on_progress(name, done, total), cancelled)  # type: ignore[misc]
    entry.check()
    return folder


def _download_archive(entry: Entry, remote: Remote, on_progress: Progress, cancelled: Callable[[], bool]) -> Path:
    name = remote.name or entry.name
    target = models_folder() / "downloads" / f"{remote.sha256[:16]}-{name}"
    otherwise = (
        f"get that file on another computer, then run `xaiclip models download {entry.name} --from FILE` or put it at "
        f"{target}"
    )
    file = FileDownload(remote.url, remote.sha256, target, _most_bytes(entry, remote), otherwise)
    fetch(file, lambda done, total: on_progress(name, done, total), cancelled)
    folder = install(entry, target)
    target.unlink(missing_ok=True)
    return folder


def _most_bytes(entry: Entry, remote: Remote) -> int:
    if remote.size is not None:
        return remote.size
    return MOST_BYTES if entry.size_mb is None else math.ceil(entry.size_mb * 1e6 * SPARE)


# --- by other libraries ---------------------------------------------------------------------------------------------


def _download_by_library(entry: Entry, on_progress: Progress, cancelled: Callable[[], bool]) -> Path | None:
    """Let a library download a model and move it into place; open_clip's own models stay in the library's cache."""
    library, _, model = str(entry.source).partition(":")
    total = None if entry.size_mb is None else math.ceil(entry.size_mb * 1e6)
    with _work_folder() as work:
        try:
            folder = libraries.fetch(
                library,
                entry.name if library == "open_clip" else model,
                work,
                lambda size: on_progress(entry.name, size if total is None else min(size, total), total),
                cancelled,
            )
        except OSError as error:
            message = str(error).splitlines()[0][:200]
            by_hand = (
                "get a folder with open_clip_config.json and weights on another computer, and give it as the localizer"
                if library == "open_clip"
                else "get it on another computer, as a folder or zip file, and run `xaiclip models download "
                f"{entry.name} --from FILE`"
            )
            raise InputError(
                f"The model {entry.name} cannot be downloaded from {entry.origin} ({message}): {by_hand}."
            ) from error
        return entry.cached if library == "open_clip" else _move_into_place(entry, folder)


# --- into its place -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _work_folder() -> Iterator[Path]:
    """A temporary folder beside the models, so that its contents can be moved into place in one step.

    Folders that killed processes left behind are removed as well.
    """
    parent = models_folder() / "downloads"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch.remove_leftovers(parent)
        work = scratch.make(parent)
    except (OSError, InputError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        raise InputError(
            f"Models cannot be written to {parent} ({getattr(cause, 'strerror', None) or cause}): name another folder "
            "in the variable XAICLIP_MODELS."
        ) from error
    try:
        yield work
    finally:
        scratch.remove(work)


def _move_into_place(entry: Entry, folder: Path) -> Path:
    """Check a model's files and copy them into its folder among the models."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is a link or a special file: give plain files for the model {entry.name}.")
    for name, expected in entry.files.items():
        if not (folder / name).is_file():
            raise InputError(f"{folder} is not the model {entry.name}, {name} is missing: get it from {entry.origin}.")
        if sha256(folder / name) != expected:
            raise InputError(
                f"{folder / name} is not that file of the model {entry.name}, its SHA-256 differs: get it from "
                f"{entry.origin}."
            )
    if not any(path.is_file() for path in folder.rglob("*")):
        raise InputError(f"{folder} is empty: give the files of the model {entry.name}.")
    target = download_folder(entry.name)
    with _work_folder() as work:
        new, old = work / "new", work / "old"
        if entry.files:
            for name in entry.files:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, new / name)
        else:
            shutil.copytree(folder, new, copy_function=shutil.copyfile)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not entry.files:
            write_lock(entry.name, entry.origin, new)
        if target.exists():
            target.rename(old)
        new.rename(target)
    return target
