"""The devices that networks run on."""

from __future__ import annotations

import torch

from XAICLIPLib.errors import CPU, InputError


def choose_device(name: str = "auto") -> torch.device:
    """The device of this name; ``auto`` takes a CUDA GPU, else Apple's, else the CPU.

    Raises
    ------
    InputError
        There is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, colon, number = name.partition(":")
    available = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}
    if kind not in available or bool(colon) != (number.isascii() and number.isdecimal()):
        raise InputError(f"There is no device {name!r}: choose auto, cpu, cuda, cuda:1 or mps.")
    if int(number or 0) >= available[kind]:
        present = ", ".join(kind for kind, count in available.items() if count)
        raise InputError(
            f"The device {name} is not available to PyTorch {torch.__version__} here ({present} is): "
            f"{CPU}, or install a PyTorch that was built for your GPU.",
            CPU,
        )
    return torch.device(kind, int(number)) if number else torch.device(kind)


def available_devices() -> dict[str, str]:
    """A readable description of each device of this machine, by the name that `choose_device` takes; the CPU first."""
    descriptions = {"cpu": f"CPU, {torch.get_num_threads()} threads"}
    try:
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            descriptions[f"cuda:{number}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    except RuntimeError:  # the GPU's driver does not work
        pass
    if torch.backends.mps.is_available():
        descriptions["mps"] = "Apple GPU"
    return descriptions
