"""The report of the experiment says what its numbers say, in tables and sentences."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from Testing.Python.experiment.test_comparison import EMPTY, row
from XAICLIPLib.experiment.benchmark import Outcome, Plan
from XAICLIPLib.experiment.comparison import Gains, gains
from XAICLIPLib.experiment.map_measurements import COLUMNS, MapMeasurements
from XAICLIPLib.experiment.report import gains_table, means_table, report, sentences, write_csv, write_report

PLAN = Plan(("liver",), ("occlusion",))

SETTINGS = {
    "version": "1",
    "dataset": "btcv",
    "cases": 24,
    "model": {"name": "tiny", "sha256": "0" * 64},
    "localizer": {"name": "finder", "sha256": "1" * 64},
}


def outcome(rows: Sequence[MapMeasurements], **changes: object) -> Outcome:
    return replace(Outcome(tuple(rows), (), (), len(rows), SETTINGS, True), **changes)  # type: ignore[arg-type]


def pairs(guided: dict[str, float], whole: dict[str, float], cases: int = 4) -> list[MapMeasurements]:
    """The same pair of maps for each case, with a little spread."""
    return [
        row(case, region, **{k: v * (1 + 0.01 * case) for k, v in numbers.items()})
        for case in range(1, cases + 1)
        for region, numbers in (("guided", guided), ("whole", whole))
    ]


def found(guided: dict[str, float], whole: dict[str, float], cases: int = 4) -> Gains:
    compared = gains(pairs(guided, whole, cases), "occlusion")
    assert compared is not None
    return compared


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


# Tables


def test_the_table_of_means_is_right_against_hand_computed_numbers() -> None:
    rows = [row(1, "guided", dice=0.5, explain_s=1.0), row(1, "guided", "spleen", dice=0.7, explain_s=2.0)]
    rows += [row(2, "guided", dice=1.0, explain_s=4.5), row(2, "whole", dice=0.25, explain_s=40.0, patches=999)]
    head, _, guided, whole = cells(means_table(rows, PLAN))
    table = dict(zip(head, guided, strict=True))
    assert (table["method"], table["region"], table["maps"]) == ("occlusion", "guided", "3")
    assert (table["Dice"], table["explain, s"]) == ("0.800", "3.0")  # ((0.5 + 0.7) / 2 + 1) / 2 and (1.5 + 4.5) / 2
    table = dict(zip(head, whole, strict=True))
    assert (table["region"], table["maps"], table["Dice"], table["patches"]) == ("unguided", "1", "0.250", "999")
    assert head[head.index("Dice") + 1] == head[head.index("IoU") + 1] == "null × region"


def test_the_table_of_gains_stands_beside_the_papers_headline() -> None:
    head, _, paper, own = cells(
        gains_table([found({"dice": 0.6, "null_dice": 0.7, "explain_s": 10.0}, {"dice": 0.4, "explain_s": 40.0})])
    )
    assert len(head) == len(paper) == len(own)
    told = dict(zip(head, paper, strict=True))
    assert (told["explain time"], told["Dice"], told["IoU"]) == ("up to −60%", "+44.6%", "+96.7%")
    mine = dict(zip(head, own, strict=True))
    assert mine["explain time"].startswith("−75%") and mine["Dice"].startswith("+50%")
    assert mine["null × region: Dice"].startswith("+75%")  # 0.7 × region against the unguided 0.4


def test_the_csv_holds_every_map(tmp_path: Path) -> None:
    rows = pairs({"dice": 1 / 3}, {"dice": 0.25}, 2)
    write_csv(rows, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == COLUMNS and len(read) == 4
    assert float(read[0]["dice"]) == pytest.approx(rows[0].dice, rel=1e-5)


# Sentences


def test_a_gain_that_the_region_alone_gets_is_called_an_artefact() -> None:
    text = " ".join(sentences(found({"dice": 0.6, "null_dice": 0.7}, {"dice": 0.4})))
    assert "artefact of the metric" in text and "+50%" in text and "+75%" in text


def test_a_gain_above_the_regions_is_not_called_one() -> None:
    text = " ".join(sentences(found({"dice": 0.6, "null_dice": 0.5}, {"dice": 0.4})))
    assert "artefact" not in text and "not the region's doing alone" in text


def test_a_gain_that_is_none_is_told() -> None:
    assert "does not show here" in " ".join(sentences(found({"dice": 0.3}, {"dice": 0.4})))
    assert "no relative gain" in " ".join(sentences(found({"dice": 0.3}, {"dice": 0.0})))


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [(4.0, "holds here, and more"), (30.0, "within the paper's up to 60%"), (80.0, "does not hold here")],
)
def test_the_claim_of_time_is_judged(seconds: float, verdict: str) -> None:
    assert verdict in " ".join(sentences(found({"explain_s": seconds}, {"explain_s": 40.0})))


def test_time_that_finding_the_region_eats_up_is_told() -> None:
    whole = {"explain_s": 40.0, "total_s": 42.0}
    said = " ".join(sentences(found({"explain_s": 10.0, "total_s": 60.0}, whole)))
    assert "holds here, and more, but finding the region takes more than it saves" in said
    assert "takes more than it saves" not in " ".join(sentences(found({"explain_s": 10.0, "total_s": 30.0}, whole)))


def test_what_lies_outside_the_region_stands_beside_chance_and_what_a_guided_map_shows() -> None:
    said = " ".join(sentences(found({"outside": 0.4}, {"outside": 0.4, "outside_chance": 0.95})))
    assert "of an even map's" in said and "a guided map shows of it what lies within a window of the region" in said


def test_what_the_cases_do_not_decide_is_not_decided() -> None:
    rows = [row(1, "guided", explain_s=10.0), row(1, "whole", explain_s=20.0)]
    rows += [row(2, "guided", explain_s=30.0), row(2, "whole", explain_s=21.0)]
    compared = gains(rows, "occlusion")
    assert compared is not None
    assert "is not decided by these cases" in " ".join(sentences(compared))
    single = gains(rows[:2], "occlusion")
    assert single is not None and "is not decided" in " ".join(sentences(single))


@pytest.mark.parametrize(
    ("insertion", "verdict"), [(0.9, "are the more faithful"), (0.5, "are the less faithful"), (0.6, "no difference")]
)
def test_faithfulness_is_judged(insertion: float, verdict: str) -> None:
    assert verdict in " ".join(sentences(found({"insertion": insertion}, {"insertion": 0.6})))


def test_other_methods_than_occlusion_are_not_held_against_the_papers_claim() -> None:
    other = replace(found({"explain_s": 4.0}, {"explain_s": 40.0}), method="rise")
    assert "the paper's number is of occlusion" in sentences(other)[0]


# The whole


def test_the_report_holds_claims_controls_and_provenance(tmp_path: Path) -> None:
    write_report(outcome(pairs({"dice": 0.6}, {"dice": 0.4})), PLAN, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for part in (
        "## What holds",
        "+44.6%",
        "null × region",
        "tiny (SHA-256 000000000000…)",
        "rest on the cases being normally distributed",
        "a machine",
    ):
        assert part in text
    assert "(figure.png)" in text
    assert "more faithful than a random order in 4 of 4 maps" in text
    assert "better than the best null map in the same region in 0 of 4" in text


def test_the_report_tells_what_is_lacking() -> None:
    rows = [*pairs({}, {}, 2), replace(EMPTY, case=3, region_source="prediction box", machine="another")]
    text = report(outcome(rows, left_out=("case 7, spleen",), problems=("Case 7 /home/Mustermann.nii.gz",)), PLAN)
    assert "- case 7, spleen" in text and "Mustermann" not in text
    assert "In 1 of 3 guided maps the localizer's region was no use" in text
    assert "do not compare those of different machines" in text
    assert "**Interrupted" in report(outcome(rows, complete=False), PLAN)
    assert "Nothing was measured." in report(outcome([]), PLAN)


def test_paper_like_parameters_are_never_called_the_papers() -> None:
    text = report(outcome(pairs({}, {})), Plan(("liver",), ("occlusion",), paper_like=True))
    assert "window_mm 49.92, stride_mm 24.96, exhaustive True, the same guided and unguided" in text
    assert "they are not known to be the paper's" in text
