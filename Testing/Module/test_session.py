"""The worker as a process: started, understood, lost, and found again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.phantom import write_phantom

from .conftest import wait


@pytest.fixture
def made(module_path: Path, scene: Any) -> Any:
    """A function that makes a session, stopped afterwards."""
    from XAICLIPModule.worker.worker_session import WorkerSession

    sessions = []

    def make(*arguments: Any) -> Any:
        session = WorkerSession(*arguments)
        session.told = []
        session.stopped.connect(session.told.append)
        sessions.append(session)
        return session

    yield make
    for session in sessions:
        session.stop()


@pytest.fixture
def pretend(module_path: Path, tmp_path: Path) -> Callable[[str], Callable[[], Any]]:
    """A function that gives an interpreter which, whatever it is asked, runs a program of the test."""

    def choose(program: str) -> Callable[[], Any]:
        from XAICLIPModule.installation.interpreter import Interpreter

        (tmp_path / "program.py").write_text(program)
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/program.py"\n')
        script.chmod(0o755)
        return lambda: Interpreter(str(script), dict(os.environ), False)

    return choose


def test_the_worker_says_hello_and_goes_when_asked(made: Any) -> None:
    session = made()
    session.start()
    wait(lambda: session.hello, 60)
    folder = Path(session.hello.folder)
    assert folder.is_dir()
    assert session.hello.segmenters[0]["name"] == "abdomen-ct"
    session.stop()
    assert session.told == [""]
    assert not session.isRunning
    wait(lambda: not folder.exists())


def test_the_worker_imports_nothing_of_the_folder_that_slicer_is_in(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor of its own, which is empty; and it runs the library that the module has."""
    proof = tmp_path / "ran"
    for name in ("json", "argparse", "torch", "XAICLIPLib"):
        (tmp_path / f"{name}.py").write_text(f"open({str(proof)!r}, 'w')\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    session = made()
    session.start()
    wait(lambda: session.hello, 60)
    assert not proof.exists()
    place = os.readlink(f"/proc/{session._process.processId()}/cwd") if Path("/proc").is_dir() else ""
    assert place not in (str(tmp_path), str(Path(__file__).parents[2]))
    assert not place or os.listdir(place) == []


def test_requests_before_hello_wait_for_it_and_errors_come_back(made: Any, tmp_path: Path) -> None:
    session, replies = made(), []
    session.start()
    session.request("explain", replies.append, volume=str(tmp_path / "none.nrrd"), prompt="liver")
    wait(lambda: replies, 60)
    (reply,) = replies
    assert (reply.type, reply.kind) == ("error", "input")
    assert "none.nrrd" in reply.message


def test_a_killed_worker_is_told_to_whoever_waits_and_starts_again(made: Any, tmp_path: Path) -> None:
    session, replies = made(), []
    volume, _labels = write_phantom(tmp_path)
    session.start()
    session.request("explain", replies.append, volume=str(volume), prompt="liver")
    wait(lambda: replies, 120)  # it computes
    os.kill(session._process.processId(), signal.SIGKILL)
    wait(lambda: replies[-1].type == "error")
    assert replies[-1].kind == "stopped"
    assert "Apply to start it again" in replies[-1].message
    assert session.told == [replies[-1].message]
    session.start()
    wait(lambda: session.hello, 60)


def test_stop_ends_a_worker_that_computes(made: Any, tmp_path: Path) -> None:
    session, replies = made(), []
    volume, _labels = write_phantom(tmp_path)
    session.start()
    session.request("explain", replies.append, volume=str(volume), prompt="liver")
    wait(lambda: replies, 120)
    process = session._process.processId()
    session.stop()
    assert (replies[-1].type, replies[-1].kind) == ("error", "cancelled")
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_an_interpreter_that_does_not_exist_is_refused(made: Any) -> None:
    import qt

    qt.QSettings().setValue("XAICLIP/PythonInterpreter", "/there/is/none")
    with pytest.raises(InputError, match="/there/is/none"):
        made().start()


def test_what_is_no_program_says_so(made: Any, tmp_path: Path) -> None:
    from XAICLIPModule.installation.interpreter import Interpreter

    (tmp_path / "python").write_text("no program")
    session = made(lambda: Interpreter(str(tmp_path / "python"), {}, False))
    session.start()
    wait(lambda: session.told)
    assert "could not be started" in session.told[0]
    assert not session.isRunning


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "The Python package torch is missing"),
        ("raise SystemExit(3)", "exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", "ended from outside, or crashed"),
        (
            'print(\'{"type": "error", "id": 1, "kind": "protocol", "message": "Of another version."}\', flush=True)\n'
            "input(); input()",
            "Of another version.",
        ),
    ],
)
def test_a_worker_that_does_not_come_up_says_why(made: Any, pretend: Any, program: str, said: str) -> None:
    session, replies = made(pretend(program)), []
    session.start()
    session.request("localize", replies.append, volume="scan.nrrd", prompt="liver")
    wait(lambda: session.told)
    assert said in session.told[0]
    assert [reply.kind for reply in replies] == ["stopped"]


HELLO = """
import json, sys, time
hello = {"type": "hello", "id": 1, "protocol": %d, "versions": {}, "devices": ["cpu"], "device_names": {},
  "folder": "/tmp", "segmenters": [], "localizers": [], "methods": {}, "scores": [], "baselines": [], "structures": []}
line = (json.dumps(hello) + chr(10)).encode()
for part in (line[:50], line[50:], b"no json" + bytes([10]), b'{"type": "progress", "id": 7}' + bytes([10])):
    sys.stdout.buffer.write(part); sys.stdout.flush(); time.sleep(0.1)
sys.stderr.write("a note" + chr(10)); sys.stderr.flush()
sys.stdin.read()
"""


def test_lines_come_in_pieces_and_what_is_no_answer_is_passed_over(made: Any, pretend: Any) -> None:
    session, notes = made(pretend(HELLO % 1)), []
    session.logged.connect(notes.append)
    session.start()
    wait(lambda: "a note" in notes)
    assert session.hello.folder == "/tmp"
    assert session.isRunning
    assert session.log[-1] == "a note"


def test_another_version_of_the_protocol_is_refused(made: Any, pretend: Any) -> None:
    session = made(pretend(HELLO % 99))
    session.start()
    wait(lambda: session.told)
    assert "another version" in session.told[0]


def test_a_worker_without_hello_is_given_up(made: Any, pretend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from XAICLIPModule.worker import worker_session as module

    monkeypatch.setattr(module, "HELLO_TIMEOUT_MS", 300)
    session = made(pretend("import time; time.sleep(60)"))
    session.start()
    wait(lambda: session.told)
    assert "did not answer" in session.told[0]
    assert not session.isRunning
