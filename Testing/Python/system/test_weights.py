"""Weights: taken out of what is wrapped around them, and nothing but tensors."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from XAICLIPLib.errors import InputError
from XAICLIPLib.system.weights import load_into, read_state

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch stolen",)


@pytest.mark.parametrize(
    "wrapped",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": {f"module.{name}": value for name, value in STATE.items()}},
        {"network_weights": {f"_orig_mod.{name}": value for name, value in STATE.items()}, "trainer_name": "a"},
    ],
)
def test_the_state_is_found_in_what_training_scripts_save(tmp_path: Path, wrapped: dict[str, Any]) -> None:
    torch.save(wrapped, tmp_path / "w.pt")
    found = read_state(tmp_path / "w.pt")
    assert set(found) == set(STATE) and all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    network = load_into(nn.Linear(3, 2), tmp_path / "w.safetensors", "the network")
    assert torch.equal(network.get_parameter("weight"), STATE["weight"])
    assert not network.training and not network.get_parameter("weight").requires_grad


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(InputError, match="damaged or hold more than weights"):
            read_state(tmp_path / name)
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize("held", [{}, {"epoch": 3}, [torch.ones(2)]])
def test_a_file_without_a_state_is_named(tmp_path: Path, held: Any) -> None:
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt holds? no state"):
        read_state(tmp_path / "w.pt")


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt do not belong to the network LINEAR"):
        load_into(nn.Linear(4, 2), tmp_path / "w.pt", "the network LINEAR")
