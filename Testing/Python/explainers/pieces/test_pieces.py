"""Pieces are removed whole, wherever a patch looks at them."""

from __future__ import annotations

import pytest
import torch

from XAICLIPLib.explainers.pieces.pieces import Pieces

LABELS = torch.randint(0, 6, (7, 6, 5), generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


@pytest.mark.parametrize("numbers", [[1], [2, 5], [1, 2, 3, 4, 5]])
def test_a_perturbation_replaces_its_pieces_and_nothing_else(numbers: list[int]) -> None:
    perturbation = Pieces(LABELS).without(numbers)
    strength = torch.zeros(LABELS.shape)
    assert callable(perturbation.strength)
    strength[perturbation.box] = perturbation.strength(perturbation.box, CPU)
    assert torch.equal(strength == 1, torch.isin(LABELS, torch.tensor(numbers)))
    assert set(strength.unique().tolist()) <= {0.0, 1.0}


def test_a_patch_sees_its_own_part_of_the_pattern() -> None:
    pattern = Pieces(LABELS).without([3, 4]).strength
    here = (slice(2, 6), slice(1, 3), slice(4, 5))
    assert callable(pattern)
    assert torch.equal(pattern(here, CPU) == 1, (LABELS[here] == 3) | (LABELS[here] == 4))


def test_the_box_is_the_smallest_that_holds_the_pieces() -> None:
    labels = torch.zeros((9, 8, 7), dtype=torch.uint8)
    labels[1:3, 2, 5] = 2
    labels[6, 4:8, 3:5] = 7
    pieces = Pieces(labels)
    assert pieces.without([2]).box == (slice(1, 3), slice(2, 3), slice(5, 6))
    assert pieces.without([2, 7]).box == (slice(1, 7), slice(2, 8), slice(3, 6))
    assert pieces.sizes == [9 * 8 * 7 - 10, 0, 2, 0, 0, 0, 0, 8]


def test_a_map_has_the_value_of_each_piece() -> None:
    painted = Pieces(LABELS).paint([1, 4], [0.5, -2.0])
    assert painted.dtype == torch.float32
    assert torch.equal(painted, 0.5 * (LABELS == 1) - 2.0 * (LABELS == 4))
    assert Pieces(LABELS).paint([], []).abs().sum() == 0
