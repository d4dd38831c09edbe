"""What strangers wrote is shown as it is, and commands neither terminal nor spreadsheet nor picture."""

from __future__ import annotations

import ast
import csv
import io
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from XAICLIPLib.commands import main as cli
from XAICLIPLib.commands import terminal
from XAICLIPLib.errors import InputError
from XAICLIPLib.experiment import report as benchmark_report
from XAICLIPLib.reporting import charts
from XAICLIPLib.system.displaytext import for_csv, for_matplotlib, for_terminal, one_line

ROOT = Path(__file__).resolve().parents[3]

ESCAPES = {
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "\x1b[2J": "\\x1b[2J",
    "\x9b31m": "\\x9b31m",
    "a\rb": "a\\x0db",
    "a\x08\x7f": "a\\x08\\x7f",
    "liver\u202egnp": "liver\\u202egnp",
    "a\u2028b": "a\\u2028b",
    "\ufeffa\u200b": "\\ufeffa\\u200b",
    "\udc80": "\\udc80",
    "\U000e0041": "\\U000e0041",
}


@pytest.mark.parametrize("text", ESCAPES)
def test_nothing_commands_a_terminal(text: str) -> None:
    assert for_terminal(text) == ESCAPES[text]
    assert for_terminal(text).isprintable()


@pytest.mark.parametrize("text", ["liver", "Leber, größer – ‹é› 肝臓", "می‌خواهم", "a\nb\tc", "C:\\x1b", ""])
def test_what_can_be_seen_stays(text: str) -> None:
    assert for_terminal(text) == text


def test_a_name_cannot_begin_a_line_of_its_own() -> None:
    assert one_line("liver\nxaiclip: all is well\r\n\x1b[1A") == "liver xaiclip: all is well \\x1b[1A"


def test_messages_and_output_of_commands_are_made_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.print_message("said \x1b[2J")
    terminal.print_output("told \x1b[2J")
    terminal.print_json({"name": "\x1b[2J\x7f\x9b"})
    output, messages = capsys.readouterr()
    assert messages == "said \\x1b[2J\n" and output.startswith("told \\x1b[2J\n")
    assert "\x1b" not in output and "\x7f" not in output
    assert json.loads(output.partition("\n")[2]) == {"name": "\x1b[2J\x7f\x9b"}

    def fails(_options: object) -> int:
        raise InputError("The network has no \x1b]0;x\x07 label\nxaiclip: done.")

    monkeypatch.setattr("XAICLIPLib.commands.doctor._doctor", fails)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "xaiclip: The network has no \\x1b]0;x\\x07 label xaiclip: done.\n"


def test_models_of_a_strangers_catalogue_are_listed_without_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path / "models"))
    entry = {"name": "net", "kind": "segmenter", "format": "bundle", "modality": "CT", "structures": ["li\x9bver"]}
    entry |= {"title": "A \x1b[2J title", "licence": "MIT\x1b]0;x\x07", "source": "hf-hub:some/net"}
    (tmp_path / "list.json").write_text(json.dumps({"models": [entry]}))
    assert cli.main(["models", "add", str(tmp_path / "list.json")]) in (0, 1)
    cli.main(["models", "list"])
    cli.main(["models", "info", "net"])
    output, messages = capsys.readouterr()
    assert not {"\x1b", "\x9b", "\x07"} & set(output + messages)


def prints(source: str) -> list[int]:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_commands_write_through_one_door() -> None:
    assert prints("print('x')") == [1]
    library = [p for p in sorted((ROOT / "XAICLIPLib").rglob("*.py")) if "training" not in p.parts]
    assert {path.name for path in library if prints(path.read_text(encoding="utf-8"))} == {"terminal.py", "failures.py"}


def test_a_sentence_stays_one_line_whatever_a_name_in_it_holds() -> None:
    assert str(InputError("/a  b/c has no label x\ny\x1b[2J: do.")) == "/a  b/c has no label x y\\x1b[2J: do."


# --- spreadsheets

FORMULAS = ["=cmd|'/c calc'!A1", "+1+cmd", "-2+3+cmd|' /C calc'!A0", "@SUM(1)", "\tx", "\r=1", " =1", '"=1', "＝1", "-"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_is_a_formula(text: str) -> None:
    assert for_csv(text) == f"'{text}"


@pytest.mark.parametrize("value", [-0.25, 3, None, True, "-0.25", "+1e-3", "-12", "-inf", "liver", "a=b", "CT-1", ""])
def test_numbers_and_other_texts_stay(value: object) -> None:
    assert for_csv(value) == value


def test_the_table_of_an_experiment_has_no_formulas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Row:
        structure, score = "=1+1", -0.5

    monkeypatch.setattr(benchmark_report, "COLUMNS", ("structure", "score"))
    benchmark_report.write_csv([Row()], tmp_path / "maps.csv")  # type: ignore[list-item]
    with (tmp_path / "maps.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["structure", "score"], ["'=1+1", "-0.5"]]


# --- pictures

MATHEMATICS = ["$\\frac{$", "a $x$ b", "$", "\\$", "$$", "\\frac", "_a^b", "{", "100 %", "$\\a$ and \\$"]


def drawn(text: str, **style: object) -> bytes:
    sheet = Figure((4, 1), 50)
    sheet.text(0, 0.5, text, **style)  # type: ignore[arg-type]
    stream = io.BytesIO()
    sheet.savefig(stream, format="raw")
    return stream.getvalue()


@pytest.mark.parametrize("text", MATHEMATICS)
def test_a_label_is_drawn_letter_by_letter(text: str) -> None:
    """The oracle is matplotlib, told that this is no mathematics."""
    assert drawn(for_matplotlib(text)) == drawn(text, parse_math=False)


@pytest.mark.parametrize("name", ["$\\frac{$", "$x$", "a\x1b[2Jb\nc", "=1"])
def test_charts_draw_any_name(name: str) -> None:
    rows = [{"structure": s, "score_lost": v, "volume_ml": 1.0} for s, v in ((name, 0.5), ("liver", -0.1), (name, 0.2))]
    line = {way: {"scores": [1.0, 0.5], "area": 0.7} for way in ("deletion", "insertion")}
    curves = {"volumes_mm3": [1000.0, 2000.0], "map": line, "controls": {name: line}}
    for picture in (charts.structures(rows, name), charts.curves(curves, name)):
        assert imread(io.BytesIO(picture)).ndim == 3
