"""Scenes that came from somebody else: what they name is not touched, and what is wrong in them is no exception."""

# ruff: noqa: F811

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import wait
from .test_panel import plain, ready, ui  # noqa: F401


@pytest.fixture
def brought(tmp_path: Path, panel: Any, ready: Any, session: Any, volume: Any) -> Callable[..., None]:
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
