"""The map of embeddings of crops, with encoders whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from XAICLIPLib.localization.crops import CELLS, CROP_CELLS, crop_embeddings


def brightness(images: Tensor) -> Tensor:
    """Two numbers that rise and fall with the mean intensity."""
    mean = images.mean((1, 2, 3))
    return torch.stack([mean, 1 - mean], dim=1)


def square(row: int, column: int, side: int = 60, cells: int = 2) -> Tensor:
    """A bright square of so many cells on black, with its first cell there."""
    image = torch.zeros(1, 3, side, side)
    pixels = side // CELLS
    image[..., row * pixels : (row + cells) * pixels, column * pixels : (column + cells) * pixels] = 1.0
    return image


def noise(count: int, side: int = 40) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_the_map_has_unit_vectors_at_every_cell() -> None:
    found = crop_embeddings(lambda images: images.mean((2, 3)), noise(3))
    assert found.shape == (3, CELLS, CELLS, 3)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3, CELLS, CELLS))


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 7), (4, 4), (3, 5), (8, 2), (8, 8)])
def test_the_map_is_highest_where_the_bright_square_is(row: int, column: int) -> None:
    bright = crop_embeddings(brightness, square(row, column))[0, ..., 0]
    inside = torch.zeros(CELLS, CELLS, dtype=torch.bool)
    inside[row : row + 2, column : column + 2] = True
    # A cell at the edge shares its crops with the one beside it: there, the highest may be equals.
    assert bright[inside].max() >= bright[~inside].max() - 1e-6
    assert bright[inside].min() > bright.median()
    assert divmod(int(bright.argmin()), CELLS) not in torch.nonzero(inside).tolist()


def test_each_image_gets_its_own_map() -> None:
    pictures = torch.cat([square(1, 7), square(8, 2), square(4, 4)])
    together = crop_embeddings(brightness, pictures)
    for image, found in zip(pictures, together, strict=True):
        torch.testing.assert_close(found, crop_embeddings(brightness, image[None])[0])


@pytest.mark.parametrize("batch_size", [1, 7, 64, 10_000])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    sizes: list[int] = []

    def encode(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)

    found = crop_embeddings(encode, noise(2), batch_size)
    assert max(sizes) <= batch_size
    torch.testing.assert_close(found, crop_embeddings(encode, noise(2), 13))


@pytest.mark.parametrize("side", [40, 37, 224])
def test_the_encoder_gets_every_crop_at_the_size_of_the_image(side: int) -> None:
    seen: list[Tensor] = []

    def encode(images: Tensor) -> Tensor:
        seen.append(images)
        return brightness(images)

    crop_embeddings(encode, noise(1, side))
    crops = torch.cat(seen)
    assert crops.shape == (sum((CELLS - cells + 1) ** 2 for cells in CROP_CELLS), 3, side, side)


def test_a_cell_is_the_mean_over_the_sizes_of_the_mean_of_the_crops_that_hold_it_by_their_nearness() -> None:
    image = noise(1, 10 * CELLS)

    def encode(images: Tensor) -> Tensor:
        return images.mean((2, 3)) ** 20  # the channels' means are much alike: this sets them apart

    def embedding_of(i: int, j: int, cells: int) -> Tensor:
        crop = image[..., 10 * i : 10 * (i + cells), 10 * j : 10 * (j + cells)]
        vector = encode(functional.interpolate(crop, size=(100, 100), mode="bilinear", antialias=True))[0]
        return vector / vector.norm()

    expected = torch.zeros(CELLS, CELLS, 3)
    for cells in CROP_CELLS:
        near = [math.sin(math.pi * (k + 1) / (cells + 1)) ** 2 for k in range(cells)]  # Hann, without its zeros
        starts = range(CELLS - cells + 1)
        known = {(i, j): embedding_of(i, j, cells) for i in starts for j in starts}
        for y in range(CELLS):
            for x in range(CELLS):
                holding = [(i, j) for i, j in known if 0 <= y - i < cells and 0 <= x - j < cells]
                weights = [near[y - i] * near[x - j] for i, j in holding]
                vectors = [w * known[place] for w, place in zip(weights, holding, strict=True)]
                expected[y, x] += torch.stack(vectors).sum(0) / sum(weights)
    expected /= expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(crop_embeddings(encode, image)[0], expected, atol=1e-5, rtol=1e-4)


def test_an_encoder_that_ignores_the_image_gives_a_map_without_a_place() -> None:
    found = crop_embeddings(lambda images: torch.tensor([[3.0, 4.0]]).expand(len(images), 2), noise(1))
    torch.testing.assert_close(found, torch.tensor([0.6, 0.8]).expand(1, CELLS, CELLS, 2))


def test_half_precision_embeddings_give_a_single_precision_map() -> None:
    found = crop_embeddings(lambda images: torch.tensor([[1.0, 3.0]]).half().expand(len(images), 2), noise(1))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([0.1**0.5, 0.9**0.5]).expand(1, CELLS, CELLS, 2), atol=1e-6, rtol=0)
