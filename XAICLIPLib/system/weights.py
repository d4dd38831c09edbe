"""Reading weights from untrusted files: only tensors are read, no objects and no code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from XAICLIPLib.errors import InputError, reason

_WRAPPERS = ("state_dict", "model_state_dict", "network_weights", "model", "network", "net")
"""Keys under which training scripts keep the state of the network."""

_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to every parameter name."""


def _with_old_and_new_names(maker: Any, name: str) -> list[Any]:
    """A function of NumPy under both module names that files use for it, those of NumPy 1 and of NumPy 2."""
    return [(maker, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")]


NUMPY_NUMBERS: list[Any] = [
    np.dtype,
    *(type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "?")),
    *_with_old_and_new_names(np.float64().__reduce__()[0], "scalar"),
]
"""Types that a file needs for NumPy's numbers. They hold data, and reading them runs no code."""

NUMPY_ARRAYS: list[Any] = [
    *NUMPY_NUMBERS,
    np.ndarray,
    *(type(np.dtype(code)) for code in ("u1", "i1", "i2")),
    *_with_old_and_new_names(np.zeros(1).__reduce__()[0], "_reconstruct"),
]
"""Types that a file needs for NumPy's arrays."""


def read_state(path: Path) -> dict[str, Tensor]:
    """The state of a network, without what training scripts store around it.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or a file of ``torch.save`` with only tensors and plain values.

    Raises
    ------
    InputError
        The file is damaged, holds more than weights, or no state of a network.
    """
    try:
        state = read_plain(path)
    except pickle.UnpicklingError as error:  # its own message advises to load the file unsafely
        raise InputError(f"The weights {path} are damaged or hold more than weights: get the file again.") from error
    except Exception as error:  # a damaged or hostile file fails in many ways
        raise InputError(f"The weights {path} cannot be read ({reason(error)}): get the file again.") from error
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"The weights {path} hold no state of a network: give the file that holds its parameters.")
    parameters = {str(name): value for name, value in state.items()}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in parameters):
            parameters = {name.removeprefix(prefix): value for name, value in parameters.items()}
    return parameters


def read_plain(path: Path) -> Any:
    """The contents of a file of weights: read as safetensors by its ending, else by `load_plain`.

    Raises
    ------
    Exception
        Of any kind: a damaged or hostile file fails in many ways.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return load_plain(path)


def load_plain(path: Path, allowed: Sequence[Any] = ()) -> Any:
    """Read a file of ``torch.save`` to the CPU, if it holds only tensors, plain values and allowed types.

    Parameters
    ----------
    path
        The file.
    allowed
        `NUMPY_NUMBERS` or `NUMPY_ARRAYS`.

    Raises
    ------
    Exception
        Of any kind: a damaged or hostile file fails in many ways.
    """
    refuse_compressed(path)
    with torch.serialization.safe_globals(list(allowed)):
        return torch.load(path, map_location="cpu", weights_only=True)


def refuse_compressed(path: Path) -> None:
    """Refuse a compressed file, which could need far more memory than its size: ``torch.save`` never compresses.

    Raises
    ------
    OSError, ValueError, zipfile.BadZipFile
        The file is damaged, or a zip archive with compressed members, or not laid out as ``torch.save`` does.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, which torch.save never does")
        # PyTorch's reader would find another list of members than zipfile does.
        if archive.comment or min((member.header_offset for member in members), default=0):
            raise ValueError("it holds more than one zip archive")


def load_into(network: torch.nn.Module, path: Path, what: str) -> torch.nn.Module:
    """Give a network the weights of a file, and freeze them.

    Parameters
    ----------
    network
        Changed in place and returned, in evaluation mode.
    path
        See `read_state`.
    what
        The network's name in a message, such as "the bundle's network".

    Raises
    ------
    InputError
        As `read_state`, or the weights are those of another network.
    """
    try:
        network.load_state_dict(read_state(path))
    except InputError:
        raise
    except Exception as error:  # keys or shapes of another network, or no state at all
        raise InputError(f"The weights {path} do not belong to {what} ({reason(error)}).") from error
    # Nothing is trained: without this, inference outside no_grad would keep every patch's graph in memory.
    return network.requires_grad_(False).eval()
