"""What does not fit into memory is refused before the work, and told as memory where it fails on the way."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import SimpleITK as sitk
import torch
from test_explanation import Network, scan

from XAICLIPLib.errors import CPU, InputError, NotEnoughMemory
from XAICLIPLib.models import catalogue
from XAICLIPLib.pipeline import explain
from XAICLIPLib.segmentation import footprint as module
from XAICLIPLib.segmentation.footprint import (
    doubt_of_size,
    footprint,
    not_a_person,
    refuse_what_does_not_fit,
    resampled_size,
)
from XAICLIPLib.segmentation.prediction import predict

HOST = torch.device("cpu")
GPU = torch.device("cuda")


@dataclass
class Fine(Network):
    """Resamples; ``prepared`` counts how often it was asked to."""

    spacing_mm: tuple[float | None, float | None, float | None] = (3.0, 3.0, None)
    prepared: list[str] = field(default_factory=list)

    def prepare(self, image: sitk.Image) -> Any:
        self.prepared.append("asked")
        raise AssertionError("the scan should have been refused before")


def wrong_unit() -> sitk.Image:
    """62 × 75 × 82 voxels of 3 mm, written as 30 mm."""
    image = sitk.Image(62, 75, 82, sitk.sitkInt16)
    image.SetSpacing((30.0, 30.0, 30.0))
    return image


def with_free(monkeypatch: pytest.MonkeyPatch, host: float, device: float = 80e9) -> None:
    monkeypatch.setattr(module, "free_memory", lambda place=None: int(host if place is None else device))


def test_a_spacing_in_the_wrong_unit_is_refused_at_once_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 16e9)
    shipped = catalogue.load_segmenter(None, HOST)
    assert resampled_size(shipped, wrong_unit()) == (620, 750, 820)
    with pytest.raises(NotEnoughMemory) as refused:
        predict(shipped, wrong_unit(), HOST)
    told = str(refused.value)
    assert (
        "becomes 620 × 750 × 820 voxels, about 21 GB of memory, and 16 GB are free: check its spacing of 30 ×" in told
    )
    assert "device" not in told and "bundle" not in told and told.count(".") == 1


def test_what_a_person_could_be_is_not_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 1e9)
    body = sitk.Image(512, 512, 1800, sitk.sitkUInt8)
    body.SetSpacing((0.9, 0.9, 1.0))
    assert not not_a_person(body) and not_a_person(wrong_unit())
    needed = footprint(Fine(), body, (512, 512, 1800), HOST)
    with pytest.raises(NotEnoughMemory, match="fewer slices, or close other programs") as refused:
        refuse_what_does_not_fit(needed, body, HOST)
    assert "spacing" not in str(refused.value) and CPU not in refused.value.ways


def test_where_there_is_memory_enough_a_scan_larger_than_a_person_is_doubted_before_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = "The scan measures 186 × 225 × 246 cm, more than a person: check its spacing of 30 × 30 × 30 mm"
    assert doubt_of_size(wrong_unit()).startswith(told)
    said: list[str] = []
    options: dict[str, Any] = {"model": Network(), "region": "whole", "window_mm": 48.0, "stride_mm": 48.0}
    explain(scan(), "liver", device="cpu", on_warning=said.append, **options)
    assert not any("person" in sentence for sentence in said)
    monkeypatch.setattr(module, "BODY_MM", (50.0, 100.0))
    result = explain(scan(), "liver", device="cpu", on_warning=said.append, **options)
    assert sum("more than a person" in sentence for sentence in said) == 1
    assert sum("more than a person" in warning for warning in result.warnings) == 1


def test_a_gpu_that_is_too_small_is_named_and_the_cpu_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 500e9, 2e9)
    body = sitk.Image(512, 512, 600, sitk.sitkUInt8)
    needed = footprint(Fine(), body, (512, 512, 600), GPU)
    with pytest.raises(
        NotEnoughMemory, match=r"the GPU's memory, and 2\.0 GB are free: choose --device cpu"
    ) as refused:
        refuse_what_does_not_fit(needed, body, GPU)
    assert CPU in refused.value.ways
    with_free(monkeypatch, 500e9, 80e9)
    refuse_what_does_not_fit(needed, body, GPU)


def test_sizes_follow_the_patients_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    image = sitk.Image(10, 20, 30, sitk.sitkUInt8)
    image.SetSpacing((1.0, 6.0, 2.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))  # the axes run along P, S, L
    assert resampled_size(Fine(spacing_mm=(3.0, 2.0, None)), image) == (5, 20, 20)
    assert resampled_size(Network(), image) is None


def test_nothing_is_prepared_of_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 1e9)
    network = Fine()
    with pytest.raises(NotEnoughMemory):
        predict(network, wrong_unit(), HOST)
    assert network.prepared == []


@dataclass
class Full(Network):
    """Runs out of memory at a stage, as a bundle's preprocessing or a network does."""

    at: str = "prepare"

    def prepare(self, image: sitk.Image) -> Any:
        if self.at == "prepare":
            try:
                raise MemoryError("Unable to allocate 8.5 GiB")
            except MemoryError as error:
                raise InputError("The preprocessing of the bundle fails on this volume.") from error
        return super().prepare(image)

    def logits(self, patches: torch.Tensor) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        if self.at == "network" or (self.at == "scoring" and self.calls > 60):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return super().logits(patches)


@pytest.mark.parametrize(
    ("at", "said"), [("prepare", "prepared"), ("network", "network ran"), ("scoring", "explained")]
)
def test_an_allocation_that_fails_is_told_as_memory_with_sizes(at: str, said: str) -> None:
    with pytest.raises(NotEnoughMemory) as told:
        explain(scan(), "liver", model=Full(at=at), region="whole", device="cpu", window_mm=6.0, exhaustive=True)
    sentence = str(told.value)
    assert sentence.startswith("The memory of this computer ran out while") and said in sentence
    assert "bundle" not in sentence and "device" not in sentence and "fewer slices" in sentence
    if at != "prepare":
        assert "voxels on the network's grid, which take about" in sentence
    assert told.value.__cause__ is None and told.value.__suppress_context__


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_peak_of_many_classes_is_a_fraction_of_their_logits() -> None:
    """Sixty classes of 96 × 96 × 240 voxels: 0.53 GB of logits, and twice that before they were streamed."""
    code = """
import sys, torch, SimpleITK as sitk
from torch import nn
from XAICLIPLib.segmentation.networks.described import from_object
from XAICLIPLib.segmentation.prediction import predict
from XAICLIPLib.segmentation.sliding_window import Tiling, predict_logits

class Many:
    description = {"labels": {0: "background", **{n: f"class {n}" for n in range(1, 60)}}, "activation": "softmax",
        "orientation": "RAS", "intensity": "none", "window": {"size": [24, 24, 24], "overlap": 0.25}}
    layer = nn.Conv3d(1, 60, 1).requires_grad_(False)
    def predict(self, batch):
        return self.layer(batch)

def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024

torch.set_num_threads(1)
network, image = from_object(Many()), sitk.Image(96, 96, 240, sitk.sitkInt16)
predict(network, image[:30, :30, :30], torch.device("cpu"))
before = peak()
prediction = predict(network, image, torch.device("cpu"))
print("streamed", peak() - before)
if sys.argv[1:]:
    with torch.inference_mode():
        predict_logits(network.logits, prediction.volume, prediction.tiling)
    print("whole", peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, "both"], capture_output=True, text=True, check=True)
    peaks = dict(line.split() for line in done.stdout.splitlines())
    logits = 4 * 60 * 96 * 96 * 240
    assert int(peaks["whole"]) > logits, "the measurement sees what it should"
    assert int(peaks["streamed"]) < 0.6 * logits
