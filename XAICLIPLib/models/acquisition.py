"""Getting a model of the catalogue onto this machine: by its own library, from a server, or from files that are here.

What has no checksum in the catalogue gets one when it first comes (`XAICLIPLib.models.folder.Lock`), so that a
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
from XAICLIPLib.models.downloads import Wanted, fetch
from XAICLIPLib.models.entry import Entry, Remote
from XAICLIPLib.models.folder import downloaded, models_folder, write_lock
from XAICLIPLib.system import scratch
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.system.files import atomic_file

Progress = Callable[[str, int, int | None], None]
"""Gets the name of a file, the bytes that are here, and all of them where that is known."""

SPARE = 1.1
"""A size in MB is a rounded one."""

MOST_BYTES = 20_000_000_000
"""Of a file whose size the catalogue does not say."""


def download(
    entry: Entry,
    on_progress: Progress = lambda name, done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Download a model, unless it is here already; what was cut off goes on.

    Returns
    -------
    Path or None
        Where it lies; None where a library keeps it in a place of its own.

    Raises
    ------
    InputError
        It cannot be had this way; the message says how else.
    Cancelled
        As asked; what came so far is kept.
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
    return _by_library(entry, on_progress, cancelled)


def install(entry: Entry, given: Path) -> Path:
    """Install a model from files that are here: an archive, a folder, or the one file that it consists of.

    Parameters
    ----------
    entry
        What it must be: where the catalogue has checksums, they must agree.
    given
        The archive, folder or file; it stays as it is.

    Raises
    ------
    InputError
        The files are not that model's, or it needs none.
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
    if not given.exists():
        raise InputError(f"There is no {given} to install the model {entry.name} from.")
    if isinstance(entry.source, Remote) and given.is_file() and sha256(given) != entry.source.sha256:
        raise InputError(
            f"{given} is not the archive of the model {entry.name}, its SHA-256 differs: get it from {entry.origin}."
        )
    if given.is_dir():
        return _settle(entry, given)
    if isinstance(entry.source, Remote) or archives.is_archive(given):
        with _work_folder() as work:
            return _settle(entry, archives.only_folder(archives.unpack(given, work / "unpacked")))
    with _work_folder() as work:  # one file: with those that came before it, perhaps all
        before = entry.folder
        if before is not None:
            shutil.copytree(before, work / "files", ignore=shutil.ignore_patterns("*.part", "*.part-version"))
        path = _place_of(entry, given)
        (work / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(given, work / "files" / path)
        missing = [name for name in entry.files if not (work / "files" / name).is_file()]
        if missing:
            with atomic_file(downloaded(entry.name) / path) as temporary:
                shutil.copyfile(given, temporary)
            raise InputError(
                f"{given} is now part of the model {entry.name}, which still lacks {', '.join(missing)}: get these "
                f"from {entry.origin}, and give them the same way."
            )
        return _settle(entry, work / "files")


def _place_of(entry: Entry, given: Path) -> str:
    """Which of a model's files this is, by its checksum."""
    checksum = sha256(given)
    for path, expected in entry.files.items():
        if checksum == expected:
            return path
    if entry.files:
        raise InputError(
            f"{given} is none of the files of the model {entry.name}, whose SHA-256 differ: get them from "
            f"{entry.origin}."
        )
    raise InputError(f"{given} is no zip or tar archive: give an archive or folder of the model {entry.name}.")


def _package_error(entry: Entry, package: str) -> InputError:
    more = ", then `totalseg_download_weights -t total_fast`," if entry.format == "totalsegmentator" else ""
    way = installing(package)
    return InputError(
        f"The model {entry.name} comes with a Python package: run `{way}`{more} where XAI-CLIP is installed.", way
    )


# --- from a server --------------------------------------------------------------------------------------------------


def _download_files(
    entry: Entry, files: Mapping[str, Remote], on_progress: Progress, cancelled: Callable[[], bool]
) -> Path:
    folder = downloaded(entry.name)
    for name, remote in files.items():
        target = folder / name
        otherwise = (
            f"get that file on another computer, then run `xaiclip models download {entry.name} --from FILE` or put it "
            f"at {target}"
        )
        wanted = Wanted(remote.url, remote.sha256, target, _most(entry, remote), otherwise)
        fetch(wanted, lambda done, total, name=name: on_progress(name, done, total), cancelled)  # type: ignore[misc]
    entry.check()
    return folder


def _download_archive(entry: Entry, remote: Remote, on_progress: Progress, cancelled: Callable[[], bool]) -> Path:
    name = remote.name or entry.name
    target = models_folder() / "downloads" / f"{remote.sha256[:16]}-{name}"
    otherwise = (
        f"get that file on another computer, then run `xaiclip models download {entry.name} --from FILE` or put it at "
        f"{target}"
    )
    wanted = Wanted(remote.url, remote.sha256, target, _most(entry, remote), otherwise)
    fetch(wanted, lambda done, total: on_progress(name, done, total), cancelled)
    folder = install(entry, target)
    target.unlink(missing_ok=True)
    return folder


def _most(entry: Entry, remote: Remote) -> int:
    if remote.size is not None:
        return remote.size
    return MOST_BYTES if entry.size_mb is None else math.ceil(entry.size_mb * 1e6 * SPARE)


# --- by other libraries ---------------------------------------------------------------------------------------------


def _by_library(entry: Entry, on_progress: Progress, cancelled: Callable[[], bool]) -> Path | None:
    """Let a library download into a folder, and make that the model's; open_clip's own go into its cache."""
    way, _, what = str(entry.source).partition(":")
    total = None if entry.size_mb is None else math.ceil(entry.size_mb * 1e6)
    with _work_folder() as work:
        try:
            found = libraries.fetch(
                way,
                entry.name if way == "open_clip" else what,
                work,
                lambda size: on_progress(entry.name, size if total is None else min(size, total), total),
                cancelled,
            )
        except OSError as error:
            told = str(error).splitlines()[0][:200]
            by_hand = (
                "get a folder with open_clip_config.json and weights on another computer, and give it as the localizer"
                if way == "open_clip"
                else "get it on another computer, as a folder or zip file, and run `xaiclip models download "
                f"{entry.name} --from FILE`"
            )
            raise InputError(
                f"The model {entry.name} cannot be downloaded from {entry.origin} ({told}): {by_hand}."
            ) from error
        return entry.cached if way == "open_clip" else _settle(entry, found)


# --- into its place -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _work_folder() -> Iterator[Path]:
    """A folder beside the models, so that what is in it can be moved into place at once; taken away at the end.

    What processes that were killed left there goes too.
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


def _settle(entry: Entry, found: Path) -> Path:
    """Copy a model's files into its place, where they are what they must be."""
    for path in found.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is a link or a special file: give plain files for the model {entry.name}.")
    for name, expected in entry.files.items():
        if not (found / name).is_file():
            raise InputError(f"{found} is not the model {entry.name}, {name} is missing: get it from {entry.origin}.")
        if sha256(found / name) != expected:
            raise InputError(
                f"{found / name} is not that file of the model {entry.name}, its SHA-256 differs: get it from "
                f"{entry.origin}."
            )
    if not any(path.is_file() for path in found.rglob("*")):
        raise InputError(f"{found} is empty: give the files of the model {entry.name}.")
    place = downloaded(entry.name)
    with _work_folder() as work:
        new, old = work / "new", work / "old"
        if entry.files:
            for name in entry.files:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found / name, new / name)
        else:
            shutil.copytree(found, new, copy_function=shutil.copyfile)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not entry.files:
            write_lock(entry.name, entry.origin, new)
        if place.exists():
            place.rename(old)
        new.rename(place)
    return place
