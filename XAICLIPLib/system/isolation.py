"""Child processes that run this library, and no code from the current folder.

``python -m MODULE`` looks for modules in the current folder first, and so runs any file there that has the name of an
imported package. Python's switch against that, ``-P``, is new in Python 3.11; the older one, ``-I``, also ignores the
user's packages and the variables by which 3D Slicer's Python finds its own. So the child gets a small program: it
removes the current folder from the search path, loads this library from its parent's folder, and runs a module of it.

Only the standard library is imported here, because the Slicer module uses this file too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_PATH_VARIABLES = ("XAICLIP_MODELS", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "XDG_CACHE_HOME", "SSL_CERT_FILE")
"""Variables that hold a path. They are made absolute, because a child may start in another folder."""

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


def arguments(module: str, *module_arguments: str) -> list[str]:
    """Arguments for a Python interpreter that make it run a module of this library.

    Parameters
    ----------
    module
        Such as ``XAICLIPLib.worker``.
    module_arguments
        The module's own arguments.
    """
    return ["-c", _PROGRAM, str(PACKAGE), module, *module_arguments]


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for a child, without paths that depend on the current folder.

    ``PYTHONPATH`` loses its relative entries and its empty ones, which Python takes for the current folder.
    """
    kept = {
        name: os.path.abspath(value) if name in _PATH_VARIABLES and value else value
        for name, value in variables.items()
    }
    places = [place for place in kept.pop("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(place)]
    if places:
        kept["PYTHONPATH"] = os.pathsep.join(places)
    return kept | {"PYTHONSAFEPATH": "1"}  # for its own children too, from Python 3.11 on
