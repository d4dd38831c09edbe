"""When the time left is told."""

from __future__ import annotations

import time

import pytest

from XAICLIPLib.progress import Progress, Run, seconds_left


def test_the_time_left_is_told_once_it_can_be_trusted() -> None:
    assert seconds_left(60.0, 0, 100) is None, "nothing was done since the first batch"
    assert seconds_left(1.0, 50, 50) is None, "too soon"
    assert seconds_left(4.0, 1, 99) is None, "one of a hundred is no pace"
    assert seconds_left(4.0, 5, 95) == pytest.approx(76.0)
    assert seconds_left(30.0, 1, 99) == pytest.approx(2970.0), "who waits so long is told what is known"
    assert seconds_left(0.1, 100, 0) == 0.0


def test_the_first_batch_does_not_count_in_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 49 cubes after 2, 123 s were told, and 45 it took: the first batch takes longer."""
    clock = iter([0.0, 8.0, 9.0, 12.0, 13.0, 13.0, 20.0, 21.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    told: list[Progress] = []
    run = Run(told.append, lambda: False)
    with run.timed("explain"):
        for done in (2, 3, 6, 10):
            run.advance("explain", done, 10)
    assert [progress.seconds_left for progress in told] == [None, None, pytest.approx(4.0), 0.0]
    with run.timed("check"):
        run.advance("check", 5, 10)
    assert told[-1].seconds_left is None, "the pace of another stage"


def test_a_warning_is_kept_and_told_at_once_and_what_is_told_is_not_kept() -> None:
    told: list[str] = []
    run = Run(None, lambda: False, told.append)
    run.warn("Careful.")
    run.tell("By the way.")
    assert told == ["Careful.", "By the way."] and run.warnings == ["Careful."]
    Run(None, lambda: False).warn("Nobody listens.")
