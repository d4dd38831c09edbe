"""The packages that this library needs, their installed versions, and muting their warnings. None is imported here."""

from __future__ import annotations

import contextlib
import logging
import platform
import sys
import warnings
from collections.abc import Iterable, Iterator
from importlib import metadata

from XAICLIPLib import __version__

REQUIREMENTS = {
    "torch": ("torch", "2.8"),
    "monai": ("monai", "1.5.1"),
    "open_clip_torch": ("", "3.0"),
    "SimpleITK": ("SimpleITK", "2.4"),
    "numpy": ("numpy", "1.26"),
    "scipy": ("scipy", "1.11.4"),
    "scikit-image": ("skimage", "0.24"),
    "scikit-learn": ("sklearn", "1.5"),
    "matplotlib": ("matplotlib", "3.9"),
    "rapidfuzz": ("rapidfuzz", "3.9"),
    "pyyaml": ("yaml", "6.0.1"),
    "safetensors": ("safetensors", "0.4.3"),
    "tqdm": ("tqdm", "4.66"),
    "captum": ("captum", "0.8"),
    "pooch": ("pooch", "1.8"),
    "jinja2": ("jinja2", "3.1"),
    "einops": ("einops", "0.7"),
    "nibabel": ("nibabel", "5.2"),
    "pydicom": ("pydicom", "2.4"),
}
"""Module and oldest version of each package that XAI-CLIP needs, as in pyproject.toml (a test compares them).

open_clip is imported by `XAICLIPLib.localization.openclip` alone.
"""


def installed(package: str) -> str:
    """The installed version of a package; empty where there is none."""
    try:
        return metadata.version(package) or ""
    except metadata.PackageNotFoundError:
        return ""


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of this library, Python and some packages; empty where one is missing."""
    base = {"xaiclip": __version__, "python": platform.python_version()}
    return base | {package: installed(package) for package in packages}


@contextlib.contextmanager
def packages_quiet() -> Iterator[None]:
    """Hide warnings that packages address to programmers, unless Python was started with ``-W``."""
    reader_log = logging.getLogger("monai.data")  # warns of DICOM readers that are not installed
    level = reader_log.level
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # warnings may also quote paths
            reader_log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            reader_log.setLevel(level)
