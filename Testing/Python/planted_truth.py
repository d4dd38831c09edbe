"""The planted-truth study: networks whose evidence is known, and what every metric says of true and of empty maps.

`python Testing/benchmarks/planted.py` prints it; `test_metrics.py` holds the metrics to it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from planted import last
from torch import Tensor, nn

from XAICLIPLib.evaluation.controls import controls, random_map, smooth_noise
from XAICLIPLib.evaluation.curves import DIRECTIONS, faithfulness, removal_curves
from XAICLIPLib.evaluation.infidelity import HiddenCubes, hide_cubes, infidelity
from XAICLIPLib.evaluation.metrics import gini, outside_share, overlap, pointing_game, relevance_mass, relevance_rank
from XAICLIPLib.explainers.occlusion import occlusion
from XAICLIPLib.imaging.boxes import Box
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.target import Target
from XAICLIPLib.segmentation.sliding_window import SlidingWindow, Tiling

SHAPE = (32, 24, 24)
SPACING = (3.0, 3.0, 3.0)
WINDOW = SlidingWindow((24, 24, 24), 0.5, "gaussian")

BAND, WIDTH = 0.8, 0.1
"""The network sees only what is as bright as this: not the brighter bone, whose edges are the strongest."""

ORGAN: Box = (slice(10, 18), slice(8, 16), slice(8, 16))
BONE: Box = (slice(2, 6), slice(17, 22), slice(4, 20))
EDGE_MM = 9.0


class Seeing(nn.Module):
    """Draws the target in proportion to how much it sees within a band of brightness, wherever that lies in the patch.

    ``full`` is how many seen voxels make it sure: each counts the same, so the evidence is exactly these voxels.
    """

    def __init__(self, full: float) -> None:
        super().__init__()
        self.full = full
        self.features = nn.Conv3d(1, 4, 1)
        self.out = nn.Conv3d(4, 2, 1, bias=False)
        with torch.no_grad():
            # A triangle over brightness: relu(x - a) - 2 relu(x - b) + relu(x - c), and a slope that is not used.
            self.features.weight.copy_(torch.ones(4, 1, 1, 1, 1) / WIDTH)
            corners = torch.tensor([BAND - WIDTH, BAND, BAND + WIDTH, 10.0])
            self.features.bias.copy_(-corners / WIDTH)
            own = torch.tensor([1.0, -2.0, 1.0, 0.0])
            self.out.weight.copy_(torch.stack([-own, own])[:, :, None, None, None])
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.out(self.features(x).relu()).sum((2, 3, 4), keepdim=True) / self.full
        return (4 * seen - torch.tensor([-2.0, 2.0]).reshape(1, 2, 1, 1, 1)).expand(-1, 2, *x.shape[2:])


@dataclass(frozen=True)
class Case:
    """A network that looks at known voxels, and a volume."""

    name: str
    network: Seeing
    volume: Tensor
    evidence: Tensor
    organ: Tensor
    region: Tensor

    def scorer(self, network: nn.Module | None = None, volume: Tensor | None = None) -> Scorer:
        """Scores the same target, also of another network or input."""
        volume = self.volume if volume is None else volume
        target = Target("liver", 1, self.organ, self.organ)
        return Scorer(
            network or self.network, volume, torch.zeros_like(volume), Tiling.of(SHAPE, WINDOW), target, "sigmoid"
        )

    def occluded(self, network: nn.Module | None = None, volume: Tensor | None = None) -> Tensor:
        """What occlusion finds."""
        everywhere = torch.ones(SHAPE, dtype=torch.bool)
        told = {"window_mm": EDGE_MM, "stride_mm": EDGE_MM, "exhaustive": True}
        return last(occlusion(self.scorer(network, volume), everywhere, SPACING, **told)).saliency()

    def maps(self, seed: int = 0) -> dict[str, Tensor]:
        """The truth, what occlusion finds, and maps that know nothing."""
        return {
            "truth": self.evidence.float(),
            "occlusion": self.occluded(),
            "random voxels": random_map(SHAPE, SPACING, seed, grain_mm=0),
            **controls(self.volume, self.region, SPACING, seed),
        }


def box(where: Box) -> Tensor:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[where] = True
    return mask


PLACES: Mapping[str, tuple[Box, ...]] = {
    "beside the organ": ((slice(19, 23), slice(9, 13), slice(13, 17)),),
    "one pole of the organ": ((slice(10, 13), slice(8, 13), slice(8, 12)),),
    "inside and beside": ((slice(10, 13), slice(8, 11), slice(8, 11)), (slice(20, 23), slice(14, 17), slice(14, 17))),
}
"""Where the evidence lies: within the part that all patches see, so that every voxel of it counts the same."""


def planted_case(name: str) -> Case:
    evidence = torch.stack([box(place) for place in PLACES[name]]).any(0)
    organ = box(ORGAN)
    volume = 0.4 * torch.rand((1, *SHAPE), generator=torch.Generator().manual_seed(2))
    volume[0][organ] += 0.1
    volume[0][BONE] = 1.6
    volume[0][evidence] = BAND
    region = box(tuple(slice(s.start - 2, s.stop + 2) for s in ORGAN))
    return Case(name, Seeing(float(evidence.sum())), volume, evidence, organ, region)


ASKING_THE_NETWORK = (
    "deletion, Dice",
    "deletion, probability",
    "insertion, Dice",
    "insertion, probability",
    "infidelity",
)
AGAINST_THE_EVIDENCE = ("pointing game", "relevance mass", "relevance rank", "effect outside")
LOW_IS_GOOD = {"deletion, Dice", "deletion, probability", "infidelity", "effect outside"}
NOTHING_KNOWN = ("random voxels", "random", "smooth noise", "centre", "edges")


def measured(case: Case, saliency: Tensor, hidden: HiddenCubes) -> dict[str, float]:
    """What every metric of a single map says of it."""
    curves = removal_curves(case.scorer(), saliency, SPACING)
    overlapping = overlap(saliency, case.organ, case.region, SPACING)
    relative = infidelity(saliency, hidden).relative
    assert relative is not None
    return {
        "deletion, Dice": curves.deletion["soft dice"].area,
        "deletion, probability": curves.deletion["mean probability"].area,
        "insertion, Dice": curves.insertion["soft dice"].area,
        "insertion, probability": curves.insertion["mean probability"].area,
        "infidelity": relative,
        "pointing game": pointing_game(saliency, case.evidence, SPACING).hit,
        "relevance mass": relevance_mass(saliency, case.evidence).value,
        "relevance rank": relevance_rank(saliency, case.evidence).value,
        "effect outside": outside_share(saliency, case.evidence, SPACING).value,
        "Dice with the organ": overlapping.saliency.dice,
        "its lead over null × region": overlapping.lead,
        "sparseness": gini(saliency),
    }


def study(case: Case) -> dict[str, dict[str, float]]:
    """By metric and map."""
    hidden = hide_cubes(case.scorer(), SPACING, edge_mm=15)
    by_map = {name: measured(case, saliency, hidden) for name, saliency in case.maps().items()}
    metrics = next(iter(by_map.values()))
    return {metric: {name: values[metric] for name, values in by_map.items()} for metric in metrics}


def ranks_first(metric: str, values: Mapping[str, float], name: str = "truth") -> bool:
    """Whether a metric calls a map better than all that know nothing."""
    sign = -1 if metric in LOW_IS_GOOD else 1
    return all(sign * values[name] > sign * values[other] for other in NOTHING_KNOWN)


def scatter(case: Case, seeds: int = 6) -> dict[str, float]:
    """Standard deviation, over seeds, of the normalized area of noise maps, by direction."""
    noise = {f"{n}": smooth_noise(SHAPE, SPACING, n) for n in range(seeds)}
    found = faithfulness(case.scorer(), noise["0"], SPACING, controls=noise)
    areas = {way: [found.normalized_area(way, control=name) for name in noise] for way in DIRECTIONS}
    return {way: statistics.pstdev([a for a in known if a is not None]) for way, known in areas.items()}
