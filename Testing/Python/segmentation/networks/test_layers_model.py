"""Networks of TensorFlow.js against a NumPy forward of the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from XAICLIPLib.errors import InputError
from XAICLIPLib.segmentation.networks.layers_model import reach, read_layers_model, run_within

Array = NDArray[np.float32]

CHAIN: list[dict[str, Any]] = [
    {"kind": "InputLayer", "name": "input", "batch_input_shape": [None, 16, 16, 16, 1]},
    {"kind": "Conv3D", "name": "a", "filters": 4, "kernel_size": [3, 3, 3], "dilation_rate": [1, 2, 3]},
    {"kind": "BatchNormalization", "name": "norm", "axis": [4], "epsilon": 0.01},
    {"kind": "Activation", "name": "act", "activation": "elu"},
    {"kind": "Dropout", "name": "drop", "rate": 0.5},
    {"kind": "Conv3D", "name": "b", "filters": 3, "kernel_size": [3, 1, 5], "activation": "relu", "use_bias": False},
    {"kind": "Conv3D", "name": "c", "filters": 2, "kernel_size": [1, 1, 1]},
]


def weights_of(chain: list[dict[str, Any]]) -> dict[str, Array]:
    """Random weights for a chain, by their Keras names."""
    rng, channels, found = np.random.default_rng(0), 1, {}
    for layer in chain:
        name = layer["name"]
        if layer["kind"] == "Conv3D":
            found[f"{name}/kernel"] = rng.normal(size=(*layer["kernel_size"], channels, layer["filters"])) * 0.3
            channels = layer["filters"]
            if layer.get("use_bias", True):
                found[f"{name}/bias"] = rng.normal(size=channels)
        if layer["kind"] == "BatchNormalization":
            for what in ("gamma", "beta", "moving_mean"):
                found[f"{name}/{what}"] = rng.normal(size=channels)
            found[f"{name}/moving_variance"] = rng.uniform(0.5, 2, channels)
    return {name: np.asarray(values, np.float32) for name, values in found.items()}


def write_model(
    folder: Path, chain: list[dict[str, Any]] = CHAIN, weights: dict[str, Array] | None = None, sequential: bool = False
) -> Path:
    """Save a chain as TensorFlow.js does; padding is "same" where it is not said."""
    folder.mkdir(exist_ok=True)
    layers, before = [], None
    for layer in chain:
        config = {"padding": "same", "data_format": "channels_last"} if layer["kind"] == "Conv3D" else {}
        config |= {key: value for key, value in layer.items() if key != "kind"}
        nodes = [] if before is None else [[[before, 0, 0, {}]]]
        layers.append({"class_name": layer["kind"], "config": config, "name": layer["name"], "inbound_nodes": nodes})
        before = layer["name"]
    kind = "Sequential" if sequential else "Functional"
    weights = weights_of(chain) if weights is None else weights
    content = {
        "format": "layers-model",
        "modelTopology": {"model_config": {"class_name": kind, "config": {"name": "m", "layers": layers}}},
        "weightsManifest": [
            {
                "paths": ["model.bin"],
                "weights": [{"name": n, "shape": list(w.shape), "dtype": "float32"} for n, w in weights.items()],
            }
        ],
    }
    (folder / "model.json").write_text(json.dumps(content))
    (folder / "model.bin").write_bytes(b"".join(w.astype("<f4").tobytes() for w in weights.values()))
    return folder / "model.json"


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def layers_of(content: Any) -> list[Any]:
    found: list[Any] = content["modelTopology"]["model_config"]["config"]["layers"]
    return found


def forward_in_numpy(path: Path, volume: Array) -> Array:
    """The network straight from its files: (X, Y, Z) to (X, Y, Z, K), channels last, as Keras does it."""
    content = json.loads(path.read_text())
    data, weights, start = (path.parent / "model.bin").read_bytes(), {}, 0
    for entry in content["weightsManifest"][0]["weights"]:
        count = int(np.prod(entry["shape"]))
        weights[entry["name"]] = np.frombuffer(data, "<f4", count, start).reshape(entry["shape"]).astype(np.float64)
        start += 4 * count
    assert start == len(data)
    values = volume[..., None].astype(np.float64)
    for layer in layers_of(content):
        config, name = layer["config"], layer["config"]["name"]
        if layer["class_name"] == "Conv3D":
            kernel, dilation = weights[f"{name}/kernel"], config.get("dilation_rate", [1, 1, 1])
            pads = [(d * (k - 1) // 2,) * 2 for d, k in zip(dilation, kernel.shape, strict=False)]
            padded = np.pad(values, [*pads, (0, 0)])
            values = np.zeros((*values.shape[:3], kernel.shape[-1]))
            for tap in product(*(range(k) for k in kernel.shape[:3])):
                at = tuple(slice(t * d, t * d + n) for t, d, n in zip(tap, dilation, values.shape, strict=False))
                values += padded[at] @ kernel[tap]
            if config.get("use_bias", True):
                values += weights[f"{name}/bias"]
        if layer["class_name"] == "BatchNormalization":
            gamma, beta, mean, variance = (
                weights[f"{name}/{what}"] for what in ("gamma", "beta", "moving_mean", "moving_variance")
            )
            values = (values - mean) / np.sqrt(variance + config["epsilon"]) * gamma + beta
        activation = config.get("activation", "linear")
        if activation == "relu":
            values = np.maximum(values, 0)
        if activation == "elu":
            values = np.where(values > 0, values, np.expm1(np.minimum(values, 0)))
    return values.astype(np.float32)


def run(path: Path, volume: Array) -> Array:
    with torch.inference_mode():
        output: Array = read_layers_model(path).network(torch.from_numpy(volume)[None, None])[0].numpy()
    return output.transpose(1, 2, 3, 0)


def volume_of(*shape: int) -> Array:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_network_says_what_its_file_says(tmp_path: Path, sequential: bool) -> None:
    path = write_model(tmp_path / "m", sequential=sequential)
    volume = volume_of(9, 11, 13)
    model = read_layers_model(path)
    assert (model.channels, model.classes, model.activation) == (1, 2, "softmax")
    np.testing.assert_allclose(run(path, volume), forward_in_numpy(path, volume), atol=1e-5)


def test_a_real_meshnet_says_what_its_file_says(shared_data: Path) -> None:
    path = shared_data / "brain_mr" / "model20chan3cls" / "model.json"
    volume = volume_of(20, 18, 22)
    expected = forward_in_numpy(path, volume)
    np.testing.assert_allclose(run(path, volume), expected, atol=1e-5 * float(np.abs(expected).max()))


def test_weights_in_several_shards_and_smaller_types_are_read(tmp_path: Path) -> None:
    weights = weights_of(CHAIN)
    path = write_model(tmp_path / "m", weights=weights)
    volume, whole = volume_of(6, 7, 8), (tmp_path / "m" / "model.bin").read_bytes()
    expected = run(path, volume)
    (tmp_path / "m" / "model.bin").unlink()
    (tmp_path / "m" / "one").write_bytes(whole[:101])
    (tmp_path / "m" / "two").write_bytes(whole[101:])
    edit(path, lambda c: c["weightsManifest"][0].update(paths=["one", "two"]))
    np.testing.assert_array_equal(run(path, volume), expected)

    stored = []
    entries = json.loads(path.read_text())["weightsManifest"][0]["weights"]
    for number, entry in enumerate(entries):
        values = weights[entry["name"]]
        low, scale = float(values.min()), float(np.ptp(values) or 1) / 65535
        kind = ("float16", "uint16")[number % 2]
        entry["quantization"] = {"dtype": kind, "min": low, "scale": scale}
        packed = np.round((values - low) / scale) if kind == "uint16" else values
        stored.append(packed.astype("<u2" if kind == "uint16" else "<f2").tobytes())
    (tmp_path / "m" / "one").write_bytes(b"".join(stored))
    edit(path, lambda c: c["weightsManifest"][0].update(paths=["one"], weights=entries))
    np.testing.assert_allclose(run(path, volume), expected, atol=0.02)


def test_nothing_farther_than_its_reach_changes_an_output(tmp_path: Path) -> None:
    network = read_layers_model(write_model(tmp_path / "m")).network
    assert reach(network) == (1 + 1, 2 + 0, 3 + 2)
    volume = torch.from_numpy(volume_of(15, 15, 15))[None, None].requires_grad_()
    network(volume)[0, :, 7, 7, 7].sum().backward()
    assert volume.grad is not None
    seen = torch.nonzero(volume.grad[0, 0]) - 7
    assert seen.abs().amax(0).tolist() == [2, 2, 5]


@pytest.mark.parametrize("start", [(0, 0, 0), (7, 6, 9), (11, 8, 14)])
def test_inside_a_box_a_chain_says_the_same_for_less_work(tmp_path: Path, start: tuple[int, int, int]) -> None:
    network = read_layers_model(write_model(tmp_path / "m")).network
    patches = torch.from_numpy(volume_of(2, 1, 15, 12, 20))
    box = tuple(slice(s, s + n) for s, n in zip(start, (4, 4, 6), strict=True))
    with torch.inference_mode():
        whole, part = network(patches), run_within(network, patches, box)
    torch.testing.assert_close(part[(..., *box)], whole[(..., *box)], atol=1e-5, rtol=0)
    assert part.shape == whole.shape
    assert torch.count_nonzero(part) == torch.count_nonzero(part[(..., *box)]) > 0


def test_a_last_sigmoid_or_softmax_is_told_and_not_run(tmp_path: Path) -> None:
    volume = volume_of(5, 5, 5)
    plain = run(write_model(tmp_path / "plain"), volume)
    for words in ("sigmoid", "softmax"):
        path = write_model(tmp_path / words, [*CHAIN, {"kind": "Activation", "name": "end", "activation": words}])
        assert read_layers_model(path).activation == words
        np.testing.assert_array_equal(run(path, volume), plain)


REFUSED = {
    "a layer MaxPooling3D (pool)": {"kind": "MaxPooling3D", "name": "pool"},
    "a layer Conv3DTranspose (up)": {"kind": "Conv3DTranspose", "name": "up"},
    "strides (2, 2, 2)": {"kind": "Conv3D", "name": "x", "filters": 2, "kernel_size": [3] * 3, "strides": [2, 2, 2]},
    "padding valid": {"kind": "Conv3D", "name": "x", "filters": 2, "kernel_size": [3] * 3, "padding": "valid"},
    "groups": {"kind": "Conv3D", "name": "x", "filters": 2, "kernel_size": [3] * 3, "groups": 2},
    "the activation swish": {"kind": "Activation", "name": "x", "activation": "swish"},
    "along axis 1": {"kind": "BatchNormalization", "name": "x", "axis": 1},
    "different axes": {
        "kind": "Conv3D",
        "name": "x",
        "filters": 2,
        "kernel_size": [1] * 3,
        "data_format": "channels_first",
    },
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_layer_that_is_not_understood_is_refused_by_name(tmp_path: Path, reason: str) -> None:
    chain = [*CHAIN[:3], REFUSED[reason], *CHAIN[3:]]
    with pytest.raises(InputError) as error:
        read_layers_model(write_model(tmp_path / "m", chain))
    assert reason in str(error.value)


def test_a_softmax_inside_the_network_and_a_branch_are_refused(tmp_path: Path) -> None:
    inside = {"kind": "Activation", "name": "soft", "activation": "softmax"}
    with pytest.raises(InputError, match="softmax before its end"):
        read_layers_model(write_model(tmp_path / "a", [*CHAIN[:3], inside, *CHAIN[3:]]))
    path = write_model(tmp_path / "b")
    edit(path, lambda c: layers_of(c)[3].update(inbound_nodes=[[["a", 0, 0, {}]]]))
    with pytest.raises(InputError, match="branches at its layer act"):
        read_layers_model(path)


@pytest.mark.parametrize("change", [-1, -4, 4])
def test_weights_that_are_cut_off_or_too_long_are_refused(tmp_path: Path, change: int) -> None:
    path = write_model(tmp_path / "m")
    data = (tmp_path / "m" / "model.bin").read_bytes()
    (tmp_path / "m" / "model.bin").write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    with pytest.raises(InputError, match=r"bytes where its list asks for"):
        read_layers_model(path)


def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    def refuse(change: Callable[[Any], Any], match: str) -> None:
        path = write_model(tmp_path / "m")
        edit(path, change)
        with pytest.raises(InputError, match=match):
            read_layers_model(path)

    def first(content: Any) -> Any:
        return content["weightsManifest"][0]["weights"][0]

    refuse(lambda c: c["weightsManifest"][0].update(paths=["../model.bin"]), "outside its folder")
    refuse(lambda c: c["weightsManifest"][0].update(paths=["other.bin"]), "cannot be read")
    refuse(lambda c: first(c).update(dtype="int32"), "not supported")
    refuse(lambda c: first(c).update(name="else/kernel"), "has no weights a/kernel")
    refuse(lambda c: first(c).update(shape=[3, 3, 3, 4, 1]), "of shape")
    refuse(lambda c: first(c).update(shape=[-3, 3, 3, 4, -1]), "not laid out")
    refuse(lambda c: c["modelTopology"].pop("model_config"), "not laid out")
    refuse(lambda c: c.pop("weightsManifest"), "not laid out")
    refuse(lambda c: layers_of(c).pop(), "none of its layers takes")
    refuse(lambda c: layers_of(c)[0]["config"].update(batch_input_shape=[None, 9, 9, 1]), "2D images")
    path = write_model(tmp_path / "m")
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_layers_model(path)
