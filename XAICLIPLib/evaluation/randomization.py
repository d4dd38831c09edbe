"""Weight randomisation: a map of a network that has forgotten everything must not look like the map of the network.

References
----------
J. Adebayo et al. "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.stability import rank_correlation

SMALLEST_WINDOW, USUAL_WINDOW = 3, 7
"""Edge of the window of SSIM in voxels; scikit-image takes 7, and a thin volume has no room for it."""


@dataclass(frozen=True)
class Stage:
    """A map after the weights from the output down to a layer were drawn anew.

    Attributes
    ----------
    layer
        The last layer that was randomised, by its name in the network.
    correlation
        Rank correlation (Spearman) with the network's own map, -1 to 1; near 0 is good. 0 where the map has become
        constant, and 1 where both are.
    similarity
        SSIM with it after each is stretched to [0, 1], at most 1; low is good.
    """

    layer: str
    correlation: float
    similarity: float


@dataclass(frozen=True)
class Randomization:
    """The stages in order, from the output inwards; ``last`` is the network with no learned weight left."""

    stages: tuple[Stage, ...]

    @property
    def last(self) -> Stage:
        """With all weights drawn anew: a correlation near 1 here says that the map does not depend on them."""
        return self.stages[-1]


def randomization(
    network: nn.Module,
    explain: Callable[[nn.Module], Tensor],
    *,
    stages: int | None = None,
    seed: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
) -> Randomization:
    """Draw the weights anew, layer after layer from the output inwards, and compare the maps: the cascading test.

    The network itself is left as it is: a copy is randomised, which takes its memory once more.

    Parameters
    ----------
    network
        Whose weights are randomised. The order of its layers is that in which they finish when the map is made.
    explain
        Makes the map (X, Y, Z) of a network such as this one: for one input and the target that was explained before.
    stages
        At how many points the map is made again, evenly spread over the layers, the last with all of them; by default
        after each layer.
    seed
        Of the new weights.
    cancelled
        Asked before each map; True ends with the stages made.

    Raises
    ------
    InputError
        The network has no weights, a map is not finite, or nothing was made before the end.
    """
    forgetful = copy.deepcopy(network)
    layers, original = _layers(forgetful, explain)
    if stages is not None and stages < 1:
        raise InputError(f"stages is {stages}: give at least 1.")
    count = min(stages or len(layers), len(layers))
    points = {round(p) for p in np.linspace(len(layers) / count, len(layers), count)}
    made: list[Stage] = []
    devices = sorted({p.device.index or 0 for p in forgetful.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for number, (name, modules) in enumerate(layers, start=1):
            for module in modules:
                _forget(module)
            if number not in points:
                continue
            if cancelled():
                break
            with torch.random.fork_rng(devices):  # the next layer's weights do not hang on what the explainer draws
                made.append(_compare(name, original, _map(explain, forgetful)))
    if not made:
        raise InputError("The randomisation of the weights was cancelled before there was a result.")
    return Randomization(tuple(made))


def _layers(
    network: nn.Module, explain: Callable[[nn.Module], Tensor]
) -> tuple[list[tuple[str, list[nn.Module]]], Tensor]:
    """Modules with weights of their own, by layer from the output inwards, and the map made to see their order.

    A module that is never called, such as the output projection of torch's attention, goes with the nearest one above
    it that is.
    """
    owners = {name: module for name, module in network.named_modules() if module._parameters}
    if not owners:
        raise InputError("The network has no weights that could be randomised.")
    finished: dict[str, int] = {}
    clock = itertools.count()  # of each module the last call: when it ended
    hooks = [
        module.register_forward_hook(lambda *_, name=name: finished.__setitem__(name, next(clock)))
        for name, module in network.named_modules()
    ]
    try:
        original = _map(explain, network)
    finally:
        for hook in hooks:
            hook.remove()
    layers: dict[str, list[nn.Module]] = {}
    for name, module in owners.items():
        called = name
        while called and called not in finished:
            called = called.rpartition(".")[0]
        layers.setdefault(called, []).append(module)
    ordered = sorted(layers, key=lambda name: finished.get(name, -1), reverse=True)
    return [(name or "the whole network", layers[name]) for name in ordered], original


def _forget(module: nn.Module) -> None:
    """Draw a module's own weights anew: as it was born, or from a normal distribution of the same mean and spread."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset):
        reset()
        return
    with torch.no_grad():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                spread = float(parameter.std()) if parameter.numel() > 1 else float(parameter.abs().max())
                parameter.normal_(float(parameter.mean()) if parameter.numel() > 1 else 0.0, spread)


def _compare(layer: str, original: Tensor, randomised: Tensor) -> Stage:
    correlation = rank_correlation(original, randomised)
    if correlation is None:
        correlation = 1.0 if torch.equal(_stretched(original), _stretched(randomised)) else 0.0
    window = min(USUAL_WINDOW, *original.shape)
    window -= 1 - window % 2
    if window < SMALLEST_WINDOW:
        raise InputError("A map of less than 3 voxels along an axis has no structure to compare.")
    similarity = structural_similarity(
        _stretched(original).numpy(), _stretched(randomised).numpy(), data_range=1.0, win_size=window
    )
    return Stage(layer, correlation, float(similarity))


def _stretched(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def _map(explain: Callable[[nn.Module], Tensor], network: nn.Module) -> Tensor:
    found = explain(network).detach().cpu().double()
    if not bool(torch.isfinite(found).all()):
        raise InputError("A map holds values that are not finite, so that it cannot be compared.")
    return found
