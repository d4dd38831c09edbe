"""Tiling and blending against MONAI's own sliding window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import SegResNet
from torch import Tensor, nn

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.boxes import bounds, intersect, shift
from XAICLIPLib.segmentation.sliding_window import SlidingWindow, Tiling, patch_around, predict_logits


class Positional(nn.Module):
    """Tells every voxel of a patch apart, so that an output put in the wrong place or weighted wrongly shows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv3d(1, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x[0, 0].numel(), dtype=x.dtype).reshape(x.shape[2:]) / x[0, 0].numel()
        result: Tensor = self.convolution(x) * (1 + places)
        return result


def volume_of(*shape: int) -> Tensor:
    return torch.rand((1, *shape), generator=torch.Generator().manual_seed(1))


def monai_logits(network: nn.Module, volume: Tensor, window: SlidingWindow) -> Tensor:
    options: dict[str, Any] = {
        "roi_size": window.roi_size,
        "overlap": window.overlap,
        "mode": window.mode,
        "sigma_scale": window.sigma_scale,
        "cval": window.padding_value,
        "padding_mode": window.padding_mode,
    }
    with torch.no_grad():
        logits = sliding_window_inference(volume[None], sw_batch_size=3, predictor=network, **options)
    assert isinstance(logits, Tensor)
    return logits[0]


WINDOWS = {
    "overlap 0.25": ((20, 17, 13), SlidingWindow((8, 8, 8), 0.25)),
    "overlap 0.5": ((20, 17, 13), SlidingWindow((8, 8, 8), 0.5)),
    "no overlap": ((20, 17, 13), SlidingWindow((8, 8, 8), 0.0)),
    "gaussian": ((20, 17, 13), SlidingWindow((8, 8, 8), 0.5, "gaussian")),
    "overlap and sigma per axis": (
        (20, 17, 13),
        SlidingWindow((8, 6, 7), (0.5, 0.25, 0.0), "gaussian", (0.125, 0.25, 0.5)),
    ),
    "overlap of almost the window": ((9, 9, 9), SlidingWindow((6, 6, 6), 0.9)),
    "smaller than the window": ((5, 7, 4), SlidingWindow((8, 8, 8), 0.25, padding_value=-1.5)),
    "smaller along one axis": ((5, 17, 13), SlidingWindow((8, 8, 8), 0.5, "gaussian", padding_value=0.7)),
    "as large as the window": ((8, 8, 8), SlidingWindow((8, 8, 8), 0.5, "gaussian")),
    "padded by replicate": ((5, 17, 4), SlidingWindow((8, 8, 8), 0.5, "gaussian", padding_mode="replicate")),
    "padded by replicate by far": ((2, 9, 1), SlidingWindow((9, 8, 8), 0.5, padding_mode="replicate")),
    "padded by reflect": ((6, 17, 5), SlidingWindow((9, 8, 8), 0.5, padding_mode="reflect")),
    "padded by circular": ((5, 17, 4), SlidingWindow((9, 8, 8), 0.25, padding_mode="circular")),
    "whole axes": ((9, 17, 13), SlidingWindow((0, 8, -1), 0.5, "gaussian")),
    "slab of five slices": ((16, 15, 11), SlidingWindow((16, 8, 5), 0.5, "gaussian")),
    "slab thicker than the volume": ((16, 15, 3), SlidingWindow((8, 8, 5), 0.5)),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_blended_logits_are_those_of_monai(name: str, batch_size: int) -> None:
    shape, window = WINDOWS[name]
    network, volume = Positional(), volume_of(*shape)
    logits = predict_logits(network, volume, Tiling.of(shape, window), batch_size)
    assert logits.shape == (3, *shape)
    torch.testing.assert_close(logits, monai_logits(network, volume, window), atol=1e-5, rtol=1e-5)


def test_blended_logits_of_a_real_network_are_those_of_monai() -> None:
    torch.manual_seed(3)
    network = SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,), in_channels=1, out_channels=2).eval()
    window = SlidingWindow((16, 16, 16), 0.5, "gaussian")
    volume = volume_of(27, 21, 18)
    logits = predict_logits(network, volume, Tiling.of(volume.shape[1:], window), 4)
    torch.testing.assert_close(logits, monai_logits(network, volume, window), atol=1e-5, rtol=1e-5)


def test_without_a_window_the_network_sees_the_whole_volume_once() -> None:
    network, volume = Positional(), volume_of(9, 8, 7)
    tiling = Tiling.of((9, 8, 7), None)
    assert tiling.patches == ((slice(0, 9), slice(0, 8), slice(0, 7)),)
    logits = predict_logits(network, volume, tiling, 4)
    torch.testing.assert_close(logits, network(volume[None])[0].detach())


def test_several_channels_are_padded_and_cut_alike() -> None:
    torch.manual_seed(0)
    network = nn.Conv3d(2, 3, 3, padding=1)
    volume = torch.rand(2, 5, 9, 12)
    window = SlidingWindow((8, 8, 8), 0.25, padding_value=2.0)
    logits = predict_logits(network, volume, Tiling.of((5, 9, 12), window), 2)
    torch.testing.assert_close(logits, monai_logits(network, volume, window), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("mode", "shape", "complaint"),
    [
        ("reflect", (4, 12, 8), None),
        ("reflect", (2, 12, 8), "too small to pad it by reflect"),
        ("circular", (2, 12, 8), "too small to pad it by circular"),
        ("edge", (7, 12, 8), "to pad by edge is not supported"),
        ("edge", (8, 12, 8), None),
    ],
)
def test_what_pytorch_does_not_pad_is_refused(mode: str, shape: tuple[int, ...], complaint: str | None) -> None:
    window = SlidingWindow((8, 8, 8), padding_mode=mode)
    if complaint is None:
        assert Tiling.of(shape, window).padded_shape == tuple(max(8, s) for s in shape)
        return
    with pytest.raises(
        InputError, match=rf"× 12 × 8 voxels .* smaller than its window, 8 × 8 × 8, and .*{complaint}: "
    ):
        Tiling.of(shape, window)


@pytest.mark.parametrize("mode", ["constant", "replicate", "reflect", "circular"])
def test_what_a_patch_has_of_a_box_is_found_voxel_by_voxel(mode: str) -> None:
    """Against a volume in which every voxel has a number of its own."""
    shape = (5, 14, 9)
    tiling = Tiling.of(shape, SlidingWindow((8, 8, 8), 0.5, padding_value=-1, padding_mode=mode))
    numbers = torch.arange(5.0 * 14 * 9).reshape(1, *shape)
    padded = tiling.pad(numbers)[0]
    met = 0
    for box in [
        (slice(0, 2), slice(11, 14), slice(0, 9)),
        (slice(1, 4), slice(5, 6), slice(8, 9)),
        (slice(4, 5), slice(0, 14), slice(0, 1)),
    ]:
        content = numbers[0][box]
        for patch in tiling.patches:
            mine = torch.isin(padded[patch], content)
            places = tiling.shared_voxels(patch, box)
            assert tiling.meets(patch, box) == (places is not None) == bool(mine.any())
            if places is not None:
                there, here = places
                marked = torch.full_like(padded[patch], -1)
                marked[there] = content[here]
                assert torch.equal(marked, torch.where(mine, padded[patch], torch.tensor(-1.0)))
                met += 1
    assert met > 3
    for patch in tiling.patches:
        seen = numbers[0][tiling.source_box(patch)]
        assert bool(torch.isin(padded[patch][padded[patch] >= 0], seen).all())


@pytest.mark.parametrize("mode", ["constant", "replicate", "reflect", "circular"])
def test_a_gradient_is_gathered_from_the_copies(mode: str) -> None:
    tiling = Tiling.of((5, 9, 6), SlidingWindow((9, 8, 8), 0.5, padding_mode=mode))
    volume = torch.rand(2, 5, 9, 6, requires_grad=True)
    by_padded = torch.rand(2, *tiling.padded_shape)
    (tiling.pad(volume) * by_padded).sum().backward()
    assert volume.grad is not None
    torch.testing.assert_close(tiling.unpad_gradient(by_padded), volume.grad)


def test_touching_patches_are_those_that_share_a_voxel_with_the_box() -> None:
    tiling = Tiling.of((5, 20, 13), SlidingWindow((8, 8, 8), 0.5))
    box = (slice(1, 3), slice(11, 12), slice(4, 9))
    marked = torch.zeros(5, 20, 13)
    marked[box] = 1
    padded = tiling.pad(marked[None])[0]
    expected = [n for n, patch in enumerate(tiling.patches) if padded[patch].any()]
    assert tiling.patches_touching(box) == expected
    assert 0 < len(expected) < len(tiling.patches)


def test_boxes_that_only_share_a_border_do_not_meet() -> None:
    box = (slice(0, 4), slice(2, 6))
    assert intersect(box, (slice(4, 8), slice(2, 6))) is None
    assert intersect(box, (slice(3, 8), slice(0, 3))) == (slice(3, 4), slice(2, 3))
    assert shift(box, (1, -2)) == (slice(1, 5), slice(0, 4))


def test_progress_tells_the_patches_done_and_stops_the_prediction_by_raising() -> None:
    tiling = Tiling.of((16, 16, 16), SlidingWindow((8, 8, 8), 0.0))
    seen: list[tuple[int, int]] = []
    predict_logits(Positional(), volume_of(16, 16, 16), tiling, 3, lambda done, total: seen.append((done, total)))
    assert seen == [(3, 8), (6, 8), (8, 8)]

    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_logits(Positional(), volume_of(16, 16, 16), tiling, 3, cancel)


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")]
)
def test_prediction_goes_on_in_smaller_batches_when_memory_runs_out(limit: int, error: Exception) -> None:
    network, sizes = Positional(), []

    def forward(patches: Tensor) -> Tensor:
        sizes.append(len(patches))
        if len(patches) > limit:
            raise error
        result: Tensor = network(patches)
        return result

    volume = volume_of(16, 16, 16)
    tiling = Tiling.of((16, 16, 16), SlidingWindow((8, 8, 8), 0.0))
    logits = predict_logits(forward, volume, tiling, 7)
    torch.testing.assert_close(logits, predict_logits(network, volume, tiling, 8), atol=1e-6, rtol=1e-6)
    assert sizes[0] == 7
    assert max(sizes[3:]) <= max(limit, 2), "a size that failed is not tried again; a lone patch is doubled first"


def test_other_errors_of_the_network_pass_through() -> None:
    def broken(patches: Tensor) -> Tensor:
        raise RuntimeError("a layer does not fit")

    with pytest.raises(RuntimeError, match="does not fit"):
        predict_logits(broken, volume_of(8, 8, 8), Tiling.of((8, 8, 8), None), 1)


def test_gradients_are_followed_only_where_the_volume_asks() -> None:
    network, volume = Positional(), volume_of(9, 9, 9)
    tiling = Tiling.of((9, 9, 9), SlidingWindow((8, 8, 8), 0.5))
    assert not predict_logits(network, volume, tiling, 4).requires_grad
    volume.requires_grad_()
    predict_logits(network, volume, tiling, 4).sum().backward()
    assert volume.grad is not None
    assert bool(volume.grad.any())


def test_a_box_around_the_target_grown_by_the_reach_is_as_good_as_the_whole_volume() -> None:
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding="same", dilation=2), nn.ELU(), nn.Conv3d(4, 3, (3, 1, 5), padding="same")
    )
    volume = volume_of(24, 20, 26)
    for corner in ((0, 0, 0), (10, 8, 9), (21, 17, 22)):
        target = torch.zeros(volume.shape[1:], dtype=torch.bool)
        target[tuple(slice(c, c + 3) for c in corner)] = True
        tiling = patch_around(target.shape, target, (3, 2, 4))
        assert len(tiling.patches) == 1
        assert intersect(tiling.patches[0], bounds(target)) == bounds(target)
        with torch.no_grad():
            whole = network(volume[None])[0][:, target]
            near = network(volume[None][(..., *tiling.patches[0])])[0]
        inside = target[tiling.patches[0]]
        torch.testing.assert_close(near[:, inside], whole, atol=1e-5, rtol=0)
    assert bounds(target) == (slice(21, 24), slice(17, 20), slice(22, 25))
    assert patch_around(target.shape, target, (3, 2, 4)).patches[0] == (slice(18, 24), slice(15, 20), slice(18, 26))
