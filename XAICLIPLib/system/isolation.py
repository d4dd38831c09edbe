"""Child processes that run this library and nothing of the folder that someone happens to be in.

``python -m MODULE`` looks for modules in the current folder first, and so runs whatever lies there under the name of a
package that is imported. Python's own switch against that (``-P``) is of 3.11, and the one of before (``-I``) also
drops the user's packages and the variables by which 3D Slicer's Python finds its own. So the child gets a small
program: it forgets the current folder, takes this library from where its parent has it, and runs a module of it.

Only the standard library is imported here, for the Slicer module uses it too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_PLACES = ("XAICLIP_MODELS", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "XDG_CACHE_HOME", "SSL_CERT_FILE")
"""Variables that hold a path, which for a child that starts elsewhere must not begin at the current folder."""

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of XAICLIPLib."""

_PROGRAM = """\
import sys
sys.path[:] = [place for place in sys.path if place]
import importlib.util, os, runpy
folder, module = sys.argv[1:3]
place = os.path.join(folder, "__init__.py")
spec = importlib.util.spec_from_file_location("XAICLIPLib", place, submodule_search_locations=[folder])
sys.modules["XAICLIPLib"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["XAICLIPLib"])
sys.argv[:] = [module, *sys.argv[3:]]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def arguments(module: str, *given: str) -> list[str]:
    """What to start an interpreter with, so that it runs a module of this library with some arguments.

    Parameters
    ----------
    module
        Such as ``XAICLIPLib.worker``.
    given
        Its arguments.
    """
    return ["-c", _PROGRAM, str(PACKAGE), module, *given]


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Variables of a child's environment that mean the same where it starts, and name no current folder.

    ``PYTHONPATH`` loses its relative places and its empty ones, which Python takes for the current folder.
    """
    kept = {name: os.path.abspath(value) if name in _PLACES and value else value for name, value in given.items()}
    places = [place for place in kept.pop("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(place)]
    if places:
        kept["PYTHONPATH"] = os.pathsep.join(places)
    return kept | {"PYTHONSAFEPATH": "1"}  # for its own children too, from Python 3.11 on
