"""One worker for all logics, and none when nobody needs one."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from XAICLIPLib.errors import InputError

from .conftest import wait


def workers() -> list[str]:
    """The ids of this program's worker processes that have not ended."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,stat=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True
    )
    # A process is one line: ps writes the ends of lines in its arguments as other characters, or goes on below.
    found = re.findall(r"^ *(\d+) +([A-Z]\S*) +(.*?)(?=^ *\d+ +[A-Z]|\Z)", listed.stdout, re.MULTILINE | re.DOTALL)
    return [pid for pid, state, arguments in found if "XAICLIPLib.worker" in arguments and not state.startswith("Z")]


@pytest.fixture
def shared(module_path: Path, scene: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What the logics of this test share, and no others; its worker is real."""
    from XAICLIPModule.worker import shared_session

    monkeypatch.setattr(shared_session.SHARED, "_session", None)
    monkeypatch.setattr(shared_session.SHARED, "_users", weakref.WeakSet())
    yield shared_session.SHARED
    if shared_session.SHARED._session is not None:
        shared_session.SHARED._session.stop()


def explained(volume: Any) -> None:
    """The README's line for the console, with words that every worker refuses."""
    from XAICLIPModule.logic import XAICLIPLogic

    with pytest.raises(InputError, match="no such thing"):
        XAICLIPLogic().explain(volume, prompt="no such thing at all")


def test_two_explanations_from_the_console_share_a_worker_that_goes_when_idle(
    shared: Any, volume: Any, slicer_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from XAICLIPModule.worker import worker_session

    explained(volume)
    (first,) = workers()
    monkeypatch.setattr(worker_session, "MINUTE_MS", 50)  # ten of them are half a second
    explained(volume)
    assert workers() == [first]
    folder = Path(shared._session.hello.folder)
    slicer_host.mrmlScene.Clear(0)
    wait(lambda: not workers(), 30)
    wait(lambda: not folder.exists(), 10)
    monkeypatch.undo()


def test_a_logic_that_nobody_holds_is_gone_and_observes_nothing(session: Any, volume: Any, scene: Any) -> None:
    from XAICLIPModule.logic import XAICLIPLogic
    from XAICLIPModule.worker.question import Question
    from XAICLIPModule.worker.shared_session import SHARED

    logic = XAICLIPLogic()
    logic.startExplaining(Question(volume, "liver"))
    session.explain(volume)
    held = weakref.ref(logic)
    assert list(SHARED._users) == [logic]
    del logic
    gc.collect()
    assert held() is None and not list(SHARED._users)
    scene.RemoveNode(volume)


def test_the_worker_ends_with_the_last_of_its_logics(shared: Any, volume: Any) -> None:
    from XAICLIPModule.logic import XAICLIPLogic

    first, second = XAICLIPLogic(), XAICLIPLogic()
    assert first.session is second.session
    first.lookForModels()
    wait(lambda: first.session.hello is not None, 60)
    first.stop()
    assert second.session.hello is not None and len(workers()) == 1
    second.stop()
    wait(lambda: not workers(), 5)


def test_a_second_logic_waits_for_the_first(session: Any, volume: Any) -> None:
    from XAICLIPModule.logic import State, XAICLIPLogic
    from XAICLIPModule.worker.question import Question

    first, second = XAICLIPLogic(), XAICLIPLogic()
    first.startExplaining(Question(volume, "liver"))
    with pytest.raises(InputError, match="A computation is going on"):
        second.startExplaining(Question(volume, "spleen"))
    assert second.state is State.IDLE and len(session.requests) == 1
    session.explain(volume)
    second.startExplaining(Question(volume, "spleen"))
    assert session.requests[-1].prompt == "spleen"


def test_other_settings_start_another_worker(shared: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from XAICLIPModule.logic import XAICLIPLogic

    logic = XAICLIPLogic()
    logic.lookForModels()
    wait(lambda: logic.session.hello is not None, 60)
    (before,) = workers()
    logic.session.endOutdated()
    assert workers() == [before]
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path))
    logic.session.endOutdated()
    wait(lambda: not workers(), 5)


@pytest.mark.parametrize(("value", "minutes"), [(None, 10), ("3", 3), (0, 10), ("soon", 10), (-5, 1), ([1], 10)])
def test_the_idle_time_is_a_number_of_minutes(module_path: Path, scene: Any, value: Any, minutes: int) -> None:
    import qt

    from XAICLIPModule.worker.worker_session import IDLE_SETTING, idleMinutes

    if value is not None:
        qt.QSettings().setValue(IDLE_SETTING, value)
    assert idleMinutes() == minutes
