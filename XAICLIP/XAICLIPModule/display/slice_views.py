"""What the slice views show: a saliency over its scan, and what was there before it.

Layers are remembered when an overlay is laid, and never longer than it lies there: what a view showed an hour ago may
be another patient's scan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import slicer

from XAICLIPModule.display.saliency_display import SALIENCY_ATTRIBUTE


@dataclass(frozen=True)
class Layers:
    """The volumes of one slice view, by their ids, and the opacity of the upper one."""

    background: str | None
    foreground: str | None
    opacity: float


@dataclass(frozen=True)
class _Overlay:
    saliency: str
    before: Layers


@dataclass(frozen=True)
class Shown:
    """The layers of all slice views at one time, to be given back to `SliceViews.giveBack`."""

    layers: Mapping[str, Layers]
    overlays: Mapping[str, _Overlay]


class SliceViews:
    """Lays saliencies over their scans in the slice views, and takes them away again."""

    def __init__(self) -> None:
        self._overlays: dict[str, _Overlay] = {}

    def shown(self) -> Shown:
        """What all slice views show now."""
        return Shown({composite.GetID(): _layers(composite) for composite in _composites()}, dict(self._overlays))

    def show(self, volumeNode: Any, saliencyNode: Any, opacity: float) -> None:
        """Show a saliency over its volume in every slice view.

        Where an overlay of this object is replaced, what was below that one stays remembered; else what is there now.
        """
        for composite in _composites():
            overlay = self._overlays.get(composite.GetID())
            lies = overlay is not None and composite.GetForegroundVolumeID() == overlay.saliency
            before = overlay.before if overlay is not None and lies else _layers(composite)
            self._overlays[composite.GetID()] = _Overlay(saliencyNode.GetID(), before)
        background = volumeNode if volumeNode is not None else "keep-current"
        slicer.util.setSliceViewerLayers(background=background, foreground=saliencyNode, foregroundOpacity=opacity)

    def hide(self, saliencyNode: Any) -> None:
        """Take a saliency away from the slice views.

        The scan below stays. What lay over that same scan before lies there again; of another scan, which may be
        another patient's, nothing comes back.
        """
        for composite in _composites():
            overlay = self._overlays.pop(composite.GetID(), None)
            if composite.GetForegroundVolumeID() != saliencyNode.GetID():
                continue
            foreground, opacity = None, 0.0
            if overlay is not None and overlay.before.background == composite.GetBackgroundVolumeID():
                foreground, opacity = _scan(overlay.before.foreground), overlay.before.opacity
            composite.SetForegroundVolumeID(foreground)
            composite.SetForegroundOpacity(opacity if foreground else 0.0)

    def giveBack(self, before: Shown, saliencyNode: Any) -> None:
        """Show again what was shown, in the views that still show a saliency; before that is removed from the scene."""
        for composite in _composites():
            layers = before.layers.get(composite.GetID())
            if layers is None or composite.GetForegroundVolumeID() != saliencyNode.GetID():
                continue  # the user chose something else meanwhile
            composite.SetBackgroundVolumeID(_known(layers.background))
            foreground = _known(layers.foreground)
            composite.SetForegroundVolumeID(foreground)
            composite.SetForegroundOpacity(layers.opacity if foreground else 0.0)
        self._overlays = dict(before.overlays)

    @staticmethod
    def isShown(saliencyNode: Any) -> bool:
        """Whether any slice view shows a saliency over a volume."""
        return any(composite.GetForegroundVolumeID() == saliencyNode.GetID() for composite in _composites())

    @staticmethod
    def opacity(saliencyNode: Any) -> float | None:
        """Opacity of an overlay that is shown; None for one that is not."""
        for composite in _composites():
            if composite.GetForegroundVolumeID() == saliencyNode.GetID():
                return float(composite.GetForegroundOpacity())
        return None

    def forget(self) -> None:
        """Take what is shown now for what the user wants: after the scene was closed or another one was loaded."""
        self._overlays.clear()


def _composites() -> Iterator[Any]:
    yield from slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")


def _layers(composite: Any) -> Layers:
    return Layers(
        composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID(), composite.GetForegroundOpacity()
    )


def _known(nodeId: str | None) -> str | None:
    """The id, where there still is such a node."""
    return nodeId if nodeId and slicer.mrmlScene.GetNodeByID(nodeId) is not None else None


def _scan(nodeId: str | None) -> str | None:
    """The id, where there still is such a node and it is no map of this module."""
    node = slicer.mrmlScene.GetNodeByID(nodeId) if nodeId else None
    return nodeId if node is not None and not node.GetAttribute(SALIENCY_ATTRIBUTE) else None
