from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging import body_mask
from XAICLIPLib.reporting import figure as module
from XAICLIPLib.reporting.figure import (
    VIEWS,
    Plane,
    Scale,
    bounds,
    field_of_view,
    focus,
    grey_window,
    position_text,
    save_figure,
)

# Which way each letter lies, in LPS.
TOWARDS = {
    "R": (-1, 0, 0),
    "L": (1, 0, 0),
    "A": (0, -1, 0),
    "P": (0, 1, 0),
    "I": (0, 0, -1),
    "S": (0, 0, 1),
}
OBLIQUE = sitk.VersorTransform((0.5, 0.3, 0.8), 0.45).GetMatrix()
LIVER_AT = np.array([-55.0, 12.0, 30.0])  # of the torso below: right, a little posterior


def direction(codes: str) -> list[float]:
    """Direction of index axes that run towards these letters, or of one that is oblique."""
    return list(OBLIQUE) if codes == "oblique" else np.transpose([TOWARDS[c] for c in codes]).ravel().tolist()


def positions(image: sitk.Image) -> np.ndarray:
    """LPS position of every voxel, (z, y, x, 3), by SimpleITK alone."""
    field = sitk.PhysicalPointSource(
        sitk.sitkVectorFloat64,
        image.GetSize(),
        image.GetOrigin(),
        image.GetSpacing(),
        image.GetDirection(),
    )
    return sitk.GetArrayFromImage(field)


def like(image: sitk.Image, values: np.ndarray) -> sitk.Image:
    result = sitk.GetImageFromArray(values)
    result.CopyInformation(image)
    return result


def torso(codes: str = "LPS", spacing: tuple[float, ...] = (6.0, 5.0, 8.0)) -> dict[str, sitk.Image]:
    """A cylinder with a ball for a liver on its right, in HU, on a grid around LPS (0, 0, 20)."""
    size = [50, 44, 36]
    grid = sitk.Image(size, sitk.sitkUInt8)
    grid.SetSpacing(spacing)
    grid.SetDirection(direction(codes))
    middle = grid.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in size])
    grid.SetOrigin((np.array([0.0, 0.0, 20.0]) - middle).tolist())
    at = positions(grid)
    body = (at[..., 0] / 120) ** 2 + (at[..., 1] / 80) ** 2 < 1
    distance = np.linalg.norm(at - LIVER_AT, axis=-1)
    liver = distance < 30
    hu = np.where(liver, 110, np.where(body, 40, -1000)).astype(np.int16)
    peak = np.exp(-((np.linalg.norm(at - LIVER_AT - [0, 12, 0], axis=-1) / 15) ** 2))
    return {
        "image": like(grid, hu),
        "saliency": like(grid, (0.02 * peak).astype(np.float32)),
        "region": like(grid, (distance < 45).astype(np.uint8)),
        "prediction": like(grid, liver.astype(np.uint8)),
    }


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pages drawn, before they are written."""
    drawn: list[Any] = []
    write = module._Sheet.write

    def keep(sheet: Any, path: Path) -> None:
        drawn.append(sheet)
        write(sheet, path)

    monkeypatch.setattr(module._Sheet, "write", keep)
    return drawn


def texts(sheet: Any) -> list[Any]:
    """All texts of a page that can be seen."""
    sheet.canvas.draw()
    found = [t for t in sheet.figure.findobj(module.Text) if t.get_visible() and t.get_text().strip()]
    return [t for t in found if t.get_window_extent(sheet.canvas.get_renderer()).width > 0]


def words(sheet: Any) -> str:
    return " | ".join(t.get_text().replace("\N{NBSP}", " ") for t in texts(sheet))


# Planes


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LIA", "PIR", "SAL", "oblique"])
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_letters_name_the_sides_whatever_the_orientation(codes: str, view: Any) -> None:
    grid = torso(codes)["image"]
    at = positions(grid)
    point = np.array([5.0, -7.0, 31.0])
    plane = Plane.through(point, view, point - 20.5, point + 30.2)
    seen = np.stack([plane.sample(like(grid, at[..., axis])) for axis in range(3)], axis=-1)
    for letter, way in (
        (view.left, seen[0, 0] - seen[0, -1]),
        (view.right, seen[0, -1] - seen[0, 0]),
        (view.top, seen[0, 0] - seen[-1, 0]),
        (view.bottom, seen[-1, 0] - seen[0, 0]),
    ):
        np.testing.assert_allclose(way / np.linalg.norm(way), TOWARDS[letter], atol=1e-3)
    # The axes say where the values lie, and the point is one of them.
    left, right, bottom, top = plane.extent
    rows, columns = seen.shape[:2]
    x = left + (np.arange(columns) + 0.5) * (right - left) / columns
    y = top + (np.arange(rows) + 0.5) * (bottom - top) / rows
    np.testing.assert_allclose(seen[0, :, view.across], x, atol=1e-3)
    np.testing.assert_allclose(seen[:, 0, view.down], y, atol=1e-3)
    np.testing.assert_allclose(seen[..., view.normal], point[view.normal], atol=1e-3)
    assert np.abs(seen - point).max(axis=-1).min() < 1e-3


def test_views_follow_the_radiological_convention() -> None:
    letters = {view.name: (view.left, view.right, view.top, view.bottom) for view in VIEWS}
    assert letters == {
        "Axial": ("R", "L", "A", "P"),
        "Coronal": ("R", "L", "S", "I"),
        "Sagittal": ("A", "P", "S", "I"),
    }


@pytest.mark.parametrize("codes", ["LPS", "oblique"])
def test_a_ball_is_as_wide_as_high_in_mm(codes: str) -> None:
    ball = torso(codes, (3.0, 2.5, 5.0))["prediction"]
    for view in VIEWS:
        plane = Plane.through(LIVER_AT, view, LIVER_AT - 40, LIVER_AT + 40)
        inside = plane.sample(ball) > 0.5
        for axis in (0, 1):
            across = np.flatnonzero(inside.any(axis=axis)).size * plane.grid.spacing
            assert across == pytest.approx(60, abs=10)  # a voxel at each end


def test_bounds_enclose_the_voxels_to_their_edges() -> None:
    image = torso("RAS", (2.0, 3.0, 4.0))["image"]
    low, high = bounds(image)
    np.testing.assert_allclose(high - low, np.array([50, 44, 36]) * [2, 3, 4])
    np.testing.assert_allclose((high + low) / 2, [0, 0, 20])
    mask = np.zeros((36, 44, 50), bool)
    mask[3, 4, 5] = True
    low, high = bounds(image, mask)
    np.testing.assert_allclose((low + high) / 2, image.TransformIndexToPhysicalPoint((5, 4, 3)))
    np.testing.assert_allclose(high - low, [2, 3, 4])


def test_positions_are_written_by_side() -> None:
    assert [position_text(axis, -5.04) for axis in range(3)] == ["R 5.0 mm", "A 5.0 mm", "I 5.0 mm"]
    assert [position_text(axis, 12) for axis in range(3)] == ["L 12.0 mm", "P 12.0 mm", "S 12.0 mm"]


# The point that is shown


def shows(point: np.ndarray, mask: sitk.Image) -> list[float]:
    """Largest value of a mask in each plane through a point."""
    low, high = bounds(mask)
    return [float(Plane.through(point, view, low, high).sample(mask).max()) for view in VIEWS]


@pytest.mark.parametrize("codes", ["LPS", "LIA", "oblique"])
def test_planes_go_through_the_strongest_effect_in_the_target(codes: str) -> None:
    scan = torso(codes)
    point, reason = focus(scan["saliency"], scan["prediction"])
    assert np.linalg.norm(point - LIVER_AT - [0, 12, 0]) < 6
    assert "strongest effect" in reason
    assert min(shows(point, scan["prediction"])) > 0.99


def test_a_stronger_effect_far_from_the_target_does_not_draw_the_planes_away() -> None:
    scan = torso()
    values = sitk.GetArrayFromImage(scan["saliency"])
    values[20, 20, 40] = 1
    point, _ = focus(like(scan["image"], values), scan["prediction"])
    assert np.linalg.norm(point - LIVER_AT - [0, 12, 0]) < 6


def test_an_effect_at_the_tip_of_the_target_still_shows_a_fair_section() -> None:
    scan = torso("LPS", (3.0, 3.0, 3.0))
    distance = np.linalg.norm(positions(scan["image"]) - LIVER_AT - [0, 0, 33], axis=-1)
    tip = like(scan["image"], np.exp(-distance / 20).astype(np.float32))
    point, _ = focus(tip, scan["prediction"])
    assert point[2] > LIVER_AT[2] + 20
    low, high = bounds(scan["image"])
    plane = Plane.through(point, VIEWS[0], low, high)
    area = float((plane.sample(scan["prediction"]) > 0.5).sum()) * plane.grid.spacing**2
    assert area > 0.1 * np.pi * 30**2


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
def test_planes_go_through_the_middle_where_no_place_matters_more(value: float) -> None:
    scan = torso()
    flat = like(scan["image"], np.full((36, 44, 50), value, np.float32))
    point, reason = focus(flat, scan["prediction"])
    assert np.linalg.norm(point - LIVER_AT) < 6
    assert reason == "the middle of the target"


def test_between_pieces_of_one_value_no_other_is_shown() -> None:
    scan = torso("oblique")
    flat = sitk.Cast(scan["prediction"] > 0, sitk.sitkFloat32)
    point, _ = focus(flat, scan["prediction"])
    plane = Plane.through(point, VIEWS[1], *bounds(scan["image"]))
    assert set(np.unique(plane.sample(flat, nearest=True))) == {0, 1}
    assert len(np.unique(plane.sample(flat))) > 2


def test_planes_go_through_the_middle_of_a_structure_of_one_value() -> None:
    scan = torso()
    point, reason = focus(sitk.Cast(scan["prediction"] > 0, sitk.sitkFloat32), scan["prediction"])
    assert np.linalg.norm(point - LIVER_AT) < 6
    assert "strongest effect" in reason


@pytest.mark.parametrize("codes", ["LPS", "oblique"])
def test_a_target_of_one_voxel_is_shown(codes: str) -> None:
    scan = torso(codes, (1.0, 1.0, 6.0))
    for index in ((25, 20, 18), (0, 0, 0), (49, 43, 35)):
        mask = np.zeros((36, 44, 50), np.uint8)
        mask[index[::-1]] = 1
        for saliency in (scan["saliency"], scan["saliency"] * 0):
            point, _ = focus(saliency, like(scan["image"], mask))
            assert min(shows(point, like(scan["image"], mask))) >= 0.5


def test_without_a_target_the_effect_then_the_region_then_the_volume_is_shown() -> None:
    scan = torso()
    none, zero = scan["prediction"] * 0, scan["saliency"] * 0
    point, reason = focus(scan["saliency"], none, scan["region"])
    assert np.linalg.norm(point - LIVER_AT - [0, 12, 0]) < 6
    assert "strongest effect" in reason
    point, reason = focus(zero, none, scan["region"])
    assert np.linalg.norm(point - LIVER_AT) < 6
    assert "region" in reason
    point, reason = focus(zero, none)
    assert np.linalg.norm(point - [0, 0, 20]) < 8
    assert "volume" in reason


def test_the_view_keeps_to_the_body_and_to_the_target_of_a_long_scan() -> None:
    scan = torso("LPS", (6.0, 5.0, 40.0))  # 1440 mm long
    target = bounds(scan["prediction"], sitk.GetArrayFromImage(scan["prediction"]) > 0)
    for view in VIEWS:
        low, high = field_of_view(body_mask(scan["image"]), target, LIVER_AT, view)
        if 0 in (view.across, view.down):
            assert low[0] == pytest.approx(-120, abs=30)
            assert high[0] == pytest.approx(120, abs=30)
        assert high[2] - low[2] < 350
        assert np.all(low <= target[0]) and np.all(high >= target[1])


# Colours


def test_weak_effects_are_transparent_and_strong_ones_are_not() -> None:
    scale = Scale(2.0, 0.0, 2.0, signed=False)
    alpha = scale.colour(np.array([-1, 0, 0.1, 0.5, 1, 2, 9], np.float32))[:, 3]
    assert alpha[:3].tolist() == [0, 0, 0]
    assert np.all(np.diff(alpha) >= 0)
    assert alpha[-1] == pytest.approx(module.OPACITY)


def test_substantial_negative_values_get_their_own_colours_and_a_symmetric_scale() -> None:
    scan = torso()
    small, large = scan["saliency"] - 0.001, scan["saliency"] - 0.01
    assert not Scale.of(small).signed
    scale = Scale.of(large)
    assert scale.signed
    below, zero, above = scale.colour(np.array([-scale.limit, 0, scale.limit], np.float32))
    assert zero[3] == 0
    assert below[3] == above[3] > 0.5
    assert below[2] > below[0]  # blue below, yellow above
    assert above[0] > above[2]


def test_one_outlier_does_not_hide_the_rest() -> None:
    scan = torso(spacing=(3.0, 3.0, 3.0))
    values = sitk.GetArrayFromImage(scan["saliency"])
    values[0, 0, 0] = 5
    scale = Scale.of(like(scan["image"], values))
    assert scale.high == 5
    assert scale.limit == pytest.approx(0.02, rel=0.3)


def test_an_effect_of_one_voxel_is_an_effect() -> None:
    scan = torso()
    values = np.zeros((36, 44, 50), np.float32)
    values[18, 20, 25] = 0.5
    assert Scale.of(like(scan["image"], values)).limit == 0.5


def test_grey_values_are_those_of_radiology() -> None:
    image = torso()["image"]
    assert grey_window(image, "CT") == (-160, 240)
    ramp = like(image, np.arange(36 * 44 * 50, dtype=np.float32).reshape(36, 44, 50))
    assert grey_window(ramp, "MR") == pytest.approx((792, 78408), abs=2)
    low, high = grey_window(image * 0, None)
    assert low < high


# The picture


@pytest.mark.parametrize("codes", ["LPS", "oblique"])
def test_the_page_is_legible(codes: str, tmp_path: Path, sheets: list[Any]) -> None:
    scan = torso(codes)
    path = save_figure(tmp_path / "new" / "figure.png", **scan, title="Liver", subtitle="a $b^2$", modality="CT")
    assert path == tmp_path / "new" / "figure.png"
    with PIL.Image.open(path) as picture:
        assert picture.size == (1600, sheets[0].total)
        assert set(picture.info) <= {"Software", "dpi"}
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]
    boxes = {t: t.get_window_extent(sheets[0].canvas.get_renderer()) for t in texts(sheets[0])}
    for (a, box), (b, other) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(other), (a.get_text(), b.get_text())
    for text, box in boxes.items():
        assert box.x0 >= 0 and box.y0 >= 0, text.get_text()
        assert box.x1 <= 1600 and box.y1 <= sheets[0].total, text.get_text()
    for axes in sheets[0].figure.axes[:9]:
        size = axes.get_window_extent()
        mm = abs(np.diff(axes.get_xlim())[0]), abs(np.diff(axes.get_ylim())[0])
        assert mm[0] / size.width == pytest.approx(mm[1] / size.height, rel=1e-6)
    said = words(sheets[0])
    for expected in (
        "Liver",
        "a $b^2$",
        "CT window W 400 L 40 HU",
        "score lost (no unit)",
        "Region of interest",
        "Predicted target",
        "50 mm",
    ):
        assert expected in said
    (sagittal,) = [t.get_text() for t in texts(sheets[0]) if t.get_text().startswith("Sagittal")]
    assert "R " in sagittal  # it goes through the liver, on the right


def test_the_liver_and_its_contour_are_drawn_on_the_left(tmp_path: Path, sheets: list[Any]) -> None:
    scan = torso("RAI")
    path = save_figure(tmp_path / "a.png", **(scan | {"region": None}), title="", modality="CT")
    with PIL.Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB")).astype(int)
    for axes in sheets[0].figure.axes[:4:3]:  # axial and coronal, without saliency
        box = axes.get_window_extent()
        part = rgb[len(rgb) - round(box.y1) : len(rgb) - round(box.y0), round(box.x0) : round(box.x1)]
        line = np.abs(part - (0x5D, 0xFF, 0x7E)).sum(axis=-1) < 40
        liver = np.abs(part - 255 * (110 + 160) // 400).max(axis=-1) < 6
        for found in (line, liver):
            assert found.sum() > 200
            rows, columns = np.nonzero(found)
            assert columns.mean() < 0.4 * part.shape[1]
            if axes is sheets[0].figure.axes[0]:
                assert rows.mean() > 0.5 * part.shape[0]  # it lies posterior: at the bottom
            else:
                assert rows.mean() < 0.5 * part.shape[0]  # and superior: at the top


def test_it_says_what_warm_and_blue_are_where_both_are(tmp_path: Path, sheets: list[Any]) -> None:
    scan = torso()
    save_figure(tmp_path / "a.png", **scan, title="", modality="CT")
    values = sitk.GetArrayFromImage(scan["saliency"])
    save_figure(tmp_path / "b.png", **(scan | {"saliency": like(scan["image"], values - values.max() / 2)}), title="")
    assert ["blue: against it" in words(sheet) for sheet in sheets] == [False, True]


def test_the_surroundings_have_a_row_and_a_scale_of_their_own(tmp_path: Path, sheets: list[Any]) -> None:
    """On the organ's scale an effect beside it that is a hundred times smaller would not be seen."""
    scan = torso()
    inside = sitk.GetArrayFromImage(scan["prediction"]) > 0
    values = np.where(inside, 0.5, 0).astype(np.float32)
    k, j, _ = np.argwhere(inside).mean(0).round().astype(int)
    i = int(np.flatnonzero(inside[k, j])[0])
    values[k - 1 : k + 2, j - 1 : j + 2, i - 3 : i - 1] = 0.005
    scan["saliency"] = like(scan["image"], values)
    path = save_figure(tmp_path / "a.png", **scan, title="", modality="CT")
    said = [t.get_text() for t in texts(sheets[0])]
    assert {"Scan", "Surroundings", "Within the target"} <= set(said)
    assert "most of the effect of the surroundings near the target" in words(sheets[0])
    assert {"0.005", "0.5"} <= set(said)  # the ends of the two scales
    with PIL.Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB")).astype(int)
    coloured = []
    for axes in sheets[0].figure.axes[1:3]:  # the axial plane's lower rows
        box = axes.get_window_extent()
        top, left = len(rgb) - round(box.y1), round(box.x0)
        part = rgb[top : top + int(box.height), left : left + int(box.width)]
        coloured.append(part[..., 0] - part[..., 2] > 60)  # yellow and orange: the strong end of the colours
    around, within = coloured
    assert around.sum() > 50
    assert within.sum() > 2 * around.sum()
    assert not (around & within).any()  # what is in the one row is not in the other


def test_nothing_of_the_surroundings_is_mixed_into_the_target_at_its_border() -> None:
    scan = torso()
    inside = sitk.GetArrayFromImage(scan["prediction"]) > 0
    saliency = like(scan["image"], np.where(inside, 1.0, -50.0).astype(np.float32))
    plane = module.Plane.through(LIVER_AT, module.VIEWS[0], *bounds(scan["image"]))
    within = module._sampled_within(plane, saliency, inside, nearest=False)
    around = module._sampled_within(plane, saliency, ~inside, nearest=False)
    shown = plane.sample(scan["prediction"]) > 0.5
    assert within[shown] == pytest.approx(1.0, abs=1e-3)
    assert around[~shown & (plane.sample(scan["image"], outside=-5000) > -4000)] == pytest.approx(-50.0, abs=1e-2)
    mixed = plane.sample(saliency)[shown]
    assert mixed.min() < 0, "without it the border would be of the other sign"


def test_what_is_enough_is_drawn_on_the_surroundings_alone(tmp_path: Path, sheets: list[Any]) -> None:
    scan = torso()
    save_figure(tmp_path / "a.png", **scan, title="", sufficient=scan["region"])
    assert module.SUFFICIENT_LABEL in words(sheets[0])
    axes = sheets[0].figure.axes[:3]  # of the axial plane: scan, surroundings, target
    drawn = [[line for line in a.lines if line.get_color() == module.SUFFICIENT] for a in axes]
    assert [bool(lines) for lines in drawn] == [False, True, False]


EDGE_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "empty prediction": ({"prediction": 0}, "Predicted target: empty"),
    "no effect": ({"saliency": 0.0}, "no effect"),
    "nothing at all": ({"saliency": 0.0, "prediction": 0, "region": 0}, "the middle of the volume"),
    "whole region": ({"region": 1}, "Region of interest: the whole volume"),
    "no region": ({"region": None}, "Predicted target"),
    "whole prediction": ({"prediction": 1}, "Predicted target: the whole volume"),
    "not a number": ({"saliency": np.nan}, "no effect"),
    "same everywhere": ({"saliency": 0.25}, "the middle of the target"),
    "negative everywhere": ({"saliency": -3e-6}, "× 10⁻⁶"),
    "constant image": ({"image": 7}, "Axial"),
}


@pytest.mark.parametrize("case", EDGE_CASES)
@pytest.mark.filterwarnings("error")
def test_edge_case_is_drawn_and_told(case: str, tmp_path: Path, sheets: list[Any]) -> None:
    changes, expected = EDGE_CASES[case]
    scan: dict[str, Any] = torso()
    for name, value in changes.items():
        kind = np.float32 if name == "saliency" else np.uint8
        constant = None if value is None else like(scan["image"], np.full((36, 44, 50), value, kind))
        scan[name] = constant
    path = save_figure(tmp_path / "figure.png", **scan, title="x " * 200, modality="MR")
    assert path.stat().st_size > 10_000
    assert expected in words(sheets[0])


def test_signed_map_of_a_thin_volume_is_drawn(tmp_path: Path, sheets: list[Any]) -> None:
    scan = {name: volume[:, :, 20:24] for name, volume in torso().items()}
    scan["saliency"] = scan["saliency"] - 0.008
    save_figure(tmp_path / "figure.png", **scan, title="", saliency_label="score lost (Dice)")
    said = words(sheets[0])
    assert "score lost (Dice)" in said
    assert "−0.0" in said


def test_another_grid_is_refused(tmp_path: Path) -> None:
    for name in ("saliency", "prediction", "region"):
        scan = torso()
        scan[name].SetOrigin((1, 2, 3))
        with pytest.raises(InputError, match=f"The {name} is not on the 3D grid"):
            save_figure(tmp_path / "figure.png", **scan, title="")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.png"
    path.write_text("old")

    def fail(file: Path, content: bytes) -> int:
        with file.open("wb") as half:
            half.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match=r"figure\.png cannot be written \(No space"):
        save_figure(path, **torso(), title="")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_draw_what_one_thread_draws(tmp_path: Path) -> None:
    scan = torso()

    def draw(number: int) -> bytes:
        return save_figure(tmp_path / f"{number}.png", **scan, title="Liver").read_bytes()

    with ThreadPoolExecutor(3) as pool:
        pictures = list(pool.map(draw, range(3)))
    assert set(pictures) == {draw(3)}


def test_pyplot_is_never_imported(repository: Path) -> None:
    code = "import sys, XAICLIPLib.reporting.figure; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, check=False).returncode == 0


@pytest.mark.parametrize(
    ("image", "labels", "liver", "spleen"),
    [
        ("abdomen_ct/abdomen_19_image.nii.gz", "abdomen_ct/abdomen_19_label.nii.gz", 6, 1),
        ("totalseg/example_ct.nii.gz", "totalseg/example_seg_fast_force_split.nii.gz", 5, 1),
    ],
)
def test_the_liver_of_a_patient_is_at_the_letter_r(
    shared_data: Path, image: str, labels: str, liver: int, spleen: int
) -> None:
    scan = sitk.ReadImage(str(shared_data / image))
    names = sitk.ReadImage(str(shared_data / labels))
    for label, letter in ((liver, "R"), (spleen, "L")):
        organ = names == label
        point, _ = focus(sitk.Cast(organ, sitk.sitkFloat32), organ)
        low, high = bounds(scan)
        for view in VIEWS[:2]:
            rows = Plane.through(point, view, low, high).sample(organ) > 0.5
            side = view.left if np.argwhere(rows)[:, 1].mean() < rows.shape[1] / 2 else view.right
            assert side == letter
