"""A worker that tests play themselves: no process, no models, and every answer when the test wants it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from XAICLIPLib.explainers import methods
from XAICLIPLib.scoring import options
from XAICLIPLib.worker import protocol
from XAICLIPModule.scene import export
from XAICLIPModule.worker import catalogue
from XAICLIPModule.worker.signals import Signal
from XAICLIPModule.worker.worker_session import FINAL, Ended, Listener


class PlayedSession:
    """Stands for `session.WorkerSession`.

    Parameters
    ----------
    folder
        Stands for the worker's private folder.
    greets
        Whether it says hello as soon as it is started; else the test calls `greet`.

    Attributes
    ----------
    requests
        What was asked, in order.
    installed
        Names of models that are on this machine, beside those that ship.
    descriptions
        What networks of the user's own draw, by their paths; of others it does not say.
    cancelled
        The ids of the requests that were to be cancelled.
    """

    def __init__(self, folder: Path, greets: bool = True) -> None:
        self.greeted, self.stopped, self.logged = Signal(), Signal(), Signal()
        self.hello: protocol.Greeting | None = None
        self.requests: list[Any] = []
        self.cancelled: list[int] = []
        self.installed: set[str] = set()
        self.descriptions: dict[str, tuple[str, ...]] = {}
        self._folder, self._greets = folder, greets
        self._listeners: dict[int, Listener] = {}

    @property
    def isBusy(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._listeners)

    def endOutdated(self) -> None:
        """It is of no interpreter."""

    def start(self) -> None:
        """Say hello, where it is to be said at once."""
        if self._greets and self.hello is None:
            self.greet()

    def greet(self, devices: tuple[str, ...] = ("cpu",)) -> None:
        """Say hello."""
        self.hello = protocol.Greeting(
            id=1,
            protocol=protocol.PROTOCOL,
            versions={"xaiclip": "test"},
            devices=devices,
            device_names={},
            folder=str(self._folder),
            segmenters=self._listed("segmenter"),
            localizers=self._listed("localizer"),
            methods=methods.describe(),
            scores=options.SCORES,
            baselines=options.BASELINES,
            structures=("liver", "spleen"),
            regions=protocol.REGIONS,
        )
        self.greeted.emit(self.hello)

    def _listed(self, kind: catalogue.Kind) -> tuple[dict[str, Any], ...]:
        return tuple(
            {**vars(model), "installed": model.installed or model.name in self.installed}
            for model in catalogue.shipped(kind)
        )

    def refresh(self) -> None:
        """Say hello anew."""
        self.greet(self.hello.devices if self.hello is not None else ("cpu",))

    def request(self, kind: str, listener: Listener, /, **fields: Any) -> int:
        """Take a request, checked as a worker would check it."""
        number = len(self.requests) + 2
        line = protocol.encode(protocol.REQUESTS[kind](id=number, **fields))
        self.requests.append(protocol.parse_request(line))
        self._listeners[number] = listener
        return number

    def requestAside(self, kind: str, listener: Listener, /, **fields: Any) -> int:
        """Answer at once."""
        number = 1_000_000
        asked = protocol.parse_request(protocol.encode(protocol.REQUESTS[kind](id=number, **fields)))
        assert isinstance(asked, protocol.Describe)
        reply: protocol.Reply
        if asked.model in self.descriptions:
            reply = protocol.Described(id=number, structures=self.descriptions[asked.model], inputs=("image",))
        else:
            reply = protocol.Error(id=number, kind="input", message="It does not load.")
        listener(protocol.parse_reply(protocol.encode(reply)))
        return number

    def cancel(self, request: int) -> None:
        """Note that a request is to be cancelled; the test answers."""
        self.cancelled.append(request)

    def stop(self) -> None:
        """End: whoever waits learns that it was cancelled."""
        self.hello = None
        for number in list(self._listeners):
            self._listeners.pop(number)(Ended(number, "cancelled", "Ended."))
        self.stopped.emit("")

    def crash(self, message: str = "The computation was ended from outside.") -> None:
        """Die."""
        self.hello = None
        for number in list(self._listeners):
            self._listeners.pop(number)(Ended(number, "stopped", message))
        self.stopped.emit(message)

    def answer(self, kind: str, /, **fields: Any) -> None:
        """Answer the newest request, through the same bytes as a worker would."""
        number = self.requests[-1].id
        reply = protocol.parse_reply(protocol.encode(protocol.REPLIES[kind](id=number, **fields)))
        listener = self._listeners.pop(number) if kind in FINAL else self._listeners[number]
        listener(reply)

    def estimate(self, volumeNode: Any, share: float = 0.5) -> Path:
        """Send a map that is being computed; the file is the client's to delete."""
        path = self._folder / f"estimate-{len(list(self._folder.iterdir()))}.nrrd"
        _write(saliencyFor(volumeNode) * share, volumeNode, path)
        self.answer("estimate", files={"saliency": str(path)}, done=1, total=2)
        return path

    def explain(self, volumeNode: Any, complete: bool = True, **changes: Any) -> None:
        """Send a result; ``changes`` are put into its record."""
        folder = Path(self.requests[-1].output)
        record = {**recordFor(self.requests[-1].prompt), "complete": complete, **changes}
        self.answer(
            "explanation",
            complete=complete,
            files=writeResults(volumeNode, folder, self.requests[-1].check),
            record=record,
        )

    def explainSeveral(self, volumeNode: Any, names: Sequence[str], missing: Mapping[str, str]) -> None:
        """Send the results of several structures."""
        folder = Path(self.requests[-1].output)
        done: list[dict[str, Any]] = []
        for name in names:
            record = {**recordFor(name), "target": {"name": name, "label": 6, "voxels": "predicted"}}
            done.append({"complete": True, "files": writeResults(volumeNode, folder / name), "record": record})
        first, *further = done
        self.answer("explanation", **first, further=tuple(further) or None, missing=dict(missing) or None)


def saliencyFor(volumeNode: Any) -> Any:
    """A saliency (k, j, i) that is largest, 0.4, at the middle voxel of a volume, and 0 at its border."""
    shape = tuple(reversed(volumeNode.GetImageData().GetDimensions()))
    array = np.full(shape, 0.4, dtype=np.float32)
    for axis, count in enumerate(shape):
        distance = np.abs(np.arange(count) - count // 2) / (count // 2 + 1)
        array *= (1 - distance).reshape([-1 if a == axis else 1 for a in range(3)]).astype(np.float32)
    array[array < 0.05] = 0
    return array


def writeResults(volumeNode: Any, folder: Path, checked: bool | None = None) -> dict[str, str]:
    """The files of a result: the region is where there is saliency, the target where there is much; and a picture.

    Of a map that was checked also what is enough and what is necessary: where there is very much.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saliency = saliencyFor(volumeNode)
    arrays = {
        "saliency": saliency,
        "region": (saliency > 0).astype(np.uint8),
        "segmentation": (saliency > 0.15).astype(np.uint8) * 6,
    }
    if checked:
        arrays["sufficient"] = (saliency > 0.1).astype(np.uint8)
        arrays["necessary"] = (saliency > 0.3).astype(np.uint8)
    files = {name: str(_write(array, volumeNode, folder / f"{name}.nrrd")) for name, array in arrays.items()}
    figure = folder / "figure.png"
    figure.write_bytes(b"a picture")
    return {**files, "figure": str(figure)}


def recordFor(prompt: str) -> dict[str, Any]:
    """A record as ``explanation.json`` holds it."""
    return {
        "format": "XAI-CLIP explanation 1",
        "prompt": prompt,
        "target": {"name": "liver", "label": 6, "voxels": "predicted"},
        "labels": {"6": "liver"},
        "region": {
            "source": "localizer",
            "volume_ml": 12.0,
            "share_of_body": 0.08,
            "agreement_with_prediction": {"dice": 0.8, "recall": 0.9, "centroid_mm": 3.0},
        },
        "measurements": {"score_unperturbed": 0.975, "largest_score_lost": 0.4, "perturbations": 27},
        "models": {"segmenter": {"name": "abdomen-ct"}, "localizer": {"name": "anatomy-clip"}},
        "parameters": {"method": "occlusion", "score": "soft dice", "baseline": "air"},
        "versions": {"xaiclip": "test"},
        "warnings": ["The liver touches the edge of the scan."],
        "complete": True,
    }


def structuresFor() -> list[Mapping[str, Any]]:
    """Structures as the method of that name weighs them."""
    return [
        {"structure": "spleen", "volume_ml": 120.0, "score_lost": 0.2, "share": 0.6},
        {"structure": "aorta", "volume_ml": 40.0, "score_lost": 0.1, "share": 0.3},
    ]


def _write(array: Any, volumeNode: Any, path: Path) -> Path:
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(export.grid(volumeNode))
    sitk.WriteImage(image, str(path))
    return path
