"""Configurations of every kind of model with an attacker's values in them: a sample, and that the fuzzing can fail.

All of it: ``python -m Testing.fuzz_configurations``.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from Testing import fuzz_configurations as fuzzing
from XAICLIPLib.errors import InputError

CASES = 550


def test_nothing_runs_nothing_is_fetched_and_all_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """``-s`` prints the counts. Another sample with XAICLIP_FUZZ_SEED."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # a question to the hub shall show
    outcome = fuzzing.fuzz(tmp_path, CASES, int(os.environ.get("XAICLIP_FUZZ_SEED", "0")), seconds=40)
    if pytestconfig.getoption("capture") == "no":
        with capsys.disabled():
            print(f"\n{outcome}")
    assert not outcome.failures, "\n".join(outcome.failures)
    assert len(outcome.keys) >= 10 and sum(outcome.keys.values()) > 500 and outcome.cases > 20_000
    assert all(sum(ended.values()) for ended in outcome.ended.values()), "a kind had no turn"


# --- the fuzzing itself


@pytest.fixture
def attacker(tmp_path: Path) -> fuzzing.Attacker:
    return fuzzing.Attacker.make(tmp_path / "attacker")


def case(tmp_path: Path, load: object) -> fuzzing.Case:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "net.json").write_text('{"a": {"b": 1}}')
    kind = fuzzing.Kind("net", tmp_path / "net", ("net.json",), load)  # type: ignore[arg-type]
    return fuzzing.Case(kind, "net.json", ("a", "b"), "a value", "x")


def reads_a_pickle(folder: Path) -> object:
    return pickle.loads((folder / "weights.pkl").read_bytes())


HARMFUL = {
    "a shell": (lambda _folder: os.system("true"), "os.system"),
    "a process": (lambda _folder: subprocess.run(["true"], check=False), "subprocess.Popen"),
    "a question for a host": (lambda _folder: socket.getaddrinfo(fuzzing.HOST, 80), "socket.getaddrinfo"),
    "a connection": (lambda _folder: socket.create_connection(("127.0.0.1", 9)), "socket"),
    "an import": (lambda _folder: __import__(fuzzing.MODULE), "import"),
    "a file of theirs": (reads_a_pickle, "open"),
    "a pickle": (lambda folder: pickle.loads(pickle.dumps(fuzzing.Runs(folder / "x"))), "pickle.find_class"),
    "an error that is no sentence": (lambda _folder: {}["x"], "KeyError"),
    "two sentences": (lambda _folder: _raise_lines(), "no sentence"),
    "code that ran": (lambda folder: (folder.parent / "caught").mkdir(), "code ran"),
}


def _raise_lines() -> None:
    error = InputError("x")
    error.args = ("one\ntwo",)
    raise error


@pytest.mark.parametrize("name", HARMFUL)
def test_what_must_not_happen_is_noticed(tmp_path: Path, attacker: fuzzing.Attacker, name: str) -> None:
    act, told = HARMFUL[name]
    how, trouble = fuzzing.run(case(tmp_path, lambda: act(attacker.folder)), attacker)
    assert how == "failed" and told in trouble
    assert (tmp_path / "net" / "net.json").read_text() == '{"a": {"b": 1}}', "the file is put back"


def test_a_model_that_loads_and_one_that_is_refused_are_told_apart(tmp_path: Path, attacker: fuzzing.Attacker) -> None:
    def refuse() -> None:
        raise InputError("The file net.json has no a: give another.")

    one = case(tmp_path, lambda: None)
    assert fuzzing.run(one, attacker) == ("loads", "")
    refused = fuzzing.Kind("net", one.kind.folder, ("net.json",), refuse)
    assert fuzzing.run(fuzzing.Case(refused, "net.json", ("a",), "deep", fuzzing.DEEP), attacker) == ("refused", "")


def test_every_key_is_a_place() -> None:
    content = {"a": {"b": [1, {"c": 2}, 3, {"d": 4}]}, "e": None}
    found = set(fuzzing.places(content))
    assert found == {
        ("a",),
        ("a", "b"),
        ("a", "b", 0),
        ("a", "b", 1),
        ("a", "b", 1, "c"),
        ("a", "b", 3),
        ("a", "b", 3, "d"),
        ("e",),
    }
    assert list(fuzzing.mappings(content)) == [(), ("a",), ("a", "b", 1), ("a", "b", 3)]


def test_values_reach_the_files(tmp_path: Path) -> None:
    tag = fuzzing.Attacker(tmp_path).payloads()["a tag"]
    (tmp_path / "a.yaml").write_text("a: 1")
    fuzzing.write(tmp_path / "a.yaml", {"a": tag}, b"")
    assert '"!!' not in (tmp_path / "a.yaml").read_text() and "!!python" in (tmp_path / "a.yaml").read_text()
    fuzzing.write(tmp_path / "a.json", {"a": fuzzing.DEEP}, b"")
    assert (tmp_path / "a.json").read_text().startswith('{"a": [[[[')
    stream = io.BytesIO()
    torch.save({"network_weights": {"w": torch.zeros(1)}, "trainer_name": "x"}, stream)
    fuzzing.write(tmp_path / "a.pth", {"trainer_name": "y"}, stream.getvalue())
    assert fuzzing.read(tmp_path / "a.pth") == {"trainer_name": "y"}
