"""What the worker keeps between requests, and how often it speaks; `test_worker` tries it all in a real process."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from dicom_study import explanation_of, write_series

from XAICLIPLib import imaging, pipeline
from XAICLIPLib.errors import Cancelled
from XAICLIPLib.models import catalogue
from XAICLIPLib.models.entry import Entry, Remote
from XAICLIPLib.progress import Progress
from XAICLIPLib.worker import protocol
from XAICLIPLib.worker.protocol import Box, Explain, Mask, NamedStructure, Reply
from XAICLIPLib.worker.service import (
    KEPT_ESTIMATES,
    KEPT_MODELS,
    DownloadProgress,
    ModelCache,
    ProgressReporter,
    RequestHandler,
    _entry_summary,
)

REAL_EXPLAIN = pipeline.explain
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is loaded, instead of loading it."""
    asked: list[tuple[Any, ...]] = []

    def load(*what: Any) -> tuple[int, ...]:
        asked.append(what)
        return (len(asked),)

    monkeypatch.setattr(catalogue, "load_segmenter", load)
    monkeypatch.setattr(catalogue, "load_localizer", load)
    return asked


def test_a_model_is_loaded_once_for_each_name_device_and_trust(loads: list[tuple[Any, ...]]) -> None:
    models = ModelCache()
    assert models.segmenter("a", CPU, False) is models.segmenter("a", CPU, False)
    assert models.localizer(None, CPU) is models.localizer(None, CPU)
    assert loads == [("a", CPU, False), (None, CPU)]
    assert models.segmenter("a", CPU, True) is not models.segmenter("a", CPU, False)
    assert models.segmenter("a", GPU, False) is not models.segmenter("a", CPU, False)


def test_the_models_used_last_are_kept_and_localizers_push_out_no_segmenter(loads: list[tuple[Any, ...]]) -> None:
    models = ModelCache()
    names = [f"m{n}" for n in range(KEPT_MODELS)]
    for name in names:
        models.segmenter(name, CPU, False)
        models.localizer(name, CPU)
    models.segmenter(names[0], CPU, False)  # used again: the other is the oldest now
    models.segmenter("new", CPU, False)
    count = len(loads)
    models.segmenter(names[0], CPU, False)
    for name in names:
        models.localizer(name, CPU)
    assert len(loads) == count
    models.segmenter(names[1], CPU, False)
    assert len(loads) == count + 1


def test_a_model_whose_files_changed_is_loaded_again(loads: list[tuple[Any, ...]], tmp_path: Path) -> None:
    weights = tmp_path / "models" / "model.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"old")
    models = ModelCache()
    for load in (
        lambda: models.segmenter(str(tmp_path), CPU, False),
        lambda: models.localizer(f"local-dir:{tmp_path}", CPU),
    ):
        first = load()
        assert load() is first
        os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1_000_000))  # of the same size
        assert load() is not first


def test_a_model_that_does_not_load_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = itertools.count()

    def load(*_: Any) -> int:
        if (number := next(tries)) == 0:
            raise MemoryError
        return number

    monkeypatch.setattr(catalogue, "load_localizer", load)
    models = ModelCache()
    with pytest.raises(MemoryError):
        models.localizer(None, CPU)
    assert models.localizer(None, CPU) == 1  # type: ignore[comparison-overlap]


# Passing on


@dataclass
class Found:
    """A result without a computation."""

    complete: bool = True
    record: dict[str, Any] = field(default_factory=lambda: {"models": {"segmenter": {"licence": "unknown"}}})

    def save(self, folder: Path, compress: bool = True) -> dict[str, Path]:
        path = folder / "explanation.json"
        path.write_text(json.dumps(self.record), encoding="utf-8")
        return {"explanation": path, "compressed" if compress else "plain": path}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, loads: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """What `explain` is asked, instead of explaining."""
    calls: list[dict[str, Any]] = []

    def explain(image: Any, prompt: Any, **options: Any) -> Found:
        calls.append({"image": image, "prompt": prompt, **options})
        return Found()

    monkeypatch.setattr(pipeline, "explain", explain)
    return calls


def ask(folder: Path, request: Explain, abandoned: bool = False) -> Any:
    return RequestHandler(folder, lambda reply: None).compute(request, lambda: False, lambda: abandoned)


def test_what_a_request_leaves_out_is_for_the_library_to_choose(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    reply = ask(tmp_path, Explain(id=1, volume="v.nrrd", prompt="liver"))
    (call,) = asked
    always = {"image", "prompt", "model", "localizer", "device", "cancelled"}
    always |= {"on_progress", "on_estimate", "on_warning"}
    assert set(call) == always
    assert (call["image"], call["prompt"], call["on_estimate"]) == (["v.nrrd"], "liver", None)
    assert reply.record == {"models": {"segmenter": {"licence": "Apache-2.0"}}}, "the default network's"
    assert Path(reply.files["explanation"]).parent.parent == tmp_path


def test_results_in_the_private_folder_need_no_unpacking(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    for output, kind in ((None, "plain"), (private / "run-1" / "results", "plain"), (tmp_path / "mine", "compressed")):
        given = {} if output is None else {"output": str(output)}
        reply = ask(private, Explain(id=1, volume="v.nrrd", prompt="liver", **given))
        assert kind in reply.files, output


def test_what_a_request_gives_reaches_the_library_under_its_name(
    asked: list[dict[str, Any]], loads: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "method": "rise",
        "score": "hard dice",
        "effect": "total",
        "baseline": "mean",
        "threshold": 0.3,
        "margin_mm": 4.0,
        "modality": "MR",
        "precision": "full",
        "batch_size": 3,
        "seed": 7,
        "trust": True,
    }
    request = Explain(
        id=1,
        volume="v.nrrd",
        prompt="liver",
        model="m",
        parameters={"samples": 50},
        region=Box((0, 1, 2, 3, 4, 5)),
        target=NamedStructure("spleen"),
        device="cpu",
        estimates=True,
        **given,
    )
    ask(tmp_path, request)
    (call,) = asked
    assert given.items() <= call.items()
    assert (call["samples"], call["region"], call["target"]) == (50, (0, 1, 2, 3, 4, 5), "spleen")
    assert call["on_estimate"] is not None
    assert "localizer" not in call, "a given region needs none"
    assert loads == [("m", CPU, True)]
    assert set(inspect.signature(REAL_EXPLAIN).parameters) >= set(call) - {"samples"}


def test_a_mask_is_a_path_so_that_its_name_is_not_taken_for_a_word(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    ask(tmp_path, Explain(id=1, volume="v", prompt="liver", region=Mask("whole"), target=Mask("liver")))
    assert (asked[0]["region"], asked[0]["target"]) == (Path("whole"), Path("liver"))


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("name", ["brainchop-tissue", "hf-hub:facebook/sam-vit-base", "/elsewhere/net"])
def test_the_catalogues_licence_is_in_the_record(tmp_path: Path, name: str) -> None:
    """`explain` is given a network that was loaded before, and does not know its name."""
    told = ask(tmp_path, Explain(id=1, volume="v", prompt="liver", model=name)).record["models"]["segmenter"]
    listed = [e.licence for e in catalogue.entries() if name in (e.name, e.origin)]
    assert told["licence"] == (listed[0] if listed else "unknown")
    assert bool(listed) == (not name.startswith("/"))


def test_an_abandoned_result_is_not_written(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        ask(tmp_path, Explain(id=1, volume="v", prompt="liver", output=str(tmp_path / "out")), abandoned=True)
    assert list(tmp_path.iterdir()) == []


# Telling


def test_progress_is_told_ten_times_a_second_and_the_first_and_last_of_each_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    now = itertools.count(0, 1 / 32)  # exact, and the fourth is late enough
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    reporter = ProgressReporter(5, told.append)
    for stage in ("segment", "explain"):
        for done in range(1, 102):
            reporter(Progress(stage, done, 101, 1.0))  # type: ignore[arg-type]
    assert {message.id for message in told} == {5}
    for stage in ("segment", "explain"):
        done = [message.done for message in told if message.stage == stage]
        assert done[0] == 1
        assert done[-1] == 101
        assert 25 <= len(done) <= 27
    assert reporter.progress_of("explain") == (101, 101)
    assert reporter.progress_of("localize") == (0, 0)


def test_a_warning_is_sent_at_once_with_the_progress_so_far() -> None:
    told: list[Any] = []
    reporter = ProgressReporter(5, told.append)
    reporter.warn("Early.")
    reporter(Progress("segment", 3, 9, None))
    reporter.warn("Careful.")
    assert [(m.stage, m.done, m.total, m.warning) for m in told] == [
        ("localize", 0, 0, "Early."),
        ("segment", 3, 9, None),
        ("segment", 3, 9, "Careful."),
    ]


def remote_entry(sizes: dict[str, int | None], size_mb: float | None = None) -> Entry:
    source = {name: Remote(f"https://example.org/{name}", "0" * 64, size) for name, size in sizes.items()}
    return Entry("net", "segmenter", "meshnet", "a net", "MR", (), "MIT", source, size_mb=size_mb)


def test_the_files_of_a_download_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    now = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    progress = DownloadProgress(remote_entry({"a": 100, "b": 300}), ProgressReporter(1, told.append))
    for file, done in (("a", 0), ("a", 100), ("b", 100), ("b", 300)):
        progress(file, done, None if file == "a" and not done else {"a": 100, "b": 300}[file])
    assert [(message.stage, message.done, message.total) for message in told[1:]] == [
        ("download", 100, 400),
        ("download", 200, 400),
        ("download", 400, 400),
    ]
    paced = [message.seconds_left for message in told]
    assert paced[0] is None and paced[-1] == 0 and paced[1] > paced[2] > 0


def test_a_size_that_nobody_knows_is_0_and_does_not_flood_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    now = itertools.count(0, 1 / 1024)
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    progress = DownloadProgress(remote_entry({"a": None}), ProgressReporter(1, told.append))
    for done in range(1000):
        progress("a", done, None)
    assert len(told) < 40
    assert {(message.total, message.seconds_left) for message in told} == {(0, None)}
    rounded = DownloadProgress(remote_entry({"a": None}, size_mb=0.001), ProgressReporter(1, told.append))
    rounded("a", 1002, None)
    assert (told[-1].done, told[-1].total) == (1002, 1002)


def test_the_greeting_tells_what_a_panel_shows_of_a_model(tmp_path: Path) -> None:
    greeting = RequestHandler(tmp_path, lambda reply: None).greeting(1)
    models = {model["name"]: model for model in greeting.segmenters}
    assert models["brats-mri"]["inputs"] == ["T1c", "T1", "T2", "FLAIR"]
    assert models["abdomen-ct"]["inputs"] == ["image"]
    assert {"format", "citation", "size_mb", "installed", "source"} <= set(models["abdomen-ct"])
    assert greeting.regions == protocol.REGIONS == pipeline.REGIONS
    mine = Entry("m", "segmenter", "auto", "mine", "any", (), "unknown", tmp_path)
    assert "inputs" not in _entry_summary(mine, False), "a path of the user may lead to any network"


def test_an_estimate_is_whole_when_it_is_told_and_only_the_newest_stay(tmp_path: Path) -> None:
    read: list[tuple[Path, float]] = []

    def send(message: Reply) -> None:
        path = Path(message.files["saliency"])  # type: ignore[attr-defined]
        read.append((path, float(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).max())))

    handler = RequestHandler(tmp_path, send)
    for number in range(4):
        handler._send_estimate(
            sitk.GetImageFromArray(np.full((4, 4, 4), number, np.float32)), ProgressReporter(1, send)
        )
    assert [value for _, value in read] == [0, 1, 2, 3]
    assert len({path for path, _ in read}) == 4, "a name is never used twice"
    assert sorted(tmp_path.iterdir()) == sorted(path for path, _ in read[-KEPT_ESTIMATES:])


def test_an_estimate_that_the_client_has_deleted_is_no_mistake(tmp_path: Path) -> None:
    send: Callable[[Any], None] = lambda message: Path(message.files["saliency"]).unlink()  # noqa: E731
    handler = RequestHandler(tmp_path, send)
    for _ in range(4):
        handler._send_estimate(sitk.Image(4, 4, 4, sitk.sitkFloat32), ProgressReporter(1, send))
    assert list(tmp_path.iterdir()) == []


def test_a_network_is_described_and_kept(tmp_path: Path) -> None:
    handler = RequestHandler(tmp_path, lambda _reply: None)
    reply = handler.compute(protocol.Describe(id=3, model="abdomen-ct", device="cpu"), lambda: False, lambda: False)
    assert isinstance(reply, protocol.Described) and reply.id == 3
    assert len(reply.structures) == 13 and "left kidney" in reply.structures and "background" not in reply.structures
    assert len(reply.inputs) == 1
    assert len(handler._models._loaded) == 1


def test_a_model_is_removed_where_it_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path / "models"))
    from XAICLIPLib.models.folder import download_folder

    model_folder = download_folder("spleen-ct")
    assert tmp_path in model_folder.parents
    model_folder.mkdir(parents=True)
    (model_folder / "file").write_text("x")
    handler = RequestHandler(tmp_path, lambda _reply: None)
    reply = handler.compute(protocol.Remove(id=4, name="spleen-ct"), lambda: False, lambda: False)
    assert reply == protocol.Removed(id=4, name="spleen-ct", installed=False) and not model_folder.exists()


# Several structures


def test_several_structures_are_one_reply_with_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan lacks the right kidney."""
    from test_explanation import Network, scan

    monkeypatch.setattr(catalogue, "load_segmenter", lambda *_: Network())
    monkeypatch.setattr(pipeline, "ESTIMATE_EVERY_S", 0)
    sitk.WriteImage(scan(structures=(1, 2)), str(tmp_path / "scan.nrrd"))
    told: list[Any] = []
    handler = RequestHandler(tmp_path, told.append)
    request = Explain(
        id=1,
        volume=str(tmp_path / "scan.nrrd"),
        prompt="liver and kidneys",
        region="whole",
        device="cpu",
        output=str(tmp_path / "out"),
        method="occlusion",
        parameters={"window_mm": 24.0, "stride_mm": 12.0},
        estimates=True,
    )
    reply = handler.compute(request, lambda: False, lambda: False)
    assert isinstance(reply, protocol.Explained) and reply.further is not None
    assert reply.record["target"]["name"] == "liver"
    assert [one["record"]["target"]["name"] for one in reply.further] == ["left kidney"]
    assert reply.missing == {"right kidney": "the network finds no right kidney in this volume"}
    places = [Path(one["saliency"]) for one in (reply.files, reply.further[0]["files"])]
    assert [place.relative_to(tmp_path.resolve()).as_posix() for place in places] == [
        "out/liver/saliency.nrrd",
        "out/left-kidney/saliency.nrrd",
    ]
    assert all(place.is_file() for place in places)
    assert protocol.parse_reply(protocol.encode(reply)) == reply, "lists and tuples survive the line"
    kinds = [(type(message).__name__, getattr(message, "stage", "")) for message in told]
    first_end = max(n for n, kind in enumerate(kinds) if kind == ("Estimate", ""))
    explaining = [n for n, message in enumerate(told) if getattr(message, "stage", "") == "explain" and message.done]
    assert first_end < explaining[-1], "no estimate of the second structure"
    assert sum(kind == ("Progress", "segment") for kind in kinds) <= 2, "segmented once"


@pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="highdicom is not installed")
def test_a_saved_explanation_becomes_objects_of_the_scans_study(tmp_path: Path) -> None:
    """The client names the files of the scan's images, which may lie among others."""
    values = np.random.default_rng(0).integers(-900, 900, (5, 6, 7))
    series = write_series(tmp_path / "scan", values, (0, 0, 0), np.eye(3), (1, 1, 2))
    write_series(tmp_path / "other", values, (0, 0, 0), np.eye(3), (1, 1, 2))
    images = sorted((tmp_path / "scan").rename(tmp_path / "moved").iterdir())
    target = np.zeros(values.shape)
    target[2:4, 2:4, 2:5] = 1
    explained = explanation_of(imaging.read_scan(tmp_path / "moved"), target * 0.1, target, target)
    explained.save(tmp_path / "saved")
    request = protocol.SaveDicom(
        id=1,
        folder=str(tmp_path / "saved"),
        output=str(tmp_path / "objects"),
        images=tuple(map(str, reversed(images))),
    )
    files = RequestHandler(tmp_path, lambda reply: None).compute(request, lambda: False, lambda: False).files
    assert pydicom.dcmread(files["parametric_map"]).StudyInstanceUID == series.study
    assert {Path(path).parent for path in files.values()} == {tmp_path / "objects"}
