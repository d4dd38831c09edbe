"""Warnings about a target and its region."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from XAICLIPLib.localization.region import Region, prediction_region, region_from_mask, whole_region
from XAICLIPLib.reporting.measurements import cautions


def boxes(*corners: tuple[int, int]) -> sitk.Image:
    """Cubes between two indices along every axis, voxels of 2 mm."""
    array = np.zeros((40, 40, 40), np.uint8)
    for first, last in corners:
        array[first:last, first:last, first:last] = 1
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 2.0, 2.0))
    return image


LIVER, ISLAND, SPECK = (5, 20), (30, 35), (37, 39)


def told(drawn: sitk.Image, region: Region) -> list[str]:
    return [sentence for sentence in cautions("liver", "liver", drawn, region, 0.9) if "apart" in sentence]


def test_an_island_outside_the_region_is_told_with_its_volume() -> None:
    drawn = boxes(LIVER, ISLAND)
    assert told(drawn, region_from_mask(drawn, boxes((3, 22)), drawn)) == [
        "1 ml of what is drawn as liver lie apart from the rest, outside the region: they may be no liver, and count "
        "in the score all the same."
    ]


@pytest.mark.parametrize(
    ("drawn", "region"),
    [
        (boxes(LIVER), boxes((3, 12))),  # one part, of which some lies outside
        (boxes(LIVER, SPECK), boxes((3, 22))),  # a few voxels
        (boxes(LIVER, ISLAND), boxes((36, 39))),  # the region is elsewhere, which other warnings tell
        (boxes(LIVER, ISLAND), boxes((3, 36))),
    ],
)
def test_nothing_is_told_where_no_part_is_left_out(drawn: sitk.Image, region: sitk.Image) -> None:
    assert told(drawn, region_from_mask(drawn, region, drawn)) == []
    assert told(drawn, whole_region(drawn)) == told(drawn, prediction_region(drawn, drawn)) == []
