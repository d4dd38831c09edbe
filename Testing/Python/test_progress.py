"""When the time left is told."""

from __future__ import annotations

import time

import pytest

from XAICLIPLib.progress import Progress, Run, seconds_left


def test_the_time_left_is_told_once_it_can_be_trusted() -> None:
    assert seconds_left(1.0, 1, 100) is None, "one slow batch says nothing"
    assert seconds_left(60.0, 0, 100) is None, "nothing was done yet"
    assert seconds_left(4.0, 1, 100) is None, "one of a hundred is no pace"
    assert seconds_left(4.0, 4, 100) == pytest.approx(96.0)
    assert seconds_left(30.0, 1, 100) == pytest.approx(2970.0), "who waits so long is told what is known"
    assert seconds_left(0.1, 100, 100) == 0.0


def test_a_run_tells_no_time_after_its_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 4.0, 5.0, 5.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    told: list[Progress] = []
    run = Run(told.append, lambda: False)
    with run.timed("explain"):
        for done in (1, 2, 10):
            run.advance("explain", done, 10)
    assert [progress.seconds_left for progress in told] == [None, pytest.approx(16.0), 0.0]


def test_a_warning_is_kept_and_told_at_once_and_what_is_told_is_not_kept() -> None:
    told: list[str] = []
    run = Run(None, lambda: False, told.append)
    run.warn("Careful.")
    run.tell("By the way.")
    assert told == ["Careful.", "By the way."] and run.warnings == ["Careful."]
    Run(None, lambda: False).warn("Nobody listens.")
