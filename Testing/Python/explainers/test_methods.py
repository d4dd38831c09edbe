"""The methods' parameters: checked, described, and known without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers import methods
from XAICLIPLib.explainers.lime import Lime
from XAICLIPLib.explainers.methods import METHODS
from XAICLIPLib.explainers.occlusion import Occlusion
from XAICLIPLib.explainers.rise import Rise


def test_every_method_has_defaults_for_all_it_takes() -> None:
    for name, kind in METHODS.items():
        assert methods.method(name) == kind()


def test_what_is_given_is_taken_and_none_means_the_default() -> None:
    assert methods.method("rise", samples=500, keep=None) == Rise(samples=500)
    assert methods.method("lime", size_mm=20) == Lime(size_mm=20.0)


def test_an_unknown_method_or_parameter_is_named_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"no method 'shap': choose one of occlusion, rise"):
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
