"""Explanations by gradients, for comparison: integrated gradients and Seg-Grad-CAM, through captum.

Both need a network that can be differentiated, and explain the same score over the same target as the perturbation
methods do. They are exact under the sliding window, and hold the graphs of two patches at a time.

References
----------
M. Sundararajan, A. Taly, Q. Yan. "Axiomatic Attribution for Deep Networks", ICML 2017.
R. R. Selvaraju et al. "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
K. Vinogradova, A. Dibrov, G. Myers. "Towards Interpretable Semantic Segmentation via Gradient-Weighted Class Activation
Mapping", AAAI 2020.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy.stats.qmc import Halton
from torch import Tensor, nn

from XAICLIPLib.errors import InputError
from XAICLIPLib.scoring.perturbation import Estimate
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.segmentation.backpropagation import TOGETHER, not_differentiable, run_together, with_gradients
from XAICLIPLib.segmentation.batching import out_of_memory, run_batch
from XAICLIPLib.segmentation.sliding_window import Box

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def integrated_gradients(scorer: Scorer, *, steps: int = 32) -> Iterator[Estimate]:
    """Gradients of the score along the straight way from the baseline to the volume, times the distance.

    The way is integrated by the Gauss-Legendre rule, as in captum's ``IntegratedGradients``, which would have to run
    all points at once or none to be watched. The points are visited from far to near, so that a running estimate
    covers the whole way. Yields an estimate after every point; the last one is complete. Close the iterator to cancel.

    Parameters
    ----------
    scorer
        Scores the volume; it also has the baseline.
    steps
        Points on the way.

    Raises
    ------
    InputError
        The network cannot be differentiated, or the baseline is another one for each perturbation.

    Notes
    -----
    The saliency of a voxel is summed over the channels; positive where the volume's value, rather than the
    baseline's, raises the score. The findings are ``score_change``, of the volume over the baseline, and
    ``completeness_gap``: how far the saliency is from adding up to it.
    """
    if not isinstance(scorer.baseline, Tensor):
        raise InputError(
            "Integrated gradients need one baseline for the whole volume, and surroundings are others for each place: "
            "choose the baseline air, mean or blur."
        )
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    order = Halton(1, scramble=False).random(steps).ravel().argsort()
    baseline = scorer.baseline.to(scorer.volume)
    difference = scorer.volume - baseline
    change = scorer.differentiable_score() - scorer.differentiable_score(baseline)
    total = torch.zeros_like(difference)
    covered = 0.0

    def saliency() -> Tensor:
        return (total * difference).sum(0).float().cpu() / covered

    def findings() -> dict[str, Any]:
        gap = abs(float(saliency().sum(dtype=torch.float64)) - change)
        return {"score_change": change, "completeness_gap": gap}

    for done, point in enumerate(order, 1):
        total += float(weights[point]) * scorer.gradient(baseline + float(nodes[point] + 1) / 2 * difference)
        covered += float(weights[point])
        yield Estimate(
            done, steps, saliency, lambda: torch.ones(difference.shape[1:], dtype=torch.bool), None, findings
        )


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
    jobs = scorer.cotangents()
    waiting = list(islice(jobs, TOGETHER))
    name = layer or _deepest_convolution(scorer.forward, network, waiting[0][1])
    maps_of = _ActivationMaps(scorer.forward, network, name)
    tiling = scorer.tiling
    summed = torch.zeros(tiling.padded_shape, device=scorer.volume.device)
    done = 0

    def saliency() -> Tensor:
        return summed[tiling.inner].clamp(min=0).cpu()

    def probed() -> Tensor:
        return torch.ones(tiling.shape, dtype=torch.bool)

    while waiting:
        for (box, _, _), found in zip(waiting, run_together(maps_of, waiting), strict=True):
            summed[box] += found
        done += len(waiting)
        yield Estimate(done, scorer.patches_of_target, saliency, probed, None, lambda: {"layer": name})
        waiting = list(islice(jobs, TOGETHER))


class _ActivationMaps:
    """Grad-CAM of patches at one layer, by captum, with what is below zero kept.

    Raises
    ------
    InputError
        There is no such layer.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], network: nn.Module, layer: str) -> None:
        layers = dict(network.named_modules())
        if layer not in layers or not layer:
            known = [name for name, module in layers.items() if isinstance(module, CONVOLUTIONS)]
            alike = difflib.get_close_matches(layer, known, 3, 0.0)
            raise InputError(f'The network has no layer "{layer}": choose one such as {", ".join(alike) or "none"}.')
        self.layer = layer
        try:
            from captum.attr import LayerGradCam
        except ImportError as error:
            raise InputError("The method seg-grad-cam needs the package captum: pip install captum.") from error

        def score(patches: Tensor, cotangents: Tensor) -> Tensor:
            return (run_batch(forward, patches) * cotangents).flatten(1).sum(1)

        self._cam = LayerGradCam(score, layers[layer])

    def __call__(self, jobs: Sequence[tuple[Box, Tensor, Tensor]]) -> list[Tensor]:
        """Maps of patches (box, patch, cotangent), each of the patch's spatial size."""
        patches, cotangents = torch.stack([p for _, p, _ in jobs]), torch.stack([c for _, _, c in jobs])
        with with_gradients(patches.device):
            try:
                found = self._cam.attribute(patches.requires_grad_(), additional_forward_args=(cotangents,))
            except (RuntimeError, AssertionError, IndexError) as error:
                if out_of_memory(error):
                    raise
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise not_differentiable(f"at its layer {self.layer}: {reason}") from error
            if not isinstance(found, Tensor) or found.ndim != patches.ndim:
                raise InputError(
                    f"The layer {self.layer} of the network gives no feature maps: choose a convolution, or leave it "
                    "open."
                )
            wide = self._cam.interpolate(found.detach(), patches.shape[2:], "trilinear")
        return list(wide[: len(jobs), 0])  # a lone patch has run doubled


def _deepest_convolution(forward: Callable[[Tensor], Tensor], network: nn.Module, patch: Tensor) -> str:
    """Name of the convolution with the coarsest output of more than one voxel, the last of several to run.

    One that looks at single voxels is taken only where there is no other: it begins the way up, or is a short cut.
    """
    found: list[tuple[int, bool, str]] = []

    def watch(name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            pointwise = module.weight[0, 0].numel() == 1
            found.append((math.prod(output.shape[2:]), pointwise, name))

        return hook

    hooks = [m.register_forward_hook(watch(n)) for n, m in network.named_modules() if isinstance(m, CONVOLUTIONS)]
    try:
        with torch.no_grad():
            run_batch(forward, patch[None])
    finally:
        for hook in hooks:
            hook.remove()
    maps = [(size, pointwise, -order, name) for order, (size, pointwise, name) in enumerate(found) if size > 1]
    if not maps:
        raise InputError("The network has no convolution to look into: choose another method than seg-grad-cam.")
    return min(maps)[3]
