"""`xaiclip explain --dicom`: what it writes, and what it refuses before the work begins."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_study import SECRETS, explanation_of, write_series
from PIL import Image

from XAICLIPLib import imaging, pipeline
from XAICLIPLib.commands import main
from XAICLIPLib.reporting import figure

pytestmark = pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="highdicom is not installed")

OBJECTS = {"parametric_map", "segmentation", "structured_report", "report", "figure"}
SIZE = (6, 7, 8)
LINE = ["explain", "scan", "--prompt", "left kidney", "--output", "plain"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a DICOM series in it."""
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(1).integers(-900, 900, SIZE)
    write_series(tmp_path / "scan", values, (0, 0, 0), np.eye(3), (1.0, 1.0, 2.0))

    def save_figure(path: Path, *_: Any, **__: Any) -> Path:
        Image.new("RGB", (200, 100)).save(path, "PNG")
        return path

    monkeypatch.setattr(figure, "save_figure", save_figure)
    return tmp_path


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was explained, by a stand-in for the network."""
    scans: list[Any] = []

    def explain(image: list[str], _prompt: str, **options: Any) -> Any:
        scans.append(image)
        scan = imaging.read_scan(image[0], options["series"])
        target = np.zeros(SIZE)
        target[2:4, 2:5, 2:6] = 1
        return explanation_of(scan, target * 0.1, target, target)

    monkeypatch.setattr(pipeline, "explain", explain)
    return scans


def test_the_objects_are_written_beside_the_other_results(
    here: Path, began: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*LINE, "--dicom", "objects"]) == 0
    out, err = capsys.readouterr()
    assert "DICOM objects to objects: parametric_map.dcm, segmentation.dcm" in out
    assert {path.stem for path in (here / "objects").glob("*.dcm")} == OBJECTS
    assert pydicom.dcmread(here / "objects" / "figure.dcm").PatientID == SECRETS[1]
    assert (here / "plain" / "saliency.nrrd").is_file()
    assert [secret for secret in SECRETS if secret in out + err] == []


def test_anonymous_objects_and_their_paths_as_json(
    here: Path, began: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*LINE, "--dicom", "objects", "--anonymous", "--json"]) == 0
    paths = json.loads(capsys.readouterr().out)["dicom"]
    assert set(paths) == OBJECTS
    for path in paths.values():
        content = Path(path).read_bytes()
        assert [secret for secret in SECRETS if secret.encode() in content] == []


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no DICOM", "is no DICOM series"),
        ("nothing to refer to", "does not name its frame of reference"),
        ("no highdicom", "pip install highdicom"),
        ("the scan's folder", "holds the scan itself"),
        ("the other results", "is the folder of the other results"),
        ("a file of the user", "which no explanation wrote"),
        ("not writable", "cannot be written"),
        ("several structures", "ask for one at a time"),
        ("anonymous alone", "add --dicom FOLDER"),
    ],
)
def test_what_cannot_become_dicom_is_refused_before_the_work(
    case: str,
    words: str,
    here: Path,
    began: list[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = [*LINE, "--dicom", "objects"]
    if case == "no DICOM":
        imaging.write_volume(imaging.read_volume("scan"), "scan.nii.gz")
        line[1] = "scan.nii.gz"
    elif case == "nothing to refer to":
        for path in (here / "scan").iterdir():
            image = pydicom.dcmread(path)
            del image.FrameOfReferenceUID
            image.save_as(path)
    elif case == "no highdicom":
        monkeypatch.setitem(sys.modules, "highdicom", None)
    elif case == "the scan's folder":
        line[-1] = "scan"
    elif case == "the other results":
        line[-1] = "plain"
    elif case == "a file of the user":
        (here / "objects").mkdir()
        (here / "objects" / "report.dcm").write_bytes(b"mine")
    elif case == "not writable":
        (here / "objects").write_bytes(b"a file")
    elif case == "several structures":
        line[3] = "liver and spleen"
    else:
        line = [*LINE, "--anonymous"]
    before = sorted(path.name for path in here.iterdir())
    assert main.main(line) == 1
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and out == "", "one sentence, before anything is computed"
    assert began == []
    assert sorted(path.name for path in here.iterdir()) == before, "something was left behind"
    assert [secret for secret in SECRETS if secret in err] == []
