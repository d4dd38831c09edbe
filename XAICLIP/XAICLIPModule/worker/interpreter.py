"""Which Python computes, and in which environment: Slicer's own, or one that the user names."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

import XAICLIPLib
from XAICLIPLib.errors import InputError

SETTING = "XAICLIP/PythonInterpreter"
"""QSettings key of the user's interpreter; empty for Slicer's own."""

LIBRARY = Path(XAICLIPLib.__file__).resolve().parents[1]
"""The folder that holds XAICLIPLib, in a checkout, the build tree and the install tree."""


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
        return Interpreter(slicersPython(), _withLibrary(dict(os.environ)), True)
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
    return Interpreter(str(program), _withLibrary(environment), False)


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


def _withLibrary(environment: dict[str, str]) -> dict[str, str]:
    """The environment in which XAICLIPLib is found, and text is UTF-8 and not held back."""
    paths = [str(LIBRARY), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    environment["PYTHONIOENCODING"] = "utf-8"
    environment["PYTHONUNBUFFERED"] = "1"
    return environment
