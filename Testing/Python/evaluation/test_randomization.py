"""Cascading weight randomisation: what it changes, in which order, and whom it convicts."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import UNet
from planted_truth import SPACING, planted_case
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.controls import edge_map
from XAICLIPLib.evaluation.randomization import randomization

VOLUME = torch.rand((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(0))


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    first, second, third = (nn.Conv3d(a, b, 3, padding=1) for a, b in ((1, 4), (4, 4), (4, 1)))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third).requires_grad_(False)


def output(network: nn.Module) -> Tensor:
    found: Tensor = network(VOLUME)[0, 0]
    return found


def test_cascade_goes_from_the_output_inwards_and_leaves_the_network_alone() -> None:
    network = chain()
    before = copy.deepcopy(network.state_dict())
    seen: list[dict[str, Tensor]] = []

    def explain(changed: nn.Module) -> Tensor:
        seen.append(copy.deepcopy(changed.state_dict()))
        return output(changed)

    found = randomization(network, explain)
    assert [stage.layer for stage in found.stages] == ["4", "2", "0"]
    for number, changed in enumerate(({}, {"4"}, {"4", "2"}, {"4", "2", "0"})):
        differing = {key.split(".")[0] for key, value in seen[number].items() if not torch.equal(value, before[key])}
        assert differing == set(changed)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_similarities_are_those_of_scipy_and_scikit_image() -> None:
    maps: list[Tensor] = []
    found = randomization(chain(), lambda network: maps.append(output(network)) or maps[-1], stages=1).last
    first, second = (m.double().numpy() for m in maps)
    assert found.correlation == pytest.approx(spearmanr(first.ravel(), second.ravel()).statistic)
    stretched = [(m - m.min()) / (m.max() - m.min()) for m in (first, second)]
    assert found.similarity == pytest.approx(structural_similarity(*stretched, data_range=1.0))


def test_order_is_that_of_execution_not_of_definition() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output, self.input = nn.Conv3d(2, 1, 1), nn.Conv3d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.output(self.input(x).relu())
            return found

    found = randomization(Backwards().requires_grad_(False), output)
    assert [stage.layer for stage in found.stages] == ["output", "input"]


def test_weights_of_no_module_that_is_called_are_randomised_with_what_holds_them() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.randn(16, 8))
            self.embed = nn.Linear(256, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.embed(x.reshape(1, 16, 256)) + self.position
            mixed = self.attention(tokens, tokens, tokens)[0] @ self.embed.weight
            return mixed.reshape(x.shape)

    network = Attention().requires_grad_(False)
    seen: list[nn.Module] = []
    found = randomization(network, lambda changed: seen.append(copy.deepcopy(changed)) or output(changed))
    assert {stage.layer for stage in found.stages} == {"attention", "embed", "the whole network"}
    before = network.state_dict()
    weights = [name for name, value in before.items() if value.std() > 0]
    assert "attention.out_proj.weight" in weights
    assert all(not torch.equal(seen[-1].state_dict()[name], before[name]) for name in weights)


def test_stages_can_be_few_and_the_last_has_every_weight() -> None:
    network = UNet(spatial_dims=3, in_channels=1, out_channels=1, channels=(4, 8), strides=(2,)).eval()
    network.requires_grad_(False)
    every, few = randomization(network, output), randomization(network, output, stages=2)
    assert len(few.stages) == 2
    assert few.last.layer == every.last.layer
    assert few.last == every.last, "the new weights do not hang on how often the map is made"
    assert randomization(network, output, seed=1).last != every.last


def test_it_convicts_an_edge_detector_and_acquits_occlusion() -> None:
    case = planted_case("beside the organ")
    edges = randomization(case.network, lambda network: edge_map(case.volume, SPACING))
    assert edges.last.correlation == pytest.approx(1)
    assert edges.last.similarity == pytest.approx(1)
    honest = randomization(case.network, lambda network: case.occluded(network), stages=1)
    assert abs(honest.last.correlation) < 0.5


def test_a_map_that_becomes_constant_has_nothing_in_common() -> None:
    network = chain()
    flat = randomization(network, lambda n: output(n) if n[4].weight.equal(network[4].weight) else VOLUME[0, 0] * 0)
    assert {stage.correlation for stage in flat.stages} == {0.0}


def test_cancelling_keeps_the_stages_made() -> None:
    asked = iter([False, True])
    assert len(randomization(chain(), output, cancelled=lambda: next(asked)).stages) == 1
    with pytest.raises(InputError, match="cancelled"):
        randomization(chain(), output, cancelled=lambda: True)


def test_unusable_input_is_named() -> None:
    with pytest.raises(InputError, match="no weights"):
        randomization(nn.ReLU(), output)
    with pytest.raises(InputError, match="stages is 0"):
        randomization(chain(), output, stages=0)
    with pytest.raises(InputError, match="not finite"):
        randomization(chain(), lambda network: output(network) * torch.nan)
