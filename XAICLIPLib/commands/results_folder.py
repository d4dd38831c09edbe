"""The folder of results: named after the prompt, made before the computation, and removed if there is no result."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from XAICLIPLib import anatomy
from XAICLIPLib.commands.terminal import Interrupt
from XAICLIPLib.errors import InputError
from XAICLIPLib.reporting import output_folder
from XAICLIPLib.system.files import folder_name

if TYPE_CHECKING:
    from XAICLIPLib.imaging.dicom.source import DicomSource


def folder_argument(argument: str) -> Path:
    """A folder named on the command line."""
    if not argument.strip():
        raise argparse.ArgumentTypeError("it is empty; name a folder")
    return Path(argument)


@contextlib.contextmanager
def results_folder(
    requested: Path | None, prompt: str, interrupt: Interrupt | None = None, inputs: Sequence[object] = ()
) -> Iterator[Path]:
    """The output folder: made, tested and locked before the computation, and removed if there is no result."""
    parent = requested or Path("results")
    new_folders: list[Path] = []
    try:
        new_folders = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        folder = requested or new_folder(parent, prompt)
        if requested is None:
            new_folders.insert(0, folder)
    except OSError as error:
        _remove_empty(new_folders)
        raise InputError(
            f"The results cannot be written to {parent} ({error.strerror or error}): choose another folder with "
            "--output."
        ) from error
    if interrupt is not None:
        interrupt.undo += [lambda: output_folder.abandon(folder), lambda: _remove_empty(new_folders)]
    try:
        with output_folder.claimed(folder, inputs):
            yield folder
    except BaseException:
        _remove_empty(new_folders)
        raise


@contextlib.contextmanager
def dicom_folder(
    folder: Path | None, results: Path, source: DicomSource | None, interrupt: Interrupt
) -> Iterator[None]:
    """The folder of the DICOM objects, likewise; nothing where none is asked for."""
    if folder is None or source is None:
        yield
        return
    from XAICLIPLib.reporting.dicom import saving

    if folder.resolve() == results.resolve():
        raise InputError(f"{folder} is the folder of the other results: choose one of their own for the DICOM objects.")
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    interrupt.undo += [lambda: output_folder.abandon(folder), lambda: _remove_empty(new_folders)]
    try:
        with saving.claimed(folder, source):
            yield
    except BaseException:
        _remove_empty(new_folders)
        raise


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def new_folder(parent: Path, prompt: str) -> Path:
    """Make a new folder, named after the prompt, so that no earlier result is replaced.

    A prompt that had to be corrected gives the name of what it was understood as.
    """
    named = (one if anatomy.is_spelled_right(one) else anatomy.name_of(one) for one in anatomy.prompts_in(prompt))
    name = folder_name(" and ".join(named), "explanation")
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()  # without a test whether it exists: another process could make it in between
            break
    return folder
