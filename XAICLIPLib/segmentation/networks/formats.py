"""Every kind of network on disk, and the one call that loads any of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from XAICLIPLib.errors import InputError, reason

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
    from XAICLIPLib.segmentation.networks.bundle import BundleSegmenter, is_bundle
    from XAICLIPLib.segmentation.networks.described import is_described, is_lone, load_described
    from XAICLIPLib.segmentation.networks.meshnet import MeshNetSegmenter, is_meshnet
    from XAICLIPLib.segmentation.networks.nnunet import NnUNetSegmenter
    from XAICLIPLib.segmentation.networks.sam import SamSegmenter, is_sam
    from XAICLIPLib.segmentation.networks.trained_folders import is_nnunet

    return (
        Format("bundle", "the folder of a MONAI bundle (it has configs/metadata.json)", is_bundle, BundleSegmenter),
        Format("nnunet", "a trained folder of nnU-Net v2 (it has plans.json and fold_0)", is_nnunet, NnUNetSegmenter),
        Format("meshnet", "a MeshNet of brainchop (model.json with model.bin)", is_meshnet, MeshNetSegmenter),
        Format("sam", "the folder of a SAM of transformers (it has config.json)", is_sam, SamSegmenter),
        Format(
            "network",
            "a network with a description beside it (net.yaml with net.pt, .safetensors or .ts)",
            lambda path: is_described(path) or is_lone(path),  # the lone are told what they lack
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
    found = recognised(path)
    return None if found is None else found.load(path, device, trust)


def recognised(path: Path) -> Format | None:
    """The format of what lies at a path, by a glance at its files; None where it is none of them."""
    if not os.path.exists(path):  # false, not an error, for what is too long for a path
        return None
    return next((kind for kind in formats() if kind.recognises(path)), None)


def load_registered(name: str, device: torch.device, trust: bool = False) -> Segmenter | None:
    """A network that an installed package offers under this name; None where none does.

    Parameters
    ----------
    name
        ``deepbet``, ``totalsegmentator:TASK``, ``hf-hub:OWNER/NAME`` (a SAM), or what an entry point is called.
    device, trust
        As for `load`.

    Raises
    ------
    InputError
        The package is missing or fails to make it.
    """
    from XAICLIPLib.segmentation.networks import deepbet, sam, totalsegmentator
    from XAICLIPLib.segmentation.networks.described import from_object

    if name.partition(":")[0] == totalsegmentator.PREFIX.rstrip(":"):
        return totalsegmentator.load(name, device, trust)
    if name == "deepbet":
        return deepbet.load(device)
    if name.startswith(sam.HUB):
        return sam.SamSegmenter(name, device)
    for offered in entry_points(group=ENTRY_POINTS):
        if offered.name == name:
            try:
                made = offered.load()(device)
            except InputError:
                raise
            except Exception as error:  # whatever the package raises
                told = reason(error)
                raise InputError(f"The network {name} of an installed package does not load ({told}).") from error
            segmenter: Segmenter = from_object(made) if hasattr(made, "predict") else made
            return segmenter
    return None


def registered() -> list[str]:
    """Names that installed packages offer, whose weights are here."""
    from XAICLIPLib.segmentation.networks import totalsegmentator

    return [*totalsegmentator.available(), *sorted({offered.name for offered in entry_points(group=ENTRY_POINTS)})]


def what_to_give() -> str:
    """What a user can give, in words."""
    return "; ".join(kind.looks_like for kind in formats())
