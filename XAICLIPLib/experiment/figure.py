"""The experiment in a picture: box plots of time, overlap and faithfulness, and what faithfulness costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure  # not pyplot: its state is shared between threads
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from XAICLIPLib.experiment.comparison import mean_over_cases
from XAICLIPLib.experiment.map_measurements import REGIONS, MapMeasurements
from XAICLIPLib.system.files import atomic_file

COLOURS = {"guided": "#2166ac", "whole": "#b35806"}
"""Blue and orange: the colour-blind can tell them apart, and they differ in print without colour."""

WORDS = {"guided": "guided", "whole": "unguided"}

MARKS = "osD^vP"
"""Marker shapes of the methods."""


def save_figure(rows: Sequence[MapMeasurements], methods: Sequence[str], path: Path) -> None:
    """Draw all maps of an experiment; each point of a box is one structure of one case.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    shown = [method for method in methods if any(row.method == method for row in rows)]
    figure = Figure((14, 8.5), 120, layout="constrained")
    FigureCanvasAgg(figure)
    (time, dice), (faithfulness, pareto) = figure.subplots(2, 2)
    _boxes(time, rows, shown, lambda row: row.explain_s)
    time.set(title="Time of explaining", ylabel="seconds (logarithmic)", yscale="log")
    _boxes(dice, rows, shown, lambda row: row.dice, lambda row: row.null_dice)
    dice.set(title="Dice with the organ (the paper's); ✕: map that knows nothing × region", ylabel="Dice")
    dice.set_ylim(0, 1.08 * max(max(row.dice, row.null_dice) for row in rows) or 1)
    _boxes(faithfulness, rows, shown, lambda row: row.faithfulness, lambda row: row.random_faithfulness)
    faithfulness.set(title="Faithfulness; ✕: random order", ylabel="insertion − deletion area (high is good)")
    _pareto(pareto, rows, shown)
    regions = [Patch(color=COLOURS[region], alpha=0.6, label=WORDS[region]) for region in REGIONS]
    control = Line2D([], [], color="black", marker="x", linestyle="", label="control")
    figure.legend(handles=[*regions, control], loc="outside lower center", ncols=3, frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _boxes(
    axes: Axes,
    rows: Sequence[MapMeasurements],
    methods: Sequence[str],
    quantity: Callable[[MapMeasurements], float],
    control: Callable[[MapMeasurements], float] | None = None,
) -> None:
    for number, method in enumerate(methods):
        for shift, region in zip((-0.2, 0.2), REGIONS, strict=True):
            some = [row for row in rows if (row.method, row.region) == (method, region)]
            if not some:
                continue
            box = axes.boxplot(
                [[quantity(row) for row in some]],
                positions=[number + shift],
                widths=0.32,
                patch_artist=True,
                showfliers=False,
                medianprops={"color": "black"},
            )
            for patch in box["boxes"]:
                patch.set(facecolor=COLOURS[region], alpha=0.6)
            axes.plot([number + shift] * len(some), [quantity(row) for row in some], ".", color="black", markersize=4)
            if control is not None:
                axes.plot([number + shift + 0.08] * len(some), [control(row) for row in some], "x", color="black")
    axes.set_xticks(range(len(methods)), [method.replace("-", "-\n", 1) for method in methods], fontsize=9)
    axes.set_xlim(-0.6, len(methods) - 0.4)
    axes.grid(axis="y", alpha=0.3)


def _pareto(axes: Axes, rows: Sequence[MapMeasurements], methods: Sequence[str]) -> None:
    """Mean faithfulness against mean time; the line joins the points that no other point beats in both."""
    points = []
    for number, method in enumerate(methods):
        for region in REGIONS:
            some = [row for row in rows if (row.method, row.region) == (method, region)]
            if some:
                x = mean_over_cases(some, lambda row: row.explain_s)
                y = mean_over_cases(some, lambda row: row.faithfulness)
                points.append((x, y))
                axes.plot(x, y, MARKS[number % len(MARKS)], color=COLOURS[region], markersize=9)
                axes.annotate(method, (x, y), textcoords="offset points", xytext=(7, 5), fontsize=9)
    axes.set(xscale="log", xlabel="mean seconds of explaining (logarithmic)", ylabel="mean insertion − deletion area")
    front = pareto_front(points)
    axes.plot([x for x, _ in front], [y for _, y in front], "--", color="grey", linewidth=1, zorder=0)
    axes.set_title("Faithfulness against time; dashed: nothing is both faster and more faithful")
    axes.margins(0.15)
    axes.grid(alpha=0.3)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, benefit) that no other point beats in both, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, benefit in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or benefit > front[-1][1]:
            front.append((cost, benefit))
    return front
