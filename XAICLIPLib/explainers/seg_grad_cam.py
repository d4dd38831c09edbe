"""Seg-Grad-CAM, for comparison: feature maps of a layer, weighted by the gradient of the score; through captum.

It needs a network that can be differentiated, explains the same score over the same target as the perturbation methods
do, is exact under the sliding window, and holds the graphs of two patches at a time.

References
----------
R. R. Selvaraju et al. "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
K. Vinogradova, A. Dibrov, G. Myers. "Towards Interpretable Semantic Segmentation via Gradient-Weighted Class Activation
Mapping", AAAI 2020.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from XAICLIPLib.errors import InputError, installing
from XAICLIPLib.explainers.base import Captions, Estimate, Method, RunningMap
from XAICLIPLib.explainers.parameters import parameter
from XAICLIPLib.system.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from XAICLIPLib.explainers.setting import Setting
    from XAICLIPLib.imaging.boxes import Box
    from XAICLIPLib.scoring.scorer import Scorer
    from XAICLIPLib.segmentation.sliding_window import Tiling
else:
    torch = lazy("torch")


@dataclass(frozen=True)
class SegGradCam(Method):
    """For comparison: feature maps of a layer, weighted by the gradient of the score."""

    name: ClassVar[str] = "seg-grad-cam"
    captions: ClassVar[Captions] = Captions("patches", "", "activation (no unit)", "Region of interest")

    layer: str | None = parameter(None, "name of the layer; default: the deepest convolution")

    def estimates(self, setting: Setting, seed: int) -> Iterator[Estimate]:
        """See `seg_grad_cam`."""
        if setting.network is None:
            raise InputError(
                "The method seg-grad-cam looks into the network, and this one cannot be looked into: choose another "
                "method."
            )
        return seg_grad_cam(setting.scorer, setting.network, layer=self.layer)


def seg_grad_cam(scorer: Scorer, network: nn.Module, *, layer: str | None = None) -> Iterator[Estimate]:
    """Feature maps of a layer, each weighted by the mean gradient of the score with respect to it.

    Seg-Grad-CAM sums the logits over the voxels of interest; here the score takes that place. Every patch of the
    target has feature maps of its own, and through the blending the score's gradient is the sum of those through each
    patch: so are the maps, which are brought to the patch's grid by trilinear interpolation. Negative values are cut
    off at the end. Yields an estimate after every two patches; the last one is complete. Close the iterator to cancel.

    Parameters
    ----------
    scorer
        Scores the volume.
    network
        The module that runs in ``scorer.forward``.
    layer
        Name of a layer of it whose output is (N, F, X, Y, Z), as in ``network.named_modules()``; by default the
        convolution with the coarsest output, the last of several.

    Raises
    ------
    InputError
        There is no such layer, it gives no feature maps, or the network cannot be differentiated.

    Notes
    -----
    The values have no unit and say nothing in themselves, only where compared with each other. The baseline plays no
    part. Unlike the other methods this one shows where features are, not what of the input they depend on.
    """
    from XAICLIPLib.segmentation.backpropagation import PATCHES_AT_ONCE, run_together

    jobs = scorer.cotangents()
    waiting = list(islice(jobs, PATCHES_AT_ONCE))
    name = layer or _deepest_convolution(scorer.forward, network, waiting[0][1])
    maps_of = _ActivationMaps(scorer.forward, network, name)
    summed = torch.zeros(scorer.tiling.padded_shape, device=scorer.volume.device)
    reached = torch.zeros(scorer.tiling.padded_shape, dtype=torch.bool)
    running = _FeatureMap(summed, reached, scorer.tiling, name)
    done = 0
    while waiting:
        for (box, _, _), activation in zip(waiting, run_together(maps_of, waiting), strict=True):
            summed[box] += activation
            reached[box] = True
        done += len(waiting)
        running.complete = done == scorer.patches_of_target
        yield Estimate(done, scorer.patches_of_target, running)
        waiting = list(islice(jobs, PATCHES_AT_ONCE))


@dataclass
class _FeatureMap(RunningMap):
    """What the patches so far say.

    Attributes
    ----------
    summed, reached
        On the padded grid of the tiling: the values, and where a patch has been.
    tiling
        Of the network.
    layer
        Its name.
    complete
        Whether all patches of the target are done: beyond them there is no activation for it.
    """

    summed: Tensor
    reached: Tensor
    tiling: Tiling
    layer: str
    complete: bool = False

    def saliency(self) -> Tensor:
        return self.summed[self.tiling.inner].clamp(min=0).cpu()

    def probed(self) -> Tensor:
        if self.complete:
            return torch.ones(self.tiling.shape, dtype=torch.bool)
        return self.reached[self.tiling.inner].clone()

    def findings(self) -> dict[str, Any]:
        return {"layer": self.layer}


def _convolutions() -> tuple[type[nn.Module], ...]:
    return torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d


class _ActivationMaps:
    """Grad-CAM of patches at one layer, by captum, with what is below zero kept.

    Raises
    ------
    InputError
        There is no such layer.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], network: nn.Module, layer: str) -> None:
        from XAICLIPLib.segmentation.batching import run_batch

        layers = dict(network.named_modules())
        if layer not in layers or not layer:
            known = [name for name, module in layers.items() if isinstance(module, _convolutions())]
            alike = difflib.get_close_matches(layer, known, 3, 0.0)
            raise InputError(f'The network has no layer "{layer}": choose one such as {", ".join(alike) or "none"}.')
        self.layer = layer
        try:
            from captum.attr import LayerGradCam
        except ImportError as error:
            way = installing("captum")
            raise InputError(f"The method seg-grad-cam needs the package captum: {way}.", way) from error

        def score(patches: Tensor, cotangents: Tensor) -> Tensor:
            return (run_batch(forward, patches) * cotangents).flatten(1).sum(1)

        self._cam = LayerGradCam(score, layers[layer])

    def __call__(self, jobs: Sequence[tuple[Box, Tensor, Tensor]]) -> list[Tensor]:
        """Maps of patches (box, patch, cotangent), each of the patch's spatial size."""
        from XAICLIPLib.segmentation.backpropagation import not_differentiable, with_gradients
        from XAICLIPLib.system.memory import out_of_memory

        patches, cotangents = torch.stack([p for _, p, _ in jobs]), torch.stack([c for _, _, c in jobs])
        with with_gradients(patches.device):
            try:
                activation = self._cam.attribute(patches.requires_grad_(), additional_forward_args=(cotangents,))
            except (RuntimeError, AssertionError, IndexError) as error:
                if out_of_memory(error):
                    raise
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise not_differentiable(f"at its layer {self.layer}: {reason}") from error
            if isinstance(activation, torch.Tensor) and activation.ndim == patches.ndim - 1 and 1 in patches.shape[2:]:
                activation = activation.unsqueeze(2 + list(patches.shape[2:]).index(1))  # of a network of slices
            if not isinstance(activation, torch.Tensor) or activation.ndim != patches.ndim:
                raise InputError(
                    f"The layer {self.layer} of the network gives no feature maps: choose a convolution, or leave it "
                    "open."
                )
            wide = self._cam.interpolate(activation.detach(), patches.shape[2:], "trilinear")
        return list(wide[: len(jobs), 0])  # a lone patch has run doubled


def _deepest_convolution(forward: Callable[[Tensor], Tensor], network: nn.Module, patch: Tensor) -> str:
    """Name of the convolution with the coarsest output of more than one voxel, the last of several to run.

    One that looks at single voxels is taken only where there is no other: it begins the way up, or is a short cut.
    """
    from XAICLIPLib.segmentation.batching import run_batch

    outputs: list[tuple[int, bool, str]] = []

    def watch(name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            pointwise = module.weight[0, 0].numel() == 1
            outputs.append((math.prod(output.shape[2:]), pointwise, name))

        return hook

    hooks = [m.register_forward_hook(watch(n)) for n, m in network.named_modules() if isinstance(m, _convolutions())]
    try:
        with torch.no_grad():
            run_batch(forward, patch[None])
    finally:
        for hook in hooks:
            hook.remove()
    maps = [(size, pointwise, -order, name) for order, (size, pointwise, name) in enumerate(outputs) if size > 1]
    if not maps:
        raise InputError("The network has no convolution to look into: choose another method than seg-grad-cam.")
    return min(maps)[3]
