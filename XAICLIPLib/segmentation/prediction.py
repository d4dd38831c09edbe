"""What a network says about a volume: blended logits on its own grid, and the label map in the input's geometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import SimpleITK as sitk
import torch
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.imaging.boxes import bounds, shift
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
        """The label map (values as in `label_values`) in the geometry of ``image``, with smooth borders.

        Of overlapping sigmoid classes the most probable one is shown.
        """
        return imaging.resample_labels(self.prepared.as_image(self.decision()), image)

    def decision(self) -> Tensor:
        """(X, Y, Z), uint8 or int32, on the device: the same on the network's own grid."""
        if self.segmenter.activation == "softmax":
            decision = self.logits.argmax(0)
        else:
            best = self.logits.max(0)
            decision = torch.where(best.values > 0, best.indices + 1, 0)
        return decision.to(torch.uint8) if len(self.logits) < 255 else decision.to(torch.int32)


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
