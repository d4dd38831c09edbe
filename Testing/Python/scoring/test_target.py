"""Which class of a network is meant by a prompt."""

from __future__ import annotations

import pytest
import SimpleITK as sitk

from XAICLIPLib.errors import InputError
from XAICLIPLib.localization.region import whole_region
from XAICLIPLib.reporting.measurements import cautions
from XAICLIPLib.scoring.target import class_of


class Network:
    """What `class_of` asks a network."""

    name, activation = "net", "softmax"

    def __init__(self, *names: str) -> None:
        self.labels = dict(enumerate(("background", *names)))


def test_a_portal_vein_meets_the_class_of_both_veins_and_that_is_told() -> None:
    network = Network("liver", "Portal and Splenic Veins")
    assert class_of("portal vein", None, network) == ("portal and splenic veins", (2,))  # type: ignore[arg-type]
    drawn = sitk.Image(20, 20, 20, sitk.sitkUInt8)
    drawn[5:15, 5:15, 5:15] = 1
    sentence = (
        "The network has no class for the portal vein alone: what is explained is its class portal and splenic veins."
    )
    assert sentence in cautions("portal and splenic veins", "portal vein", drawn, whole_region(drawn), 0.9)
    for words in ("portal and splenic veins", "portal splenic vein"):
        assert sentence not in cautions("portal and splenic veins", words, drawn, whole_region(drawn), 0.9)


def test_a_class_of_its_own_comes_before_one_of_two() -> None:
    network = Network("portal vein", "portal and splenic veins")
    assert class_of("portal vein", None, network) == ("portal vein", (1,))  # type: ignore[arg-type]


def test_a_side_is_not_met_by_the_class_of_both() -> None:
    with pytest.raises(InputError, match="does not segment the left kidney"):
        class_of("left kidney", None, Network("kidneys"))  # type: ignore[arg-type]
