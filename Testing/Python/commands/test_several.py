"""Several structures in one prompt of `xaiclip explain`: folders, overview, exit status, and what is said."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
from test_explanation import Network, scan

from XAICLIPLib import pipeline
from XAICLIPLib.commands import main, several
from XAICLIPLib.commands.terminal import Interrupt
from XAICLIPLib.reporting import figure, overview

LINE = "explain scan.nrrd --method occlusion --region whole --device cpu --window 24 --stride 12 --prompt".split()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a scan; the network is the tiny one, and pictures are not drawn."""
    monkeypatch.chdir(tmp_path)
    sitk.WriteImage(scan(), "scan.nrrd")
    monkeypatch.setattr(pipeline, "load_segmenter", lambda *_: Network())

    def save_figure(path: Path, *_: Any, **__: Any) -> Path:
        path.write_bytes(b"picture")
        return path

    monkeypatch.setattr(figure, "save_figure", save_figure)
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name == "explanation.json")


def test_each_structure_gets_a_folder_and_all_a_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*LINE, "liver and kidneys"]) == 0
    folder = here / "results" / "liver-and-kidneys"
    assert files(folder) == [f"{name}/explanation.json" for name in ("left-kidney", "liver", "right-kidney")]
    assert {path.name for path in folder.iterdir()} == {"liver", "left-kidney", "right-kidney", "overview.html"}
    page = (folder / "overview.html").read_text(encoding="utf-8")
    for name in ("liver", "left-kidney", "right-kidney"):
        assert f'src="{name}/figure.png"' in page
    out, err = capsys.readouterr()
    assert out.count("Explained: ") == 3
    for name in ("liver", "left kidney", "right kidney"):
        assert f"Explained: {name}," in out
    assert "overview.html" in out and "not explained" not in err


def test_what_is_not_drawn_is_said_and_told_by_the_exit_status(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sitk.WriteImage(scan(structures=(1, 2)), "scan.nrrd")
    assert main.main([*LINE, "kidneys, liver", "--output", "out"]) == 3
    assert files(here / "out") == ["left-kidney/explanation.json", "liver/explanation.json"]
    assert not (here / "out" / "right-kidney").exists(), "an empty folder was left behind"
    said = "The right kidney was not explained: the network finds no right kidney in this volume."
    assert f"xaiclip: {said}\n" in capsys.readouterr().err
    assert said in (here / "out" / "overview.html").read_text(encoding="utf-8")


def test_where_nothing_is_drawn_nothing_is_left(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sitk.WriteImage(scan(structures=(1,)), "scan.nrrd")
    assert main.main([*LINE, "kidneys"]) == 1
    assert 'xaiclip: Nothing of "kidneys" can be explained: the network finds no left' in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["scan.nrrd"]


def test_json_holds_all_of_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sitk.WriteImage(scan(structures=(1, 2)), "scan.nrrd")
    assert main.main([*LINE, "liver, kidneys", "--json"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed["not_explained"] == {"right kidney": "the network finds no right kidney in this volume"}
    assert [one["target"]["name"] for one in printed["explanations"]] == ["liver", "left kidney"]
    for one in printed["explanations"]:
        assert all(Path(path).is_file() for path in one["files"].values())


def test_where_the_network_draws_them_as_one_there_is_one_result(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network({0: "background", 1: "liver", 2: "kidneys"})
    monkeypatch.setattr(pipeline, "load_segmenter", lambda *_: network)
    assert main.main([*LINE, "left kidney and right kidney", "--output", "out"]) == 0
    assert files(here / "out") == ["explanation.json"]
    assert not (here / "out" / "overview.html").exists()


def test_a_target_explains_both_sides_as_one(here: Path) -> None:
    assert main.main([*LINE, "kidneys", "--target", "kidneys", "--output", "out"]) == 0
    record = json.loads((here / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert record["target"] == {"name": "kidneys", "label": [2, 3], "voxels": "predicted"}


@pytest.mark.parametrize("place", ["out/overview.html", "out/liver/saliency.nrrd"])
def test_a_file_of_the_users_own_is_not_replaced(here: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here / place).parent.mkdir(parents=True)
    (here / place).write_text("mine")
    assert main.main([*LINE, "liver and kidneys", "--output", "out"]) == 1
    assert Path(place).name in capsys.readouterr().err
    assert (here / place).read_text() == "mine"
    assert files(here) == [], "refused before the work"


def test_an_earlier_result_is_replaced(here: Path) -> None:
    for _ in range(2):
        assert main.main([*LINE, "liver and kidneys", "--output", "out"]) == 0
    assert len(files(here / "out")) == 3


def test_ctrl_c_keeps_what_is_there(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, begun = pipeline.explain_target, []

    def interrupted(*arguments: Any) -> Any:
        begun.append(arguments)
        if len(begun) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(pipeline, "explain_target", interrupted)
    assert main.main([*LINE, "liver and kidneys", "--output", "out"]) == 130
    assert files(here / "out") == ["liver/explanation.json"]
    err = capsys.readouterr().err
    for name in ("left kidney", "right kidney"):
        assert f"The {name} was not explained: the run was cancelled before it was begun." in err


def test_a_page_holds_names_as_text(here: Path) -> None:
    part = overview.Part("<script>x</script>", "a & b < c", here / "<i>" / "figure.png")
    page = overview.write(here, 'liver"><script>', [part], {"<b>": "no <u>"}).read_text(encoding="utf-8")
    assert "<script>" not in page and "<b>" not in page and "<u>" not in page and "<i>" not in page
    assert "a &amp; b &lt; c" in page


def test_names_with_the_same_letters_get_folders_of_their_own(tmp_path: Path) -> None:
    """Classes of a user's network ("T1+", "T1-", long ones): the second would have replaced the first."""
    names = ["T1+", "T1-", "liver", "t1 (2)", "../../liver", "z" * 70 + "a", "z" * 70 + "b"]
    with several._Places(tmp_path, Interrupt(), ()) as places:
        places.claim(names)
        folders = [places.folders[name] for name in names]
        assert [folder.name for folder in folders] == [
            "t1",
            "t1-2",
            "liver",
            "t1-2-2",
            "liver-2",
            "z" * 60,
            "z" * 60 + "-2",
        ]
        assert {folder.parent for folder in folders} == {tmp_path}
