"""Every kind of network on disk, and the one call that loads any of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from XAICLIPLib.errors import InputError

if TYPE_CHECKING:
    import torch

    from XAICLIPLib.segmentation.segmenter import Segmenter

ENTRY_POINTS = "xaiclip.segmenters"
"""Group under which an installed package offers networks: each a function that takes the device and returns one."""


@dataclass(frozen=True)
class Format:
    """A way in which networks lie on disk.

    Attributes
    ----------
    name
        One word, as the catalogue calls it.
    looks_like
        What the user has to give.
    recognises
        Whether a path is of this format; cheap, and raises nothing.
    load
        Path, device and trust to a segmenter.
    """

    name: str
    looks_like: str
    recognises: Callable[[Path], bool]
    load: Callable[[Path, torch.device, bool], Segmenter]


def formats() -> tuple[Format, ...]:
    """All formats, in the order in which they are tried."""
    from XAICLIPLib.segmentation.bundle import BundleSegmenter, is_bundle
    from XAICLIPLib.segmentation.described import is_described, load_described

    return (
        Format("bundle", "the folder of a MONAI bundle (it has configs/metadata.json)", is_bundle, BundleSegmenter),
        Format(
            "network",
            "a network with a description beside it (net.yaml with net.pt, .safetensors or .ts)",
            is_described,
            load_described,
        ),
    )


def load(path: Path, device: torch.device, trust: bool = False) -> Segmenter | None:
    """The segmenter at a path; None where nothing there is recognised as one.

    Parameters
    ----------
    path
        A file or folder of any of `formats`.
    device
        Where it runs.
    trust
        Run code that the network brings: expressions in a bundle's configuration, TorchScript that touches files.

    Raises
    ------
    InputError
        It is recognised and does not load.
    """
    if not os.path.exists(path):  # false, not an error, for what is too long for a path
        return None
    found = next((kind for kind in formats() if kind.recognises(path)), None)
    return None if found is None else found.load(path, device, trust)


def load_registered(name: str, device: torch.device) -> Segmenter | None:
    """A network that an installed package offers under this name; None where none does.

    Raises
    ------
    InputError
        The package fails to make it.
    """
    from XAICLIPLib.segmentation.described import from_object

    for offered in entry_points(group=ENTRY_POINTS):
        if offered.name == name:
            try:
                made = offered.load()(device)
            except InputError:
                raise
            except Exception as error:  # whatever the package raises
                told = " ".join(str(error).split())[:160] or type(error).__name__
                raise InputError(f"The network {name} of an installed package does not load ({told}).") from error
            segmenter: Segmenter = from_object(made) if hasattr(made, "predict") else made
            return segmenter
    return None


def registered() -> list[str]:
    """Names that installed packages offer."""
    return sorted({offered.name for offered in entry_points(group=ENTRY_POINTS)})


def what_to_give() -> str:
    """What a user can give, in words."""
    return "; ".join(kind.looks_like for kind in formats())
