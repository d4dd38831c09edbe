"""The packages this library needs: which are installed, and how they are kept quiet; none is imported to find out."""

from __future__ import annotations

import contextlib
import logging
import platform
import sys
import warnings
from collections.abc import Iterable, Iterator
from importlib import metadata

from XAICLIPLib import __version__

NEEDED = {
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
    own = {"xaiclip": __version__, "python": platform.python_version()}
    return own | {package: installed(package) for package in packages}


@contextlib.contextmanager
def packages_quiet() -> Iterator[None]:
    """Keep from the user what packages tell their programmers, unless Python was asked for warnings (``-W``)."""
    readers = logging.getLogger("monai.data")  # tells of readers for DICOM that it lacks
    level = readers.level
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # and they may quote paths
            readers.setLevel(logging.ERROR)
        try:
            yield
        finally:
            readers.setLevel(level)
