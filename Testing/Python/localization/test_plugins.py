"""Localizers of others: objects, and what an installed package registers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from XAICLIPLib.errors import InputError
from XAICLIPLib.localization import plugins
from XAICLIPLib.models import catalogue

CPU = torch.device("cpu")
CODE = """
import SimpleITK as sitk

class TextToMask:
    name, threshold = "text to mask", 0.5
    def __init__(self, device):
        self.provenance = {"name": self.name, "device": str(device)}
    def locate(self, image, prompt, modality, advance):
        advance(1, 1)
        return sitk.Cast(image > 50, sitk.sitkUInt8)

def broken(device):
    raise OSError("no weights here")

def nothing(device):
    return object()
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with entry points, as pip leaves it."""
    (tmp_path / "text_to_mask.py").write_text(CODE)
    about = tmp_path / "text_to_mask-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: text-to-mask\nVersion: 1.0\n")
    lines = [f"{n} = text_to_mask:{o}" for n, o in (("ttm", "TextToMask"), ("bad", "broken"), ("none", "nothing"))]
    lines += ["gone = text_to_mask:Gone", "anatomy-clip = text_to_mask:broken"]
    (about / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "text_to_mask", raising=False)


@pytest.mark.usefixtures("installed")
def test_an_installed_localizer_is_found_by_its_name() -> None:
    found = catalogue.load_localizer("ttm", CPU)
    assert found.provenance == {"name": "text to mask", "device": "cpu"}


@pytest.mark.usefixtures("installed")
def test_a_plugin_does_not_take_the_name_of_what_ships() -> None:
    assert catalogue.load_localizer("anatomy-clip", CPU).provenance["kind"] == "open_clip"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bad", r"The localizer bad \(text_to_mask:broken\) does not load: no weights here"),
        ("none", r"The localizer none is none \(object lacks name, threshold, provenance, locate\)"),
        ("gone", "does not load"),
    ],
)
def test_a_plugin_that_fails_is_told_in_a_sentence(name: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        catalogue.load_localizer(name, CPU)


@pytest.mark.usefixtures("installed")
def test_a_plugin_takes_no_learned_prompts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes no learned prompts"):
        catalogue.load_localizer("ttm", CPU, prompts=tmp_path / "p.safetensors")


def test_no_plugin_is_found_where_there_is_none() -> None:
    assert plugins.find("ttm") is None


@pytest.mark.parametrize("threshold", [0, 1, 1.5, "half", None, True])
def test_a_threshold_that_is_no_probability_is_refused(threshold: Any) -> None:
    made = type("M", (), {"name": "m", "threshold": threshold, "provenance": {}, "locate": lambda self: None})()
    with pytest.raises(InputError, match="threshold"):
        plugins.checked_localizer(made, "m")


def test_a_mask_is_taken_for_a_probability() -> None:
    mask = sitk.GetImageFromArray(np.eye(3, dtype=np.uint8)[None].repeat(3, 0))
    found = plugins.checked_probability(mask, "m")
    assert found.GetPixelID() == sitk.sitkFloat32
    assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(mask))


@pytest.mark.parametrize(
    "found",
    [
        None,
        np.zeros((3, 3, 3)),
        sitk.Image([3, 3], sitk.sitkFloat32),
        sitk.Image([3, 3, 3], sitk.sitkVectorFloat32, 2),
        sitk.Image([3, 3, 3], sitk.sitkFloat32) + 255,
        sitk.Image([3, 3, 3], sitk.sitkFloat32) - 1,
        sitk.Image([3, 3, 3], sitk.sitkFloat32) + float("nan"),
    ],
    ids=["nothing", "an array", "2D", "two values", "grey values", "logits", "NaN"],
)
def test_what_is_no_probability_is_refused(found: Any) -> None:
    with pytest.raises(InputError, match="The localizer m gave"):
        plugins.checked_probability(found, "m")
