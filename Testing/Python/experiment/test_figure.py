"""The picture of the experiment is drawn of whatever there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import SimpleITK as sitk

from Testing.Python.experiment.test_comparison import EMPTY, row
from XAICLIPLib.experiment.figure import pareto_front, save_figure


def test_the_front_holds_what_nothing_beats_in_cost_and_worth() -> None:
    points = [(5.0, 0.9), (1.0, 0.2), (2.0, 0.1), (3.0, 0.5), (3.0, 0.4), (6.0, 0.9)]
    assert pareto_front(points) == [(1.0, 0.2), (3.0, 0.5), (5.0, 0.9)]
    assert pareto_front([]) == []


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    rows = [row(case, region, dice=0.1 * case) for case in (1, 2, 3) for region in ("guided", "whole")]
    rows += [replace(EMPTY, method="integrated-gradients", region="whole", explain_s=3.0)]  # has no guided map
    save_figure(rows, ("occlusion", "lime", "integrated-gradients"), tmp_path / "figure.png")
    drawn = sitk.ReadImage(str(tmp_path / "figure.png"))
    assert drawn.GetSize() == (1680, 1020)
    assert sitk.GetArrayViewFromImage(drawn).std() > 10
