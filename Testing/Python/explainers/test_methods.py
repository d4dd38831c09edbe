"""The methods' parameters: checked, described, and known without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers import methods
from XAICLIPLib.explainers.base import Captions, Estimate, Method, RunningMap
from XAICLIPLib.explainers.lime import Lime
from XAICLIPLib.explainers.methods import METHODS
from XAICLIPLib.explainers.occlusion import Occlusion
from XAICLIPLib.explainers.parameters import parameter as declared
from XAICLIPLib.explainers.rise import Rise
from XAICLIPLib.explainers.setting import Setting


def test_every_method_has_defaults_for_all_it_takes() -> None:
    for name, kind in METHODS.items():
        assert methods.method(name) == kind()


def test_what_is_given_is_taken_and_none_means_the_default() -> None:
    assert methods.method("rise", samples=500, keep=None) == Rise(samples=500)
    assert methods.method("lime", size_mm=20) == Lime(size_mm=20.0)


def test_an_unknown_method_or_parameter_is_named_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"no method 'shap': choose one of owen-gradients, occlusion, rise"):
        methods.method("shap")
    with pytest.raises(InputError, match=r"rise has no parameter window_mm: it has cell_mm, samples"):
        methods.method("rise", window_mm=3)


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("occlusion", "window_mm", 0),
        ("occlusion", "window_mm", -3),
        ("occlusion", "window_mm", float("nan")),
        ("occlusion", "window_mm", float("inf")),
        ("occlusion", "window_mm", "20"),
        ("occlusion", "window_mm", True),
        ("occlusion", "exhaustive", "yes"),
        ("occlusion", "tolerance", 1.5),
        ("occlusion", "tolerance", 0.21),
        ("rise", "samples", 1),
        ("rise", "samples", 20.5),
        ("rise", "samples", None.__class__),
        ("rise", "estimator", "lasso"),
        ("lime", "kernel", 3),
        ("structures", "pairs", -1),
        ("integrated-gradients", "steps", 10**30),
        ("seg-grad-cam", "layer", 5),
    ],
)
def test_a_value_out_of_bounds_or_of_another_type_is_refused_by_name(name: str, parameter: str, value: Any) -> None:
    with pytest.raises(InputError, match=parameter):
        methods.method(name, **{parameter: value})


def test_a_stride_longer_than_the_window_is_refused() -> None:
    with pytest.raises(InputError, match="leaves gaps"):
        methods.method("occlusion", window_mm=10, stride_mm=11)
    assert methods.method("occlusion", window_mm=10, stride_mm=10) == Occlusion(10, 10)


def test_the_description_is_json_and_its_defaults_and_bounds_are_accepted() -> None:
    described = json.loads(json.dumps(methods.describe()))
    assert list(described) == list(METHODS)
    for name, about in described.items():
        assert about["summary"].endswith(".")
        assert [p["name"] for p in about["parameters"]] == [f.name for f in fields(METHODS[name])]
        for parameter in about["parameters"]:
            assert parameter["help"]
            given = [parameter["default"], parameter["least"], parameter["most"], *parameter["choices"]]
            for value in given:
                methods.method(name, **{parameter["name"]: value})
            assert (parameter["type"] == "choice") == bool(parameter["choices"])
            assert (parameter["type"] in ("number", "integer")) == (parameter["least"] is not None)


def test_the_choices_are_known_without_pytorch() -> None:
    code = "import sys, XAICLIPLib.explainers.methods; assert not {'torch', 'numpy', 'SimpleITK'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@dataclass(frozen=True)
class Brightness(Method):
    """Take the scan itself for the map."""

    name: ClassVar[str] = "brightness"
    captions: ClassVar[Captions] = Captions("looks", "", "brightness")

    channel: int = declared(0, "which channel", 0, 3)

    def estimates(self, setting: Setting, seed: int) -> Iterator[Estimate]:
        yield Estimate(1, 1, BrightnessMap(setting.volume[self.channel].cpu()))


@dataclass
class BrightnessMap(RunningMap):
    values: Tensor

    def saliency(self) -> Tensor:
        return self.values

    def probed(self) -> Tensor:
        return torch.ones(self.values.shape, dtype=torch.bool)


def test_a_method_is_one_class_and_its_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is offered by the description and the command line, and runs through the whole pipeline."""
    from Testing.Python.test_explanation import Finder, Network, geometry, scan, values
    from XAICLIPLib.commands import main
    from XAICLIPLib.pipeline import explain

    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    methods.register(Brightness)
    assert methods.describe()["brightness"]["summary"] == "Take the scan itself for the map."
    options = main._parser().parse_args(
        ["explain", "scan.nii", "--prompt", "liver", "--method", "brightness", "--channel", "1"]
    )
    assert (options.method, options.channel) == ("brightness", 1)
    image = scan()
    result = explain(image, "liver", model=Network(), localizer=Finder(), method="brightness", device="cpu")
    assert result.record["parameters"]["described"] == "brightness"
    assert geometry(result.saliency) == geometry(image)
    assert np.corrcoef(values(result.saliency).ravel(), values(image).ravel())[0, 1] > 0.99
    with pytest.raises(InputError, match="channel is 7"):
        methods.method("brightness", channel=7)
