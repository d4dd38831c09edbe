"""Which versions of what are installed; nothing is imported to find out."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

from XAICLIPLib import __version__


def installed(package: str) -> str:
    """The installed version of a package; empty where there is none."""
    try:
        return metadata.version(package) or ""
    except metadata.PackageNotFoundError:
        return ""


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of this library, Python and some packages; empty where one is missing."""
    own = {"xaiclip": __version__, "python": platform.python_version()}
    return own | {package: installed(package) for package in packages}
