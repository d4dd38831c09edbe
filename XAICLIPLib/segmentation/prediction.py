"""Running a network over a volume: what it draws, on its own grid and in the input's geometry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import SimpleITK as sitk
import torch
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.imaging.boxes import bounds, shift
from XAICLIPLib.segmentation.decision import Decision
from XAICLIPLib.segmentation.footprint import footprint, refuse_what_does_not_fit, resampled_size, told_as_memory
from XAICLIPLib.segmentation.overlap import values_containing
from XAICLIPLib.segmentation.segmenter import Prepared, Segmenter
from XAICLIPLib.segmentation.sliding_window import Tiling, patch_around
from XAICLIPLib.segmentation.streaming import stream_logits


@dataclass(frozen=True)
class Inference:
    """A network and a volume in its input space, ready to run.

    Attributes
    ----------
    segmenter
        The network.
    prepared
        Its input and grid.
    volume
        (C + H, X, Y, Z), the same input on the device, held channels included.
    tiling
        The network's patches over it.
    """

    segmenter: Segmenter
    prepared: Prepared
    volume: Tensor
    tiling: Tiling


@dataclass(frozen=True)
class Prediction(Inference):
    """An inference with what the network draws.

    The logits are not kept: those of a hundred classes are larger than all the rest. What needs some runs the patches
    that it needs again; `XAICLIPLib.segmentation.sliding_window.predict_logits` gives all of them.

    Attributes
    ----------
    decision
        The label map on the network's grid: (X, Y, Z), uint8 or int32, on the device; values as in `label_values` and
        ``shared``.
    shared
        The values of the label map that stand for several overlapping classes at once, with their channels.
    """

    decision: Tensor
    shared: Mapping[int, tuple[int, ...]]

    def label_map(self, image: sitk.Image) -> sitk.Image:
        """The label map in the geometry of ``image``, with smooth borders."""
        return imaging.resample_labels(self.prepared.as_image(self.decision), image)

    def drawn(self, channels: Iterable[int]) -> Tensor:
        """Where the network draws any of the channels, overlapping ones included: (X, Y, Z) bool, on the CPU."""
        values = torch.tensor(self.values_of(channels), dtype=self.decision.dtype, device=self.decision.device)
        return torch.isin(self.decision, values).cpu()

    def values_of(self, channels: Iterable[int]) -> list[int]:
        """All values of the label map that contain any of the channels."""
        return values_of(self.segmenter, self.shared, channels)


def predict(
    segmenter: Segmenter,
    image: sitk.Image,
    device: torch.device,
    batch_size: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Prediction:
    """Run a network over a volume with its own preprocessing and sliding window.

    Parameters
    ----------
    segmenter
        A network on ``device``.
    image
        A volume of any orientation and spacing.
    batch_size
        Patches computed together; by default as many as fit (`XAICLIPLib.segmentation.batching`).
    advance
        Called with the number of patches done and of all patches.

    Raises
    ------
    NotEnoughMemory
        The scan is too large for the memory that is free, as estimated before the work, or found on the way.
    """
    size = resampled_size(segmenter, image)
    needed = None if size is None else footprint(segmenter, image, size, device)
    if needed is not None:
        refuse_what_does_not_fit(needed, image, device)
    with told_as_memory("while the scan was prepared for the network", needed):
        prepared = segmenter.prepare(image)
    needed = footprint(segmenter, image, prepared.tensor.shape[1:], device, resampled=True)
    refuse_what_does_not_fit(needed, image, device)
    with told_as_memory("while the network ran over the scan", needed):
        volume = prepared.network_input.to(device)
        tiling = Tiling.of(volume.shape[1:], segmenter.window)
        decision = Decision(volume.shape[1:], segmenter.activation, device)
        parts = stream_logits(segmenter.logits, volume, tiling, batch_size, advance, channels=len(segmenter.labels))
        with torch.inference_mode():
            for box, logits in parts:
                decision.add(box, logits)
    return Prediction(segmenter, prepared, volume, tiling, *decision.finished())


def network_near(segmenter: Segmenter, tiling: Tiling, voxels: Tensor) -> tuple[Callable[[Tensor], Tensor], Tiling]:
    """The function and the patches with which a network's output at some voxels (X, Y, Z) can be computed.

    Usually the network itself and all its patches. For a network that takes whole volumes and has a ``reach``: one
    patch around the voxels, and where it has ``logits_within``, only the part that each layer needs.
    """
    reach = getattr(segmenter, "reach", None)
    if segmenter.window is not None or reach is None:
        return segmenter.logits, tiling
    tiling_near = patch_around(tiling.shape, voxels, reach)
    within = getattr(segmenter, "logits_within", None)
    if within is None:
        return segmenter.logits, tiling_near
    core = shift(bounds(voxels), [-s.start for s in tiling_near.patches[0]])
    return partial(within, box=core), tiling_near


def label_values(segmenter: Segmenter) -> dict[int, int]:
    """Value of each output channel in the label map: its number; one more with sigmoid, where 0 is a structure."""
    return {channel: channel + (segmenter.activation == "sigmoid") for channel in segmenter.labels}


def values_of(segmenter: Segmenter, shared: Mapping[int, tuple[int, ...]], channels: Iterable[int]) -> list[int]:
    """All values of a label map that contain any of the channels, alone or together with other classes."""
    single, chosen = label_values(segmenter), list(channels)
    return [single[c] for c in chosen] + sorted({n for c in chosen for n in values_containing(shared, c)})
