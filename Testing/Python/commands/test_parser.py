"""What is said of a wrong option, and what the help says."""

from __future__ import annotations

import re

import pytest

from XAICLIPLib.commands import main
from XAICLIPLib.commands.explain import with_options
from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers import methods
from XAICLIPLib.reporting import output_folder, overview


def said(line: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main.main(line)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        (["explain", "scan", "--prompt", "liver", "--modle", "x"], "--model"),
        (["explain", "scan", "--prompt", "liver", "--windw=5"], "--window"),
        (["explain", "scan", "--prompt", "liver", "--baseline", "ari"], "air"),
        (["explain", "scan", "--prompt", "liver", "--score", "sotf-dice"], "soft dice"),
        (["explian", "scan"], "explain"),
        (["models", "lsit"], "list"),
        (["doctor", "--jsn"], "--json"),
    ],
)
def test_what_was_meant_is_suggested(line: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(line, capsys).endswith(f" (did you mean {meant}?)\n")


def test_what_is_like_nothing_draws_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["explain", "scan", "--prompt", "liver", "--qqqqqq"], ["zzzzzz"], ["explain", "scan"]):
        assert "did you mean" not in said(line, capsys)


def test_a_wrong_option_is_told_in_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """All of forty options stood above the one sentence that mattered."""
    text = said(["explain", "scan", "--modle", "x"], capsys)
    usage, error = text.splitlines()
    assert usage == (
        "usage: xaiclip explain VOLUME [VOLUME ...] --prompt TEXT [options]; `xaiclip explain --help` lists them"
    )
    assert error == "xaiclip explain: error: the following arguments are required: --prompt"


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main.main([command, "--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_help_lists_every_file_that_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("explain", capsys)
    for name in (*output_folder.FILES, overview.NAME):
        assert name in text, name


def test_every_option_with_a_value_says_its_unit_or_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("explain", capsys)
    for about in methods.describe().values():
        for parameter in about["parameters"]:
            option = f"--{parameter['name'].removesuffix('_mm').replace('_', '-')}"
            if parameter["type"] in ("number", "integer", "text"):
                value = re.search(rf"{option} (\S+)", text)
                assert value is not None, option
                wanted = {"mm": "MM"}.get(parameter["unit"], r"N|NAME|[\d.e-]+\.\.[\d.e+]+")
                assert re.fullmatch(rf"(?:{wanted})\]?", value[1]), (option, value[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window_mm": float("nan")}, "--window is nan: give a number in mm from 1 to 500."),
        ({"window_mm": 10.0, "stride_mm": 50.0}, "--stride is 50, more than --window, 10: that leaves gaps, give a"),
        (
            {"exhaustive": True, "samples": 5},
            "The method occlusion has no option --samples: it has --window, --stride,",
        ),
    ],
)
def test_an_error_names_the_option_that_was_typed(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError) as error:
        methods.method("occlusion", **options)
    assert with_options(str(error.value)).startswith(words)


def test_other_messages_stay_as_they_are() -> None:
    for message in (
        "The network finds no left kidney in this volume, so there is nothing to explain: choose another structure.",
        "There is no file or folder seed is here.nii: check the path.",
        "12 samples cannot tell 30 supervoxels apart: give at least 60 samples, or make the supervoxels larger.",
    ):
        assert with_options(message) == message
