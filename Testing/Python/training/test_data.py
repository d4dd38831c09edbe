"""Slices to train on: crops down to an organ's surroundings, laid out as the localizer lays them out."""

from __future__ import annotations

import pytest
import SimpleITK as sitk
import torch

from XAICLIPLib.imaging.phantom import torso_phantom
from XAICLIPLib.localization.layout import slices_around_body
from XAICLIPLib.training import data

LIVER, SPLEEN = data.ORGANS.index("liver"), data.ORGANS.index("spleen")


@pytest.fixture(scope="module")
def phantom() -> tuple[sitk.Image, data.Subject]:
    """A torso as an image, and as a subject of the training."""
    made = torso_phantom(0, spacing_mm=data.SPACING_MM)
    return made.image, data.subject_from_images("phantom", "phantom", made.image, made.labels)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("organ", [LIVER, SPLEEN])
def test_boxes_hold_their_organ_and_reach_from_30_mm_around_it_to_the_whole_body(
    phantom: tuple[sitk.Image, data.Subject], organ: int
) -> None:
    subject = phantom[1]
    voxels = subject.foreground[organ]
    low, high = voxels.min(0).values[:2], voxels.max(0).values[:2] + 1
    least = data.LEAST_MARGIN_MM / data.SPACING_MM
    size = torch.tensor(subject.image.shape[:2])
    margins, whole = [], 0
    for seed in range(200):
        x0, x1, y0, y1 = data.random_box(subject, organ, generator(seed))
        assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]
        sides = [
            m for m, end in zip((low[0] - x0, size[0] - high[0]), (x0 == 0, x1 == size[0]), strict=True) if not end
        ]
        margins += [float(m) for m in sides]
        whole += x0 == 0 and x1 == size[0] and y0 == 0 and y1 == size[1]
    assert min(m for m in margins if m > 0) <= least + 1
    assert 0 < whole < 100


def test_nothing_is_seen_outside_a_box_and_everything_within(phantom: tuple[sitk.Image, data.Subject]) -> None:
    subject = phantom[1]
    box = (20, 60, 15, 50)
    part, _, _ = data._part(subject, box, 0.0)
    inside = torch.zeros(subject.image.shape, dtype=torch.bool)
    inside[20:60, 15:50] = True
    assert torch.equal(part.image[inside], subject.image[inside])
    assert torch.equal(part.label[inside], subject.label[inside])
    assert not part.image[~inside].any() and not part.label[~inside].any()


def test_training_lays_a_crop_out_as_the_localizer_does(phantom: tuple[sitk.Image, data.Subject]) -> None:
    image, subject = phantom
    x0, x1, y0, y1 = 30, 62, 25, 60
    _, low, high = data._part(subject, (x0, x1, y0, y1), 345 / data.SPACING_MM)
    extent_mm = float((high - low).max()) * data.SPACING_MM
    size_x, size_y, _ = image.GetSize()  # LPS: both axes run the other way
    cropped = image[size_x - x1 : size_x - x0, size_y - y1 : size_y - y0, :]
    pixel = slices_around_body(cropped, 160, 5.0, 1.0, 345.0).GetSpacing()[0]
    assert 160 * pixel == pytest.approx(extent_mm, rel=0.05)
    assert extent_mm > 1.5 * (x1 - x0) * data.SPACING_MM


def test_cropped_slices_show_less_of_the_body_and_are_fixed_by_their_seed(
    phantom: tuple[sitk.Image, data.Subject],
) -> None:
    subject = phantom[1]

    def shown(cropped: float) -> float:
        images = [data.random_slice(subject, 64, generator(seed), cropped, 345.0)[0] for seed in range(40)]
        return float(torch.stack(images).gt(0.05).float().mean())

    assert shown(1.0) < 0.95 * shown(0.0)
    one, other = (data.random_slice(subject, 64, generator(3), 0.5, 345.0)[0] for _ in range(2))
    assert torch.equal(one, other)


def test_tables_and_arms_are_painted_into_air_alone() -> None:
    image = torch.zeros(160, 160)
    image[50:110, 40:120] = 0.4
    changed = 0
    for seed in range(20):
        painted = data.add_surroundings(image, 2.5, generator(seed))
        assert torch.equal(painted[50:110, 40:120], image[50:110, 40:120])
        assert float(painted.min()) >= 0 and float(painted.max()) <= 1
        changed += not torch.equal(painted, image)
    assert 10 < changed <= 20
