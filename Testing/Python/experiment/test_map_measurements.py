"""A measured map survives its file, and a damaged file is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from Testing.Python.experiment.test_comparison import EMPTY
from XAICLIPLib.errors import InputError
from XAICLIPLib.experiment.map_measurements import COLUMNS, from_text, to_text


def test_a_row_is_read_back_as_it_was() -> None:
    given = replace(EMPTY, dice=0.1 + 0.2, structure="left kidney", region="whole")
    assert from_text(to_text(given, "abc"), "x.json") == (given, "abc")


def test_whole_numbers_do_for_numbers() -> None:
    text = to_text(replace(EMPTY, dice=1.0), "abc").replace('"dice": 1.0', '"dice": 1')
    assert from_text(text, "x.json")[0].dice == 1.0


@pytest.mark.parametrize(
    "change", [{"dice": None}, {"dice": "0.5"}, {"case": 1.5}, {"case": True}, {"region": "nowhere"}, {"machine": 3}]
)
def test_a_damaged_row_is_told(change: dict[str, object]) -> None:
    found = json.loads(to_text(EMPTY, "abc")) | change
    with pytest.raises(InputError, match=r"x\.json is damaged: delete it"):
        from_text(json.dumps(found), "x.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", to_text(EMPTY, "abc")[:100]])
def test_a_file_that_was_cut_off_is_told(text: str) -> None:
    with pytest.raises(InputError, match="is damaged"):
        from_text(text, "x.json")


def test_every_number_has_a_column() -> None:
    assert COLUMNS[:4] == ("case", "structure", "method", "region")
    assert {"dice", "null_dice", "random_deletion", "outside"} < set(COLUMNS)


def test_leads_are_differences() -> None:
    assert EMPTY.lead == pytest.approx(-0.1)
    assert EMPTY.faithfulness == pytest.approx(0.3)
    assert EMPTY.random_faithfulness == pytest.approx(-0.1)
