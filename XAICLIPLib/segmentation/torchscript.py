"""TorchScript files: programs in PyTorch's own language, read before they are run.

TorchScript cannot start processes or import modules, but it can read and write files, and does so as soon as it is
loaded if its author wants it to. The text of the program lies in the archive, and is searched before PyTorch sees it.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import torch

from XAICLIPLib.errors import InputError

LARGEST_PROGRAM = 64 << 20
"""Bytes of program text: that of a large network has some hundred kilobytes."""

_FILES = re.compile(r"\b(?:torch|aten)(?:\.|::)(save|load|from_file)\b|\bops\.aten\.(save|load|from_file)\b")
_FOREIGN = re.compile(r"\b(?:torch\.)?ops\.(?!prim\b|aten\b|quantized\b|torchvision\b|profiler\b)(\w+)\.")
"""Operators that other packages register: what they do cannot be known here."""


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; a checkpoint is a zip archive as well, but holds no program."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_torchscript(path: Path, device: torch.device, trust: bool = False) -> torch.jit.ScriptModule:
    """Load a network from TorchScript, in evaluation mode, without gradients of its weights.

    Parameters
    ----------
    path
        A file of ``torch.jit.save``.
    device
        Where it runs.
    trust
        Load a program that reads or writes files, or calls operators of other packages.

    Raises
    ------
    InputError
        The file is damaged, or its program is not trusted.
    """
    try:
        if not trust:
            _refuse_files(path)
        network = torch.jit.load(str(path), map_location=device)
    except InputError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        told = " ".join(str(error).split())[:160]
        raise InputError(f"The TorchScript file {path} cannot be loaded ({told}): get the file again.") from error
    for parameter in network.parameters():  # a script module has no requires_grad_
        parameter.requires_grad_(False)
    return network.eval()


def _refuse_files(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if "/code/" not in member.filename or not member.filename.endswith(".py"):
                continue
            if member.file_size > LARGEST_PROGRAM:
                raise InputError(f"The TorchScript file {path} holds a program of {member.file_size >> 20} MB.")
            # Its parser allows blanks around a dot, as Python's does.
            program = re.sub(r"[\s\\]*\.[\s\\]*", ".", archive.read(member).decode("utf-8", "replace"))
            found = _FILES.search(program) or _FOREIGN.search(program)
            if found:
                raise InputError(
                    f"The program in {path} would call {found.group(0).rstrip('.')}, which is no computation of a "
                    "network; read it, and if you trust it, say so with --trust."
                )
