"""Descriptions of networks: what is let in, what is refused, and that the sentence names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from XAICLIPLib.errors import InputError
from XAICLIPLib.segmentation.networks.description import Description, Intensity
from XAICLIPLib.segmentation.sliding_window import SlidingWindow

LEAST: dict[str, Any] = {"name": "net", "labels": {0: "background", 1: "liver"}}


def test_every_key_of_the_example_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "liver-net.yaml"
    path.write_text(
        "network: {name: SegResNet, arguments: {init_filters: 16, in_channels: 1, out_channels: 2}}\n"
        "weights: liver-net.pt\nlabels: {0: background, 1: liver}\nactivation: softmax\nmodality: CT\n"
        "inputs: [image]\norientation: las\nspacing_mm: [1.5, 1.5, 2]\n"
        "intensity: {range: [-175, 250], to: [-1, 1]}\nwindow: {size: [96, 96, 64], overlap: 0.25, mode: constant}\n"
        'licence: Apache-2.0\nversion: "1.0"\n'
    )
    assert Description.read(path) == Description(
        name="liver-net",
        labels={0: "background", 1: "liver"},
        modality="CT",
        orientation="LAS",
        spacing_mm=(1.5, 1.5, 2.0),
        intensity=Intensity("range", (-175.0, 250.0), (-1.0, 1.0)),
        window=SlidingWindow((96, 96, 64), 0.25, "constant"),
        network="SegResNet",
        arguments={"init_filters": 16, "in_channels": 1, "out_channels": 2},
        weights="liver-net.pt",
        licence="Apache-2.0",
        version="1.0",
    )


def test_what_is_left_out_has_the_documented_default() -> None:
    made = Description.of({**LEAST, "labels": ["background", "liver"], "spacing_mm": 2}, "net")
    assert made == Description("net", {0: "background", 1: "liver"}, spacing_mm=(2.0, 2.0, 2.0))
    assert (made.orientation, made.inputs, made.activation) == ("RAS", ("image",), "softmax")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"labels": None}, "labels"),
        ({"labels": {1: "liver"}}, "channels 0 to 0"),
        ({"labels": {0: "background"}}, "background as 0 and a structure"),
        ({"labels": {0: "background", 1: ""}}, "labels holds"),
        ({"labels": {"first": "background"}}, "cannot be used"),
        ({"labels": "liver"}, "labels is no list"),
        ({"activation": "relu"}, "give softmax or sigmoid"),
        ({"orientation": "RAR"}, "three letters"),
        ({"orientation": "RLS"}, "three letters"),
        ({"spacing_mm": [1, 1]}, "3 numbers above 0"),
        ({"spacing_mm": [1, 1, 0]}, "3 numbers above 0"),
        ({"spacing_mm": [1, 1, float("nan")]}, "3 numbers above 0"),
        ({"intensity": "zscore"}, "z-score"),
        ({"intensity": {"range": [250, -175]}}, "not in order"),
        ({"intensity": {"percentiles": [1, 101]}}, "0 to 100"),
        ({"intensity": {"range": [0, 1], "percentiles": [0, 1]}}, "neither range nor percentiles"),
        ({"intensity": {"range": [0, 1], "clip": True}}, "unknown key clip"),
        ({"window": {"overlap": 0.5}}, "lacks size"),
        ({"window": {"size": [96, 96]}}, "3 numbers above 0"),
        ({"window": {"size": [96.5, 96, 96]}}, "whole voxels"),
        ({"window": {"size": [96, 96, 96], "overlap": 1}}, "from 0 to below 1"),
        ({"window": {"size": [96, 96, 96], "mode": "hann"}}, "constant or gaussian"),
        ({"network": "SegResNet"}, "not its weights"),
        ({"network": {"class": "SegResNet"}, "weights": "a.pt"}, "lacks name"),
        ({"network": "SegResNet", "weights": "a.pt", "torchscript": "a.ts"}, "give one of them"),
        ({"inputs": ["T1", "T1"]}, "names an image twice"),
        ({"inputs": []}, "no list of names"),
        ({"windw": 3}, "unknown key windw"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_sentence(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as error:
        Description.of({**LEAST, **change}, "net.yaml")
    assert str(error.value).startswith("The description net.yaml cannot be used: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["labels: [", "- a\n- b\n", "!!python/object/apply:os.system ['touch /tmp/x']", ""])
def test_a_file_that_is_no_description_is_refused_and_runs_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"net\.yaml"):
        Description.read(path)


@pytest.mark.parametrize("key", ["weights", "torchscript"])
@pytest.mark.parametrize(
    "path", ["../net.pt", "a/../../net.pt", "/net.pt", "C:net.pt", "C:\\net.pt", "\\\\host\\s\\n.pt"]
)
def test_weights_lie_in_the_folder_of_their_description(key: str, path: str) -> None:
    with pytest.raises(InputError, match=f"{key} is .* give a path that stays inside"):
        Description.of({**LEAST, key: path}, "net.yaml")
    assert getattr(Description.of({**LEAST, key: "models/net.pt"}, "net.yaml"), key) == "models/net.pt"
