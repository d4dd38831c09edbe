"""Which Python computes, and in which environment: Slicer's own, or one that the user names."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from XAICLIPLib.errors import InputError
from XAICLIPLib.system import isolation

SETTING = "XAICLIP/PythonInterpreter"
"""QSettings key of the user's interpreter; empty for Slicer's own."""


@dataclass(frozen=True)
class Interpreter:
    """A Python that can run the worker.

    Attributes
    ----------
    program
        Path of the executable.
    environment
        All environment variables it gets.
    isSlicers
        Whether it is Slicer's own, into which Slicer can install packages.
    """

    program: str
    environment: Mapping[str, str]
    isSlicers: bool


def chosen() -> Interpreter:
    """The interpreter of the settings, or Slicer's own.

    Raises
    ------
    InputError
        The one that is set does not exist, or Slicer's own cannot be found.
    """
    wanted = str(qt.QSettings().value(SETTING) or "").strip()
    if not wanted:
        return Interpreter(slicersPython(), _forWorker(dict(os.environ)), True)
    program = executableIn(Path(wanted))
    if program is None:
        raise InputError(
            _(
                "There is no Python interpreter at {path}: name another under Device and installation, or leave the "
                "field empty to use Slicer's own."
            ).format(path=wanted)
        )
    # Slicer's launcher points PYTHONHOME, PYTHONPATH and the library path at its own Python, which would break another.
    environment = {str(name): str(value) for name, value in slicer.util.startupEnvironment().items()}
    for name in ("PYTHONHOME", "PYTHONPATH"):
        environment.pop(name, None)
    return Interpreter(str(program), _forWorker(environment), False)


def executableIn(path: Path) -> Path | None:
    """The interpreter that a path means: itself, or the one of a virtual environment; None where there is none."""
    if path.is_file():
        return path
    inside = ("Scripts/python.exe", "python.exe", "bin/python3", "bin/python")
    return next((path / name for name in inside if (path / name).is_file()), None)


def slicersPython() -> str:
    """Path of the executable that runs Slicer's Python without the application.

    Raises
    ------
    InputError
        It cannot be found.
    """
    # The launcher puts it on the PATH; ``sys.executable`` can be empty in a build tree, and Slicer itself in the
    # application.
    found = shutil.which("PythonSlicer")
    if not found and Path(sys.executable or "").stem.lower().startswith("python"):
        found = sys.executable
    if not found:
        raise InputError(
            _(
                "Slicer's own Python (PythonSlicer) was not found: name a Python interpreter under Device and "
                "installation."
            )
        )
    return found


def emptyFolder() -> str:
    """Path of a folder with nothing in it, for a process that must not find anything where it starts."""
    if not _empty or not os.path.isdir(_empty[0].name):  # the system may have tidied it away
        _empty[:] = [tempfile.TemporaryDirectory(prefix="xaiclip-", ignore_cleanup_errors=True)]
    return _empty[0].name


_empty: list[tempfile.TemporaryDirectory[str]] = []
"""Kept until this interpreter ends."""


def _forWorker(environment: dict[str, str]) -> dict[str, str]:
    """The environment in which nothing stands for the current folder, and text is UTF-8 and not held back."""
    return isolation.environment(environment) | {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
