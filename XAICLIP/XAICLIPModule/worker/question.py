"""What is asked: the choices of one run, and the request that they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import slicer
from slicer.i18n import tr as _

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers import methods
from XAICLIPModule.live.turns import Work
from XAICLIPModule.scene import export


@dataclass(frozen=True)
class Segment:
    """A segment that the user drew."""

    node: Any
    segmentId: str

    def mask(self, volumeNode: Any) -> sitk.Image:
        """It as a mask in the grid of a volume; see `export.maskFromSegment`."""
        return export.maskFromSegment(self.node, self.segmentId, volumeNode)


@dataclass(frozen=True)
class Box:
    """A markups ROI that the user placed."""

    node: Any

    def mask(self, volumeNode: Any) -> sitk.Image:
        """It as a mask in the grid of a volume; see `export.maskFromBox`."""
        return export.maskFromBox(self.node, volumeNode)


Drawn = Segment | Box


@dataclass(frozen=True)
class Question:
    """Why did the network draw this structure here? With all that can be chosen; None means the worker's default.

    Attributes
    ----------
    volumeNode
        vtkMRMLScalarVolumeNode.
    prompt
        The structure in words.
    furtherVolumeNodes
        vtkMRMLScalarVolumeNode of the same patient, in the order of the network's other inputs, where it takes several.
    region
        ``guided`` (where the localizer finds the prompt), ``whole``, another of `XAICLIPLib.worker.protocol.REGIONS`,
        or something drawn.
    target
        None for what the prompt says, another structure of the network by its name, or something drawn.
    parameters
        Of the method, by the names of `XAICLIPLib.explainers.methods`.
    threshold, marginMm
        Of the region: similarity from 0 to 1, and how far it is grown in mm.
    checkMap
        Test the map when it is done.
    trust
        Run the code in the configuration of the user's own model.
    name
        What the results are called; by default after volume, prompt and method.
    """

    volumeNode: Any
    prompt: str
    model: str | None = None
    localizer: str | None = None
    method: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    region: str | Drawn = "guided"
    target: str | Drawn | None = None
    score: str | None = None
    baseline: str | None = None
    threshold: float | None = None
    marginMm: float | None = None
    modality: str | None = None
    device: str | None = None
    precision: str | None = None
    batchSize: int | None = None
    seed: int | None = None
    checkMap: bool | None = None
    trust: bool | None = None
    name: str | None = None
    furtherVolumeNodes: Sequence[Any] = ()

    def check(self) -> None:
        """Refuse at once what the worker would refuse after a while.

        Raises
        ------
        InputError
            No volume, the same one twice, no words, or parameters that the method does not take.
        """
        for node in (self.volumeNode, *self.furtherVolumeNodes):
            if node is None or slicer.mrmlScene.GetNodeByID(node.GetID() or "") is None:
                raise InputError(_("No volume is chosen: load a scan and choose it."))
        ids = [node.GetID() for node in (self.volumeNode, *self.furtherVolumeNodes)]
        if len(set(ids)) < len(ids):
            raise InputError(_("One volume is given for two images: choose another for each."))
        if not self.prompt.strip():
            raise InputError(_('Nothing is asked for: type the name of a structure, such as "liver".'))
        methods.method(self.method or methods.implied(self.parameters), **self.parameters)

    def resultName(self, structure: str | None = None) -> str:
        """What the results are called; those of one of several structures, with its name."""
        if self.name and self.name.strip():
            return " – ".join(filter(None, (self.name.strip(), structure)))
        words = structure or self.prompt.strip()
        return " – ".join((self.volumeNode.GetName(), words, self.method or methods.default()))

    def localizeRequest(self, folder: Path) -> Work:
        """Make the fields of a ``localize`` request; the volume is written into the folder.

        Raises
        ------
        InputError
            The volume cannot be used or written.
        """
        volume = yield from export.writeVolume(self.volumeNode, folder / "volume.nrrd")
        return {
            "volume": str(volume),
            "prompt": self.prompt.strip(),
            "localizer": self.localizer,
            "threshold": self.threshold,
            "margin_mm": self.marginMm,
            "modality": self.modality,
            "device": self.device,
        }

    def explainRequest(self, folder: Path) -> Work:
        """Make the fields of an ``explain`` request; volume and masks are written into the folder, and so results.

        Raises
        ------
        InputError
            The volume or what is drawn cannot be used or written.
        """
        further = []
        for number, node in enumerate(self.furtherVolumeNodes, 2):
            path = yield from export.writeVolume(node, folder / f"volume-{number}.nrrd", self.volumeNode)
            further.append(str(path))
        region, target = self.region, self.target
        asked: dict[str, Any] = {"region": region}
        if not isinstance(region, str):
            asked["region"] = {"mask": str(export.writeImage(region.mask(self.volumeNode), folder / "region.nrrd"))}
        if isinstance(target, str):
            asked["target"] = {"structure": target}
        elif target is not None:
            asked["target"] = {"mask": str(export.writeImage(target.mask(self.volumeNode), folder / "target.nrrd"))}
        volume = yield from self.localizeRequest(folder)
        return {
            **volume,
            **asked,
            "further_volumes": further or None,
            "output": str(folder / "results"),
            "model": self.model,
            "method": self.method,
            "parameters": dict(self.parameters) or None,
            "score": self.score,
            "baseline": self.baseline,
            "precision": self.precision,
            "batch_size": self.batchSize,
            "seed": self.seed,
            "check": self.checkMap,
            "trust": self.trust,
            "estimates": True,
        }
