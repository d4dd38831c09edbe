"""Running a network over a volume: blended logits on the network's grid, and the label map in the input's geometry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import SimpleITK as sitk
import torch
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.imaging.boxes import bounds, shift
from XAICLIPLib.segmentation.overlap import combined_label_map, values_containing
from XAICLIPLib.segmentation.segmenter import Prepared, Segmenter
from XAICLIPLib.segmentation.sliding_window import Tiling, patch_around, predict_logits


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
    """An inference with its unperturbed output.

    Attributes
    ----------
    logits
        (K, X, Y, Z), on the device.
    """

    logits: Tensor

    def without_logits(self) -> Inference:
        """The same without the logits, which take the most memory, to run the network again."""
        return Inference(self.segmenter, self.prepared, self.volume, self.tiling)

    def label_map(self, image: sitk.Image) -> sitk.Image:
        """The label map in the geometry of ``image``, with smooth borders; values as in `label_values` and `shared`."""
        return imaging.resample_labels(self.prepared.as_image(self.decision()), image)

    def decision(self) -> Tensor:
        """The label map on the network's grid: (X, Y, Z), uint8 or int32, on the device."""
        if self.segmenter.activation == "softmax":
            decision = self.logits.argmax(0)
        else:
            decision = self._combined[0]
        return decision.to(torch.uint8) if len(self.logits) + len(self.shared) < 255 else decision.to(torch.int32)

    @property
    def shared(self) -> dict[int, tuple[int, ...]]:
        """The values of the label map that stand for several overlapping classes at once, with their channels."""
        return {} if self.segmenter.activation == "softmax" else self._combined[1]

    def values_of(self, channels: Iterable[int]) -> list[int]:
        """All values of the label map that contain any of the channels."""
        return values_of(self.segmenter, self.shared, channels)

    @cached_property
    def _combined(self) -> tuple[Tensor, dict[int, tuple[int, ...]]]:
        return combined_label_map(self.logits)


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
    """
    prepared = segmenter.prepare(image)
    volume = prepared.network_input.to(device)
    tiling = Tiling.of(volume.shape[1:], segmenter.window)
    with torch.inference_mode():
        logits = predict_logits(segmenter.logits, volume, tiling, batch_size, advance)
    return Prediction(segmenter, prepared, volume, tiling, logits)


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
