"""The command ``xaiclip doctor``: whether explanations can run on this machine, and what is missing.

Only the standard library is imported at first: this command must run where packages are missing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from XAICLIPLib import __version__
from XAICLIPLib.commands.models import NOT_HERE
from XAICLIPLib.commands.terminal import print_json, print_output
from XAICLIPLib.errors import InputError, first_line
from XAICLIPLib.system.packages import REQUIREMENTS, installed

EXTRAS = {
    "transformers": "only for SAM and for localizers with a Hugging Face text tower, such as biomedclip",
    "nnunetv2": "only for nnU-Net and TotalSegmentator",
    "highdicom": "only for DICOM objects (explain --dicom)",
}
"""Optional packages, and what needs them."""


@dataclass(frozen=True)
class Diagnosis:
    """The state of one package, device or model. The fields are the keys of ``xaiclip doctor --json``.

    Attributes
    ----------
    name, found
        Of the package, device or model; and its state in words.
    ok
        Whether it can be used.
    remedy
        What to do if it cannot be used.
    optional
        Explanations run without it, but slower or with fewer models.
    here
        False for a model that can be downloaded, but is not on this machine.
    """

    name: str
    found: str
    ok: bool = True
    remedy: str = ""
    optional: bool = False
    here: bool = True


def examine() -> list[Diagnosis]:
    """Examine Python, the packages, the device and the models."""
    checks = [
        Diagnosis("xaiclip", __version__),
        Diagnosis("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]
    checks += [package(name, module, oldest) for name, (module, oldest) in REQUIREMENTS.items()]
    for name, purpose in EXTRAS.items():
        is_installed = find_spec(name) is not None
        remedy = f"pip install {name}, needed {purpose}"
        checks.append(
            Diagnosis(
                name, installed(name) or "installed" if is_installed else "not installed", is_installed, remedy, True
            )
        )
    if all(check.ok for check in checks if check.name in ("torch", "numpy")):
        checks.append(device())
    if all(check.ok for check in checks if check.name in REQUIREMENTS):
        checks += models()
    else:
        checks.append(Diagnosis("models", "not looked at", False, "mend the packages first"))
    return checks


def package(name: str, module: str, oldest: str) -> Diagnosis:
    """Whether a package is installed, recent enough, and can be imported."""
    version = installed(name)
    if not version:
        return Diagnosis(name, "not installed", False, f'pip install "{name}>={oldest}"')
    if _numbers(version) < _numbers(oldest):
        return Diagnosis(name, f"{version}, too old", False, f'pip install --upgrade "{name}>={oldest}"')
    try:
        if module:
            importlib.import_module(module)
        else:
            from XAICLIPLib.localization.openclip import import_open_clip

            import_open_clip()
    except Exception as error:  # whatever a half-broken installation raises
        remedy = f"pip install --force-reinstall {name}"
        if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != module:
            remedy = f"install {error.name.partition('.')[0]}, which it needs"
        elif not module:
            remedy = "pip install --force-reinstall torch torchvision, both of one release"
        return Diagnosis(name, f"{version} does not import ({first_line(error)})", False, remedy)
    return Diagnosis(name, version)


def device() -> Diagnosis:
    """The device that networks would run on. A CPU is good enough: it is reported as optional."""
    import torch

    from XAICLIPLib.system.devices import choose_device

    chosen = choose_device()
    if chosen.type == "cpu":
        remedy = "an explanation takes minutes on a CPU, and seconds on a CUDA GPU"
        if shutil.which("nvidia-smi"):
            remedy += "; here is an NVIDIA driver, but this PyTorch cannot use the GPU: see https://pytorch.org"
        threads, cores = torch.get_num_threads(), os.cpu_count() or 1
        found = f"CPU, {threads} thread{'s' * (threads != 1)} on {cores} core{'s' * (cores != 1)}"
        found += "; no GPU that PyTorch can use"
        return Diagnosis("device", found, False, remedy, optional=True)
    try:
        float(torch.ones(8, device=chosen).sum())
        if chosen.type != "cuda":
            return Diagnosis("device", f"{chosen.type}, Apple's GPU")
        properties = torch.cuda.get_device_properties(chosen)
        return Diagnosis("device", f"cuda, {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    except RuntimeError as error:
        remedy = "install a PyTorch that was built for this GPU and driver (https://pytorch.org), or use --device cpu"
        return Diagnosis("device", f"{chosen.type} is there but does not work ({first_line(error)})", False, remedy)


def models() -> list[Diagnosis]:
    """Whether the installed models are complete and unchanged, and where the others can be downloaded."""
    from XAICLIPLib.models import catalogue

    try:
        entries = catalogue.entries()
    except InputError as error:  # the user's own catalogue
        entries = catalogue.shipped_entries()
        checks = [Diagnosis("catalogue", str(error), False)]
    else:
        checks = []
    for entry in entries:
        what = "segmentation network" if entry.kind == "segmenter" else "localizer"
        try:
            if entry.source != "shipped" and not entry.installed:
                checks.append(Diagnosis(entry.name, f"{what}, {NOT_HERE} (from {entry.origin})", here=False))
                continue
            entry.check()
            unchanged = "complete and unchanged" if entry.checksums else f"from {entry.origin}"
            checks.append(Diagnosis(entry.name, f"{what}, {unchanged}"))
        except InputError as error:  # says the way out
            checks.append(Diagnosis(entry.name, str(error), False, optional=entry.source != "shipped"))
    return checks


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare it with the oldest that works."""
    return tuple(int(n) for n in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))


def add_command(commands: Any) -> None:
    """Add ``xaiclip doctor``."""
    doctor = commands.add_parser(
        "doctor",
        help="say what would run here, and what is missing",
        description="Look at the packages, the device and the models. Exit status: 0 when an explanation can run here "
        "(on a CPU too), 1 when something has to be mended first.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    checks = examine()
    broken = [check for check in checks if not check.ok and not check.optional]
    if options.json:
        print_json([vars(check) for check in checks])
        return 1 if broken else 0
    for check in checks:
        mark = "-   " if not check.here else "ok  " if check.ok else "note" if check.optional else "NO  "
        print_output(f"{mark} {check.name:<16} {check.found}")
        if not check.ok and check.remedy:
            print_output(f"     {'':<16} -> {check.remedy}")
    if broken:
        print_output(f"\nXAI-CLIP cannot run properly here. To mend: {', '.join(check.name for check in broken)}.")
    else:
        print_output("\nAll that is needed is here.")
    return 1 if broken else 0
