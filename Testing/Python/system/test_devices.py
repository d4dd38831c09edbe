"""Choosing where networks run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from XAICLIPLib.errors import InputError
from XAICLIPLib.system.devices import available_devices, choose_device


def pretend(monkeypatch: pytest.MonkeyPatch, cuda: int = 0, mps: bool = False) -> None:
    """As many CUDA GPUs as this, and Apple's or not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(0, False, "cpu"), (2, False, "cuda"), (0, True, "mps")])
def test_auto_takes_the_fastest_that_is_there(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, chosen: str
) -> None:
    pretend(monkeypatch, cuda, mps)
    assert choose_device().type == chosen
    assert choose_device("auto").type == chosen


def test_the_cpu_is_there_whatever_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=1)
    assert choose_device("cpu") == torch.device("cpu")


def test_a_gpu_is_chosen_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda") == torch.device("cuda")
    with pytest.raises(InputError, match="cuda:2 is not available"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cpu:", "cuda:one", "cuda:-1", "cuda:²", ":0", "cuda:0:1"])
def test_an_unknown_device_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, cuda=1)
    with pytest.raises(InputError, match="choose auto, cpu, cuda, cuda:1 or mps"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "cpu:1"])
def test_a_device_that_is_absent_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch)
    with pytest.raises(InputError, match=rf"{name} is not available .*\(cpu is\).*--device cpu"):
        choose_device(name)


def test_every_device_has_a_name_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    pretend(monkeypatch, cuda=2, mps=True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    names = available_devices()
    assert list(names) == ["cpu", "cuda:0", "cuda:1", "mps"]
    assert names["cpu"].startswith("CPU, ")
    assert names["cuda:1"] == "NVIDIA H100, 80 GiB"


def test_a_gpu_that_does_not_answer_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(number: int) -> None:
        raise RuntimeError("driver too old")

    pretend(monkeypatch, cuda=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    assert list(available_devices()) == ["cpu"]
