"""Reliability flags: each is raised where it should be, and only there."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.curves import Curve, Curves, Faithfulness
from XAICLIPLib.evaluation.metrics import Share
from XAICLIPLib.evaluation.reliability import NOISE, DeclaredInputs, Evidence, raised_flags, reliability_flags
from XAICLIPLib.evaluation.reliability_flag import FLAG_NAMES, FlagName
from XAICLIPLib.evaluation.stability import Stability
from XAICLIPLib.localization.region import Agreement


def curves(height: float) -> Curves:
    """Deletion that falls to a height at once, insertion that mirrors it."""
    deletion = Curve("deletion", (1.0, 10.0), (height, height), 0.1)
    insertion = Curve("insertion", (1.0, 10.0), (1 - height, 1 - height), 0.9)
    return Curves({"soft dice": deletion}, {"soft dice": insertion})


def compared(own: float, null: float, outline: float = 0.9) -> Faithfulness:
    controls = {"edges": curves(null), "centre": curves(0.9), "mask": curves(outline), "depth": curves(outline + 0.02)}
    return Faithfulness(curves(own), (curves(0.8),), controls)


GOOD = Evidence(
    "liver",
    Agreement(0.6, 0.97, 8.0),
    Share(0.3, 0.9),
    np.array([1.0, -1.0, 0.5]),
    np.array([0.1, 0.1, 0.1]),
    compared(0.3, 0.6),
    Stability(0.2, 0.1, 0.95, 4),
    np.linspace(-150, 240, 100),
    (0.8, 0.8, 3.0),
    DeclaredInputs((-175.0, 250.0), ((0.6, 0.6, 1.0), (1.0, 1.0, 5.0))),
    volume_ml=1500.0,
)

BAD: dict[FlagName, tuple[dict[str, Any], float]] = {
    "unusual volume": ({"volume_ml": 42000.0}, 42000.0),
    "region disagrees": ({"agreement": Agreement(0.1, 0.2, 90.0)}, 0.2),
    "leans outside": ({"outside": Share(0.8, 0.9)}, 0.8),
    "not converged": ({"standard_error": np.full(3, 0.9)}, 0.9 / np.sqrt(0.75)),
    "no more than the outline": ({"faithfulness": compared(0.3, 0.6, outline=0.2)}, -0.1 / 0.7),
    "like the null": ({"faithfulness": compared(0.58, 0.6)}, 0.02 / 0.7),
    "unstable": ({"stability": Stability(0.7, 0.5, 0.6, 4)}, 0.7),
    "unfamiliar intensities": ({"body_intensities": np.linspace(0, 1000, 101)}, 0.75),
    "unfamiliar spacing": ({"spacing_mm": (12.0, 0.8, 0.8)}, 12 / 5),
}


def test_a_good_map_raises_no_flag() -> None:
    assert raised_flags(GOOD) == ()


@pytest.mark.parametrize("name", BAD)
def test_each_flag_is_raised_alone_with_its_number(name: FlagName) -> None:
    changed, number = BAD[name]
    (flag,) = raised_flags(dataclasses.replace(GOOD, **changed))
    assert flag.name == name
    assert flag.value == pytest.approx(number, rel=0.02)
    assert flag.sentence.endswith((".", "?"))
    assert flag.sentence[0].isupper() or flag.sentence[0].isdigit()
    assert json.loads(json.dumps(dataclasses.asdict(flag), allow_nan=False))["name"] == name


def test_a_volume_is_told_with_what_is_usual() -> None:
    def flag(volume_ml: float, name: str = "liver", is_cut: bool = False) -> tuple[bool, float, str]:
        (made,) = reliability_flags(Evidence(name, volume_ml=volume_ml, is_cut=is_cut))
        return made.raised, made.threshold, made.sentence

    raised, threshold, said = flag(42_000)
    assert raised and threshold == 5500
    assert said.startswith("The network draws 42.0 l of liver, which has 450 to 5,500 ml in adults: it may have drawn")
    raised, threshold, said = flag(80)
    assert raised and threshold == 450 and "80 ml of liver" in said
    raised, threshold, said = flag(80, is_cut=True)
    assert not raised and "as far as the scan shows it" in said, "the rest of it may lie outside"
    assert flag(42_000, is_cut=True)[0], "too much is too much, also where some of it lies outside"
    assert not flag(1500)[0]
    assert flag(700, "left kidney")[0] and not flag(700, "kidneys")[0], "of the two together it is usual"
    assert reliability_flags(Evidence("whole tumor", volume_ml=9e9)) == ()
    assert reliability_flags(Evidence("aorta", volume_ml=9e9)) == (), "without a published range nothing is said"


@pytest.mark.parametrize(("share", "said"), [(0.0, "less than 1%"), (0.004, "less than 1%"), (0.2, "about 20%")])
def test_a_little_is_not_told_as_nothing(share: float, said: str) -> None:
    """ "0% of its size" was read as a mistake."""
    made = reliability_flags(
        Evidence(
            "liver",
            saliency=np.ones(3),
            standard_error=np.full(3, share),
            stability=Stability(share, share, 1.0, 4),
        )
    )
    assert [said in flag.sentence for flag in made] == [True, True], made
    assert not any(" 0%" in flag.sentence for flag in made)


def test_what_is_not_known_is_not_flagged() -> None:
    assert raised_flags(Evidence("liver")) == ()
    unknown = dataclasses.replace(GOOD, declared=None, spacing_mm=(40.0, 40.0, 40.0), body_intensities=[1e6])
    assert raised_flags(unknown) == ()
    assert raised_flags(dataclasses.replace(unknown, declared=DeclaredInputs())) == ()


def test_all_flags_come_in_one_order() -> None:
    worst = dataclasses.replace(GOOD, **{key: value for changed, _ in BAD.values() for key, value in changed.items()})
    # Where the region lies elsewhere the map is not compared with the outline.
    assert {flag.name for flag in raised_flags(worst)} == set(BAD) - {"no more than the outline"}
    assert raised_flags(worst)[0].name == "unfamiliar intensities"


def test_spacing_is_compared_by_size_and_not_by_axis() -> None:
    assert raised_flags(dataclasses.replace(GOOD, spacing_mm=(3.0, 0.8, 0.8))) == ()
    (finer,) = raised_flags(dataclasses.replace(GOOD, spacing_mm=(0.2, 0.2, 0.2)))
    assert "finer" in finer.sentence
    assert finer.value == pytest.approx(5)


def test_an_empty_map_with_noise_has_not_converged_and_one_without_noise_has() -> None:
    (flag,) = raised_flags(dataclasses.replace(GOOD, saliency=np.zeros(3)))
    assert flag.name == "not converged"
    assert raised_flags(dataclasses.replace(GOOD, saliency=np.zeros(3), standard_error=np.zeros(3))) == ()


def test_noise_threshold_is_the_correlation_that_its_reason_says() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(200_000, generator=generator)
    error = NOISE / (1 - NOISE**2) ** 0.5 * torch.randn(200_000, generator=generator)
    found = truth + error  # its error is half as large as itself
    assert float(error.norm() / found.norm()) == pytest.approx(NOISE, abs=0.01)
    assert float(torch.corrcoef(torch.stack([truth, found]))[0, 1]) == pytest.approx(0.87, abs=0.01)


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="different shapes"):
        raised_flags(dataclasses.replace(GOOD, standard_error=np.zeros(4)))


def test_a_check_that_passes_says_so_with_its_number() -> None:
    made = reliability_flags(GOOD)
    assert {flag.name for flag in made} == set(BAD)
    assert not any(flag.raised for flag in made)
    assert [flag.name for flag in made] == sorted((flag.name for flag in made), key=FLAG_NAMES.index)
    said = next(flag for flag in made if flag.name == "region disagrees")
    assert (said.value, said.threshold) == (0.97, 0.5) and "97%" in said.sentence
    assert reliability_flags(Evidence("liver")) == ()


def test_the_outline_is_told_by_how_much_it_is_ahead_or_behind() -> None:
    def sentence(own: float, outline: float, **changed: Any) -> tuple[str, bool]:
        evidence = dataclasses.replace(GOOD, faithfulness=compared(own, 0.6, outline), **changed)
        (flag,) = [f for f in reliability_flags(evidence) if f.name == "no more than the outline"]
        return flag.sentence, flag.raised

    behind, raised = sentence(0.37, 0.3)
    assert raised and "no more than the outline" in behind and "10%" in behind
    close, raised = sentence(0.3, 0.307)
    assert raised and "hardly more" in close
    ahead, raised = sentence(0.3, 0.44)
    assert not raised and "leads the best order made of the outline by 20%" in ahead
    below, raised = sentence(0.87, 0.86)
    assert raised and "by 1%" in below, "chance, which lies above both, is not the outline"
    apart = dataclasses.replace(GOOD, agreement=Agreement(0.0, 0.1, 80.0))
    assert {"no more than the outline", "region disagrees"} & {f.name for f in reliability_flags(apart)} == {
        "region disagrees"
    }


@pytest.mark.parametrize(("by_map", "raised"), [(448.0, False), (700.0, True), (916.0, True)])
def test_a_map_by_which_much_less_is_enough_says_more_than_the_outline(by_map: float, raised: bool) -> None:
    """Of the curves most is the organ, which the outline knows as well; how little suffices is not."""
    evidence = dataclasses.replace(GOOD, faithfulness=compared(0.3, 0.6, 0.307), sufficient_ml=(by_map, 916.0))
    (flag,) = [f for f in reliability_flags(evidence) if f.name == "no more than the outline"]
    assert flag.raised == raised
    assert ("448 ml" in flag.sentence and "916 ml" in flag.sentence) != raised


def test_a_map_that_leads_noise_and_not_the_outline_fails_that_check_alone() -> None:
    evidence = dataclasses.replace(GOOD, faithfulness=compared(0.3, 0.6, outline=0.25))
    assert [flag.name for flag in raised_flags(evidence)] == ["no more than the outline"]
