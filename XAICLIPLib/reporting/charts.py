"""The other pictures of a report: slices with the largest effect, bars of structures, and curves. PNG in memory."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: its state is shared between threads
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from XAICLIPLib.imaging import body_mask
from XAICLIPLib.reporting import figure
from XAICLIPLib.reporting.figure import FAINT, FONT, INK, PREDICTION, REGION, VIEWS, Grid, Plane, Scale, Style
from XAICLIPLib.system.displaytext import for_matplotlib

DPI = 130
TILES = 9
COLUMNS = 3
APART_MM = 6.0
"""Least distance of two slices of the montage: closer ones would show the same."""

VISIBLE = 0.1
"""Share of the largest effect from which a colour is visible."""

MAP, ORANGE, BLUE, PURPLE, GREY = "#b3261e", "#e07b00", "#1f6fb2", "#7b3fa0", "#8a8f98"
CONTROL_STYLES: Mapping[str, tuple[str, str, str]] = {
    "random": (GREY, "--", "chance"),
    "centre": (BLUE, "-.", "middle of the region"),
    "edges": (PURPLE, ":", "edges of the scan"),
    "mask": (GREY, "-", "the drawing itself"),
    "depth": (BLUE, "-", "depth in the drawing"),
    "border": (PURPLE, "-", "nearness to its border"),
}
"""Colour, line style and name of each control: the line styles differ, so that no reader needs the colours."""


def montage(
    image: sitk.Image,
    saliency: sitk.Image,
    region: sitk.Image | None,
    target: sitk.Image,
    *,
    modality: Literal["CT", "MR"] | None,
    label: str,
    target_label: str,
    pieces: bool = False,
) -> tuple[bytes, int]:
    """Axial slices with the largest effect, from head to foot: a PNG, and the number of slices.

    Parameters
    ----------
    image, saliency, region, modality, pieces
        As in `XAICLIPLib.reporting.figure.save_figure`.
    target
        Mask of the explained structure.
    label
        What the colours mean.
    target_label
        Name of the outline of the target.
    """
    heights = salient_heights(saliency, target)
    point, _ = figure.focus(saliency, target, region)
    mask = sitk.GetArrayViewFromImage(target) > 0
    box = figure.bounds(target, mask) if mask.any() else (point, point)
    low, high = figure.field_of_view(body_mask(image), box, point, VIEWS[0])
    window, scale = figure.grey_window(image, modality), Scale.of(saliency)
    width, height = np.abs(high - low)[:2]
    rows = -(-len(heights) // COLUMNS)
    columns = min(COLUMNS, len(heights))
    wide = 10.4
    tile = (wide - 1.3) / columns
    tall = min(tile * height / width, 4.5)
    sheet = Figure((wide, rows * (tall + 0.3) + 0.55), DPI, facecolor=figure.BACKGROUND)
    bottom = 0.5 / sheet.get_figheight()
    grid = sheet.add_gridspec(
        rows,
        columns,
        left=0.01,
        right=1 - 1.2 / wide,
        top=1 - 0.28 / sheet.get_figheight(),
        bottom=bottom,
        hspace=0.3 / tall,
        wspace=0.03,
    )
    for number, z in enumerate(heights):
        axes = sheet.add_subplot(grid[number // columns, number % columns], facecolor="black", xticks=[], yticks=[])
        axes.spines[:].set(color="#3a4047", linewidth=0.8)
        plane = Plane.through(np.array([point[0], point[1], z]), VIEWS[0], low.copy(), high.copy())
        placed: Style = {"extent": plane.extent, "aspect": "equal"}
        axes.imshow(plane.sample(image, outside=np.nan), cmap="gray", vmin=window[0], vmax=window[1], **placed)
        axes.imshow(scale.colour(plane.sample(saliency, nearest=pieces)), **placed)
        axes.set_autoscale_on(False)
        for part, colour, dashes in ((region, REGION, (0, (4, 2.5))), (target, PREDICTION, "solid")):
            if part is not None and 0 < float((sitk.GetArrayViewFromImage(part) > 0).mean()) < 0.999:
                figure.draw_contour(axes, plane, part, color=colour, linestyle=dashes, linewidth=1.0)
        axes.set_title(figure.position_text(2, z), size=10, color=INK, pad=4, **FONT)
        _letters(axes)
    handles = [
        Line2D([], [], linewidth=1.6, color=PREDICTION, label=for_matplotlib(target_label)),
        Line2D([], [], linewidth=1.6, color=REGION, linestyle=(0, (4, 2.5)), label="Region of interest"),
    ]
    sheet.legend(
        handles=handles,
        loc="lower left",
        ncols=2,
        frameon=False,
        labelcolor=INK,
        prop={**FONT, "size": 10},
        bbox_to_anchor=(0.005, 0.0),
    )
    _colour_bar(sheet, scale, label, wide)
    return _png(sheet), len(heights)


def salient_heights(saliency: sitk.Image, target: sitk.Image, count: int = TILES) -> list[float]:
    """Heights (LPS z, mm) of the axial slices with most of the effect, from head to foot, some mm apart.

    Without any effect, slices through the target, or else through the volume.
    """
    low, high = figure.bounds(saliency)
    spacing = max(min(saliency.GetSpacing()), float((high - low).max()) / 200)
    grid = Grid.within(low + spacing / 2, high - spacing / 2, spacing)
    strength = np.abs(grid.sample(saliency))
    strength[strength < VISIBLE * strength.max()] = 0  # invisible traces must not choose slices
    effect = strength.sum(axis=(1, 2))
    if not effect.any():
        effect = grid.sample(target, nearest=True).sum(axis=(1, 2)) + 1e-6
    positions = grid.first[2] + spacing * np.arange(len(effect))
    with_effect = positions[effect > 0.02 * effect.max()]
    # Spread the slices over all heights with an effect: otherwise all would lie around one peak.
    distance = max(APART_MM, spacing, float(np.ptp(with_effect)) / (1.5 * count))
    chosen: list[float] = []
    for index in np.argsort(-effect, kind="stable"):
        z = float(positions[index])
        if effect[index] > 0.02 * effect.max() and all(abs(z - other) >= distance - 1e-6 for other in chosen):
            chosen.append(z)
        if len(chosen) == count:
            break
    return sorted(chosen, reverse=True)


def _letters(axes: Axes) -> None:
    """Write R and L at the sides: without them a slice cannot be read safely."""
    edge = [withStroke(linewidth=2.5, foreground="black")]
    for x, letter, side in ((0.02, VIEWS[0].left, "left"), (0.98, VIEWS[0].right, "right")):
        axes.text(
            x,
            0.5,
            letter,
            transform=axes.transAxes,
            size=10,
            weight="bold",
            color=INK,
            ha=side,
            va="center",
            path_effects=edge,
            **FONT,
        )


def _colour_bar(sheet: Figure, scale: Scale, label: str, wide: float) -> None:
    axes = sheet.add_axes((1 - 1.05 / wide, 0.25, 0.2 / wide, 0.5), facecolor="#3a3a3a", xticks=[])
    axes.spines[:].set(color="#3a4047", linewidth=0.8)
    axes.yaxis.tick_right()
    low = -scale.limit if scale.signed else 0.0
    if scale.limit:
        ramp = scale.colour(np.linspace(low, scale.limit, 256, dtype=np.float32)[:, None])
        axes.imshow(ramp, origin="lower", extent=(0, 1, low, scale.limit), aspect="auto")
        ticks = [low, (low + scale.limit) / 2, scale.limit]
        axes.set_yticks(ticks, [f"{tick:.2g}".replace("-", "−") for tick in ticks], size=9, color=INK, **FONT)
    else:
        axes.set_yticks([])
    axes.tick_params(axis="y", color=INK)
    shown = for_matplotlib(label) if scale.limit else "no effect"
    sheet.text(1 - 0.16 / wide, 0.5, shown, rotation=90, ha="center", va="center", size=9, color=FAINT, **FONT)


def structures(rows: Sequence[Mapping[str, Any]], target: str, count: int = 15) -> bytes:
    """Bars of the score lost by removing each structure, the largest first: a PNG."""
    shown = sorted(rows, key=lambda row: -abs(row["score_lost"]))[:count]
    shown = sorted(shown, key=lambda row: row["score_lost"])
    sheet = Figure((8.0, 1.1 + 0.34 * len(shown)), DPI, facecolor="white", layout="constrained")
    axes = sheet.add_subplot()
    values = [row["score_lost"] for row in shown]
    colours = [ORANGE if row["structure"] == target else MAP if row["score_lost"] >= 0 else BLUE for row in shown]
    names = [for_matplotlib(textwrap.shorten(row["structure"], 40, placeholder=" …")) for row in shown]
    bars = axes.barh(range(len(shown)), values, color=colours)
    axes.set_yticks(range(len(shown)), names)
    axes.bar_label(bars, [f"{value:+.3f}".replace("-", "−") for value in values], padding=4, size=9)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.margins(x=0.16)
    axes.set_xlabel(f"score of the {for_matplotlib(target)} lost when the structure is removed", size=10)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(sheet)


def curves(faithfulness: Mapping[str, Any], target: str) -> bytes:
    """Deletion and insertion curves of a map and of control maps: a PNG.

    Parameters
    ----------
    faithfulness
        ``faithfulness`` of a record.
    target
        Name of the structure.
    """
    sheet = Figure((10.0, 4.1), DPI, facecolor="white", layout="constrained")
    volumes = np.asarray(faithfulness["volumes_mm3"]) / 1000
    titles = {
        "deletion": "Hiding what the map marks first\n(the sooner the curve falls, the better)",
        "insertion": "Showing what the map marks first\n(the sooner the curve rises, the better)",
    }
    for axes, (direction, title) in zip(sheet.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for name, lines in faithfulness["controls"].items():
            colour, dashes, label = CONTROL_STYLES.get(name, (GREY, "-", for_matplotlib(name)))
            axes.plot(volumes, lines[direction]["scores"], dashes, color=colour, linewidth=1.6, marker=".", label=label)
        scores = faithfulness["map"][direction]["scores"]
        axes.plot(volumes, scores, color=MAP, linewidth=2.6, marker="o", markersize=4, label="this map")
        axes.set_xscale("log")
        axes.set_title(title, size=10)
        axes.set_xlabel(f"{'hidden' if direction == 'deletion' else 'shown'} so far (ml)", size=9)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(-0.03, 1.03)
    first = sheet.axes[0]
    first.set_ylabel(f"overlap with the {for_matplotlib(target)} as it was drawn (Dice)", size=9)
    handles, labels = first.get_legend_handles_labels()
    sheet.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return _png(sheet)


def _png(sheet: Figure) -> bytes:
    stream = io.BytesIO()
    sheet.savefig(stream, format="png", dpi=DPI, facecolor=sheet.get_facecolor(), metadata={"Software": None})
    return stream.getvalue()
