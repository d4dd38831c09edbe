"""A network that answers by chance, or the same to everything, is told of without a check of the map."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from test_explanation import Network, run, scan
from torch import Tensor

from XAICLIPLib.explanation import Explanation
from XAICLIPLib.pipeline import explain


@dataclass
class Dropout(Network):
    """Dropout was left on."""

    def logits(self, patches: Tensor) -> Tensor:
        return torch.nn.functional.dropout(super().logits(patches), 0.1, training=True)


@dataclass
class BatchStatistics(Network):
    """Normalization takes its statistics from the batch, as in training."""

    def logits(self, patches: Tensor) -> Tensor:
        found = super().logits(patches)
        return found - found.mean(dim=(0, 2, 3, 4), keepdim=True)


@dataclass
class Constant(Network):
    """Draws the liver everywhere, whatever it is shown."""

    def logits(self, patches: Tensor) -> Tensor:
        found = torch.zeros_like(super().logits(patches))
        found[:, 1] = 3.0
        return found


def raised(result: Explanation) -> set[str]:
    return {flag["name"] for flag in result.record["reliability"] if flag["raised"]}


@pytest.mark.parametrize("network", [Dropout, BatchStatistics])
def test_a_network_that_answers_by_chance_is_told_of(network: type[Network]) -> None:
    torch.manual_seed(0)
    result = run(model=network())
    assert "answers by chance" in raised(result)
    assert any(
        warning.startswith("Shown the same scan twice, the network gives two answers") for warning in result.warnings
    )


def test_a_network_that_answers_the_same_to_everything_is_told_of() -> None:
    result = run(model=Constant())
    assert "answers the same" in raised(result) and "answers by chance" not in raised(result)
    assert any("with all of the liver hidden: it does not look at the scan" in warning for warning in result.warnings)


@pytest.mark.parametrize("method", ["occlusion", "structures"])
def test_a_sound_network_passes(method: str) -> None:
    result = explain(scan(), "liver", model=Network(), region="whole", method=method, device="cpu")
    made = {flag["name"]: flag for flag in result.record["reliability"]}
    for name in ("answers by chance", "answers the same"):
        assert not made[name]["raised"]
    assert made["answers by chance"]["value"] < 1e-6 < 0.1 < made["answers the same"]["value"]
