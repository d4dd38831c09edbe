"""Every format of a network on disk, and one function that loads any of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
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
    """A format in which a network is stored on disk.

    Attributes
    ----------
    name
        One word, as the catalogue calls it.
    looks_like
        What the user has to give, in words.
    recognises
        Whether a path is of this format; fast, and never raises.
    load
        Function from path, device and trust to a segmenter.
    """

    name: str
    looks_like: str
    recognises: Callable[[Path], bool]
    load: Callable[[Path, torch.device, bool], Segmenter]


def formats() -> tuple[Format, ...]:
    """All formats, in the order in which they are tried."""
    from XAICLIPLib.segmentation.networks.bundle import BundleSegmenter, is_bundle
    from XAICLIPLib.segmentation.networks.described import is_described, is_weights_file, load_described
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
            lambda path: is_described(path) or is_weights_file(path),  # weights alone are refused with what they lack
            load_described,
        ),
    )


def load(
    path: Path, device: torch.device, trust: bool = False, labels: Mapping[int, str] | None = None
) -> Segmenter | None:
    """The segmenter at a path; None where nothing there is recognised as one.

    Parameters
    ----------
    path
        A file or folder of any of `formats`.
    device
        Where it runs.
    trust
        Run code that the network brings: expressions in a bundle's configuration, TorchScript that touches files.
    labels
        Names of the output channels of a bundle, from 0.

    Raises
    ------
    InputError
        The network is recognised but does not load.
    """
    from XAICLIPLib.segmentation.networks.bundle import BundleSegmenter

    network_format = recognise_format(path)
    if network_format is None:
        return None
    if labels:
        if network_format.load is not BundleSegmenter:
            raise InputError(
                f"The labels are for a MONAI bundle, and {path} is none: its own files name what it draws."
            )
        return BundleSegmenter(path, device, trust, labels)
    return network_format.load(path, device, trust)


def recognise_format(path: Path) -> Format | None:
    """The format of the network at a path, by a quick look at its files; None where it is none of them."""
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
        The package is missing, or the network does not load.
    """
    from XAICLIPLib.segmentation.networks import deepbet, sam, totalsegmentator
    from XAICLIPLib.segmentation.networks.described import from_object

    if name.partition(":")[0] == totalsegmentator.PREFIX.rstrip(":"):
        return totalsegmentator.load(name, device, trust)
    if name == "deepbet":
        return deepbet.load(device)
    if name.startswith(sam.HUB):
        return sam.SamSegmenter(name, device)
    for entry_point in entry_points(group=ENTRY_POINTS):
        if entry_point.name == name:
            try:
                network = entry_point.load()(device)
            except InputError:
                raise
            except Exception as error:  # whatever the package raises
                cause = reason(error)
                raise InputError(f"The network {name} of an installed package does not load ({cause}).") from error
            segmenter: Segmenter = from_object(network) if hasattr(network, "predict") else network
            return segmenter
    return None


def registered_names() -> list[str]:
    """Names of the networks of installed packages, as far as their weights are on this machine."""
    from XAICLIPLib.segmentation.networks import totalsegmentator

    return [
        *totalsegmentator.available(),
        *sorted({entry_point.name for entry_point in entry_points(group=ENTRY_POINTS)}),
    ]


def accepted_formats() -> str:
    """All formats that a user can give, in words."""
    return "; ".join(kind.looks_like for kind in formats())
