"""Scenes that came from somebody else: what they name is not touched, and what is wrong in them is no exception."""

# ruff: noqa: F811

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import wait
from .test_panel import plain, ready, ui  # noqa: F401


@pytest.fixture
def brought(
    tmp_path: Path, panel: Any, ready: Any, session: Any, volume: Any, slot_errors: list[BaseException]
) -> Callable[..., None]:
    """A function that loads a scene of a stranger, made with these values of the parameter node."""
    import slicer

    def load(**values: Any) -> None:
        parameters = panel.logic.getParameterNode().parameterNode
        for name, value in values.items():
            parameters.SetParameter(name, value)
        path = str(tmp_path / "stranger.mrb")
        assert slicer.util.saveScene(path)
        slicer.mrmlScene.Clear(0)
        slicer.app.processEvents()
        slot_errors.clear()  # of the stranger, whose node held these values while it was shown
        slicer.util.loadScene(path)
        wait(lambda: ready.promptLineEdit.text == "liver")
        slicer.app.processEvents()

    return load


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are looked at on disk."""
    seen: list[str] = []

    def watched(look: Callable[..., Any]) -> Callable[..., Any]:
        return lambda path, *more, **named: (seen.append(str(path)), look(path, *more, **named))[1]

    for owner, name in ((os, "stat"), (os, "lstat"), (os, "scandir"), (os, "listdir"), (os.path, "exists")):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    monkeypatch.setattr("builtins.open", watched(open))
    return seen


@pytest.mark.parametrize("kind", ["model", "localizer"])
def test_a_path_that_comes_with_a_scene_is_used_after_a_click_and_not_before(
    kind: str,
    brought: Any,
    ready: Any,
    session: Any,
    tmp_path: Path,
) -> None:
    (tmp_path / "strange").mkdir()
    brought(**{kind: str(tmp_path / "strange")})
    label, button = getattr(ready, f"{kind}FromSceneLabel"), getattr(ready, f"{kind}FromSceneButton")
    window = ready.applyButton.window()
    assert ready.regionCollapsibleButton.collapsed and button.isVisibleTo(window), "beside Apply, whatever is collapsed"
    assert str(tmp_path / "strange") in label.text
    assert not ready.applyButton.isEnabled()
    called = {"model": "segmentation network", "localizer": "localizer"}[kind]
    assert f"Confirm the {called} that the scene names" in plain(ready.applyButton.toolTip)
    ready.promptLineEdit.returnPressed()
    assert session.requests == []
    button.click()
    assert not button.isVisibleTo(window) and ready.applyButton.isEnabled()
    ready.applyButton.click()
    assert getattr(session.requests[-1], kind) == str(tmp_path / "strange")


def test_a_scene_touches_no_path_of_its_own(brought: Any, touched: list[str], session: Any, panel: Any) -> None:
    brought(model=r"\\attacker.example\share\net", localizer="//attacker.example/share/clip")
    wait(lambda: session.hello is not None)
    for section in ("region", "target", "method", "installation"):
        getattr(panel.ui, f"{section}CollapsibleButton").collapsed = False
    assert [path for path in touched if "attacker" in path] == []


def test_a_name_that_only_the_worker_may_know_is_confirmed_too(
    brought: Any,
    ready: Any,
    session: Any,
) -> None:
    brought(model="relative-folder")
    wait(lambda: session.hello is not None)
    assert "Confirm the segmentation network" in plain(ready.applyButton.toolTip)
    assert ready.modelFromSceneButton.isVisibleTo(ready.applyButton.window())


def test_what_the_user_chose_here_is_not_asked_about(ready: Any, panel: Any, monkeypatch: Any, tmp_path: Path) -> None:
    import qt

    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_arguments: str(tmp_path))
    panel.panel.choices.models.folderAction.trigger()
    assert ready.applyButton.isEnabled() and not ready.modelFromSceneButton.isVisibleTo(ready.applyButton.window())


@pytest.mark.parametrize(
    "values",
    [
        '{"occlusion": [1]}',
        '{"occlusion": {"cube_mm": "big"}}',
        '{"occlusion": {"window_mm": "big", "exhaustive": 3}}',
        '{"occlusion": {"window_mm": 1e999, "stride_mm": [[]]}, "no such method": {}}',
        "[1]",
        "[" * 100000,
    ],
)
def test_method_parameters_that_are_none_leave_the_defaults_and_a_sentence(
    values: str, panel: Any, ready: Any, session: Any, slot_errors: list[BaseException]
) -> None:
    panel.logic.getParameterNode().method = "occlusion"
    panel.logic.getParameterNode().methodParameters = values
    assert slot_errors == [] and ready.applyButton.isEnabled()
    assert "its defaults are taken" in plain(ready.applyButton.toolTip)
    assert "its defaults are taken" in ready.methodSummaryLabel.text
    ready.applyButton.click()
    assert session.requests[-1].parameters in (None, {})


def test_the_parameters_that_a_method_takes_are_kept(panel: Any, ready: Any, session: Any) -> None:
    panel.logic.getParameterNode().method = "occlusion"
    panel.logic.getParameterNode().methodParameters = '{"occlusion": {"window_mm": 30, "nonsense": 1}}'
    ready.applyButton.click()
    assert session.requests[-1].parameters == {"window_mm": 30}


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("regionThreshold", "abc", 0.5),
        ("regionThreshold", "nan", 0.5),
        ("regionThreshold", "7", 0.5),
        ("regionThreshold", "0.25", 0.25),
        ("regionMargin", "[]", -1.0),
        ("seed", "", 0),
        ("seed", "1e3", 0),
        ("seed", "9" * 5000, 0),
        ("ownThreshold", "perhaps", False),
        ("checkMap", "perhaps", False),
        ("furtherImages", "-3", 0),
        ("furtherVolumes.len", "many", []),
        ("furtherVolumes.len", "999999999", []),
        ("method", "no such method", None),
        ("regionSource", "nowhere", None),
    ],
)
def test_parameters_of_a_wrong_kind_take_their_default(
    name: str, value: str, kept: Any, brought: Any, panel: Any, ready: Any, slot_errors: list[BaseException]
) -> None:
    brought(**{name: value})
    assert slot_errors == [] and ready.applyButton.isEnabled(), plain(ready.applyButton.toolTip)
    if kept is not None:
        assert getattr(panel.logic.getParameterNode(), name.removesuffix(".len")) == kept


RECORD: dict[str, Any] = {
    "prompt": "liver",
    "target": {"name": "liver", "label": 6},
    "region": {"source": "localizer", "share_of_body": "much", "agreement_with_prediction": [1]},
    "measurements": {"a": 1, "b": 10**400, "c": [], "structures": [3, {"structure": "x", "score_lost": "y"}]},
    "parameters": {"method": "occlusion"},
    "models": {"segmenter": "abdomen-ct"},
    "warnings": "all",
    "reliability": ["fine"],
}


@pytest.mark.parametrize(
    ("record", "isResult"),
    [
        ('{"prompt":1,"target":1,"region":1,"measurements":1,"parameters":1}', False),
        ("[" * 100000, False),
        ("{}", False),
        (json.dumps({**RECORD, "target": {"name": 3}}), False),
        (json.dumps(RECORD), True),
        (json.dumps({**RECORD, "models": None, "warnings": [3, "A warning."], "complete": "no"}), True),
    ],
)
def test_a_record_that_is_none_shows_nothing_and_breaks_nothing(
    record: str, isResult: bool, ready: Any, session: Any, volume: Any, tmp_path: Path, slot_errors: list[BaseException]
) -> None:
    import slicer

    from XAICLIPModule.scene import results

    ready.applyButton.click()
    session.explain(volume)
    node = ready.resultSelector.currentNode()
    node.SetAttribute("XAICLIP.Record", record)
    node.SetAttribute("XAICLIP.Threshold", "abc")
    node.SetAttribute("XAICLIP.Window", "1e999")
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    slicer.app.processEvents()
    slicer.util.loadScene(path)
    wait(lambda: ready.promptLineEdit.text == "liver")
    slicer.app.processEvents()
    assert slot_errors == [] and ready.applyButton.isEnabled(), plain(ready.applyButton.toolTip)
    (loaded,) = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[1:]
    ready.resultSelector.setCurrentNode(loaded)
    assert (results.explanationOf(loaded) is not None) == isResult
    assert ready.saveButton.isEnabled() == isResult
    assert ready.saliencyThresholdSlider.value == pytest.approx(0.1)
