"""No file of the user's is lost, an earlier result stays whole, and two runs do not share a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from XAICLIPLib.errors import InputError
from XAICLIPLib.reporting import output_folder
from XAICLIPLib.reporting.output_folder import FILES, LOCK, RECORD, checksums, claimed, replaced
from XAICLIPLib.system import scratch

ROOT = Path(__file__).resolve().parents[3]
INSIDE = {"saliency.nrrd": "new map", "region.nrrd": "new region", "figure.png": "new figure"}


def save(folder: Path, files: dict[str, str]) -> None:
    """Write an explanation of small files as `Explanation.save` does."""
    with replaced(folder) as new:
        for name, text in files.items():
            (new / name).write_text(text)
        record = {"format": "XAI-CLIP explanation 1", "written": checksums(new)}
        (new / RECORD).write_text(json.dumps(record))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A folder with an earlier explanation, of a random method, and a file of the user's own."""
    save(tmp_path, {"saliency.nrrd": "old map", "standard_error.nrrd": "old error", "figure.png": "old figure"})
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", f"import sys, os, time\nfrom pathlib import Path\n{code}", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# The user's own


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_no_explanation_wrote_is_refused_before_the_work_and_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"holds {name}, which no explanation wrote"), claimed(tmp_path):
        pytest.fail("the work began")
    with pytest.raises(InputError, match="choose another folder"):
        save(tmp_path, INSIDE)
    assert contents(tmp_path) == {name: "mine"}


def test_a_result_that_the_user_changed_is_the_users_own(earlier: Path) -> None:
    (earlier / "saliency.nrrd").write_text("edited by hand")
    with pytest.raises(InputError, match=r"holds saliency\.nrrd, .* changed since"), claimed(earlier):
        pytest.fail("the work began")
    assert contents(earlier)["saliency.nrrd"] == "edited by hand"


def test_an_explanation_replaces_an_earlier_one_and_nothing_else(earlier: Path) -> None:
    save(earlier, INSIDE)
    found = contents(earlier)
    assert set(json.loads(found.pop(RECORD))["written"]) == set(INSIDE)
    assert found == INSIDE | {"notes.txt": "mine"}, "the standard error of the other method is gone"


def test_an_input_is_never_what_is_written(earlier: Path) -> None:
    (earlier / "link").symlink_to(earlier / "saliency.nrrd")
    for given in (earlier / "saliency.nrrd", str(earlier / "link")):
        with pytest.raises(InputError, match="is an input"), claimed(earlier, ["guided", None, (1, 2), given]):
            pytest.fail("the work began")
    with claimed(earlier, ["guided", "x" * 5000, "a\0b", earlier / "notes.txt"]):
        pass


def test_a_record_does_not_reach_beyond_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    folder = tmp_path / "out"
    folder.mkdir()
    sums = {"../mine": checksums(tmp_path)["mine"]}
    (folder / RECORD).write_text(json.dumps({"format": "XAI-CLIP explanation 1", "written": sums}))
    assert output_folder.written_by_us(folder) == {RECORD}


# All or nothing


def test_a_failure_while_writing_leaves_the_earlier_explanation_whole(earlier: Path) -> None:
    before = contents(earlier)
    with pytest.raises(InputError, match="^" + str(earlier / "figure.png")), replaced(earlier) as new:
        (new / "saliency.nrrd").write_text("new map")
        raise InputError(f"{new / 'figure.png'} cannot be written (No space left on device).")
    assert contents(earlier) == before


@pytest.mark.parametrize("at", range(1, 9))
def test_a_failure_at_any_move_leaves_the_earlier_explanation_whole(
    earlier: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, moves, real = contents(earlier), 0, os.replace

    def failing(source: Path, place: Path) -> None:
        nonlocal moves
        moves += 1
        if moves == at:
            raise OSError(13, "held open by another program")
        real(source, place)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(InputError, match="held open"):
        save(earlier, INSIDE)
    assert contents(earlier) == before


@pytest.mark.parametrize("at", range(1, 9))
def test_a_run_that_dies_at_any_move_is_put_right_by_the_next(earlier: Path, at: int) -> None:
    before = contents(earlier)
    code = (
        "from Testing.Python.reporting import test_output_folder as t\n"
        "real, at, moves = os.replace, int(sys.argv[2]), []\n"
        "def dying(*paths):\n"
        "    moves.append(1)\n"
        "    if len(moves) == at: os._exit(9)\n"
        "    real(*paths)\n"
        "os.replace = dying\n"
        "t.save(Path(sys.argv[1]), t.INSIDE)\n"
    )
    process = python(code, earlier, at)
    assert process.wait(timeout=60) == 9, process.communicate()
    with claimed(earlier):
        pass
    found = contents(earlier)
    assert found == before or {k: v for k, v in found.items() if k != RECORD} == INSIDE | {"notes.txt": "mine"}
    assert (found == before) == (at <= 4), "undone until all that was there is moved away, finished from then on"


# One run at a time


HOLD = (
    "from XAICLIPLib.reporting.output_folder import claimed\n"
    "with claimed(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


def test_the_second_run_is_told_until_the_first_ends_or_dies(tmp_path: Path) -> None:
    process = python(HOLD, tmp_path)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"Another run \(process {process.pid} on .*\) writes to"):
            save(tmp_path, INSIDE)
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / LOCK).exists(), "it died without a farewell"
    save(tmp_path, INSIDE)
    assert set(contents(tmp_path)) == {*INSIDE, RECORD}


def test_a_claim_within_a_claim_is_the_same_run_and_nothing_of_it_stays(tmp_path: Path) -> None:
    with claimed(tmp_path), claimed(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("locks", [True, False])
def test_a_run_on_another_machine_counts_as_long_as_it_touches_its_lock(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:
        monkeypatch.setattr(output_folder, "_lock", lambda stream: None)
    path = tmp_path / LOCK
    path.write_text(json.dumps({"machine": "elsewhere", "process": 1}))
    with pytest.raises(InputError, match="process 1 on elsewhere"), claimed(tmp_path):
        pytest.fail("two at once")
    long_ago = time.time() - output_folder.DEAD_AFTER_S - 5
    os.utime(path, (long_ago, long_ago))
    with claimed(tmp_path):
        assert json.loads(path.read_text()) == {"machine": scratch.machine(), "process": os.getpid()}
    assert list(tmp_path.iterdir()) == []


def test_without_locks_a_dead_process_is_known_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_folder, "_lock", lambda stream: None)
    ended = python("")
    ended.wait()
    for process, free in ((ended.pid, True), (os.getppid(), False)):
        (tmp_path / LOCK).write_text(json.dumps({"machine": scratch.machine(), "process": process}))
        if free:
            with claimed(tmp_path):
                pass
        else:
            with pytest.raises(InputError, match="Another run"), claimed(tmp_path):
                pytest.fail("two at once")


def test_a_claim_touches_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_folder, "HEARTBEAT_S", 0.02)
    with claimed(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / LOCK).stat().st_mtime > 0
