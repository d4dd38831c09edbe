"""What can be chosen of scoring: scores, baselines, precisions. Nothing here needs PyTorch."""

from __future__ import annotations

from typing import Literal, get_args

Score = Literal["soft dice", "hard dice", "mean probability", "logit margin"]
SCORES: tuple[Score, ...] = get_args(Score)
"""How well the target survives a perturbation; see `XAICLIPLib.scoring.scores.target_score`."""

Baseline = Literal["air", "mean", "blur", "surroundings"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
"""What replaces perturbed voxels; see `XAICLIPLib.scoring.baselines`."""

Precision = Literal["auto", "full", "reduced"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""In which precision a network runs; see `XAICLIPLib.scoring.scorer.Scorer`."""
