"""Networks saved for TensorFlow.js, as PyTorch modules: ``model.json`` and the shards of weights beside it.

Only what a plain chain of 3D convolutions needs is read; every other layer is refused by name, as a network that was
understood in part would still draw something.

References
----------
TensorFlow.js, "Importing a Keras model": a Keras topology and a list (``weightsManifest``) of the weights in the order
in which they lie in the files, little-endian.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.boxes import Box
from XAICLIPLib.segmentation.segmenter import Activation

_IDENTITY = ("Dropout", "SpatialDropout3D")
"""Layers that do nothing but while training."""

T = TypeVar("T")

LARGEST_WIDTH = 4096
"""Channels of a layer: more is no network, but a damaged file."""

_TYPES = {"float32": "<f4", "float16": "<f2", "uint8": "<u1", "uint16": "<u2"}


@dataclass(frozen=True)
class LayersModel:
    """A network of TensorFlow.js.

    Attributes
    ----------
    network
        (N, C, X, Y, Z) to logits (N, K, X, Y, Z), on the CPU.
    channels, classes
        C and K.
    activation
        How its logits become probabilities: what its last layer says, softmax where it has no activation.
    comment
        What its makers wrote into the file.
    sha256
        Of the weights, all files together.
    """

    network: nn.Sequential
    channels: int
    classes: int
    activation: Activation
    comment: str
    sha256: str


def read_layers_model(path: Path) -> LayersModel:
    """Read a ``model.json`` with its weights.

    Raises
    ------
    InputError
        The file is damaged, its weights are missing or of another size, or the network is no plain chain of 3D
        convolutions that keep the volume's size.
    """
    content = read_json(path)
    try:
        layers = _chain(content, path)
        weights, digest = _read_weights(content["weightsManifest"], path)
        network, channels, classes, activation = _build(layers, weights, path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise InputError(
            f"The model {path} is not laid out as TensorFlow.js lays out a layers-model "
            f"({type(error).__name__}: {error}): get the file again."
        ) from error
    return LayersModel(network, channels, classes, activation, str(content.get("_comment", "")), digest)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file whose top is a mapping.

    Raises
    ------
    InputError
        It cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError("it holds no mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): get the file again.") from error
    return content


def is_layers_model(content: Mapping[str, Any]) -> bool:
    """Whether the content of a JSON file is a TensorFlow.js layers-model with 3D convolutions."""
    return "modelTopology" in content and "weightsManifest" in content and "'Conv3D'" in str(content["modelTopology"])


def reach(network: nn.Sequential) -> tuple[int, int, int]:
    """Voxels along each axis beyond which the input does not change the output of a chain of convolutions."""
    x, y, z = (sum(steps) for steps in zip(*(reach_of(layer) for layer in network), (0, 0, 0), strict=True))
    return x, y, z


def reach_of(layer: nn.Module) -> tuple[int, int, int]:
    """The same of one layer; along an even kernel, which reaches farther on one side, the longer way."""
    if not isinstance(layer, nn.Conv3d):
        return 0, 0, 0
    x, y, z = (math.ceil(d * (k - 1) / 2) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    return x, y, z


def run_within(network: nn.Sequential, patches: Tensor, box: Box) -> Tensor:
    """What a chain of convolutions says inside a box of the patches, and 0 elsewhere.

    Of each layer's output only what still reaches the box is computed, so that most of the work around it is spared;
    inside it nothing changes.

    Parameters
    ----------
    network
        Convolutions with padding "same", and layers that look at single voxels.
    patches
        (N, C, X, Y, Z).
    box
        Bounds in the patches.

    Returns
    -------
    Tensor
        (N, K, X, Y, Z).
    """
    full = patches.shape[2:]
    left = list(reach(network))
    here = [(0, n) for n in full]  # where the values lie in the patch
    values = patches
    for layer in network:
        if not isinstance(layer, nn.Conv3d):
            values = layer(values)
            continue
        left = [a - b for a, b in zip(left, reach_of(layer), strict=True)]
        want = [(max(b.start - r, 0), min(b.stop + r, n)) for b, r, n in zip(box, left, full, strict=True)]
        cuts, pads = [], []
        for (start, stop), (own, _), n, k, d in zip(want, here, full, layer.kernel_size, layer.dilation, strict=True):
            before = d * (k - 1) // 2
            a, b = start - before, stop + d * (k - 1) - before
            cuts.append(slice(max(a, 0) - own, min(b, n) - own))
            pads.append((max(-a, 0), max(b - n, 0)))  # the patch ends here, as it does for the whole network
        values = values[(slice(None), slice(None), *cuts)]
        if any(any(pair) for pair in pads):
            values = functional.pad(values, [side for pair in reversed(pads) for side in pair])
        values = functional.conv3d(values, layer.weight, layer.bias, dilation=layer.dilation)
        here = want
    output = values.new_zeros((*values.shape[:2], *full))
    output[(slice(None), slice(None), *box)] = values
    return output


# --- topology -----------------------------------------------------------------------------------


def _chain(content: Mapping[str, Any], path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Class and configuration of each layer, from the input to the output."""
    topology = content["modelTopology"]
    model = topology.get("model_config", topology)
    kind, inner = model["class_name"], model["config"]
    if kind not in ("Sequential", "Functional", "Model"):
        raise InputError(f"The model {path} is a {kind}, which is not supported: give one that is a chain of layers.")
    listed = inner["layers"] if isinstance(inner, dict) else inner
    if kind != "Sequential":
        before = None
        for layer in listed:
            nodes = [source[0] for node in layer["inbound_nodes"] for source in node]
            if nodes != ([] if before is None else [before]):
                raise InputError(
                    f"The model {path} branches at its layer {layer['config']['name']}, which is not supported: give "
                    "one that is a chain of layers."
                )
            before = layer["config"]["name"]
    return [(str(layer["class_name"]), dict(layer["config"])) for layer in listed]


def _build(
    layers: list[tuple[str, dict[str, Any]]], weights: dict[str, NDArray[np.float32]], path: Path
) -> tuple[nn.Sequential, int, int, Activation]:
    """The network with its weights; channels, classes and the activation that its last layer asks for."""
    modules: list[nn.Module] = []
    activations: list[str] = []  # of the outputs: softmax and sigmoid, which are not run
    channels = classes = 0
    last_axis = True

    def refuse(what: str, name: str) -> InputError:
        return InputError(f"The model {path} has {what} ({name}), which is not supported: give another model.")

    def take(name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in weights:
            raise InputError(f"The model {path} has no weights {name}: get the file again.")
        array = weights.pop(name)
        if array.shape != shape:
            raise InputError(
                f"The model {path} has weights {name} of shape {array.shape} where its layers need {shape}: get the "
                "file again."
            )
        return torch.from_numpy(array)

    def activate(words: str, name: str, alpha: float | None = None) -> None:
        made = _activation(words, alpha)
        if words in ("softmax", "sigmoid"):
            activations.append(words)
        elif words != "linear" and made is None:
            raise refuse(f"the activation {words}", name)
        elif made is not None:
            modules.append(made)

    for kind, config in layers:
        name = str(config["name"])
        if activations and kind not in _IDENTITY:
            raise refuse(f"a {activations[0]} before its end", name)
        shape = config.get("batch_input_shape")
        if shape is not None and not channels:
            if len(shape) != 5:
                raise InputError(f"The model {path} takes {len(shape) - 2}D images: choose one for 3D volumes.")
            first = next((c for _, c in layers if "data_format" in c), {})
            last_axis = first.get("data_format", "channels_last") == "channels_last"
            channels = classes = int(shape[-1 if last_axis else 1])
            if not 1 <= channels <= LARGEST_WIDTH:
                raise refuse(f"an input of {channels} channels", name)
        if kind == "InputLayer" or kind in _IDENTITY:
            continue
        if kind == "Conv3D":
            conv = _convolution(config, classes, last_axis, take, refuse, name)
            modules.append(conv)
            classes = conv.out_channels
            activate(str(config.get("activation", "linear")), name)
        elif kind == "BatchNormalization":
            modules.append(_batch_norm(config, classes, last_axis, take, refuse, name))
        elif kind == "Activation":
            activate(str(config["activation"]), name)
        elif kind == "ReLU" and not any(config.get(k) for k in ("max_value", "negative_slope", "threshold")):
            activate("relu", name)
        elif kind == "ELU":
            activate("elu", name, float(config.get("alpha", 1.0)))
        elif kind == "LeakyReLU":
            activate("leaky_relu", name, float(config.get("alpha", 0.3)))
        elif kind == "Softmax" and config.get("axis", -1) in ((-1, 4) if last_axis else (1,)):
            activate("softmax", name)
        else:
            raise refuse(f"a layer {kind}", name)
    if weights:
        raise InputError(f"The model {path} has weights that none of its layers takes ({', '.join(sorted(weights))}).")
    if channels < 1 or not any(isinstance(module, nn.Conv3d) for module in modules):
        raise InputError(f"The model {path} has no 3D convolution: give another model.")
    if len(activations) > 1:
        raise refuse(f"a {activations[0]} before its end", "the last layer")
    network = nn.Sequential(*modules).eval().requires_grad_(False)
    return network, channels, classes, "sigmoid" if activations == ["sigmoid"] else "softmax"


def _activation(words: str, alpha: float | None) -> nn.Module | None:
    makers: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "elu": lambda: nn.ELU(1.0 if alpha is None else alpha),
        "selu": nn.SELU,
        "gelu": nn.GELU,
        "tanh": nn.Tanh,
        "leaky_relu": lambda: nn.LeakyReLU(0.2 if alpha is None else alpha),
    }
    return makers[words]() if words in makers else None


def _convolution(
    config: Mapping[str, Any],
    channels: int,
    last_axis: bool,
    take: Callable[[str, tuple[int, ...]], Tensor],
    refuse: Callable[[str, str], InputError],
    name: str,
) -> nn.Conv3d:
    size = tuple(int(k) for k in config["kernel_size"])
    strides = tuple(int(s) for s in config.get("strides", (1, 1, 1)))
    dilation = tuple(int(d) for d in config.get("dilation_rate", (1, 1, 1)))
    if (config.get("data_format", "channels_last") == "channels_last") != last_axis:
        raise refuse("layers with the channels on different axes", name)
    if strides != (1, 1, 1):
        raise refuse(f"a convolution with strides {strides}", name)
    if config.get("padding") != "same" and size != (1, 1, 1):
        raise refuse(f"a convolution with padding {config.get('padding')}", name)
    if int(config.get("groups", 1)) != 1:
        raise refuse("a convolution in groups", name)
    if len(size) != 3 or min(*size, *dilation) < 1 or max(*size, *dilation) > 1024:
        raise refuse(f"a convolution of size {size} and dilation {dilation}", name)
    filters = int(config["filters"])
    if not 1 <= filters <= LARGEST_WIDTH:
        raise refuse(f"a convolution to {filters} channels", name)
    # Before the module is made: a file that lies about its sizes is to be refused, not to fill the memory.
    kernel = take(f"{name}/kernel", (*size, channels, filters)).permute(4, 3, 0, 1, 2).contiguous()
    bias = take(f"{name}/bias", (filters,)) if config.get("use_bias", True) else None
    (kx, ky, kz), (dx, dy, dz) = size, dilation
    conv = nn.Conv3d(channels, filters, (kx, ky, kz), padding="same", dilation=(dx, dy, dz), bias=bias is not None)
    conv.weight = nn.Parameter(kernel)
    conv.bias = None if bias is None else nn.Parameter(bias)
    return conv


def _batch_norm(
    config: Mapping[str, Any],
    channels: int,
    last_axis: bool,
    take: Callable[[str, tuple[int, ...]], Tensor],
    refuse: Callable[[str, str], InputError],
    name: str,
) -> nn.BatchNorm3d:
    axis = config.get("axis", -1)
    if (axis[0] if isinstance(axis, list) and len(axis) == 1 else axis) not in ((-1, 4) if last_axis else (1,)):
        raise refuse(f"a batch normalisation along axis {axis}", name)
    norm = nn.BatchNorm3d(channels, eps=float(config.get("epsilon", 1e-3)))
    shape = (channels,)
    if config.get("scale", True):
        norm.weight = nn.Parameter(take(f"{name}/gamma", shape))
    if config.get("center", True):
        norm.bias = nn.Parameter(take(f"{name}/beta", shape))
    norm.running_mean = take(f"{name}/moving_mean", shape)
    norm.running_var = take(f"{name}/moving_variance", shape)
    return norm


# --- weights ------------------------------------------------------------------------------------


def _read_weights(manifest: list[dict[str, Any]], path: Path) -> tuple[dict[str, NDArray[np.float32]], str]:
    """Every weight by its name, and the checksum of the files."""
    found: dict[str, NDArray[np.float32]] = {}
    digest = hashlib.sha256()
    for group in manifest:
        names = [str(name) for name in group["paths"]]
        held = sum(_size_of_shard(path.parent, name) for name in names)  # before any is in memory
        needed = sum(_length(entry, path) for entry in group["weights"])
        if needed != held:
            raise InputError(
                f"The weights {', '.join(map(str, group['paths']))} of the model {path} have {held} bytes where "
                f"its list asks for {needed}, so one is cut off or belongs to another model: get the files again."
            )
        data = b"".join(_of_shard(Path.read_bytes, path.parent, name) for name in names)
        digest.update(data)
        start = 0
        for entry in group["weights"]:
            end = start + _length(entry, path)
            found[str(entry["name"])] = _decoded(entry, data[start:end], path)
            start = end
    return found, digest.hexdigest()


def _size_of_shard(folder: Path, name: str) -> int:
    return _of_shard(Path.stat, folder, name).st_size


def _of_shard(ask: Callable[[Path], T], folder: Path, name: str) -> T:
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name:  # the file may come from anybody
        raise InputError(f"The model in {folder} names weights outside its folder ({name}): it is not to be trusted.")
    try:
        return ask(folder / name)
    except OSError as error:
        reason = error.strerror or "unknown reason"
        raise InputError(
            f"The weights {folder / name} cannot be read ({reason}): put the file beside its model.json."
        ) from error


def _stored_type(entry: Mapping[str, Any], path: Path) -> np.dtype[Any]:
    stored = entry.get("quantization", entry)["dtype"]
    if entry["dtype"] != "float32" or stored not in _TYPES:
        raise InputError(
            f"The model {path} stores its weights {entry['name']} as {stored} for {entry['dtype']}, which is not "
            "supported: convert it with float32 weights."
        )
    return np.dtype(_TYPES[stored])


def _length(entry: Mapping[str, Any], path: Path) -> int:
    shape = [int(n) for n in entry["shape"]]
    if any(n < 1 for n in shape):
        raise ValueError(f"the shape {shape} of {entry['name']}")
    return math.prod(shape) * _stored_type(entry, path).itemsize


def _decoded(entry: Mapping[str, Any], data: bytes, path: Path) -> NDArray[np.float32]:
    stored = np.frombuffer(data, _stored_type(entry, path))
    values = stored.astype(np.float32)
    if stored.dtype.kind == "u":  # linear quantisation
        values = values * np.float32(entry["quantization"]["scale"]) + np.float32(entry["quantization"]["min"])
    if not np.isfinite(values).all():
        raise InputError(f"The model {path} has weights {entry['name']} that are no numbers: get the files again.")
    return values.reshape([int(n) for n in entry["shape"]])
