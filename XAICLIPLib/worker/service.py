"""What the worker answers to each request: the part of it that computes.

PyTorch is imported when the first thing is computed or the devices are asked for, so that a client is greeted at once.
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
)

if TYPE_CHECKING:
    import SimpleITK as sitk
    import torch

    from XAICLIPLib.localization.localizer import Localizer
    from XAICLIPLib.models.catalogue import Entry
    from XAICLIPLib.progress import Progress
    from XAICLIPLib.segmentation.segmenter import Segmenter

PROGRESS_EVERY_S = 0.1

PACE_AFTER_S = 1.0
"""A download's pace is not known earlier."""

KEPT_ESTIMATES = 2
"""A client may be about to open the one before the newest."""

KEPT_MODELS = 2
"""Of each kind: more could fill a GPU."""


class RequestHandler:
    """The replies to all that is asked, and what is kept between requests.

    Parameters
    ----------
    folder
        The private folder, for all files whose place the client does not choose.
    send
        Takes the replies that come before the last one: progress and estimates.
    """

    def __init__(self, folder: Path, send: Callable[[Reply], None]) -> None:
        self.folder = folder
        self._send = send
        self._models = ModelCache()
        self._estimates: list[Path] = []
        self._numbered = 0
        self._devices: dict[str, str] = {"cpu": "CPU"}

    def greeting(self, id: int) -> protocol.Greeting:
        """Who is here and what can be asked, as far as it is known without PyTorch."""
        from XAICLIPLib import anatomy
        from XAICLIPLib.models import catalogue

        listed = {
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
            segmenters=listed["segmenter"],
            localizers=listed["localizer"],
            methods=methods.describe(),
            scores=options.SCORES,
            baselines=options.BASELINES,
            structures=tuple(anatomy.vocabulary()),
            regions=protocol.REGIONS,
        )

    def devices(self, id: int) -> protocol.Devices:
        """Where networks can run."""
        from XAICLIPLib.system.devices import available_devices

        self._devices = available_devices()
        return protocol.Devices(id=id, devices=tuple(self._devices), device_names=self._devices)

    def compute(
        self,
        request: Localize | Explain | Report | Describe | Download | Remove,
        cancelled: Callable[[], bool],
        abandoned: Callable[[], bool],
    ) -> Reply:
        """Find a region, explain, write a report, describe, download or remove, with progress on the way.

        Parameters
        ----------
        request
            What is asked.
        cancelled
            Whether it shall end with what is known.
        abandoned
            Whether nobody waits for the result any more.

        Raises
        ------
        Exception
            Anything: see `XAICLIPLib.worker.failures`.
        """
        for path in self._estimates:
            path.unlink(missing_ok=True)  # of the request before, whose end the client has read
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
        if isinstance(request, Describe):
            return self._describe(request)
        # Mistakes here are told at once, and not after PyTorch and the models were loaded.
        methods.method(request.method or next(iter(methods.METHODS)), **request.parameters or {})
        wanted = Path(request.output) if request.output else None
        is_new = wanted is None or not wanted.exists()
        output = wanted or self._new_folder("explanation-")
        inputs = [request.volume, *(request.further_volumes or ())]
        inputs += [place.mask for place in (request.region, request.target) if isinstance(place, Mask)]
        try:
            with output_folder.claimed(output, inputs):
                return self._explain(request, output, cancelled, abandoned)
        except BaseException:
            if is_new:
                with suppress(OSError):
                    output.rmdir()  # nothing came of it
            raise

    def _localize(self, request: Localize, cancelled: Callable[[], bool]) -> protocol.FoundRegion:
        from XAICLIPLib import imaging
        from XAICLIPLib.pipeline import localize

        device = _ready(request.device)
        region = localize(
            request.volume,
            request.prompt,
            localizer=self._models.localizer(request.localizer, device),
            device=str(device),
            on_progress=ProgressReporter(request.id, self._send),
            cancelled=cancelled,
            **_given(request, "threshold", "margin_mm", "modality"),
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
        from XAICLIPLib.models import catalogue
        from XAICLIPLib.pipeline import explain

        device = _ready(request.device)
        reporter = ProgressReporter(request.id, self._send)
        places: dict[str, Any] = {name: _place(value) for name, value in _given(request, "region", "target").items()}
        if places.get("region", "guided") == "guided":
            places["localizer"] = self._models.localizer(request.localizer, device)
        options = ("method", "score", "baseline", "threshold", "margin_mm", "modality", "precision", "batch_size")
        found = explain(
            [request.volume, *(request.further_volumes or ())],
            request.prompt,
            model=self._models.segmenter(request.model, device, bool(request.trust)),
            device=str(device),
            on_progress=reporter,
            on_estimate=(lambda saliency: self._send_estimate(saliency, reporter)) if request.estimates else None,
            cancelled=cancelled,
            **places,
            **_given(request, *options, "seed", "trust", "check"),
            **request.parameters or {},
        )
        if abandoned():
            raise Cancelled("Nobody waits for the result any more.")
        models = found.record["models"]  # of a network that was loaded before, `explain` does not know the name
        models["segmenter"] = catalogue.provenance_of(request.model, models["segmenter"])
        # What lies in the private folder is read once, by a client that should not have to unpack it.
        files = found.save(output, compress=not output.resolve().is_relative_to(self.folder.resolve()))
        return protocol.Explained(
            id=request.id,
            complete=found.complete,
            files={name: str(path.resolve()) for name, path in files.items()},
            # Read back: the file has null where numbers are not finite, which JSON could not hold.
            record=json.loads(files["explanation"].read_text(encoding="utf-8")),
        )

    def _report(self, request: Report) -> protocol.Reported:
        from XAICLIPLib.reporting.report import save_report

        files = save_report(request.folder, request.output, volume=request.volume, pdf=bool(request.pdf))
        return protocol.Reported(id=request.id, files={name: str(path.resolve()) for name, path in files.items()})

    def _describe(self, request: Describe) -> protocol.Described:
        from XAICLIPLib.segmentation.segmenter import class_names

        network = self._models.segmenter(request.model, _ready(request.device), bool(request.trust))
        return protocol.Described(
            id=request.id, structures=class_names(network), inputs=tuple(getattr(network, "inputs", ()))
        )

    def _download(self, request: Download, cancelled: Callable[[], bool]) -> protocol.Downloaded:
        from XAICLIPLib.models import acquisition, catalogue

        entry = catalogue.find(request.name)
        progress = DownloadProgress(entry, ProgressReporter(request.id, self._send))
        place = acquisition.download(entry, progress, cancelled)
        return protocol.Downloaded(id=request.id, name=entry.name, path=None if place is None else str(place))

    def _remove(self, request: Remove) -> protocol.Removed:
        from XAICLIPLib.models import catalogue, user_entries

        entry = catalogue.find(request.name)
        user_entries.remove(entry)
        installed = any(other.name == entry.name and other.installed for other in catalogue.entries())
        return protocol.Removed(id=request.id, name=entry.name, installed=installed)

    def _send_estimate(self, saliency: sitk.Image, reporter: ProgressReporter) -> None:
        from XAICLIPLib import imaging

        self._numbered += 1  # never the same name twice: the client may still be reading
        path = self.folder / f"estimate-{self._numbered}.nrrd"
        self._estimates.append(imaging.write_volume(saliency, path, compress=False))
        done, total = reporter.progress_of("explain")
        self._send(protocol.Estimate(id=reporter.id, files={"saliency": str(path)}, done=done, total=total))
        while len(self._estimates) > KEPT_ESTIMATES:
            with suppress(OSError):  # the client has it open, where that keeps it
                self._estimates.pop(0).unlink(missing_ok=True)

    def _new_folder(self, prefix: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=prefix, dir=self.folder))


class ProgressReporter:
    """Tells the client how far a request is, at most every `PROGRESS_EVERY_S`, but of each stage the first and last."""

    def __init__(self, id: int, send: Callable[[Reply], None]) -> None:
        self.id = id
        self._send = send
        self._reached: dict[str, tuple[int, int]] = {}
        self._told = 0.0

    def __call__(self, progress: Progress) -> None:
        """Tell it, where it is time."""
        self.tell(progress.stage, progress.done, progress.total, progress.seconds_left)

    def tell(self, stage: protocol.Stage, done: int, total: int, seconds_left: float | None = None) -> None:
        """Tell how far a stage is, where it is time; a total of 0 is not known."""
        first, last = stage not in self._reached, 0 < total <= done
        self._reached[stage] = done, total
        now = time.monotonic()
        if first or last or now - self._told >= PROGRESS_EVERY_S:
            self._told = now
            self._send(protocol.Progress(id=self.id, stage=stage, done=done, total=total, seconds_left=seconds_left))

    def progress_of(self, stage: str) -> tuple[int, int]:
        """What is done and in all of a stage."""
        return self._reached.get(stage, (0, 0))


class DownloadProgress:
    """Adds up the files of a download: to be called with a file's name, its bytes that are here, and all of them."""

    def __init__(self, entry: Entry, reporter: ProgressReporter) -> None:
        self._reporter = reporter
        self._size = 0 if entry.size_mb is None else round(entry.size_mb * 1e6)
        self._files = {name: (0, remote.size) for name, remote in entry.remotes.items()}
        self._began: tuple[float, int] | None = None

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Tell how far all files are."""
        self._files[name] = done, total
        here = sum(done for done, _ in self._files.values())
        sizes = [size for _, size in self._files.values()]
        everything = self._size if None in sizes else sum(size or 0 for size in sizes)
        everything = max(everything, here) if everything else 0
        self._reporter.tell("download", here, everything, self._seconds_left(here, everything))

    def _seconds_left(self, here: int, everything: int) -> float | None:
        """By the pace since the first byte that came now; what came in an earlier attempt took no time."""
        now = time.monotonic()
        if self._began is None:
            self._began = now, here
        began, before = self._began
        if not everything or here <= before or now - began < PACE_AFTER_S:
            return None
        return (everything - here) * (now - began) / (here - before)


class ModelCache:
    """The models loaded last, so that the next request need not load them again."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[Any, ...], Any] = {}

    def segmenter(self, name: str | None, device: torch.device, trust: bool) -> Segmenter:
        """The segmenter of this name or folder; see `catalogue.load_segmenter`."""
        from XAICLIPLib.models import catalogue

        key = ("segmenter", name, str(device), trust, _stamp("segmenter", name))
        segmenter: Segmenter = self._keep(key, lambda: catalogue.load_segmenter(name, device, trust))
        return segmenter

    def localizer(self, name: str | None, device: torch.device) -> Localizer:
        """The localizer of this name, folder or id, with what it remembers of the last volume."""
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
    """Sizes and times of the files of a model: one that was trained further has to be loaded again."""
    from XAICLIPLib.models import catalogue

    entry = next((e for e in catalogue.entries() if e.kind == kind and name in (None, e.name)), None)
    folder = entry.folder if entry else Path(str(name).removeprefix("local-dir:"))
    with suppress(OSError, ValueError):
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder and folder.is_dir() else []
        return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return ()


# --- what is told -------------------------------------------------------------------------------------------------


def _entry_summary(entry: Entry, default: bool) -> dict[str, Any]:
    keys = ("name", "format", "title", "modality", "licence", "citation", "installed")
    told: dict[str, Any] = {
        **{key: getattr(entry, key) for key in keys},
        "source": entry.origin,
        "size_mb": entry.download_mb,
        "structures": list(entry.structures),
        "default": default,
    }
    if entry.kind == "segmenter" and entry.knows_inputs:
        told["inputs"] = list(entry.inputs)
    return told


# --- what is asked ------------------------------------------------------------------------------------------------


def _ready(device: str | None) -> torch.device:
    """The device, with PyTorch loaded and set up."""
    import torch

    from XAICLIPLib.system.devices import choose_device

    torch.set_flush_denormal(True)  # numbers next to zero would slow convolutions down
    chosen = choose_device(device or "auto")
    if str(chosen) == "cuda":  # by its number, or a model would be loaded once for each name
        return torch.device("cuda", torch.cuda.current_device())
    return chosen


def _given(request: Request, *names: str) -> dict[str, Any]:
    """Those of some keys that the request has: what it leaves out is for the library to choose."""
    return {name: getattr(request, name) for name in names if getattr(request, name) is not None}


def _place(value: str | Mask | Box | NamedStructure) -> str | Path | tuple[float, ...]:
    """A region or target as `explain` takes it; a path, never a word, names a mask."""
    if isinstance(value, Mask):
        return Path(value.mask)
    if isinstance(value, Box):
        return value.box_ras_mm
    return value.structure if isinstance(value, NamedStructure) else value
