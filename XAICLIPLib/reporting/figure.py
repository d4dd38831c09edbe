"""The picture of an explanation: three planes through the target, plain and with the effect around it and within it.

What is hidden of an organ costs more than all that lies around it, so that on one scale the organ is a bright copy of
its outline and the surroundings are dim: each has a row of its own, with a scale of its own.

The planes lie along the patient's axes, whatever the orientation of the volume, and are sampled
directly from it. Positions are LPS mm, as in SimpleITK (x grows to the left, y to posterior, z to
superior), and written as 3D Slicer shows them ("R 55 mm"). Arrays are (z, y, x).
"""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure  # not pyplot: its state is shared between threads
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from scipy import ndimage
from skimage.measure import find_contours

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging import body_mask, same_geometry
from XAICLIPLib.system.displaytext import for_matplotlib
from XAICLIPLib.system.files import write_atomically

Array = npt.NDArray[np.float32]
Point = npt.NDArray[np.float64]
Style = dict[str, Any]

WIDTH, DPI = 1600, 100  # of the picture, in pixels
LEFT, RIGHT, GAP = 70, 194, 44  # pixels beside the panels and between them
NEIGHBOURHOOD_MM = 10.0  # how far from the target its most informative point may lie
SURROUNDINGS_MM = 30.0  # and how far the surroundings are looked at
LEAST_SECTION = 0.15  # of the target's largest section: what each plane must show of the target
FAIR_SECTION = 0.4  # the same where the planes are chosen by the surroundings
MARGIN_MM = 10.0  # around the body
SIGNED_FROM = 0.15  # share of the largest value from which negative values count
OPACITY = 0.8  # of the strongest saliency

CAUTION = "#ffb347"
BACKGROUND, INK, FAINT, PREDICTION, REGION = "#15181c", "#f2f2f2", "#b4bac1", "#5dff7e", "#39d5ff"
SUFFICIENT, SUFFICIENT_LABEL = "#ffffff", "Enough when all else is hidden"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
FONT: Style = {"family": "DejaVu Sans"}  # comes with matplotlib
# Inferno without its black end, which would darken the scan: weak effects are transparent instead.
_HOT = ("#3d0965", "#781c6d", "#bb3754", "#ed6925", "#fcb519", "#fcffa4")
_COLD = ("#effbff", "#b5e6ff", "#5cc0ff", "#1e90e8", "#0b5cad", "#08306b")
UNSIGNED = LinearSegmentedColormap.from_list("saliency", _HOT)
SIGNED = LinearSegmentedColormap.from_list("signed saliency", (*_COLD, *_HOT))


@dataclass(frozen=True)
class View:
    """How a plane lies on the screen: its LPS axes (numbers), and the letter at each edge."""

    name: str
    across: int
    down: int
    normal: int
    left: str
    right: str
    top: str
    bottom: str


VIEWS = (
    View("Axial", 0, 1, 2, "R", "L", "A", "P"),
    View("Coronal", 0, 2, 1, "R", "L", "S", "I"),
    View("Sagittal", 1, 2, 0, "A", "P", "S", "I"),
)


@dataclass(frozen=True)
class Grid:
    """A grid along the patient's axes: its first point (LPS mm), counts (x, y, z), and spacing in mm."""

    first: Point
    counts: tuple[int, int, int]
    spacing: float

    @classmethod
    def within(cls, low: Point, high: Point, spacing: float, through: Point | None = None) -> Grid:
        """Fill a box (LPS mm), with a point exactly at ``through`` (by default at ``low``)."""
        first = low if through is None else through - spacing * np.floor((through - low) / spacing)
        x, y, z = np.floor((high - first) / spacing + 1e-6).astype(int) + 1
        return cls(first, (int(x), int(y), int(z)), spacing)

    def position(self, index: npt.ArrayLike) -> Point:
        """Position (LPS mm) of an index (z, y, x)."""
        return self.first + self.spacing * np.asarray(index, dtype=float)[::-1]

    def sample(self, image: sitk.Image, *, nearest: bool = False, outside: float = 0) -> Array:
        """Values of a volume at the points (z, y, x), and ``outside`` where it does not reach."""
        method = sitk.ResampleImageFilter()
        method.SetSize(self.counts)
        method.SetOutputOrigin(self.first.tolist())
        method.SetOutputSpacing([self.spacing] * 3)
        method.SetOutputDirection(np.eye(3).ravel().tolist())
        method.SetInterpolator(sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear)
        method.SetDefaultPixelValue(outside)
        method.SetOutputPixelType(sitk.sitkFloat32)
        return np.asarray(sitk.GetArrayFromImage(method.Execute(image)), dtype=np.float32)


@dataclass(frozen=True)
class Plane:
    """One plane to show: its view, and the grid of its points, which has one point along the normal."""

    view: View
    grid: Grid

    @classmethod
    def through(cls, point: Point, view: View, low: Point, high: Point) -> Plane:
        """The plane through a point within a box (LPS mm); the point itself is one of the grid's."""
        low, high = np.minimum(low, point), np.maximum(high, point)
        low[view.normal] = high[view.normal] = point[view.normal]
        return cls(view, Grid.within(low, high, float((high - low).max()) / 700, through=point))

    def sample(self, image: sitk.Image, outside: float = 0, nearest: bool = False) -> Array:
        """Values as screen rows: the first row is the view's top, the first column its left."""
        rows = self.grid.sample(image, outside=outside, nearest=nearest).squeeze(axis=2 - self.view.normal)
        return rows[::-1] if self.view.down == 2 else rows  # z grows upwards, y downwards

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edge in LPS mm, half a pixel beyond the points."""
        low = self.grid.first - self.grid.spacing / 2
        high = low + self.grid.spacing * np.array(self.grid.counts)
        bottom, top = (low, high) if self.view.down == 2 else (high, low)
        across, down = self.view.across, self.view.down
        return float(low[across]), float(high[across]), float(bottom[down]), float(top[down])


def _span(mask: npt.NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """First index of a mask's voxels along each axis, and one past the last."""
    indices = [np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return [int(along[0]) for along in indices], [int(along[-1]) + 1 for along in indices]


def bounds(image: sitk.Image, mask: npt.NDArray[np.bool_] | None = None) -> tuple[Point, Point]:
    """Lowest and highest corner (LPS mm) of a volume's voxels, or of those in a mask (z, y, x)."""
    corners = np.meshgrid(*[(0, size - 1) for size in image.GetSize()])
    voxels = np.reshape(corners, (3, -1)).T if mask is None else np.argwhere(mask)[:, ::-1]
    axes = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    points, half = image.GetOrigin() + voxels @ axes.T, np.abs(axes).sum(axis=1) / 2
    return points.min(axis=0) - half, points.max(axis=0) + half


def focus(saliency: sitk.Image, prediction: sitk.Image, region: sitk.Image | None = None) -> tuple[Point, str]:
    """Find the point through which the planes go.

    It is the point of largest absolute saliency in or near the target, among the points whose
    planes all show a large enough section of the target. If there is no saliency, it is the
    target's most central point; without a target, the point of largest saliency, or the middle of
    the region or of the volume.

    Returns
    -------
    point
        LPS mm, inside the volume. Each plane through it meets the target, where there is one.
    reason
        What the point is, in words.
    """
    mask = sitk.GetArrayViewFromImage(prediction) > 0
    has_target = bool(mask.any())
    low, high = bounds(prediction, mask if has_target else None)
    anchor = None
    if has_target:
        low, high = low - NEIGHBOURHOOD_MM, high + NEIGHBOURHOOD_MM
        voxel = np.unravel_index(int(np.argmax(mask)), mask.shape)[::-1]
        # A point of the grid lies in the target, so that even the thinnest target is sampled.
        anchor = np.array(prediction.TransformIndexToPhysicalPoint([int(i) for i in voxel]))
    spacing = max(min(prediction.GetSpacing()), float((high - low).max()) / 160)
    grid = Grid.within(low, high, spacing, through=anchor)
    scanned = grid.sample(prediction, nearest=True, outside=-1) >= 0
    if has_target:
        inside, reason = grid.sample(prediction, nearest=True) > 0, "the middle of the target"
        near = ndimage.distance_transform_edt(~inside, sampling=spacing) <= NEIGHBOURHOOD_MM
        near &= scanned
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            section = inside.sum(axis=others, keepdims=True)
            near &= section >= LEAST_SECTION * section.max()
    else:
        inside, near, reason = scanned, scanned, "the middle of the volume"
        if region is not None and (part := grid.sample(region, nearest=True) > 0).any():
            inside, reason = part, "the middle of the region"
    strength = np.where(near, np.abs(grid.sample(saliency)), -1)
    if near.any() and strength.max() > 1.000001 * strength[near].min():
        candidates = np.argwhere(strength >= strength.max() * (1 - 1e-6))  # one point, or all of a whole structure
        reason = f"the strongest effect {'in or near the target' if has_target else 'anywhere'}"
    else:
        candidates = np.argwhere(inside & near if (inside & near).any() else inside)
    distance = ((candidates - np.argwhere(inside).mean(axis=0)) ** 2).sum(axis=1)
    return grid.position(candidates[np.argmin(distance)]), reason


def field_of_view(body: sitk.Image, target: tuple[Point, Point], point: Point, view: View) -> tuple[Point, Point]:
    """Box (LPS mm) to show in a plane: its part of the body; in a long scan, only near the target."""
    (low, high), (target_low, target_high) = bounds(body), target
    grid = Grid.within(low, high, float((high - low).max()) / 128)
    inside = grid.sample(body) > 0.5
    first, last = _span(inside) if inside.any() else ([0, 0, 0], list(inside.shape))
    bottom, top = grid.position(first)[2] - MARGIN_MM, grid.position(last)[2] + MARGIN_MM
    width = grid.spacing * max(last[1] - first[1], last[2] - first[2]) + 2 * MARGIN_MM
    height = max(1.15 * width, float(target_high[2] - target_low[2]) + 80)
    if top - bottom > height:
        bottom = np.clip((target_low[2] + target_high[2] - height) / 2, bottom, top - height)
        top = bottom + height
    heights = grid.first[2] + grid.spacing * np.arange(len(inside))
    inside &= ((heights >= bottom) & (heights <= top))[:, None, None]
    index = int(np.rint((point - grid.first) / grid.spacing)[view.normal])
    section = inside.take([index], axis=2 - view.normal, mode="clip")
    first, last = _span(section) if section.any() else (first, last)
    view_low, view_high = grid.position(first) - MARGIN_MM, grid.position(last) + MARGIN_MM
    view_low[2], view_high[2] = bottom, top  # one height for the coronal and the sagittal plane
    view_low = np.minimum(view_low, target_low - MARGIN_MM)
    view_high = np.maximum(view_high, target_high + MARGIN_MM)
    return np.maximum(view_low, low), np.minimum(view_high, high)


def grey_window(image: sitk.Image, modality: Literal["CT", "MR"] | None) -> tuple[float, float]:
    """Lowest and highest grey value to show: W 400 L 40 HU for CT, else 1st to 99th percentile."""
    if modality == "CT":
        return -160.0, 240.0
    values = sitk.GetArrayViewFromImage(image).ravel()
    low, high = np.percentile(values[:: max(1, values.size // 2_000_000)], (1, 99))
    return float(low), float(high) if high > low else float(low) + 1


@dataclass(frozen=True)
class Scale:
    """How saliency becomes colour.

    ``limit`` is the value of the strongest colour, 0 if there is no effect at all; ``low`` and
    ``high`` are the extremes of the whole volume; ``signed`` says that negative values matter too.
    """

    limit: float
    low: float
    high: float
    signed: bool

    @classmethod
    def of(cls, saliency: sitk.Image, part: npt.NDArray[np.bool_] | None = None) -> Scale:
        """Scale for a saliency volume, or a part of it (z, y, x). It is robust against a few outlying voxels."""
        values = sitk.GetArrayViewFromImage(saliency)
        values = values if part is None else values[part]
        low, high = min(float(values.min(initial=0)), 0.0), max(float(values.max(initial=0)), 0.0)
        signed = -low > SIGNED_FROM * max(-low, high)
        size = np.abs(values) if signed else values
        tenth, largest = np.sort(np.partition(size, -min(10, size.size), axis=None)[-10:])[[0, -1]]
        limit = tenth if 0 < 1.5 * tenth < largest else largest
        return cls(max(float(limit), 0.0), low, high, signed)

    def colour(self, values: Array) -> Array:
        """RGBA colours (…, 4) in [0, 1]; weaker effects are more transparent."""
        share = np.clip(values / (self.limit or 1), -1 if self.signed else 0, 1)
        rgba = SIGNED((share + 1) / 2) if self.signed else UNSIGNED(share)
        rgba[..., 3] = OPACITY * np.clip((np.abs(share) - 0.06) / 0.4, 0, 1)
        return np.asarray(rgba, dtype=np.float32)


def position_text(axis: int, value: float) -> str:
    """Position along an LPS axis as Slicer shows it: the side's letter and the distance in mm."""
    return f"{('RL', 'AP', 'IS')[axis][int(value > 0)]} {abs(value):.1f} mm"


def _number(value: float) -> str:
    return (f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "−")


class _Sheet:
    """A page of rows of panels, measured in pixels from its top left corner."""

    def __init__(
        self,
        planes: list[Plane],
        rows: Sequence[str],
        title: str,
        subtitle: str,
        notes: list[str],
        warnings: Sequence[str] = (),
    ) -> None:
        self.planes = planes
        sizes = np.abs([(e[1] - e[0], e[3] - e[2]) for e in (plane.extent for plane in planes)])
        aspects = np.clip(sizes[:, 0] / sizes[:, 1], 0.5, 1.9)
        room = WIDTH - LEFT - RIGHT
        self.height = min(640.0, (room - 2 * GAP) / aspects.sum())
        self.widths = aspects * self.height
        self.mm = np.maximum(sizes[:, 0] / self.widths, sizes[:, 1] / self.height)  # per pixel
        between = (room - self.widths.sum()) / 2
        self.lefts = LEFT + np.cumsum([0, *(self.widths[:2] + between)])
        longest = float((0.36 * self.mm * self.widths).min())
        self.bar = max((mm for mm in (5, 10, 20, 50, 100) if mm < longest), default=1)
        top = 134.0 if subtitle else 102.0
        self.tops = [top + number * (self.height + GAP) for number in range(len(rows))]
        self.foot = self.tops[-1] + self.height + 40
        # Lines break between notes only.
        lines = textwrap.wrap(" · ".join(note.replace(" ", "\N{NBSP}") for note in notes), 178)
        cautions = [line for text in warnings for line in textwrap.wrap(f"Warning: {text}", 160)]
        self.total = round(self.foot + 32 + 22 * (len(lines) + len(cautions)))
        self.figure = Figure((WIDTH / DPI, self.total / DPI), DPI, facecolor=BACKGROUND)
        self.canvas = FigureCanvasAgg(self.figure)
        self.fit(self.text(LEFT, 34, title, 19, weight="bold"))
        self.fit(self.text(LEFT, 68, subtitle, 13, color=FAINT))
        for number, line in enumerate(lines):
            self.text(LEFT, self.foot + 34 + 22 * number, line.rstrip(" ·"), 10.5, color=FAINT)
        for number, line in enumerate(cautions, start=len(lines)):
            self.text(LEFT, self.foot + 34 + 22 * number, line, 11, color=CAUTION)
        for y, name in zip(self.tops, rows, strict=True):
            self.text(26, y + self.height / 2, name, 14, rotation=90, ha="center")

    def text(self, x: float, y: float, text: str, size: float, **style: Any) -> Text:
        style = {"color": INK, "va": "center", "size": size, **FONT} | style
        at = x / WIDTH, 1 - y / self.total
        return self.figure.text(*at, text, parse_math=False, **style)

    def fit(self, text: Text) -> None:
        """Shorten a text to one line of the page."""
        words = " ".join(text.get_text().split())
        text.set_text(words)
        while text.get_window_extent(self.canvas.get_renderer()).width > WIDTH - 2 * LEFT:
            words = words[:-2]
            text.set_text(words.rstrip() + " …")

    def axes(self, x: float, y: float, width: float) -> Axes:
        box = x / WIDTH, 1 - (y + self.height) / self.total
        size = width / WIDTH, self.height / self.total
        axes = self.figure.add_axes((*box, *size), facecolor="black", xticks=[], yticks=[])
        axes.spines[:].set(color="#3a4047", linewidth=0.8)
        return axes

    def panel(self, row: int, column: int, point: Point) -> Axes:
        """Make an empty panel in mm, with letters, scale bar and marks of the other planes."""
        view, (left, right, bottom, top) = self.planes[column].view, self.planes[column].extent
        width, height, mm = self.widths[column], self.height, self.mm[column]
        axes = self.axes(self.lefts[column], self.tops[row], width)
        x, y, half = (left + right) / 2, (top + bottom) / 2, mm * height / 2 * np.sign(top - bottom)
        axes.set(xlim=(x - mm * width / 2, x + mm * width / 2), ylim=(y - half, y + half))
        axes.set_autoscale_on(False)

        edge = [withStroke(linewidth=3, foreground="black")]
        centred: Style = {"ha": "center", "va": "center", "color": INK, **FONT}
        inside: Style = {"transform": axes.transAxes, "path_effects": edge, "zorder": 5}
        for at, letter in (
            ((14, height / 2), view.left),
            ((width - 14, height / 2), view.right),
            ((width / 2, height - 16), view.top),
            ((width / 2, 15), view.bottom),
        ):
            x, y = at[0] / width, at[1] / height
            axes.text(x, y, letter, size=14, weight="bold", **centred, **inside)
        name = axes.text(14 / width, 30 / height, f"{self.bar} mm", size=11, **centred, **inside)
        name.set_horizontalalignment("left")
        ends = np.array([14, 14 + self.bar / mm]) / width
        for colour, thick in (("black", 6), (INK, 3)):
            line: Style = {
                "color": colour,
                "linewidth": thick,
                "transform": axes.transAxes,
                "zorder": 5,
            }
            axes.plot(ends, [16 / height] * 2, **line)
        marks: Style = {"color": INK, "markersize": 6, "clip_on": False, "markeredgewidth": 0}
        for y, arrow in ((1 + 7 / height, "v"), (-7 / height, "^")):
            axes.plot(point[view.across], y, arrow, transform=axes.get_xaxis_transform(), **marks)
        for x, arrow in ((1 + 7 / width, "<"), (-7 / width, ">")):
            axes.plot(x, point[view.down], arrow, transform=axes.get_yaxis_transform(), **marks)
        return axes

    def colour_bar(self, row: int, scale: Scale, label: str) -> None:
        """Draw the bar beside a row, over the grey of soft tissue."""
        x, y = WIDTH - RIGHT + 30, self.tops[row]
        axes = self.axes(x, y, 22)
        axes.set_facecolor("#3a3a3a")
        upright: Style = {"rotation": 90, "ha": "center"}
        label = label if "(" in label or "[" in label else f"{label} (no unit)"
        lines = self.text(x + 138, y + self.height / 2, label, 12, **upright)
        for width in range(len(label), 10, -4):  # as many lines as the row's height takes
            lines.set_text(textwrap.fill(label, width))
            if lines.get_window_extent(self.canvas.get_renderer()).height <= self.height:
                break
        if not scale.limit:
            self.text(x + 11, y + self.height / 2, "no effect", 11, **upright)
            return
        low = -scale.limit if scale.signed else 0.0
        ramp = scale.colour(np.linspace(low, scale.limit, 256, dtype=np.float32)[:, None])
        axes.imshow(ramp, origin="lower", extent=(0, 1, low, scale.limit), aspect="auto")
        steps = MaxNLocator(5, symmetric=scale.signed).tick_values(low, scale.limit)
        inner = [float(step) for step in steps if low < step < 0.88 * scale.limit]
        ticks = [low, *(step for step in inner if step > 0.88 * low), scale.limit]
        power = 0 if 1e-3 <= scale.limit < 1e4 else int(np.floor(np.log10(scale.limit)))
        names = [_number(tick / 10**power) for tick in ticks]
        if power:
            self.text(x, y - 18, f"× 10{str(power).translate(SUPERSCRIPT)}", 11)
        if max(scale.high, -scale.low) > scale.limit:
            names = [("≤ " if low else "") + names[0], *names[1:-1], "≥ " + names[-1]]
        axes.yaxis.tick_right()
        axes.set_yticks(ticks, names, size=11, color=INK, **FONT)
        axes.tick_params(axis="y", color=INK)

    def write(self, path: Path) -> None:
        """Write the PNG, all or nothing."""
        try:
            picture = io.BytesIO()
            self.figure.savefig(picture, format="png", dpi=DPI, facecolor=BACKGROUND)
            write_atomically(path, picture.getvalue())
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}): choose another place for the figure."
            ) from error


def save_figure(
    path: str | os.PathLike[str],
    image: sitk.Image,
    saliency: sitk.Image,
    region: sitk.Image | None,
    prediction: sitk.Image,
    *,
    title: str,
    subtitle: str = "",
    modality: Literal["CT", "MR"] | None = None,
    saliency_label: str = "score lost",
    target_label: str = "Predicted target",
    region_label: str = "Region of interest",
    pieces: bool = False,
    sufficient: sitk.Image | None = None,
    warnings: Sequence[str] = (),
) -> Path:
    """Draw an explanation as one PNG: three planes through the target, without saliency and with it.

    Where there is a target, the saliency around it and within it have a row and a scale each.

    Parameters
    ----------
    path
        The PNG to write, all or nothing; missing folders are made.
    image, saliency
        Scalar volumes on one grid of any orientation. The colours of the saliency are symmetric
        about 0 if negative values matter; values that are not finite count as 0.
    region, prediction
        Masks on that grid of the region of interest (None: not drawn) and the predicted target.
    title, subtitle
        Shown as they are, each shortened to one line. They must not identify the patient.
    modality
        "CT" shows W 400 L 40 HU; otherwise the 1st to 99th percentile is shown.
    saliency_label
        What the colours mean, with the unit in brackets where there is one.
    target_label, region_label
        Names of the outlines of ``prediction`` and ``region``.
    pieces
        The map has one value for each piece, and must not be interpolated between pieces.
    sufficient
        Mask of what is enough when all else is hidden, drawn on the surroundings alone.
    warnings
        Warnings for the reader, one sentence each; written under the panels.

    Raises
    ------
    InputError
        When a volume is not on the image's grid, or the file cannot be written.
    """
    given = {"saliency": saliency, "prediction": prediction, "region": region, "sufficient region": sufficient}
    for name, other in given.items():
        if other is not None and not (image.GetDimension() == 3 and same_geometry(other, image)):
            raise InputError(f"The {name} is not on the 3D grid of the image: resample it first.")
    if not np.isfinite(values := sitk.GetArrayViewFromImage(saliency)).all():
        saliency = sitk.GetImageFromArray(np.nan_to_num(values, nan=0, posinf=0, neginf=0))
        saliency.CopyInformation(image)
    mask = sitk.GetArrayViewFromImage(prediction) > 0
    apart = bool(mask.any()) and not bool(mask.all())
    point, reason = _point_to_show(saliency, prediction, region, mask if apart else None)
    body = body_mask(image)
    target = bounds(prediction, mask) if mask.any() else (point, point)
    boxes = [field_of_view(body, target, point, view) for view in VIEWS]
    planes = [Plane.through(point, view, *box) for view, box in zip(VIEWS, boxes, strict=True)]
    window = grey_window(image, modality)
    rows: list[tuple[str, Scale, bool | None]] = [("Saliency", Scale.of(saliency), None)]
    if apart:
        rows = [
            ("Surroundings", Scale.of(saliency, ~mask), False),
            ("Within the target", Scale.of(saliency, mask), True),
        ]
    grey = f"Grey values {_number(window[0])} to {_number(window[1])} (1st–99th percentile)"
    notes = [
        "Radiological view: the patient's right is on the left",
        "CT window W 400 L 40 HU" if modality == "CT" else grey,
        f"Planes through {reason}: {', '.join(position_text(a, point[a]) for a in range(3))}",
    ]
    extremes = (min(scale.low for _, scale, _ in rows), max(scale.high for _, scale, _ in rows))
    if any(extremes):
        decimals = 2 - int(np.floor(np.log10(max(-extremes[0], extremes[1]))))
        low, high = (_number(round(value, decimals) + 0.0) for value in extremes)
        notes.append(f"Saliency {low} to {high} in the whole volume" + (", each row on its own scale" if apart else ""))
    if extremes[0] < 0 < extremes[1]:
        notes.append("Warm: speaks for what the network drew; blue: against it")
    outlines: list[tuple[str, sitk.Image, Style]] = []
    for name, part, colour, dashes in (
        (region_label, region, REGION, (0, (4, 2.5))),
        (target_label, prediction, PREDICTION, "solid"),
        (SUFFICIENT_LABEL, sufficient, SUFFICIENT, (0, (1, 1.2))),
    ):
        if part is None:
            continue
        share = float((sitk.GetArrayViewFromImage(part) > 0).mean())
        if not 0 < share < 0.999:
            notes.append(f"{name.partition(' (')[0]}: {'the whole volume' if share else 'empty'}")
        elif any(np.any(plane.sample(part) > 0.5) for plane in planes):
            outlines.append((name, part, {"color": colour, "linestyle": dashes}))
        else:
            notes.append(f"{name.partition(' (')[0]}: beside these planes")

    names = ["Scan", *(name for name, _, _ in rows)]
    sheet = _Sheet(planes, names, title, subtitle, [*notes, "Research software, not for diagnosis"], warnings)
    for column, plane in enumerate(planes):
        name = f"{plane.view.name}   {position_text(plane.view.normal, point[plane.view.normal])}"
        sheet.text(sheet.lefts[column], sheet.tops[0] - 28, name, 13)
        scan = plane.sample(image, outside=np.nan)
        inside = plane.sample(prediction) > 0.5
        placed: Style = {"extent": plane.extent, "aspect": "auto"}
        for row in range(len(names)):
            axes = sheet.panel(row, column, point)
            axes.imshow(scan, cmap="gray", vmin=window[0], vmax=window[1], **placed)
            if row:
                _, scale, of_target = rows[row - 1]
                if of_target is None:
                    shown = plane.sample(saliency, nearest=pieces)
                else:
                    within = _sampled_within(plane, saliency, mask if of_target else ~mask, pieces)
                    shown = np.where(inside == of_target, within, 0)
                axes.imshow(scale.colour(shown), **placed)
            for name, part, style in outlines:
                if name == SUFFICIENT_LABEL and names[row] != "Surroundings":
                    continue
                draw_contour(axes, plane, part, linewidth=1.0 if row else 1.8, **style)
    handles = [Line2D([], [], linewidth=2, label=for_matplotlib(name), **style) for name, _, style in outlines]
    arrow: Style = {"linestyle": "", "marker": "v", "color": INK}
    handles.append(Line2D([], [], label="where the other planes cut", **arrow))
    at = (LEFT - 6) / WIDTH, 1 - sheet.foot / sheet.total
    page: Style = {"ncols": 4, "frameon": False, "borderaxespad": 0, "labelcolor": INK}
    sheet.figure.legend(handles=handles, loc="center left", bbox_to_anchor=at, prop={**FONT, "size": 12}, **page)
    for number, (_, scale, _) in enumerate(rows, 1):
        sheet.colour_bar(number, scale, saliency_label)
    sheet.write(Path(path))
    return Path(path)


def _point_to_show(
    saliency: sitk.Image, prediction: sitk.Image, region: sitk.Image | None, mask: npt.NDArray[np.bool_] | None
) -> tuple[Point, str]:
    """The point of the planes, and why: where what lies beyond ``mask`` (z, y, x) matters most, if it does."""
    if mask is not None:
        values = np.abs(sitk.GetArrayViewFromImage(saliency))
        beyond = values[~mask]
        if float(beyond.max()) > 1.000001 * float(beyond.min()):
            around = sitk.GetImageFromArray(np.where(mask, 0, values))
            around.CopyInformation(saliency)
            point = strongest_planes(around, prediction)
            if point is not None:
                return point, "most of the effect of the surroundings near the target"
    return focus(saliency, prediction, region)


def strongest_planes(effect: sitk.Image, target: sitk.Image) -> Point | None:
    """Where the planes cut that hold most of an effect near a target, and a fair section of the target.

    Parameters
    ----------
    effect, target
        Volumes on one grid: values from 0, and a mask that is not empty.

    Returns
    -------
    Point or None
        LPS mm; None where no such plane along any axis holds an effect.
    """
    low, high = bounds(target, sitk.GetArrayViewFromImage(target) > 0)
    low, high = low - SURROUNDINGS_MM, high + SURROUNDINGS_MM
    grid = Grid.within(low, high, max(min(target.GetSpacing()), float((high - low).max()) / 160))
    inside, values = grid.sample(target) > 0.5, grid.sample(effect)
    inside = inside if inside.any() else grid.sample(target, nearest=True) > 0
    index, held = [0, 0, 0], 0.0
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        section = inside.sum(axis=others)
        fair = (section >= FAIR_SECTION * section.max()) & (section > 0)
        profile = np.where(fair, values.sum(axis=others, dtype=np.float64), -1.0)
        best = np.flatnonzero(profile >= profile.max() * (1 - 1e-6))
        middle = float(np.average(np.arange(len(section)), weights=section)) if section.any() else 0.0
        index[axis] = int(best[np.argmin(np.abs(best - middle))])
        held = max(held, float(profile.max()))
    return grid.position(index) if held > 0 else None


def _sampled_within(plane: Plane, image: sitk.Image, part: npt.NDArray[np.bool_], nearest: bool) -> Array:
    """Values of a volume in a plane, of the voxels of a part (z, y, x) alone: at its border nothing is mixed in."""
    near = _around(plane, image)
    image = image[near]
    part = part[near[::-1]]
    share, values = (
        sitk.GetImageFromArray(array.astype(np.float32))
        for array in (part, np.where(part, sitk.GetArrayViewFromImage(image), 0))
    )
    for other in (share, values):
        other.CopyInformation(image)
    weight = plane.sample(share, nearest=nearest)
    sums = plane.sample(values, nearest=nearest)
    return np.asarray(np.where(weight > 0, sums / np.maximum(weight, 1e-6), 0), dtype=np.float32)


def _around(plane: Plane, image: sitk.Image) -> tuple[slice, slice, slice]:
    """Bounds (x, y, z) of the voxels that a plane lies between: a large scan is not worked on for each plane."""
    size, last = np.array(image.GetSize()), plane.grid.position(np.array(plane.grid.counts[::-1]) - 1)
    corners = np.array(np.meshgrid(*zip(plane.grid.first, last, strict=True))).reshape(3, -1).T
    indices = np.array([image.TransformPhysicalPointToContinuousIndex(corner.tolist()) for corner in corners])
    low = np.clip(np.floor(indices.min(0)) - 1, 0, size - 1).astype(int)
    high = np.clip(np.ceil(indices.max(0)) + 2, low + 1, size).astype(int)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return x, y, z


def draw_contour(axes: Axes, plane: Plane, mask: sitk.Image, **style: Any) -> None:
    """Draw the outline of a mask, half-way between the voxels inside and outside; axes in mm."""
    rows = plane.sample(mask)
    left, right, bottom, top = plane.extent
    for line in find_contours(rows, 0.5):
        y, x = ((line + 0.5) / rows.shape).T
        axes.plot(left + x * (right - left), top + y * (bottom - top), **style)
