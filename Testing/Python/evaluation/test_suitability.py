"""Volumes that a network was not trained on are told from those that it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from XAICLIPLib import imaging
from XAICLIPLib.evaluation.suitability import suitability_flags
from XAICLIPLib.imaging.modality import KnownModality, modalities_named
from XAICLIPLib.imaging.phantom import torso_phantom
from XAICLIPLib.segmentation.segmenter import Prepared
from XAICLIPLib.segmentation.sliding_window import SlidingWindow

Source = Literal["user", "header", "intensities"]


def told(
    volume: sitk.Image, modality: str | None, network: str | None, source: Source = "intensities", **changed: Any
) -> list[str]:
    grid = imaging.standard_axial(volume, changed.pop("grid_mm", volume.GetSpacing()[0]))
    shape = grid.GetSize()
    prepared = Prepared(torch.zeros(1, *shape), imaging.ras_affine(grid))
    segmenter: Any = SimpleNamespace(
        name="net", modality=network, window=None, **{k: v for k, v in changed.items() if k != "window"}
    )
    segmenter.window = changed.get("window")
    return [
        flag.sentence
        for flag in suitability_flags(volume, KnownModality(modality, source), segmenter, prepared)
        if flag.raised
    ]


@pytest.fixture(scope="module")
def ct() -> sitk.Image:
    return torso_phantom(0).image


def test_a_ct_suits_a_ct_network(ct: sitk.Image) -> None:
    assert told(ct, "CT", "CT") == []
    assert told(ct, "CT", None) == told(ct, None, "unknown") == []


@pytest.mark.parametrize(("modality", "network"), [("MR", "CT"), ("CT", "MR"), ("MR", "Computed Tomography")])
def test_another_modality_is_told(ct: sitk.Image, modality: str, network: str) -> None:
    (sentence,) = told(ct, modality, network)
    assert f"is for {network}, and this volume looks like {modality}" in sentence


@pytest.mark.parametrize(
    ("modality", "source", "words"),
    [
        ("MR", "user", "and you say that this volume is MR: do not rely"),
        ("PT", "header", "and this volume is PT, as its file says: do not rely"),
        ("MR", "intensities", "and this volume looks like MR: do not rely"),
    ],
)
def test_it_is_told_who_says_what_the_modality_is(ct: sitk.Image, modality: str, source: Source, words: str) -> None:
    (sentence,) = told(ct, modality, "CT", source)
    assert words in sentence


def test_a_ct_with_an_offset_is_told_to_subtract_it(ct: sitk.Image) -> None:
    (sentence,) = told(ct + 1024, None, "CT")
    assert "subtract the offset" in sentence


def test_a_normalised_ct_is_told_not_to_rely_on(ct: sitk.Image) -> None:
    scaled = (sitk.Clamp(ct, sitk.sitkFloat32, -150, 250) + 150) / 400
    (sentence,) = told(scaled, None, "CT")
    assert "0 to 1" in sentence and "Hounsfield" in sentence


def test_a_ct_clipped_to_soft_tissue_is_let_be(ct: sitk.Image) -> None:
    assert told(sitk.Clamp(ct, sitk.sitkFloat32, -125, 275), "CT", "CT") == []


def test_slices_far_apart_are_told() -> None:
    array = np.random.default_rng(0).normal(0, 300, (8, 40, 40)).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.5, 1.5, 10.0))
    (sentence,) = told(image, "CT", "CT", grid_mm=1.5)
    assert "10.0 mm apart" in sentence and "1.5 mm" in sentence
    assert told(image, "CT", "CT", grid_mm=5.0) == [], "the network's grid is as coarse"


def test_a_scan_that_fills_little_of_the_window_is_told(ct: sitk.Image) -> None:
    size = ct.GetSize()
    slab = ct[:, :, size[2] // 2 : size[2] // 2 + 6]
    window = SlidingWindow((8, 8, 64))
    (sentence,) = told(slab, "CT", "CT", window=window)
    assert "padding" in sentence
    assert told(ct, "CT", "CT", window=SlidingWindow((8, 8, 8))) == []


def test_a_networks_own_words_for_its_modality_are_understood() -> None:
    assert modalities_named("CT, MR") == {"CT", "MR"}
    assert modalities_named("magnetic resonance imaging") == modalities_named("T1w") == {"MR"}
    assert modalities_named(None) == modalities_named("ultrasound") == set()
