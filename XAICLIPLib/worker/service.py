"""The part of the worker that carries out requests: it computes, and returns the last reply to each.

PyTorch is imported only for the first computation or for the list of devices, so that a client is greeted at once.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from XAICLIPLib.errors import Cancelled
from XAICLIPLib.explainers import methods
from XAICLIPLib.reporting import output_folder
from XAICLIPLib.scoring import options
from XAICLIPLib.system.files import folder_name
from XAICLIPLib.system.packages import REQUIREMENTS, versions
from XAICLIPLib.worker import protocol
from XAICLIPLib.worker.protocol import (
    Box,
    Describe,
    Download,
    Explain,
    Localize,
    Mask,
    NamedStructure,
    Remove,
    Reply,
    Report,
    Request,
    SaveDicom,
)

if TYPE_CHECKING:
    import SimpleITK as sitk
    import torch

    from XAICLIPLib.explanation import Explanation
    from XAICLIPLib.localization.localizer import Localizer
    from XAICLIPLib.models.catalogue import Entry
    from XAICLIPLib.progress import Progress
    from XAICLIPLib.segmentation.segmenter import Segmenter

PROGRESS_EVERY_S = 0.1

PACE_AFTER_S = 1.0
"""Before this, the remaining time of a download is not estimated."""

KEPT_ESTIMATES = 2
"""Files of estimates that are kept: a client may be about to open the one before the newest."""

KEPT_MODELS = 2
"""Models of each kind that stay loaded: more could fill a GPU."""


class RequestHandler:
    """Carries out requests, and keeps what is needed between them: the loaded models and the files of estimates.

    Parameters
    ----------
    folder
        The private folder, for all files whose place the client does not choose.
    send
        Called with the replies that come before the last one: progress and estimates.
    """

    def __init__(self, folder: Path, send: Callable[[Reply], None]) -> None:
        self.folder = folder
        self._send = send
        self._models = ModelCache()
        self._estimates: list[Path] = []
        self._estimate_count = 0
        self._devices: dict[str, str] = {"cpu": "CPU"}

    def greeting(self, id: int) -> protocol.Greeting:
        """Versions, devices, models, methods and choices, as far as they are known without PyTorch."""
        from XAICLIPLib import anatomy
        from XAICLIPLib.models import catalogue

        models = {
            kind: tuple(_entry_summary(entry, number == 0) for number, entry in enumerate(entries))
            for kind in ("segmenter", "localizer")
            for entries in ([entry for entry in catalogue.entries() if entry.kind == kind],)
        }
        return protocol.Greeting(
            id=id,
            protocol=protocol.PROTOCOL,
            versions=versions(REQUIREMENTS),
            devices=tuple(self._devices),
            device_names=self._devices,
            folder=str(self.folder),
            segmenters=models["segmenter"],
            localizers=models["localizer"],
            methods=methods.describe(),
            scores=options.SCORES,
            baselines=options.BASELINES,
            structures=tuple(anatomy.vocabulary()),
            regions=protocol.REGIONS,
        )

    def devices(self, id: int) -> protocol.Devices:
        """All devices that networks can run on."""
        from XAICLIPLib.system.devices import available_devices

        self._devices = available_devices()
        return protocol.Devices(id=id, devices=tuple(self._devices), device_names=self._devices)

    def compute(
        self,
        request: Localize | Explain | Report | SaveDicom | Describe | Download | Remove,
        cancelled: Callable[[], bool],
        abandoned: Callable[[], bool],
    ) -> Reply:
        """Find a region, explain, write a report, describe, download or remove, and send progress meanwhile.

        Parameters
        ----------
        request
            What to compute.
        cancelled
            Whether to stop and return the result so far.
        abandoned
            Whether the worker is about to end, so that no result is needed any more.

        Raises
        ------
        Exception
            Anything: see `XAICLIPLib.worker.failures`.
        """
        for path in self._estimates:
            path.unlink(missing_ok=True)  # of the last request, whose final reply the client has read
        self._estimates.clear()
        if cancelled():
            raise Cancelled("Cancelled before there was a result.")
        if isinstance(request, Download):
            return self._download(request, cancelled)
        if isinstance(request, Remove):
            return self._remove(request)
        if isinstance(request, Localize):
            return self._localize(request, cancelled)
        if isinstance(request, Report):
            return self._report(request)
        if isinstance(request, SaveDicom):
            return self._save_dicom(request)
        if isinstance(request, Describe):
            return self._describe(request)
        # A mistake in the method's parameters is reported at once, and not after PyTorch and the models were loaded.
        methods.method(request.method or methods.implied(request.parameters or {}), **request.parameters or {})
        requested_folder = Path(request.output) if request.output else None
        is_new = requested_folder is None or not requested_folder.exists()
        output = requested_folder or self._new_folder("explanation-")
        inputs = [request.volume, *(request.further_volumes or ())]
        inputs += [region.mask for region in (request.region, request.target) if isinstance(region, Mask)]
        try:
            with output_folder.claimed(output, inputs):
                return self._explain(request, output, cancelled, abandoned)
        except BaseException:
            if is_new:
                with suppress(OSError):
                    output.rmdir()  # it was made for a result that there is not
            raise

    def _localize(self, request: Localize, cancelled: Callable[[], bool]) -> protocol.FoundRegion:
        from XAICLIPLib import imaging
        from XAICLIPLib.pipeline import localize

        device = _prepared_device(request.device)
        region = localize(
            request.volume,
            request.prompt,
            localizer=self._models.localizer(request.localizer, device),
            device=str(device),
            on_progress=ProgressReporter(request.id, self._send),
            cancelled=cancelled,
            **_options_set(request, "threshold", "margin_mm", "modality"),
        )
        if cancelled():
            raise Cancelled("Cancelled before there was a result.")
        path = imaging.write_volume(region.mask, self._new_folder("region-") / "region.nrrd", compress=False)
        size = {"source": region.source, "volume_ml": region.volume_ml, "share_of_body": region.share_of_body}
        return protocol.FoundRegion(
            id=request.id, files={"region": str(path)}, region=size, warnings=tuple(region.warnings)
        )

    def _explain(
        self, request: Explain, output: Path, cancelled: Callable[[], bool], abandoned: Callable[[], bool]
    ) -> protocol.Explained:
        from XAICLIPLib import anatomy
        from XAICLIPLib.pipeline import explain
        from XAICLIPLib.several.explain_each import explain_each

        device = _prepared_device(request.device)
        reporter = ProgressReporter(request.id, self._send)
        regions: dict[str, Any] = {
            name: _region_argument(value) for name, value in _options_set(request, "region", "target").items()
        }
        if regions.get("region", "guided") == "guided":
            regions["localizer"] = self._models.localizer(request.localizer, device)
        options = (
            "method",
            "score",
            "effect",
            "baseline",
            "threshold",
            "margin_mm",
            "modality",
            "precision",
            "batch_size",
        )
        done: list[dict[str, Any]] = []
        missing: dict[str, str] = {}

        def send_estimate(saliency: sitk.Image) -> None:
            if not done:  # of the first structure alone: the client has one map that develops
                self._send_estimate(saliency, reporter)

        several = request.target is None and anatomy.names_several(request.prompt)
        arguments: dict[str, Any] = {
            "model": self._models.segmenter(request.model, device, bool(request.trust)),
            "device": str(device),
            "on_progress": reporter,
            "on_warning": reporter.warn,
            "on_estimate": send_estimate if request.estimates else None,
            "cancelled": cancelled,
            **regions,
            **_options_set(request, *options, "seed", "trust", "check"),
            **(request.parameters or {}),
        }
        volumes = [request.volume, *(request.further_volumes or ())]
        if not several:
            explanation = explain(volumes, request.prompt, **arguments)
            done.append(self._saved(explanation, request, output, abandoned))
        else:
            names: list[str] = []
            arguments |= {"on_structures": names.extend, "on_missing": missing.__setitem__}
            for explanation in explain_each(volumes, request.prompt, **arguments):
                name = anatomy.name_of(explanation.record["prompt"])
                place = output / folder_name(name, "structure") if len(names) > 1 else output
                done.append(self._saved(explanation, request, place, abandoned))
        first, *further = done
        return protocol.Explained(id=request.id, **first, further=tuple(further) or None, missing=dict(missing) or None)

    def _saved(
        self, explanation: Explanation, request: Explain, output: Path, abandoned: Callable[[], bool]
    ) -> dict[str, Any]:
        """Save an explanation; returns what the client is told of it."""
        from XAICLIPLib.models import catalogue

        if abandoned():
            raise Cancelled("Nobody waits for the result any more.")
        models = explanation.record["models"]  # `explain` was given a loaded network, and does not know its name
        models["segmenter"] = catalogue.provenance_of(request.model, models["segmenter"])
        # Files in the private folder are read only once: compressing and unpacking them would only cost time.
        files = explanation.save(output, compress=not output.resolve().is_relative_to(self.folder.resolve()))
        return {
            "complete": explanation.complete,
            "files": {name: str(path.resolve()) for name, path in files.items()},
            # Read from the file, which has null for numbers that are not finite: JSON cannot hold those.
            "record": json.loads(files["explanation"].read_text(encoding="utf-8")),
        }

    def _report(self, request: Report) -> protocol.Reported:
        from XAICLIPLib.reporting.report import save_report

        files = save_report(request.folder, request.output, volume=request.volume, pdf=bool(request.pdf))
        return protocol.Reported(id=request.id, files={name: str(path.resolve()) for name, path in files.items()})

    def _save_dicom(self, request: SaveDicom) -> protocol.Reported:
        from XAICLIPLib import imaging
        from XAICLIPLib.reporting import saved_explanation
        from XAICLIPLib.reporting.dicom import saving

        saving.require_highdicom()
        source = imaging.dicom_source_of([Path(path) for path in request.images])
        saved = saved_explanation.read(request.folder)
        scan = None if request.volume is None else saved_explanation.scan_of(saved, request.volume)
        files = saving.save_objects(saved, scan, source, Path(request.output))
        return protocol.Reported(id=request.id, files={name: str(path.resolve()) for name, path in files.items()})

    def _describe(self, request: Describe) -> protocol.Described:
        from XAICLIPLib.segmentation.segmenter import class_names

        network = self._models.segmenter(request.model, _prepared_device(request.device), bool(request.trust))
        return protocol.Described(
            id=request.id, structures=class_names(network), inputs=tuple(getattr(network, "inputs", ()))
        )

    def _download(self, request: Download, cancelled: Callable[[], bool]) -> protocol.Downloaded:
        from XAICLIPLib.models import acquisition, catalogue

        entry = catalogue.find(request.name)
        progress = DownloadProgress(entry, ProgressReporter(request.id, self._send))
        path = acquisition.download(entry, progress, cancelled)
        return protocol.Downloaded(id=request.id, name=entry.name, path=None if path is None else str(path))

    def _remove(self, request: Remove) -> protocol.Removed:
        from XAICLIPLib.models import catalogue, user_entries

        entry = catalogue.find(request.name)
        user_entries.remove(entry)
        installed = any(other.name == entry.name and other.installed for other in catalogue.entries())
        return protocol.Removed(id=request.id, name=entry.name, installed=installed)

    def _send_estimate(self, saliency: sitk.Image, reporter: ProgressReporter) -> None:
        from XAICLIPLib import imaging

        self._estimate_count += 1  # no name is used twice: the client may still be reading the file
        path = self.folder / f"estimate-{self._estimate_count}.nrrd"
        self._estimates.append(imaging.write_volume(saliency, path, compress=False))
        done, total = reporter.progress_of("explain")
        self._send(protocol.Estimate(id=reporter.id, files={"saliency": str(path)}, done=done, total=total))
        while len(self._estimates) > KEPT_ESTIMATES:
            with suppress(OSError):  # Windows does not delete a file that the client has open
                self._estimates.pop(0).unlink(missing_ok=True)

    def _new_folder(self, prefix: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=prefix, dir=self.folder))


class ProgressReporter:
    """Sends the progress of a request to the client, at most every `PROGRESS_EVERY_S`.

    The first and the last message of each stage are always sent.
    """

    def __init__(self, id: int, send: Callable[[Reply], None]) -> None:
        self.id = id
        self._send = send
        self._reached: dict[str, tuple[int, int]] = {}
        self._last_sent = 0.0

    def __call__(self, progress: Progress) -> None:
        """Send the progress, unless the last message was sent too recently."""
        self.report(progress.stage, progress.done, progress.total, progress.seconds_left)

    def report(self, stage: protocol.Stage, done: int, total: int, seconds_left: float | None = None) -> None:
        """Send the progress of a stage, unless the last message is too recent; a total of 0 means not known."""
        first, last = stage not in self._reached, 0 < total <= done
        self._reached[stage] = done, total
        now = time.monotonic()
        if first or last or now - self._last_sent >= PROGRESS_EVERY_S:
            self._last_sent = now
            self._send(protocol.Progress(id=self.id, stage=stage, done=done, total=total, seconds_left=seconds_left))

    def warn(self, sentence: str) -> None:
        """Send what the user should read at once, with the progress so far."""
        stage: protocol.Stage = next(reversed(self._reached), "localize")  # type: ignore[arg-type]
        done, total = self.progress_of(stage)
        self._send(protocol.Progress(id=self.id, stage=stage, done=done, total=total, warning=sentence))

    def progress_of(self, stage: str) -> tuple[int, int]:
        """The last known progress of a stage: done and total."""
        return self._reached.get(stage, (0, 0))


class DownloadProgress:
    """Adds up the progress of a download's files. It is called with a file's name, its bytes so far, and its size."""

    def __init__(self, entry: Entry, reporter: ProgressReporter) -> None:
        self._reporter = reporter
        self._expected_size = 0 if entry.size_mb is None else round(entry.size_mb * 1e6)
        self._files = {name: (0, remote.size) for name, remote in entry.remotes.items()}
        self._began: tuple[float, int] | None = None

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Send the progress of all files together, in bytes."""
        self._files[name] = done, total
        received = sum(done for done, _ in self._files.values())
        sizes = [size for _, size in self._files.values()]
        size = self._expected_size if None in sizes else sum(file_size or 0 for file_size in sizes)
        size = max(size, received) if size else 0
        self._reporter.report("download", received, size, self._seconds_left(received, size))

    def _seconds_left(self, received: int, size: int) -> float | None:
        """Remaining seconds, by the pace of this attempt; bytes of an earlier attempt do not count."""
        now = time.monotonic()
        if self._began is None:
            self._began = now, received
        began, received_before = self._began
        if not size or received <= received_before or now - began < PACE_AFTER_S:
            return None
        return (size - received) * (now - began) / (received - received_before)


class ModelCache:
    """Keeps the models that were used last, so that the next request need not load them again."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[Any, ...], Any] = {}

    def segmenter(self, name: str | None, device: torch.device, trust: bool) -> Segmenter:
        """The segmenter of this name or folder; see `catalogue.load_segmenter`."""
        from XAICLIPLib.models import catalogue

        key = ("segmenter", name, str(device), trust, _stamp("segmenter", name))
        segmenter: Segmenter = self._keep(key, lambda: catalogue.load_segmenter(name, device, trust))
        return segmenter

    def localizer(self, name: str | None, device: torch.device) -> Localizer:
        """The localizer of this name, folder or id, with its cached results for the last volume."""
        from XAICLIPLib.models import catalogue

        key = ("localizer", name, str(device), _stamp("localizer", name))
        localizer: Localizer = self._keep(key, lambda: catalogue.load_localizer(name, device))
        return localizer

    def _keep(self, key: tuple[Any, ...], load: Callable[[], Any]) -> Any:
        if key not in self._loaded:
            alike = [other for other in self._loaded if other[0] == key[0]]
            for other in alike[: max(0, len(alike) + 1 - KEPT_MODELS)]:
                del self._loaded[other]
            self._loaded[key] = load()
        self._loaded[key] = model = self._loaded.pop(key)  # the last used comes last
        return model


def _stamp(kind: str, name: str | None) -> tuple[Any, ...]:
    """Sizes and times of a model's files: if they change, the model has to be loaded again."""
    from XAICLIPLib.models import catalogue

    entry = next((e for e in catalogue.entries() if e.kind == kind and name in (None, e.name)), None)
    folder = entry.folder if entry else Path(str(name).removeprefix("local-dir:"))
    with suppress(OSError, ValueError):
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder and folder.is_dir() else []
        return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return ()


# --- for replies --------------------------------------------------------------------------------------------------


def _entry_summary(entry: Entry, default: bool) -> dict[str, Any]:
    keys = ("name", "format", "title", "modality", "licence", "citation", "installed")
    summary: dict[str, Any] = {
        **{key: getattr(entry, key) for key in keys},
        "source": entry.origin,
        "size_mb": entry.download_mb,
        "structures": list(entry.structures),
        "default": default,
    }
    if entry.kind == "segmenter" and entry.knows_inputs:
        summary["inputs"] = list(entry.inputs)
    return summary


# --- from requests ------------------------------------------------------------------------------------------------


def _prepared_device(device: str | None) -> torch.device:
    """The device, with PyTorch loaded and set up."""
    import torch

    from XAICLIPLib.system.devices import choose_device

    torch.set_flush_denormal(True)  # numbers next to zero would slow convolutions down
    chosen = choose_device(device or "auto")
    if str(chosen) == "cuda":  # always with its number: a model that is cached for "cuda:0" serves "cuda" too
        return torch.device("cuda", torch.cuda.current_device())
    return chosen


def _options_set(request: Request, *names: str) -> dict[str, Any]:
    """Values of the keys that the request sets; for the others the library's defaults hold."""
    return {name: getattr(request, name) for name in names if getattr(request, name) is not None}


def _region_argument(value: str | Mask | Box | NamedStructure) -> str | Path | tuple[float, ...]:
    """A region or target as an argument of `explain`; a mask is given as a `Path`, so that it is no word."""
    if isinstance(value, Mask):
        return Path(value.mask)
    if isinstance(value, Box):
        return value.box_ras_mm
    return value.structure if isinstance(value, NamedStructure) else value
