"""Occlusion: the windows, the order, the averaging, against captum."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import Occlusion
from monai.networks.nets import UNet
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers.base import LARGEST_MM, SMALLEST_MM, Estimate, in_voxels, size_for
from XAICLIPLib.explainers.occlusion import Windows, cautions, occlusion, window_grid, windows
from XAICLIPLib.imaging.boxes import Box
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.scores import target_score
from XAICLIPLib.scoring.target import Target
from XAICLIPLib.segmentation.sliding_window import SlidingWindow, Tiling

SHAPE = (16, 12, 8)


class Counting:
    """A scorer that loses by a rule, two perturbations at a time, and remembers what it was asked."""

    def __init__(self, loss: dict[tuple[int, ...], float] | None = None) -> None:
        self.loss = loss or {}
        self.boxes: list[Box] = []

    def touched(self, perturbation: Perturbation) -> list[int]:
        return [0]

    def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
        batch: list[tuple[int, float]] = []
        for number, perturbation in enumerate(perturbations):
            self.boxes.append(perturbation.box)
            batch.append((number, self.loss.get(tuple(s.start for s in perturbation.box), 0.0)))
            if len(batch) == 2:
                yield batch
                batch = []
        if batch:
            yield batch


def everywhere(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def organ() -> Tensor:
    region = torch.zeros(SHAPE, dtype=torch.bool)
    region[5:9, 3:7, 2:5] = True
    return region


def last(estimates: Iterator[Estimate]) -> Estimate:
    *_, estimate = estimates
    return estimate


def bounds(perturbations: Iterable[Perturbation]) -> list[tuple[tuple[int, int], ...]]:
    return [tuple((s.start, s.stop) for s in p.box) for p in perturbations]


def network_scorer(ignoring: bool = False) -> tuple[Scorer, Tensor]:
    """A scorer of a small network that takes the whole volume; optionally one that ignores its input."""
    torch.manual_seed(0)
    network = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16), strides=(2,), norm="instance")
    network = network.eval().requires_grad_(False)
    constant = torch.randn(2, *SHAPE)

    def forward(patches: Tensor) -> Tensor:
        if ignoring:
            return constant.expand(len(patches), *constant.shape)
        result: Tensor = 6 * network(patches)
        return result

    volume = torch.rand(1, *SHAPE)
    target = Target("liver", 1, organ(), everywhere())
    return Scorer(forward, volume, torch.full_like(volume, -0.5), Tiling.of(SHAPE, None), target), volume


@pytest.mark.parametrize(
    ("window", "stride"),
    [((4, 4, 4), (4, 4, 4)), ((4, 4, 4), (2, 2, 2)), ((5, 4, 3), (3, 2, 3)), ((7, 5, 8), (3, 5, 8))],
    ids=["side by side", "half overlapping", "cut at the border", "as deep as the volume"],
)
def test_exhaustive_occlusion_is_that_of_captum(window: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """Both give each voxel the mean, over the windows that hold it, of f(x) - f(x with the window replaced).

    Captum's Occlusion sums these differences over the windows and divides by the number of windows that hold the
    voxel (its ``use_weights``), and places windows from the corner by the stride until one reaches the border, the
    last one cut: the same placement. f is the same scalar, the soft Dice of the target. `occlusion` takes one edge in
    mm; here its windows are taken in voxels, so that they may be cut and differ along the axes.
    """
    scorer, volume = network_scorer()

    def score(volumes: Tensor) -> Tensor:
        logits = scorer.forward(volumes)
        reference = scorer.target.reference.flatten()
        return torch.stack([target_score("soft dice", item.flatten(1), reference, 1, "softmax") for item in logits])

    expected = Occlusion(score).attribute(
        volume[None], sliding_window_shapes=(1, *window), strides=(1, *stride), baselines=-0.5, perturbations_per_eval=4
    )[0, 0]
    planned = windows(everywhere(), window, stride)
    total, count = torch.zeros(SHAPE), torch.zeros(SHAPE)
    for batch in scorer.lost(planned):
        for number, lost in batch:
            total[planned[number].box] += lost
            count[planned[number].box] += 1
    assert expected.abs().max() > 0.01, "occlusion matters here, or the comparison says nothing"
    torch.testing.assert_close(total / count, expected.float(), atol=1e-5, rtol=1e-4)


def test_occlusion_by_millimetres_is_that_of_captum_in_voxels() -> None:
    """The whole way: 12 mm windows every 6 mm on a grid of 2 × 3 × 6 mm are 6 × 4 × 2 voxels every 3 × 2 × 1."""
    scorer, volume = network_scorer()

    def score(volumes: Tensor) -> Tensor:
        logits = scorer.forward(volumes)
        reference = scorer.target.reference.flatten()
        return torch.stack([target_score("soft dice", item.flatten(1), reference, 1, "softmax") for item in logits])

    expected = Occlusion(score).attribute(
        volume[None], sliding_window_shapes=(1, 6, 4, 2), strides=(1, 3, 2, 1), baselines=-0.5, perturbations_per_eval=8
    )[0, 0]
    estimate = last(occlusion(scorer, everywhere(), (2.0, 3.0, 6.0), window_mm=12, stride_mm=6, exhaustive=True))
    torch.testing.assert_close(estimate.saliency(), expected.float(), atol=1e-5, rtol=1e-4)


def test_windows_of_whole_strides_are_so_in_voxels() -> None:
    assert window_grid(40, 20, (3.0, 3.0, 3.0)) == ((14, 14, 14), (7, 7, 7))
    assert window_grid(27.3, 13.65, (3.0, 3.0, 3.0)) == ((10, 10, 10), (5, 5, 5))
    assert window_grid(6, 3, (1.5, 1.5, 5.0)) == ((4, 4, 1), (2, 2, 1))
    assert window_grid(30, 20, (3.0, 3.0, 3.0)) == ((10, 10, 10), (7, 7, 7)), "not whole strides, and rounded each"


def test_no_place_is_seen_by_fewer_windows_than_its_neighbours() -> None:
    """Else it is a line in the map, which a reader takes for anatomy."""
    shape = (60, 50, 40)
    region = torch.ones(shape, dtype=torch.bool)
    count = torch.zeros(shape, dtype=torch.long)
    for window in windows(region, *window_grid(40, 20, (3.0, 3.0, 3.0))):
        count[window.box] += 1
    assert set(count[7:-14, 7:-14, 7:-14].unique().tolist()) == {8}


def test_windows_are_millimetres_on_any_grid() -> None:
    assert in_voxels(30, (1.0, 1.5, 5.0)) == (30, 20, 6)
    assert in_voxels(1, (3.0, 3.0, 3.0)) == (1, 1, 1)
    scorer = Counting()
    last(occlusion(scorer, everywhere((40, 40, 12)), (1.0, 2.0, 5.0), window_mm=20, stride_mm=10, exhaustive=True))
    sizes = {tuple(s.stop - s.start for s in box) for box in scorer.boxes}
    assert sizes == {(20, 10, 4)}
    assert {tuple(s.start for s in box) for box in scorer.boxes} == {
        (x, y, z) for x in (0, 10, 20) for y in range(0, 31, 5) for z in range(0, 9, 2)
    }


def test_windows_cover_the_volume_to_its_border_and_are_cut_there() -> None:
    planned = windows(everywhere((10, 7, 3)), (4, 3, 5), (3, 3, 5))
    assert sorted({b[0] for b in bounds(planned)}) == [(0, 4), (3, 7), (6, 10)]
    assert sorted({b[1] for b in bounds(planned)}) == [(0, 3), (3, 6), (6, 7)]
    assert {b[2] for b in bounds(planned)} == {(0, 3)}


@pytest.mark.parametrize(("size", "stride"), [((4, 4, 4), (2, 2, 2)), ((3, 5, 4), (3, 2, 1))])
def test_guided_windows_are_those_of_the_whole_volume_that_meet_the_region(
    size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    region = organ()
    whole = windows(everywhere(), size, stride)
    expected = [b for b, p in zip(bounds(whole), whole, strict=True) if region[p.box].any()]
    assert bounds(windows(region, size, stride)) == expected
    assert 0 < len(expected) < len(whole)


def test_guided_and_whole_agree_on_a_voxel_whose_windows_all_meet_the_region() -> None:
    scorer, _ = network_scorer()
    guided = last(occlusion(scorer, organ(), (1, 1, 1), window_mm=4, stride_mm=2, exhaustive=True))
    whole = last(occlusion(scorer, everywhere(), (1, 1, 1), window_mm=4, stride_mm=2, exhaustive=True))
    torch.testing.assert_close(guided.saliency()[organ()], whole.saliency()[organ()], atol=1e-5, rtol=1e-4)
    assert guided.planned < whole.planned


def test_saliency_is_the_mean_over_the_windows_that_hold_a_voxel() -> None:
    loss: dict[tuple[int, ...], float] = {(0, 0, 0): 1.0, (2, 0, 0): 0.5}
    estimate = last(
        occlusion(Counting(loss), everywhere((6, 4, 4)), (1, 1, 1), window_mm=4, stride_mm=2, exhaustive=True)
    )
    saliency = estimate.saliency()
    assert saliency[:2].unique().tolist() == [1.0]
    assert saliency[2:4].unique().tolist() == [0.75]
    assert saliency[4:].unique().tolist() == [0.5]


def test_voxels_in_no_window_have_no_saliency() -> None:
    region = torch.zeros(20, 4, 4, dtype=torch.bool)
    region[0, 0, 0] = True
    scorer = Counting({(0, 0, 0): 1.0})
    saliency = last(occlusion(scorer, region, (1, 1, 1), window_mm=4, stride_mm=4)).saliency()
    assert saliency[:4].unique().tolist() == [1.0]
    assert saliency[4:].unique().tolist() == [0.0]


def test_a_running_estimate_counts_up_and_the_exhaustive_one_ends_with_every_window() -> None:
    scorer, _ = network_scorer()
    steps = []
    for estimate in occlusion(scorer, everywhere(), (1, 1, 1), window_mm=6, stride_mm=3, exhaustive=True):
        steps.append((estimate.done, estimate.planned, float(estimate.probed().sum())))
    done = [d for d, _, _ in steps]
    assert len(steps) > 2
    assert done == sorted(done)
    assert done[-1] == steps[-1][1] == len(windows(everywhere(), (6, 6, 6), (3, 3, 3)))
    assert len({planned for _, planned, _ in steps}) == 1


class Smooth(Counting):
    """A scorer of a large volume whose loss is a smooth bump around a cue, and nothing elsewhere."""

    def __init__(self, cue: tuple[float, ...], width: float = 6.0) -> None:
        super().__init__()
        self.cue, self.width = cue, width

    def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
        drawn = list(perturbations)
        for number, perturbation in enumerate(drawn):
            self.boxes.append(perturbation.box)
            away = math.dist([(s.start + s.stop) / 2 for s in perturbation.box], self.cue)
            yield [(number, math.exp(-((away / self.width) ** 2)))]


LARGE = (48, 48, 48)


def large_organ() -> Tensor:
    region = torch.zeros(LARGE, dtype=torch.bool)
    region[8:40, 8:40, 8:40] = True
    return region


@pytest.mark.parametrize("cue", [(24.0, 24.0, 24.0), (13.0, 30.0, 21.0)], ids=["in the middle", "off the coarse grid"])
def test_coarse_to_fine_is_the_exhaustive_map_for_a_fraction_of_the_windows(cue: tuple[float, ...]) -> None:
    maps, counts = [], []
    for exhaustive in (True, False):
        scorer = Smooth(cue)
        estimate = last(
            occlusion(
                scorer, large_organ(), (1, 1, 1), window_mm=8, stride_mm=4, exhaustive=exhaustive, target=large_organ()
            )
        )
        assert estimate.done == estimate.planned == len(scorer.boxes)
        maps.append(estimate.saliency()[large_organ()])
        counts.append(estimate.done)
    assert counts[1] < counts[0] / 3
    assert float(torch.corrcoef(torch.stack(maps))[0, 1]) > 0.99


def test_what_lies_between_no_two_coarse_places_is_evaluated_where_it_hides_the_target() -> None:
    """A scan that ends at an odd place: its last windows would be extrapolated, and they hide the most here."""
    region = torch.zeros((44, 48, 48), dtype=torch.bool)
    region[8:, 8:38, 8:38] = True
    target = torch.zeros_like(region)
    target[30:, 8:38, 8:38] = True
    scorer = Smooth((36.0, 24.0, 24.0))
    estimate = last(occlusion(scorer, region, (1, 1, 1), window_mm=8, stride_mm=4, target=target, tolerance=0.2))
    boxes = {tuple(s.start for s in box) for box in scorer.boxes}
    grid = Windows.of(region, (8, 8, 8), (4, 4, 4), target, None)
    places = np.round(grid.place).astype(int)
    edge = [w for w, p, o in zip(grid.all, places, grid.overlap, strict=True) if p[0] == places[:, 0].max() and o > 0.1]
    assert places[:, 0].max() % 2 == 1 and len(edge) > 20
    assert all(tuple(s.start for s in window.box) in boxes for window in edge)
    assert estimate.findings()["windows_interpolated"] > 0


def test_places_just_beyond_the_region_hold_the_interpolation_down() -> None:
    """Where the loss is how much of the target a window hides, no window is given a loss that it has not."""
    target = torch.zeros(LARGE, dtype=torch.bool)
    target[14:30, 14:30, 14:30] = True
    region = torch.zeros(LARGE, dtype=torch.bool)
    region[12:32, 12:32, 12:32] = True

    class Overlap(Smooth):
        def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
            for number, perturbation in enumerate(list(perturbations)):
                self.boxes.append(perturbation.box)
                yield [(number, float(target[perturbation.box].sum()) / 512)]

    told: dict[str, Any] = {"window_mm": 8, "stride_mm": 4, "target": target, "tolerance": 0.2}
    scorer = Overlap((0.0, 0.0, 0.0))
    fine = last(occlusion(scorer, region, (1, 1, 1), **told)).saliency()
    every = last(occlusion(Overlap((0.0, 0.0, 0.0)), region, (1, 1, 1), exhaustive=True, **told)).saliency()
    beyond = Windows.of(region, (8, 8, 8), (4, 4, 4), target, None).beyond
    assert len(beyond) > 20 and (beyond % 2 == 0).all()
    for x, y, z in (beyond * 4).astype(int).tolist():
        assert not region[x : x + 8, y : y + 8, z : z + 8].any()
    assert float((fine - every).abs().max()) < 0.05 * float(every.max())


def test_a_smaller_tolerance_looks_closer_and_none_at_all_is_exhaustive() -> None:
    counts, every = [], len(windows(large_organ(), (8, 8, 8), (4, 4, 4)))
    for tolerance in (0.3, 0.02, 0.0):
        scorer = Smooth((13.0, 30.0, 21.0))
        last(occlusion(scorer, large_organ(), (1, 1, 1), window_mm=8, stride_mm=4, tolerance=tolerance))
        counts.append(len(scorer.boxes))
    assert counts[0] < counts[1] < counts[2] == every


def test_no_window_is_evaluated_twice_and_interpolated_ones_are_counted() -> None:
    scorer = Smooth((24.0, 24.0, 24.0))
    estimate = last(occlusion(scorer, large_organ(), (1, 1, 1), window_mm=8, stride_mm=4))
    assert len({str(box) for box in scorer.boxes}) == len(scorer.boxes)
    found = estimate.findings()
    assert found["windows_evaluated"] == len(scorer.boxes)
    assert found["windows_evaluated"] + found["windows_interpolated"] == found["windows"]
    assert found["rounds_of_refinement"] > 0


def test_an_evaluated_window_keeps_its_score_whatever_is_interpolated() -> None:
    """Windows side by side: nothing overlaps, so that the map shows each window's own score."""
    scorer = Smooth((20.0, 20.0, 20.0))
    saliency = last(occlusion(scorer, large_organ(), (1, 1, 1), window_mm=8, stride_mm=8)).saliency()
    for window in scorer.boxes:
        away = math.dist([(s.start + s.stop) / 2 for s in window], scorer.cue)
        assert saliency[window].unique().tolist() == pytest.approx([math.exp(-((away / 6.0) ** 2))], abs=1e-6)


def test_the_first_windows_hide_much_and_little_of_the_target() -> None:
    scorer = Smooth((24.0, 24.0, 24.0))
    inner = torch.zeros(LARGE, dtype=torch.bool)
    inner[16:24, 16:24, 16:24] = True
    next(occlusion(scorer, large_organ(), (1, 1, 1), window_mm=8, stride_mm=4, target=inner))
    shares = []
    for estimate in itertools.islice(
        occlusion(scorer, large_organ(), (1, 1, 1), window_mm=8, stride_mm=4, target=inner), 2
    ):
        shares = [float(inner[b].sum()) for b in scorer.boxes[1 : 1 + estimate.done]]
    assert max(shares) == 512
    assert min(shares) == 0


def test_windows_of_air_are_skipped_and_counted_and_air_has_no_saliency() -> None:
    body = torch.zeros(LARGE, dtype=torch.bool)
    body[:21] = True
    scorer = Smooth((16.0, 24.0, 24.0))
    region = torch.ones(LARGE, dtype=torch.bool)
    estimate = last(occlusion(scorer, region, (1, 1, 1), window_mm=8, stride_mm=4, exhaustive=True, changeable=body))
    assert all(body[b].any() for b in scorer.boxes)
    every = len(windows(region, (8, 8, 8), (4, 4, 4)))
    assert estimate.findings()["windows_of_air"] == every - len(scorer.boxes) > 0
    assert estimate.saliency()[~body].abs().max() == 0
    assert not estimate.probed()[~body].any()
    assert estimate.probed()[body].all()


def test_windows_that_no_patch_of_the_target_sees_cost_nothing_and_are_known_to_lose_nothing() -> None:
    scorer, _ = network_scorer()
    scorer = dataclasses.replace(scorer, tiling=Tiling.of(SHAPE, SlidingWindow((8, 12, 8), 0.5)))
    estimate = last(occlusion(scorer, everywhere(), (1, 1, 1), window_mm=4, stride_mm=2, exhaustive=True))
    far = [w for w in windows(everywhere(), (4, 4, 4), (2, 2, 2)) if not scorer.touched(w)]
    assert len(far) == estimate.findings()["windows_beyond_the_target"]
    assert estimate.done + len(far) == estimate.findings()["windows"]


def test_a_cancelled_occlusion_keeps_the_windows_it_has() -> None:
    scorer, _ = network_scorer()
    running = occlusion(scorer, everywhere(), (1, 1, 1), window_mm=6, stride_mm=3)
    estimate = next(running)
    running.close()  # type: ignore[attr-defined]
    assert 0 < estimate.done < estimate.planned
    assert scorer.forwards == estimate.done
    assert math.isfinite(float(estimate.saliency().sum()))


def test_a_network_that_ignores_its_input_has_no_saliency() -> None:
    scorer, _ = network_scorer(ignoring=True)
    estimate = last(occlusion(scorer, everywhere(), (1, 1, 1), window_mm=4, stride_mm=2))
    assert estimate.done == estimate.planned > 0
    assert estimate.saliency().abs().max() == 0


def test_an_empty_region_has_a_complete_estimate_of_nothing() -> None:
    estimate = last(occlusion(Counting(), torch.zeros(SHAPE, dtype=torch.bool), (1, 1, 1), window_mm=3, stride_mm=2))
    assert (estimate.done, estimate.planned) == (0, 0)
    assert estimate.saliency().abs().max() == 0


@pytest.mark.parametrize(("window", "stride"), [(0, 0), (10, 0), (10, -5), (10, 12), (math.nan, 1), (math.inf, 5)])
def test_sizes_that_leave_gaps_are_refused(window: float, stride: float) -> None:
    with pytest.raises(InputError, match="do not cover the region"):
        last(occlusion(Counting(), everywhere(), (1, 1, 1), window_mm=window, stride_mm=stride))


def test_the_default_window_is_half_the_edge_of_a_cube_of_the_structures_volume_within_bounds() -> None:
    assert size_for(64.0) == 20.0  # a cube of 40 mm
    assert size_for(0.0) == SMALLEST_MM
    assert size_for(1e6) == LARGEST_MM


def test_a_region_between_the_places_of_the_coarse_grid_is_evaluated_all_the_same() -> None:
    """The last window alone holds the last slice, at an odd place of the grid."""
    region = torch.zeros((26, 4, 4), dtype=torch.bool)
    region[25] = True
    scorer = Counting({(22, 0, 0): 0.5})
    estimate = last(occlusion(scorer, region, (1, 1, 1), window_mm=4, stride_mm=2))
    assert estimate.done == 1
    assert float(estimate.saliency()[25].max()) == 0.5


def test_windows_that_matter_are_evaluated_where_the_whole_coarse_grid_costs_nothing() -> None:
    class Far(Counting):
        def touched(self, perturbation: Perturbation) -> list[int]:
            return [0] if any((s.start // 2) % 2 for s in perturbation.box) else []

    scorer = Far({(2, 2, 2): 1.0})
    estimate = last(occlusion(scorer, everywhere((12, 12, 12)), (1, 1, 1), window_mm=4, stride_mm=2))
    assert estimate.done > 0
    assert float(estimate.saliency().max()) > 0


# What was asked for, and what was used


@pytest.mark.parametrize(
    ("slices_mm", "window_mm", "stride_mm", "sparse"),
    [(5.0, [16, 16, 20], [8, 8, 10], True), (12.0, [16, 16, 12], [8, 8, 12], False), (2.0, [16] * 3, [8] * 3, True)],
)
def test_the_sizes_that_were_used_are_told(
    slices_mm: float, window_mm: list[float], stride_mm: list[float], sparse: bool
) -> None:
    region = torch.zeros((20, 20, 12), dtype=torch.bool)
    region[4:16, 4:16, 3:9] = True
    spacing = (2.0, 2.0, slices_mm)
    scorer = Counting()
    estimate = last(occlusion(scorer, region, spacing, window_mm=16, stride_mm=8))
    found = estimate.findings()
    assert (found["window_mm_used"], found["stride_mm_used"]) == (window_mm, stride_mm)
    assert found["coarse_to_fine"] is sparse
    edges = {tuple((s.stop - s.start) * mm for s, mm in zip(box, spacing, strict=True)) for box in scorer.boxes}
    assert tuple(window_mm) in edges, "and they are those of the windows"
    told = cautions(16, 8, False, spacing)
    if sparse:
        assert told == []
    else:
        assert "16 × 16 × 12 mm every 8 × 8 × 12 mm were used" in told[0]
        assert "do not overlap along every axis" in told[0] and "instead of coarse to fine" in told[0]


def test_nothing_is_missed_where_nothing_was_asked_for() -> None:
    assert cautions(16, 16, False, (2.0, 2.0, 12.0)) == []
    assert len(cautions(16, 8, True, (2.0, 2.0, 12.0))) == 1, "exhaustive asks for no coarse to fine, but for overlap"


def test_a_tolerance_up_to_the_largest_makes_a_difference() -> None:
    counts = []
    for tolerance in (0.2, 0.1):
        scorer = Smooth((13.0, 30.0, 21.0))
        last(occlusion(scorer, large_organ(), (1, 1, 1), window_mm=8, stride_mm=4, tolerance=tolerance))
        counts.append(len(scorer.boxes))
    assert counts[0] < counts[1]


class Rule:
    """Scores windows by a rule, without a network."""

    def __init__(self, rule: Callable[[Perturbation], float]) -> None:
        self.rule = rule

    def touched(self, perturbation: Perturbation) -> list[int]:
        return [0]

    def lost(self, perturbations: Iterable[Perturbation]) -> Iterator[list[tuple[int, float]]]:
        for number, perturbation in enumerate(perturbations):
            yield [(number, self.rule(perturbation))]


def test_it_is_told_how_far_the_map_is_the_outline_again() -> None:
    """A score that falls with the share of the organ that is hidden, and one that does not know the organ."""
    shape, region = (24, 24, 24), torch.ones(24, 24, 24, dtype=torch.bool)
    organ = torch.zeros(shape, dtype=torch.bool)
    organ[8:16, 8:16, 8:16] = True
    rules: dict[str, Callable[[Perturbation], float]] = {
        "overlap": lambda p: float(organ[p.box].sum()),
        "elsewhere": lambda p: float(p.box[0].start == 0),
        "nothing": lambda p: 0.0,
    }
    told = {"window_mm": 8.0, "stride_mm": 4.0, "exhaustive": True, "target": organ}
    found = {
        name: last(occlusion(Rule(rule), region, (1.0, 1.0, 1.0), **told)).findings()["correlation_with_overlap"]
        for name, rule in rules.items()
    }
    assert found["overlap"] == pytest.approx(1.0)
    assert found["elsewhere"] < 0.3
    assert found["nothing"] is None
