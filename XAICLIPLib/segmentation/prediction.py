"""What a network says about a volume: blended logits on its own grid, and the label map in the input's geometry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import SimpleITK as sitk
import torch
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.imaging.boxes import bounds, shift
from XAICLIPLib.segmentation.overlap import holding, numbered
from XAICLIPLib.segmentation.segmenter import Prepared, Segmenter
from XAICLIPLib.segmentation.sliding_window import Tiling, around, predict_logits


@dataclass(frozen=True)
class Inference:
    """A network and a volume as it sees it, ready to run.

    Attributes
    ----------
    segmenter
        The network.
    prepared
        Its input and grid.
    volume
        (C + H, X, Y, Z), the same input on the device, with what is held.
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
        """What is needed to run the network again; the logits of a hundred classes are larger than all the rest."""
        return Inference(self.segmenter, self.prepared, self.volume, self.tiling)

    def label_map(self, image: sitk.Image) -> sitk.Image:
        """The label map in the geometry of ``image``, with smooth borders; values as in `label_values` and `shared`."""
        return imaging.resample_labels(self.prepared.as_image(self.decision()), image)

    def decision(self) -> Tensor:
        """(X, Y, Z), uint8 or int32, on the device: the same on the network's own grid."""
        if self.segmenter.activation == "softmax":
            decision = self.logits.argmax(0)
        else:
            decision = self._numbered[0]
        return decision.to(torch.uint8) if len(self.logits) + len(self.shared) < 255 else decision.to(torch.int32)

    @property
    def shared(self) -> dict[int, tuple[int, ...]]:
        """The values of the label map that stand for several overlapping classes at once, with their channels."""
        return {} if self.segmenter.activation == "softmax" else self._numbered[1]

    def values_of(self, channels: Iterable[int]) -> list[int]:
        """All values of the label map where one of some classes is."""
        return values_of(self.segmenter, self.shared, channels)

    @cached_property
    def _numbered(self) -> tuple[Tensor, dict[int, tuple[int, ...]]]:
        return numbered(self.logits)


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
        Called with the patches done and in all.
    """
    prepared = segmenter.prepare(image)
    volume = prepared.network_input.to(device)
    tiling = Tiling.of(volume.shape[1:], segmenter.window)
    with torch.inference_mode():
        logits = predict_logits(segmenter.logits, volume, tiling, batch_size, advance)
    return Prediction(segmenter, prepared, volume, tiling, logits)


def surroundings(segmenter: Segmenter, tiling: Tiling, voxels: Tensor) -> tuple[Callable[[Tensor], Tensor], Tiling]:
    """What has to be run to know a network's output at some voxels (X, Y, Z): a function of patches, and the patches.

    The network itself and all its patches but where it takes whole volumes and has a ``reach``: then the surroundings
    of the voxels alone, and of these, where it has ``logits_within``, what each layer needs.
    """
    reach = getattr(segmenter, "reach", None)
    if segmenter.window is not None or reach is None:
        return segmenter.logits, tiling
    near = around(tiling.shape, voxels, reach)
    within = getattr(segmenter, "logits_within", None)
    if within is None:
        return segmenter.logits, near
    core = shift(bounds(voxels), [-s.start for s in near.patches[0]])
    return partial(within, box=core), near


def label_values(segmenter: Segmenter) -> dict[int, int]:
    """Value in the label map of each output channel: its number; with sigmoid, where 0 is a structure too, one more."""
    return {channel: channel + (segmenter.activation == "sigmoid") for channel in segmenter.labels}


def values_of(segmenter: Segmenter, shared: Mapping[int, tuple[int, ...]], channels: Iterable[int]) -> list[int]:
    """All values of a label map where one of some classes is: its own, and those of the sets that it belongs to."""
    own, chosen = label_values(segmenter), list(channels)
    return [own[c] for c in chosen] + sorted({n for c in chosen for n in holding(shared, c)})
