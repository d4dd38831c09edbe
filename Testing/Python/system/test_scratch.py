"""Private temporary folders: whose they are, and which of them are removed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from XAICLIPLib.errors import InputError
from XAICLIPLib.system import scratch


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that ended."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


def renamed(folder: Path, process: int) -> Path:
    """A folder of this machine as another process would have made it."""
    machine = folder.name.removeprefix(scratch.PREFIX).split("-")[1]
    other = folder.parent / f"{scratch.PREFIX}-{machine}-{process}-abc_123"
    folder.rename(other)
    (other / "scan.nrrd").write_bytes(b"voxels")
    return other


def test_a_folder_is_new_and_for_its_user_alone(tmp_path: Path) -> None:
    one, two = scratch.make(tmp_path), scratch.make(tmp_path)
    assert one != two
    assert one.parent == tmp_path.resolve()
    if os.name == "posix":
        assert stat.S_IMODE(one.stat().st_mode) == 0o700
    scratch.remove(one)
    scratch.remove(one)  # gone already
    assert list(tmp_path.iterdir()) == [two]


def test_only_what_a_dead_process_of_this_machine_left_is_removed(tmp_path: Path, dead: int) -> None:
    left = renamed(scratch.make(tmp_path), dead)
    other_machine = tmp_path / f"{scratch.PREFIX}-{'x' * 33}-{dead}-abc"
    other_machine.mkdir()
    alive, foreign, file = scratch.make(tmp_path), tmp_path / f"results-{dead}", tmp_path / (left.name + "f")
    foreign.mkdir()
    file.write_bytes(b"a file")
    assert scratch.remove_leftovers(tmp_path) == [left]
    assert sorted(tmp_path.iterdir()) == sorted([other_machine, alive, foreign, file])


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_a_link_that_looks_like_a_leftover_leads_nowhere(tmp_path: Path, dead: int) -> None:
    precious, parent = tmp_path / "precious", tmp_path / "shared"
    precious.mkdir()
    parent.mkdir()
    name = renamed(scratch.make(parent), dead).name
    scratch.remove_leftovers(parent)
    (parent / name).symlink_to(precious)
    assert scratch.remove_leftovers(parent) == []
    assert precious.is_dir()


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere cannot be written"):
        scratch.make(tmp_path / "nowhere")
    assert scratch.remove_leftovers(tmp_path / "nowhere") == []


def test_living_and_dead_processes_are_told_apart(dead: int) -> None:
    assert scratch.is_alive(os.getpid())
    assert scratch.is_alive(os.getppid())
    assert not scratch.is_alive(dead)
