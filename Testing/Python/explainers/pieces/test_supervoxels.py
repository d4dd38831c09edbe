"""Supervoxels: every voxel of the region in exactly one piece, of the wanted size, along the borders that are seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.measure import label as connected_components
from torch import Tensor

from XAICLIPLib.explainers.lime import Supervoxels
from XAICLIPLib.explainers.pieces.supervoxels import FRAGMENT, supervoxels

KINDS: tuple[Supervoxels, ...] = ("slic", "felzenszwalb")
SPACING = (2.0, 2.0, 4.0)


def ball(shape: tuple[int, int, int], spacing: tuple[float, float, float], radius: float) -> Tensor:
    axes = torch.meshgrid(
        *((torch.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"
    )
    return torch.stack([a**2 for a in axes]).sum(0).sqrt() <= radius


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))


def two_tissues(shape: tuple[int, int, int]) -> Tensor:
    """(1, X, Y, Z): an oblique border between two tissues, with the noise of a CT, in Hounsfield units."""
    x, y, _ = torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij")
    return (50 + 100 * (x + 0.6 * y > 0.8 * shape[0])) + 15 * noise(shape)


def sizes_ml(pieces: Tensor, spacing: tuple[float, float, float]) -> list[float]:
    voxel = float(np.prod(spacing)) / 1000
    return [n * voxel for n in torch.bincount(pieces.flatten())[1:].tolist()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_voxel_of_the_region_is_in_one_piece_and_no_other(kind: Supervoxels, channels: int) -> None:
    shape = (30, 34, 16)
    region = ball(shape, SPACING, 25) | (torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.995)
    volume = torch.cat([noise(shape, n) * 10**n for n in range(channels)])
    pieces = supervoxels(volume, region, SPACING, 14, kind)
    assert pieces.dtype == torch.int32
    assert torch.equal(pieces > 0, region)
    assert pieces.unique().tolist() == list(range(int(pieces.max()) + 1)), "numbered without gaps"
    assert int(pieces.max()) > 3


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (1.5, 1.5, 5.0), (5.0, 2.0, 2.0)])
def test_slic_gives_as_many_pieces_as_cubes_fit_and_of_their_size(spacing: tuple[float, float, float]) -> None:
    shape = tuple(int(100 / s) for s in spacing)
    assert len(shape) == 3
    region = ball(shape, spacing, 45)
    pieces = supervoxels(noise(shape), region, spacing, 22, "slic")
    cube = 22**3 / 1000
    found = sizes_ml(pieces, spacing)
    assert len(found) == pytest.approx(4 / 3 * np.pi * 45**3 / 22**3, rel=0.15)
    assert np.mean(found) == pytest.approx(cube, rel=0.15)
    assert min(found) > FRAGMENT * cube
    assert max(found) < 2.5 * cube
    extents = [
        [
            (int(where.max() - where.min()) + 1) * s
            for where, s in zip(torch.nonzero(pieces == n).T, spacing, strict=True)
        ]
        for n in range(1, len(found) + 1)
    ]
    along = np.mean(extents, axis=0)
    assert along.max() < 1.4 * along.min(), "round in mm, not in voxels"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1 / 400, 0.1), (0.01, -1.0)])
def test_pieces_follow_a_border_whatever_the_units(kind: Supervoxels, scale: float, offset: float) -> None:
    shape = (40, 40, 8)
    volume = two_tissues(shape)
    bright = two_tissues(shape)[0] - 15 * noise(shape)[0] > 100
    region = torch.ones(shape, dtype=torch.bool)
    pieces = supervoxels(volume * scale + offset, region, (2.0, 2.0, 2.0), 16, kind)
    counts = torch.bincount(pieces.flatten())[1:]
    inside = torch.bincount(pieces.flatten(), weights=bright.flatten().double())[1:]
    mixed = torch.minimum(inside, counts - inside).sum() / counts.sum()
    assert len(counts) >= (4 if kind == "slic" else 2), "an even tissue is one piece of Felzenszwalb's"
    assert mixed < 0.03, "few voxels lie in a piece of the other tissue"


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_outside_the_region_decides_nothing(kind: Supervoxels) -> None:
    shape = (30, 30, 10)
    region = ball(shape, (2.0, 2.0, 2.0), 24)
    volume = two_tissues(shape)
    metal = volume.clone()
    metal[0][~region] = 3000.0
    cut = [supervoxels(v, region, (2.0, 2.0, 2.0), 14, kind) for v in (volume, metal)]
    if kind == "slic":
        assert torch.equal(cut[0], cut[1])
    else:  # its graph sees neighbours outside, but the range of intensities is that of the region
        assert abs(int(cut[0].max()) - int(cut[1].max())) <= 0.3 * int(cut[0].max())


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_hang_together_and_none_is_a_fragment(kind: Supervoxels) -> None:
    shape = (40, 40, 12)
    region = ball(shape, (2.0, 2.0, 2.0), 32)
    pieces = supervoxels(two_tissues(shape), region, (2.0, 2.0, 2.0), 14, kind)
    parts = connected_components(pieces.numpy(), background=0, connectivity=1)
    assert parts.max() == int(pieces.max())
    assert min(sizes_ml(pieces, (2.0, 2.0, 2.0))) >= FRAGMENT * 14**3 / 1000


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_fragment_belongs_to_the_nearest_piece(kind: Supervoxels) -> None:
    region = torch.zeros((40, 12, 12), dtype=torch.bool)
    region[2:26, 1:11, 1:11] = True
    region[30, 5, 5] = True
    pieces = supervoxels(noise((40, 12, 12)), region, (1.0, 1.0, 1.0), 8, kind)
    assert pieces[30, 5, 5] in pieces[20:26].unique()


def test_felzenszwalb_works_in_slabs_of_the_wanted_size() -> None:
    shape = (24, 24, 12)
    pieces = supervoxels(two_tissues(shape), torch.ones(shape, dtype=torch.bool), (2.0, 2.0, 4.0), 16, "felzenszwalb")
    slabs = [set(pieces[..., start : start + 4].unique().tolist()) for start in (0, 4, 8)]
    assert not (slabs[0] & slabs[1] or slabs[1] & slabs[2] or slabs[0] & slabs[2])
    for start in (0, 4, 8):
        assert all(torch.equal(pieces[..., start], pieces[..., start + n]) for n in (1, 2, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("region", ["one voxel", "smaller than a piece", "nothing"])
def test_small_regions(kind: Supervoxels, region: str) -> None:
    inside = torch.zeros((12, 12, 12), dtype=torch.bool)
    if region == "one voxel":
        inside[5, 6, 7] = True
    elif region == "smaller than a piece":
        inside[3:6, 3:7, 4:6] = True
        inside[9, 9, 9] = True
    pieces = supervoxels(noise((12, 12, 12)), inside, (2.0, 2.0, 2.0), 30, kind)
    assert torch.equal(pieces > 0, inside)
    assert int(pieces.max()) == (0 if region == "nothing" else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_even_region_is_cut_without_a_warning(kind: Supervoxels, recwarn: pytest.WarningsRecorder) -> None:
    shape = (24, 24, 8)
    pieces = supervoxels(torch.full((1, *shape), -3.0), torch.ones(shape, dtype=torch.bool), (2.0, 2.0, 2.0), 14, kind)
    assert (pieces > 0).all()
    assert not recwarn.list


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_volume_is_cut_the_same_way(kind: Supervoxels) -> None:
    shape = (24, 24, 10)
    region = ball(shape, SPACING, 22)
    one, two = (supervoxels(two_tissues(shape), region, SPACING, 14, kind) for _ in range(2))
    assert torch.equal(one, two)
