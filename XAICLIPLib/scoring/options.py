"""What can be chosen of scoring: scores, baselines, precisions. Nothing here needs PyTorch."""

from __future__ import annotations

from typing import Literal, get_args

Score = Literal["soft dice", "hard dice", "mean probability", "logit margin"]
SCORES: tuple[Score, ...] = get_args(Score)
"""How well the target survives a perturbation; see `XAICLIPLib.scoring.scores.target_score`."""

Part = Literal["total", "remote", "local"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Of the score lost, all of it, what was lost where nothing was changed, and what was lost where the input was changed;
see `XAICLIPLib.scoring.effect.Effect`."""

Baseline = Literal["air", "mean", "blur", "surroundings"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
"""What replaces perturbed voxels; see `XAICLIPLib.scoring.baselines`."""

Precision = Literal["auto", "full", "reduced"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""In which precision a network runs; see `XAICLIPLib.scoring.scorer.Scorer`."""
