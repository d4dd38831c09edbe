"""The public functions of tensors: the README's example runs, and gives what full inference gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from XAICLIPLib.scoring.scores import target_score

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """The names of the README's example with tensors, after it was run."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "Scorer(" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_the_example_finds_something_in_the_region_and_its_windows_alone(example: dict[str, Any]) -> None:
    saliency, region = example["saliency"], example["region"]
    assert saliency.shape == region.shape
    assert bool((saliency[region] != 0).any())
    assert float(saliency[0, 0, 0]) == 0.0
    assert example["estimate"].done == 40


def test_the_example_scores_as_full_inference_does(example: dict[str, Any]) -> None:
    from XAICLIPLib.scoring.perturbation import Perturbation

    scorer, volume, target = example["scorer"], example["volume"], example["target"]
    box = (slice(20, 36), slice(20, 36), slice(16, 30))
    ((_, lost),) = [pair for batch in scorer.lost([Perturbation(box)]) for pair in batch]
    hidden = volume.clone()
    hidden[(slice(None), *box)] = 0
    with torch.no_grad():
        scores = [
            float(
                target_score(
                    "soft dice",
                    example["predict_logits"](example["network"], v, example["tiling"])[:, target.voxels],
                    target.reference[target.voxels],
                    1,
                    "softmax",
                )
            )
            for v in (volume, hidden)
        ]
    assert lost == pytest.approx(scores[0] - scores[1], abs=1e-6)
    assert lost != 0
