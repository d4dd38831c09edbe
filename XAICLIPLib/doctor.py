"""What would run here, and what is missing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch

from XAICLIPLib import catalog
from XAICLIPLib.devices import choose_device
from XAICLIPLib.errors import InputError
from XAICLIPLib.localization.openclip import import_open_clip
from XAICLIPLib.record import PACKAGES, versions


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name, found
        What was looked at, and what was found.
    ok
        Whether it can be used.
    remedy
        What to do where not.
    optional
        Everything runs without it, slower or with less.
    """

    name: str
    found: str
    ok: bool = True
    remedy: str = ""
    optional: bool = False


def examine() -> list[Check]:
    """Look at Python, the packages, the device and the shipped models."""
    found = versions()
    checks = [
        Check("xaiclip", found["xaiclip"]),
        Check("Python", f"{found['python']} on {platform.system()} {platform.machine()}"),
    ]
    for package in PACKAGES:
        remedy = f"pip install {package}"
        checks.append(Check(package, found[package] or "not installed", bool(found[package]), remedy))
    checks.append(_open_clip())
    device = choose_device()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        checks.append(Check("device", f"cuda, {properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    else:
        cores = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
        remedy = "an explanation takes minutes on a CPU and seconds on a CUDA GPU"
        checks.append(Check("device", f"{device.type}, {cores}", device.type != "cpu", remedy, optional=True))
    for entry in catalog.entries():
        if entry.folder is None:
            checks.append(Check(entry.name, f"{entry.kind}, downloaded from {entry.source} on first use"))
            continue
        try:
            entry.check()
            checks.append(Check(entry.name, f"{entry.kind}, complete, checksums right"))
        except InputError as error:
            checks.append(Check(entry.name, str(error), False, "install XAI-CLIP again"))
    return checks


def _open_clip() -> Check:
    try:
        import_open_clip()
    except Exception as error:  # whatever a half-broken installation raises
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Check("open_clip import", first, False, "pip install --force-reinstall torch torchvision of one release")
    return Check("open_clip import", "works")
