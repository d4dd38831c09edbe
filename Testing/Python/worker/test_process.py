"""The worker process, as its client sees it: a real process, with the shipped models, on a piece of the phantom."""

from __future__ import annotations

import hashlib
import io
import json
import os
import queue
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from misbehaving import Behaviour, serving

from XAICLIPLib.system import scratch
from XAICLIPLib.worker import protocol
from XAICLIPLib.worker.process import GRACE_S, lines
from XAICLIPLib.worker.protocol import LONGEST_LINE, parse_reply

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 240
"""The test machine may be busy."""

QUICK = {"parameters": {"window_mm": 48, "stride_mm": 48}, "device": "cpu", "batch_size": 4}
"""With the mask of `scan`, a few hidden cubes."""


class Client:
    """A worker process, and what it said: each line is checked against the protocol as it comes in."""

    def __init__(self, folder: Path, program: str | None = None) -> None:
        code = [sys.executable, *(["-c", textwrap.dedent(program)] if program else ["-m", "XAICLIPLib.worker"])]
        self.process = subprocess.Popen(
            [*code, "--folder", str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.replies: queue.Queue[dict[str, Any]] = queue.Queue()
        self.log = ""
        self._readers = [threading.Thread(target=target, daemon=True) for target in (self._read, self._read_log)]
        for reader in self._readers:
            reader.start()
        self._number = 100

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                parse_reply(line)
                self.replies.put(json.loads(line))
            except ValueError as error:
                self.replies.put({"type": "no reply", "line": line, "error": error})
        self.replies.put({"type": "end"})

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line.decode("utf-8", "replace")

    def write(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def send(self, type: str, **keys: Any) -> int:
        """Send a request; its id."""
        self._number += 1
        self.write(json.dumps({"id": self._number, "type": type, **keys}).encode() + b"\n")
        return self._number

    def next(self) -> dict[str, Any]:
        reply = self.replies.get(timeout=PATIENCE_S)
        assert reply["type"] != "no reply", reply
        return reply

    def until(self, *types: str) -> list[dict[str, Any]]:
        """The replies up to the first of one of these types (or an error or the end)."""
        found = [self.next()]
        while found[-1]["type"] not in (*types, "error", "end"):
            found.append(self.next())
        return found

    def last(self, *types: str) -> dict[str, Any]:
        reply = self.until(*types)[-1]
        assert reply["type"] in types, (reply, self.log)
        return reply

    def hello(self) -> dict[str, Any]:
        """The greeting; the devices, for which PyTorch is loaded, are still to come."""
        self.send("hello", protocol=1)
        return self.last("hello")

    def ready(self) -> None:
        """Wait until it answers, by a line that is no request: PyTorch is not loaded for that."""
        self.write(b"?\n")
        assert self.next()["type"] == "error"

    def wait(self) -> int:
        """The exit status, with all that was said read."""
        status = self.process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Start workers whose private folders lie in ``tmp_path``."""
    started: list[Client] = []

    def start(program: str | None = None) -> Client:
        started.append(Client(tmp_path, program))
        return started[-1]

    yield start
    for client in started:
        client.close()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One worker for all tests that leave it as it was."""
    client = Client(tmp_path_factory.mktemp("worker"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A piece of the phantom within its liver, and a mask of a few voxels in its middle."""
    from XAICLIPLib.imaging.phantom import torso_phantom

    folder = tmp_path_factory.mktemp("scan")
    phantom = torso_phantom(0, 6.0)
    (liver,) = (label for label, name in phantom.names.items() if name == "liver")
    middle = np.argwhere(sitk.GetArrayFromImage(phantom.labels) == liver).mean(0).astype(int)[::-1]
    low = [max(0, int(m) - 16) for m in middle]
    piece = phantom.image[tuple(slice(start, start + 32) for start in low)]
    mask = np.zeros(piece.GetSize()[::-1], np.uint8)
    mask[15:17, 12, 12] = 1
    drawn = sitk.GetImageFromArray(mask)
    drawn.CopyInformation(piece)
    for image, name in ((piece, "scan.nrrd"), (drawn, "mask.nrrd")):
        sitk.WriteImage(image, str(folder / name))
    return {"volume": str(folder / "scan.nrrd"), "mask": str(folder / "mask.nrrd")}


@dataclass(frozen=True)
class Slab:
    """Slices of the phantom through liver and spleen."""

    path: str
    organs: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def slab(tmp_path_factory: pytest.TempPathFactory) -> Slab:
    from XAICLIPLib.imaging.phantom import torso_phantom

    phantom = torso_phantom(0, 6.0)
    labels = sitk.GetArrayFromImage(phantom.labels)
    numbers = {name: label for label, name in phantom.names.items()}
    middle = int(np.argwhere(labels == numbers["spleen"]).mean(0)[0])
    path = tmp_path_factory.mktemp("slab") / "slab.nrrd"
    sitk.WriteImage(phantom.image[:, :, middle - 6 : middle + 6], str(path))
    kept = labels[middle - 6 : middle + 6]
    return Slab(str(path), {name: kept == numbers[name] for name in ("liver", "spleen")})


def request(scan: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"volume": scan["volume"], "prompt": "liver", "region": {"mask": scan["mask"]}, **QUICK} | more


def is_gone(process: int) -> bool:
    """Whether a process ends within patience; one that nobody has waited for counts as ended."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        state = Path(f"/proc/{process}/stat")
        if not scratch.is_alive(process) or (state.exists() and ") Z" in state.read_text()):
            return True
        time.sleep(0.1)
    return False


# Greeting


def test_hello_says_what_can_be_asked_and_the_devices_follow(worker: Client) -> None:
    from XAICLIPLib import anatomy
    from XAICLIPLib.explainers import methods
    from XAICLIPLib.scoring import options

    id = worker.send("hello", protocol=1)
    greeting, devices = worker.next(), worker.last("devices")
    assert (greeting["type"], greeting["id"], devices["id"]) == ("hello", id, id)
    assert greeting["protocol"] == 1
    assert greeting["versions"]["SimpleITK"] == sitk.Version_VersionString()
    assert greeting["methods"] == json.loads(json.dumps(methods.describe()))
    assert greeting["scores"] == list(options.SCORES)
    assert greeting["baselines"] == list(options.BASELINES)
    assert greeting["structures"] == list(anatomy.vocabulary())
    told = [(m["name"], m["installed"], m["default"]) for m in greeting["segmenters"]]
    assert told[0] == ("abdomen-ct", True, True)
    assert ("wholebody-ct", False, False) in told
    assert all(isinstance(m["source"], str) for m in greeting["segmenters"] + greeting["localizers"])
    assert "liver" in greeting["segmenters"][0]["structures"]
    assert [m["name"] for m in greeting["localizers"] if m["default"]] == ["anatomy-clip"]
    assert devices["devices"][0] == "cpu"
    assert set(devices["device_names"]) == set(devices["devices"])


def test_hello_is_answered_without_pytorch(start: Callable[..., Client]) -> None:
    client = start(
        """
        import sys
        class NoTorch:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "torch":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, NoTorch())
        from XAICLIPLib.worker.process import main
        sys.exit(main())
        """
    )
    id = client.send("hello", protocol=1)
    assert client.next()["type"] == "hello"
    error = client.next()
    assert (error["id"], error["kind"]) == (id, "missing package")
    assert "torch" in error["message"]


def test_another_version_of_the_protocol_is_refused(worker: Client) -> None:
    id = worker.send("hello", protocol=2)
    error = worker.next()
    assert (error["type"], error["id"], error["kind"]) == ("error", id, "protocol")
    assert "version 1" in error["message"]


# Explaining


@pytest.fixture(scope="module")
def explained(worker: Client, scan: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All replies to a request for an explanation."""
    output = tmp_path_factory.mktemp("results") / "out"
    worker.send("explain", **request(scan, output=str(output), seed=3))
    return worker.until("explanation")


def test_explain_writes_a_map_in_the_geometry_of_the_scan_and_tells_how_far_it_is(
    worker: Client, scan: dict[str, str], explained: list[dict[str, Any]]
) -> None:
    *before, end = explained
    assert end["type"] == "explanation", (end, worker.log)
    assert {reply["id"] for reply in before} == {end["id"]}
    assert {reply["type"] for reply in before} == {"progress"}
    assert {reply["stage"] for reply in before} == {"segment", "explain"}
    assert before[-1]["done"] == before[-1]["total"] == end["record"]["measurements"]["perturbations"] > 0
    assert end["complete"] is True
    files = {name: Path(path) for name, path in end["files"].items()}
    assert {path.parent.name for path in files.values()} == {"out"}
    assert {"saliency", "region", "segmentation", "explanation", "figure"} <= set(files)
    assert b"encoding: gzip" in files["saliency"].read_bytes()[:1000], "in a folder of the client's choice"
    volume, saliency = sitk.ReadImage(scan["volume"]), sitk.ReadImage(str(files["saliency"]))
    assert saliency.GetSize() == volume.GetSize()
    np.testing.assert_allclose(saliency.GetOrigin(), volume.GetOrigin())
    assert sitk.GetArrayFromImage(saliency).max() > 0
    assert end["record"] == json.loads(files["explanation"].read_text())
    assert end["record"]["parameters"]["seed"] == 3
    assert end["record"]["target"]["name"] == "liver"


def test_a_cancelled_run_ends_with_what_it_has_and_estimates_come_before(worker: Client, scan: dict[str, str]) -> None:
    many = {"parameters": {"window_mm": 48, "stride_mm": 24}, "region": "whole", "estimates": True}
    id = worker.send("explain", **request(scan, **many))
    estimate = worker.last("estimate")
    begun = time.monotonic()
    cancel = worker.send("cancel", request=id)
    *_, heard = worker.until("cancelling")
    took = time.monotonic() - begun
    assert (heard["type"], heard["id"]) == ("cancelling", cancel)
    assert took < 5, "heard at once, not when a batch is done"
    picture = Path(estimate["files"]["saliency"])
    assert b"encoding: raw" in picture.read_bytes()[:1000]
    assert sitk.ReadImage(str(picture)).GetSize() == sitk.ReadImage(scan["volume"]).GetSize()
    assert 0 < estimate["done"] < estimate["total"]
    end = worker.last("explanation")
    assert (end["id"], end["complete"]) == (id, False)
    work = end["record"]["measurements"]
    assert estimate["done"] <= work["perturbations"] < work["perturbations_planned"]
    assert sitk.ReadImage(end["files"]["saliency"]).GetSize() == sitk.ReadImage(scan["volume"]).GetSize()


def test_a_second_explanation_finds_the_model_loaded(
    worker: Client, scan: dict[str, str], explained: list[dict[str, Any]]
) -> None:
    worker.send("explain", **request(scan))
    end = worker.last("explanation")
    assert end["record"]["timings_s"]["load"] < 0.05, "loading takes tenths of a second"
    private = Path(end["files"]["saliency"]).parents[1]
    assert private.name.startswith(scratch.PREFIX), "without an output folder, results lie in the private one"


def test_while_one_is_computed_another_is_refused_and_mistakes_are_answered(
    worker: Client, scan: dict[str, str]
) -> None:
    first = worker.send("explain", **request(scan, region="whole"))
    second = worker.send("explain", **request(scan))
    busy = worker.last("error")
    assert (busy["id"], busy["kind"]) == (second, "protocol")
    assert "busy" in busy["message"]
    worker.write(json.dumps({"id": first, "type": "explain", **request(scan)}).encode() + b"\n")
    twin = worker.last("error")
    assert twin["id"] is None, "under its own id it would end the first"
    nothing = worker.send("cancel", request=12345)
    wrong = worker.last("error")
    assert (wrong["id"], wrong["kind"]) == (nothing, "protocol")
    worker.send("cancel", request=first)
    replies = worker.until("explanation")
    assert replies[-1]["id"] == first
    assert replies[-1].get("kind", "cancelled") == "cancelled"


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"volume": "/nowhere/scan.nrrd"}, "input", "no file or folder /nowhere/scan.nrrd"),
        ({"region": {"mask": "/nowhere/mask.nrrd"}}, "input", "mask.nrrd"),
        ({"target": {"structure": "left ear"}}, "input", "left ear"),
        ({"method": "guess"}, "input", "occlusion"),
        ({"parameters": {"windw": 3}}, "input", "windw"),
        ({"parameters": {"name": 3}}, "input", "name"),
        ({"parameters": {"window_mm": 1e9}}, "input", "window_mm"),
        ({"model": "nosuch"}, "input", "nosuch"),
        ({"device": "cuda:99"}, "input", "cuda:99"),
        ({"output": "/proc/nowhere"}, "input", "/proc/nowhere"),
        ({"windw": 3}, "protocol", "windw"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_input_gets_one_sentence_and_the_worker_lives(
    worker: Client, scan: dict[str, str], tmp_path: Path, changed: Any, kind: str, said: str
) -> None:
    output = tmp_path / "out"
    id = worker.send("explain", **request(scan, output=str(output)) | changed)
    error = worker.last("error")
    assert not output.exists(), "nothing came of it"
    assert (error["id"], error["kind"]) == (id, kind)
    assert said in error["message"]
    assert "\n" not in error["message"]


def test_bad_lines_are_answered_and_reading_goes_on(worker: Client) -> None:
    for text in (b"hello\n", b"\xff\xfe\n", b"[1]\n", b"[" * 100_000 + b"\n", b" " * (LONGEST_LINE + 1) + b"\n"):
        worker.write(text)
        error = worker.next()
        assert (error["type"], error["id"], error["kind"]) == ("error", None, "protocol")
    worker.write(b"\n  \r\n")  # a blank line says nothing
    worker.write(b'{"id": 9, "type": "hello", "protocol": 1}\r\n')
    assert worker.last("hello")["id"] == 9
    worker.last("devices")


# Localizing


def test_localize_finds_the_prompt_and_another_prompt_for_the_same_scan_costs_next_to_nothing(
    worker: Client, slab: Slab
) -> None:
    took, found = [], {}
    for prompt in ("liver", "spleen"):
        begun = time.monotonic()
        id = worker.send("localize", volume=slab.path, prompt=prompt, threshold=0.5, margin_mm=0, modality="CT")
        *before, end = worker.until("region")
        took.append(time.monotonic() - begun)
        assert end["type"] == "region", (end, worker.log)
        assert {(reply["type"], reply["stage"]) for reply in before} == {("progress", "localize")}
        assert {reply["id"] for reply in (*before, end)} == {id}
        assert end["region"]["source"] == "guided"
        assert end["warnings"] == []
        mask = sitk.ReadImage(end["files"]["region"])
        assert mask.GetSize() == sitk.ReadImage(slab.path).GetSize()
        found[prompt] = sitk.GetArrayFromImage(mask) != 0
        assert found[prompt].sum() * np.prod(mask.GetSpacing()) / 1000 == pytest.approx(end["region"]["volume_ml"])
        # The map was made for that structure: it lies there rather than in the other.
        assert found[prompt][slab.organs[prompt]].mean() > 0.5
    assert found["liver"][slab.organs["spleen"]].mean() < 0.5
    assert took[1] < took[0]


def test_a_region_that_is_not_found_is_told(worker: Client, slab: Slab) -> None:
    id = worker.send("localize", volume=slab.path, prompt="liver", threshold=1)
    error = worker.last("error")
    assert (error["id"], error["kind"]) == (id, "input")


# Only the protocol on stdout

NOISE = """
    import ctypes, os, sys
    from XAICLIPLib.worker.service import RequestHandler
    from XAICLIPLib.errors import InputError

    def compute(self, request, cancelled, abandoned):
        print("print")
        sys.__stdout__.write("stdout\\n")
        os.write(1, b"file descriptor\\n")
        os.system("echo a child")
        ctypes.CDLL(None).puts(b"native code")
        ctypes.CDLL(None).fflush(None)
        print("read:", repr(sys.stdin.read()), os.read(0, 10))
        raise InputError("enough")

    RequestHandler.compute = compute
    from XAICLIPLib.worker.process import main
    sys.exit(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the C library of the process is found differently on Windows")
def test_stdout_holds_replies_alone_whatever_prints_and_stdin_requests_alone_whatever_reads(
    start: Callable[..., Client], scan: dict[str, str]
) -> None:
    client = start(NOISE)
    client.send("explain", **request(scan))
    assert client.next()["message"] == "enough"
    client.send("shutdown")
    assert client.next()["type"] == "bye"
    assert client.wait() == 0
    assert client.next()["type"] == "end"
    for text in ("print", "stdout", "file descriptor", "a child", "native code", "read: '' b''"):
        assert text in client.log, client.log


# Ending

HANG = """
    import sys, time
    from XAICLIPLib.worker import protocol
    from XAICLIPLib.worker.service import RequestHandler

    def compute(self, request, cancelled, abandoned):
        self._send(protocol.Progress(id=request.id, stage="segment", done=0, total=1))
        time.sleep(1000)  # hears nothing, as native code

    RequestHandler.compute = compute
    from XAICLIPLib.worker.process import main
    sys.exit(main())
"""


def test_the_private_folder_is_private_and_goes_with_the_worker(start: Callable[..., Client], tmp_path: Path) -> None:
    client = start()
    folder = Path(client.hello()["folder"])
    assert folder.parent == tmp_path
    if os.name == "posix":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "scan.nrrd").write_bytes(b"of the client")
    id = client.send("shutdown")
    assert client.last("bye")["id"] == id
    assert client.wait() == 0
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_stdin_ends_an_idle_worker(start: Callable[..., Client], tmp_path: Path) -> None:
    client = start()
    client.ready()
    assert len(list(tmp_path.iterdir())) == 1
    assert client.process.stdin is not None
    client.process.stdin.close()
    assert client.wait() == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["end of stdin", "shutdown", "signal"])
def test_a_computation_that_hears_nothing_is_ended_all_the_same(
    way: str, start: Callable[..., Client], scan: dict[str, str], tmp_path: Path
) -> None:
    if way == "signal" and os.name != "posix":
        pytest.skip("Windows has no SIGTERM to hear")
    client = start(HANG)
    client.send("explain", **request(scan))
    client.last("progress")
    if way == "shutdown":
        (folder,) = tmp_path.iterdir()
        begun = time.monotonic()
        client.send("shutdown")
        while folder.exists():  # at once: a client that loses patience kills the worker
            time.sleep(0.01)
        assert time.monotonic() - begun < GRACE_S
        client.last("bye")
    elif way == "signal":
        client.process.send_signal(signal.SIGTERM)
    else:
        assert client.process.stdin is not None
        client.process.stdin.close()
    assert client.wait() == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="only a shell closes it")
def test_a_worker_without_stderr_works(tmp_path: Path) -> None:
    command = f'exec "{sys.executable}" -m XAICLIPLib.worker --folder "{tmp_path}" 2>&-'
    requests = b'{"id": 1, "type": "hello", "protocol": 1}\n{"id": 2, "type": "shutdown"}\n'
    run = subprocess.run(["sh", "-c", command], cwd=ROOT, input=requests, capture_output=True, check=True)
    assert [parse_reply(line).type for line in run.stdout.splitlines()] == ["hello", "bye"]


@pytest.mark.skipif(os.name != "posix", reason="needs a process that leaves its child behind")
def test_the_death_of_the_parent_ends_the_worker_though_stdin_stays_open(tmp_path: Path) -> None:
    # This process holds the other end of stdin, so that only the parent's death can tell.
    reading, writing = os.pipe()
    program = f"""
        import subprocess, sys
        worker = subprocess.Popen([sys.executable, "-m", "XAICLIPLib.worker", "--folder", {str(tmp_path)!r}],
                                  stdin={reading}, stdout=subprocess.PIPE, pass_fds=[{reading}])
        print(worker.pid, flush=True)
        worker.stdout.readline()  # it answers, so that it knows its parent
        print("answered", flush=True)
    """
    try:
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            pass_fds=[reading],
            text=True,
        ) as parent:
            os.write(writing, b"?\n")
            assert parent.stdout is not None
            worker = int(parent.stdout.readline())
            assert parent.stdout.readline() == "answered\n"
            assert len(list(tmp_path.iterdir())) == 1
            assert parent.wait(PATIENCE_S) == 0
        assert is_gone(worker)
        assert list(tmp_path.iterdir()) == []
    finally:
        os.close(reading)
        os.close(writing)


def test_what_a_killed_worker_left_is_removed_by_the_next(start: Callable[..., Client], tmp_path: Path) -> None:
    first, second = start(), start()
    left, kept = Path(first.hello()["folder"]), Path(second.hello()["folder"])
    first.process.kill()
    first.wait()
    assert left.is_dir()
    third = Path(start().hello()["folder"])
    assert not left.exists()
    assert kept.is_dir(), "its worker lives"
    assert third.is_dir()


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "XAICLIPLib.worker", "--folder", str(tmp_path / "nowhere")],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    reply = parse_reply(run.stdout)
    assert run.returncode == 1
    assert isinstance(reply, protocol.Error)
    assert (reply.id, reply.kind) == (None, "input")
    assert "nowhere" in reply.message


def test_help_says_how_to_try_it_by_hand() -> None:
    code = [sys.executable, "-m", "XAICLIPLib.worker", "--help"]
    told = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for text in ('{"id": 1, "type": "hello", "protocol": 1}', "explain", "--folder", "XAICLIPLib.worker.protocol"):
        assert text in " ".join(told.split())


# Lines


class Chunks(io.RawIOBase):
    """A stream that gives what came in as it came."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = list(chunks)

    def read(self, size: int = -1) -> bytes:
        return self.chunks.pop(0) if self.chunks else b""


@pytest.mark.parametrize(
    ("chunks", "found"),
    [
        ([b"ab\ncd\n"], [b"ab", b"cd"]),
        ([b"a", b"b\nc", b"d"], [b"ab", b"cd"]),
        ([b"\n\n"], [b"", b""]),
        ([b"abcde\nf\n"], [b"abcde", b"f"]),
        ([b"abcdef\ng\n"], [None, b"g"]),
        ([b"abc", b"def", b"ghi", b"jkl\nm\n"], [None, b"m"]),
        ([b"abcdef"], [None]),
        ([b"abcdef", b"\n", b"ghijkl", b"mn\no"], [None, None, b"o"]),
        ([], []),
    ],
)
def test_lines_are_split_wherever_they_are_cut_and_long_ones_are_dropped(
    chunks: list[bytes], found: list[bytes | None]
) -> None:
    assert list(lines(Chunks(*chunks), longest=5)) == found


# Downloading


CONTENT = np.random.default_rng(0).bytes(2_000_000)


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    """A server on this machine, and a catalogue of the user with a model on it."""
    pytest.importorskip("pooch", reason="pooch is not installed")
    behaviour = Behaviour(CONTENT)
    with serving(behaviour) as url:
        remote = {"url": url, "sha256": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT)}
        model = {"name": "net", "kind": "segmenter", "format": "meshnet", "title": "a net", "modality": "MR"}
        model |= {"structures": [], "licence": "MIT", "source": {"files": {"model.bin": remote}}}
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "catalogue.json").write_text(json.dumps({"models": [model]}), encoding="utf-8")
        monkeypatch.setenv("XAICLIP_MODELS", str(mine))
        yield behaviour


def is_installed(client: Client) -> bool:
    (model,) = (model for model in client.hello()["segmenters"] if model["name"] == "net")
    client.last("devices")
    return bool(model["installed"])


def test_a_model_is_downloaded_and_the_next_hello_tells_of_it(
    start: Callable[..., Client], offered: Behaviour, tmp_path: Path
) -> None:
    client = start()
    assert not is_installed(client)
    assert offered.asked == [], "nothing is downloaded unasked"
    client.send("download", name="net")
    *told, end = client.until("downloaded")
    assert (end["type"], end["name"], end["path"]) == ("downloaded", "net", str(tmp_path / "mine" / "models" / "net"))
    assert {(reply["type"], reply["stage"], reply["total"]) for reply in told} == {("progress", "download", 2_000_000)}
    assert told[-1]["done"] == 2_000_000
    assert (tmp_path / "mine" / "models" / "net" / "model.bin").read_bytes() == CONTENT
    assert is_installed(client)


def test_a_download_is_cancelled_and_goes_on_where_it_was(
    start: Callable[..., Client], offered: Behaviour, tmp_path: Path
) -> None:
    offered.drip_s = 0.05
    client = start()
    client.ready()
    id = client.send("download", name="net")
    while client.next()["done"] == 0:
        pass
    busy = client.send("localize", volume="v", prompt="p")
    assert client.last("error")["id"] == busy
    client.send("cancel", request=id)
    end = client.until("error")[-1]
    assert (end["id"], end["kind"]) == (id, "cancelled")
    offered.drip_s = 0
    client.send("download", name="net")
    assert client.until("downloaded")[0]["done"] > 0
    assert [bool(range_) for range_ in offered.asked] == [False, True]


def test_a_download_that_fails_is_told_in_the_librarys_sentence(
    start: Callable[..., Client], offered: Behaviour
) -> None:
    client = start()
    client.ready()
    offered.status = 404
    for name, said in (("net", "the server answers 404"), ("nothing", "There is no model nothing")):
        client.send("download", name=name)
        end = client.until("downloaded")[-1]
        assert (end["type"], end["kind"]) == ("error", "input")
        assert said in end["message"] and end["message"].endswith(".")
