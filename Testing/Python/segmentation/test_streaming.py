"""Logits part by part are what the whole volume gives, and no more of them waits than what is still to change."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor, nn

from XAICLIPLib.imaging.boxes import Box
from XAICLIPLib.segmentation.decision import Decision
from XAICLIPLib.segmentation.overlap import combined_label_map
from XAICLIPLib.segmentation.segmenter import Activation
from XAICLIPLib.segmentation.sliding_window import SlidingWindow, Tiling, predict_logits
from XAICLIPLib.segmentation.streaming import WAITING_BYTES, Cells, stream_logits


class Positional(nn.Module):
    """Tells every voxel of a patch apart, so that an output in the wrong place or wrongly weighted shows."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(classes)
        self.convolution = nn.Conv3d(1, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x[0, 0].numel(), dtype=x.dtype).reshape(x.shape[2:]) / x[0, 0].numel()
        result: Tensor = self.convolution(x) * (1 + places)
        return result


def configuration(seed: int) -> tuple[Positional, Tensor, Tiling, int | None]:
    """A network, a volume, its patches and a batch size, drawn."""
    draw = random.Random(seed)
    shape = tuple(draw.randint(5, 17) for _ in range(3))
    window = SlidingWindow(
        tuple(draw.choice([0, 6, 8, 11]) for _ in range(3)),
        draw.choice([0.0, 0.25, 0.5, 0.7, (0.5, 0.0, 0.3)]),
        draw.choice(["constant", "gaussian"]),
        padding_value=draw.choice([0.0, -1.5]),
        padding_mode=draw.choice(["constant", "replicate"]),
    )
    volume = torch.rand((1, *shape), generator=torch.Generator().manual_seed(seed))
    tiling = Tiling.of(shape, window)
    if len(tiling.patches) > 40:  # seconds, not minutes
        return configuration(seed + 1000)
    classes = draw.choice([2, 3, 7, 40, 256])
    return Positional(classes), volume, tiling, draw.choice([None, 1, 3, 4])


def expected_decision(logits: Tensor, activation: Activation) -> tuple[Tensor, dict[int, tuple[int, ...]]]:
    decision, shared = (logits.argmax(0), {}) if activation == "softmax" else combined_label_map(logits)
    return decision.to(torch.uint8 if len(logits) + len(shared) < 255 else torch.int32), shared


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("waiting", ["all in one block", "many blocks"])
def test_logits_and_label_map_are_those_of_the_whole_volume(seed: int, waiting: str) -> None:
    network, volume, tiling, batch_size = configuration(seed)
    activation: Activation = "sigmoid" if seed % 2 else "softmax"
    classes = network.convolution.out_channels
    most = WAITING_BYTES if waiting == "all in one block" else 4 * classes * 200
    decision, given = (
        Decision(volume.shape[1:], activation, volume.device),
        torch.full((classes, *tiling.shape), torch.nan),
    )
    told: list[tuple[int, int]] = []
    with torch.inference_mode():
        logits = predict_logits(network, volume, tiling, batch_size)
        parts = stream_logits(network, volume, tiling, batch_size, lambda *done: told.append(done), waiting_bytes=most)
        for box, part in parts:
            assert bool(given[(slice(None), *box)].isnan().all()), "no voxel is given twice"
            given[(slice(None), *box)] = part
            decision.add(box, part)
    assert torch.equal(given, logits)
    drawn, shared = decision.finished()
    expected, sets = expected_decision(logits, activation)
    assert drawn.dtype == expected.dtype and torch.equal(drawn, expected)
    assert shared == sets
    assert told[-1][0] == told[-1][1] and all(a < b for (a, _), (b, _) in itertools.pairwise(told))


@pytest.mark.parametrize("waiting_bytes", [WAITING_BYTES, 4 * 5 * 2000])
def test_little_waits_for_patches_to_come(waiting_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 × 24 × 24 voxels the whole is 23040; one layer's overlap with the next is 4 × 24 × 24 = 2304."""
    from XAICLIPLib.segmentation import streaming

    most = 0
    add = streaming._Sums.add

    def watched(self: streaming._Sums, patch: Box, logits: Tensor) -> list[tuple[Box, Tensor]]:
        nonlocal most
        completed = list(add(self, patch, logits))
        most = max(most, sum(total.numel() for total, _ in self._waiting.values()))
        return completed

    monkeypatch.setattr(streaming._Sums, "add", watched)
    tiling = Tiling.of((40, 24, 24), SlidingWindow((8, 8, 8), 0.5))
    seen = torch.zeros(tiling.shape)
    with torch.inference_mode():
        for box, _ in stream_logits(Positional(5), torch.rand(1, 40, 24, 24), tiling, waiting_bytes=waiting_bytes):
            seen[box] += 1
    assert bool((seen == 1).all())
    cells = Cells.of(tiling)
    estimate = max(map(cells.waiting, cells.blocks(4 * 5, waiting_bytes)))
    assert most / 5 <= estimate <= (4000 if waiting_bytes == WAITING_BYTES else 2000)
    assert most / 5 > 0.6 * estimate, "the estimate is no guess"


def test_a_block_more_costs_only_the_patches_on_its_border() -> None:
    tiling = Tiling.of((24, 96, 24), SlidingWindow((8, 8, 8), 0.5))
    told: list[tuple[int, int]] = []
    parts = stream_logits(
        Positional(2), torch.rand(1, 24, 96, 24), tiling, 4, lambda *done: told.append(done), waiting_bytes=8 * 7000
    )
    with torch.inference_mode():
        assert sum(part[0].numel() for _, part in parts) == 24 * 96 * 24
    blocks = Cells.of(tiling).blocks(8, 8 * 7000)
    assert len(blocks) == 2
    assert told[-1] == (len(tiling.patches) + 25, len(tiling.patches) + 25)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_order_of_the_parts_does_not_matter(activation: Activation) -> None:
    logits = torch.randn((60, 9, 8, 7), generator=torch.Generator().manual_seed(0)) - 1
    results = []
    for order in (range(9), reversed(range(9))):
        decision = Decision(logits.shape[1:], activation, logits.device)
        for x in order:
            decision.add((slice(x, x + 1), slice(0, 8), slice(0, 7)), logits[:, x : x + 1])
        results.append(decision.finished())
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    expected, sets = expected_decision(logits, activation)
    assert torch.equal(results[0][0], expected) and results[0][1] == sets
    assert bool(sets) == (activation == "sigmoid")


def test_batches_of_many_classes_are_small() -> None:
    """On a CPU: four usual patches of a hundred classes are 1.5 GB of logits, beside what the network holds."""
    from XAICLIPLib.segmentation.batching import Batches

    patch = torch.empty(1, 96, 96, 96)
    sizes = {k: Batches(lambda x: x, patch.device, channels=k).size_for(patch) for k in (None, 2, 14, 60, 105, 600)}
    assert sizes == {None: 4, 2: 4, 14: 4, 60: 2, 105: 2, 600: 2}
    larger = torch.empty(1, 128, 128, 128)
    assert Batches(lambda x: x, patch.device, channels=105).size_for(larger) == 1
    assert Batches(lambda x: x, patch.device, 8, channels=105).size_for(patch) == 8, "as the user says"
