"""What an explanation keeps of itself, and how it is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from XAICLIPLib.errors import InputError
from XAICLIPLib.localization.region import Agreement, Region
from XAICLIPLib.reporting import record


def build(**changed: Any) -> dict[str, Any]:
    """The record of a small explanation, with some of its parts changed."""
    image = sitk.GetImageFromArray(np.arange(120, dtype=np.int16).reshape(6, 5, 4))
    image.SetSpacing((0.78125, 0.78125, 2.5))
    image.SetOrigin((-123.25, 45.75, 67.5))
    image.SetMetaData("PatientName", "DOE^JOHN")
    region = Region(image > 50, "guided", 0.1, 0.5, None, Agreement(0.5, 0.9, 3.0))
    given: dict[str, Any] = {
        "prompt": "liver",
        "target": {"name": "liver", "label": 6},
        "labels": {0: "background", 6: "liver"},
        "image": image,
        "modality": "CT",
        "region": region,
        "measurements": {"score_unperturbed": 0.9},
        "models": {"segmenter": {"name": "net", "sha256": "0" * 64}, "localizer": None},
        "parameters": {"window_mm": 24.0},
        "timings": {"segment": 0.5},
        "warnings": ["careful"],
        "complete": True,
    }
    return record.build(**given | changed)


def test_it_holds_what_makes_a_result_understood_and_repeated() -> None:
    kept = build()
    assert kept["target"] == {"name": "liver", "label": 6}
    assert kept["labels"] == {"0": "background", "6": "liver"}
    assert kept["region"] == {
        "source": "guided",
        "volume_ml": 0.1,
        "share_of_body": 0.5,
        "agreement_with_prediction": {"dice": 0.5, "recall": 0.9, "centroid_distance_mm": 3.0},
    }
    assert kept["models"]["segmenter"]["sha256"] == "0" * 64
    assert kept["warnings"] == ["careful"]
    assert {"prompt", "measurements", "versions", "parameters", "timings_s", "complete", "format"} <= set(kept)


def test_of_the_input_it_keeps_the_grid_and_a_checksum_alone() -> None:
    kept = build()["input"]
    voxels = np.arange(120, dtype=np.int16).tobytes()
    assert kept == {
        "size": [4, 5, 6],
        "spacing_mm": [0.7812, 0.7812, 2.5],
        "modality": "CT",
        "voxels_sha256": hashlib.sha256(voxels).hexdigest(),
    }
    text = json.dumps(build())
    assert "DOE" not in text and "123.25" not in text


def test_it_does_not_change_with_what_it_was_made_of() -> None:
    warnings, models = ["careful"], {"segmenter": {"name": "net"}, "localizer": None}
    kept = build(warnings=warnings, models=models)
    warnings.append("later")
    models["segmenter"]["name"] = "other"  # type: ignore[index]
    assert kept["warnings"] == ["careful"]
    assert kept["models"]["segmenter"]["name"] == "net"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), np.float32("nan"), np.float64("inf")])
def test_what_is_no_number_is_null(tmp_path: Path, bad: float) -> None:
    kept = build(measurements={"a": bad, "b": [1.0, bad], "c": {"d": (bad,)}})
    assert json.loads(json.dumps(kept, allow_nan=False))["measurements"] == {
        "a": None,
        "b": [1.0, None],
        "c": {"d": [None]},
    }
    path = record.write({"a": bad}, tmp_path / "explanation.json")
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": None}


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    path = record.write({"a": np.float32(0.5), "b": np.int64(3), "c": [np.bool_(True)]}, tmp_path / "record.json")
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 0.5, "b": 3, "c": [True]}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "explanation.json"
    assert record.write(build(prompt="Leber, größer ≥ 肝"), path) == path
    assert json.loads(path.read_text(encoding="utf-8")) == build(prompt="Leber, größer ≥ 肝")
    record.write({"a": 1}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_prompt_of_broken_bytes_is_written_as_escapes(tmp_path: Path) -> None:
    # What Python makes of bytes on the command line that are no UTF-8.
    path = record.write({"prompt": "liver\udcff"}, tmp_path / "explanation.json")
    assert json.loads(path.read_text(encoding="utf-8")) == {"prompt": "liver\udcff"}


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = record.write({"a": 1}, tmp_path / "explanation.json")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("XAICLIPLib.system.files.os.replace", fail)
    with pytest.raises(InputError, match=r"explanation\.json cannot be written \(No space left on device\): choose"):
        record.write({"a": 2}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be written"):
        record.write({}, tmp_path / "file" / "explanation.json")
