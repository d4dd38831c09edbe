"""Weight randomisation: the map must change when the network's learned weights are replaced by random ones.

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
    """The map after the weights of all layers from the output back to one layer were replaced by random ones.

    Attributes
    ----------
    layer
        The last layer that was randomised, by its name in the network.
    correlation
        Rank correlation (Spearman) with the original map, -1 to 1; near 0 is good. 0 where the map has become
        constant, 1 where both are constant.
    similarity
        SSIM with the original map after each is rescaled to [0, 1], at most 1; low is good.
    """

    layer: str
    correlation: float
    similarity: float


@dataclass(frozen=True)
class Randomization:
    """The stages in order, from the output backwards; at the ``last`` no learned weight is left."""

    stages: tuple[Stage, ...]

    @property
    def last(self) -> Stage:
        """With all weights random: a correlation near 1 says that the map does not depend on learned weights."""
        return self.stages[-1]


def randomization(
    network: nn.Module,
    explain: Callable[[nn.Module], Tensor],
    *,
    stages: int | None = None,
    seed: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
) -> Randomization:
    """Randomise the weights, layer after layer from the output backwards, and compare the maps: the cascading test.

    The network itself is not changed: a copy is randomised, which needs as much memory again.

    Parameters
    ----------
    network
        Whose weights are randomised. The order of its layers is that in which they finish when the map is made.
    explain
        Returns the map (X, Y, Z) of a network such as this one, for one fixed input and target.
    stages
        How many times the map is computed again, evenly spread over the layers, the last time with all of them
        randomised; by default after each layer.
    seed
        Of the new weights.
    cancelled
        Asked before each map; True ends with the stages computed so far.

    Raises
    ------
    InputError
        The network has no weights, a map is not finite, or nothing was made before the end.
    """
    randomised = copy.deepcopy(network)
    layers, original = _layers(randomised, explain)
    if stages is not None and stages < 1:
        raise InputError(f"stages is {stages}: give at least 1.")
    count = min(stages or len(layers), len(layers))
    points = {round(p) for p in np.linspace(len(layers) / count, len(layers), count)}
    results: list[Stage] = []
    devices = sorted({p.device.index or 0 for p in randomised.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for number, (name, modules) in enumerate(layers, start=1):
            for module in modules:
                _randomise_weights(module)
            if number not in points:
                continue
            if cancelled():
                break
            with torch.random.fork_rng(devices):  # the explainer's random numbers must not change the next weights
                results.append(_compare(name, original, _finite_map(explain, randomised)))
    if not results:
        raise InputError("The randomisation of the weights was cancelled before there was a result.")
    return Randomization(tuple(results))


def _layers(
    network: nn.Module, explain: Callable[[nn.Module], Tensor]
) -> tuple[list[tuple[str, list[nn.Module]]], Tensor]:
    """Modules that hold weights directly, by layer from the output backwards, and the original map.

    The map is computed to see in which order the modules run. A module that is never called itself, such as the output
    projection of torch's attention, belongs to the layer of its nearest parent that is called.
    """
    owners = {name: module for name, module in network.named_modules() if module._parameters}
    if not owners:
        raise InputError("The network has no weights that could be randomised.")
    finished: dict[str, int] = {}
    clock = itertools.count()  # numbers the ends of calls; of each module the last one counts
    hooks = [
        module.register_forward_hook(lambda *_, name=name: finished.__setitem__(name, next(clock)))
        for name, module in network.named_modules()
    ]
    try:
        original = _finite_map(explain, network)
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


def _randomise_weights(module: nn.Module) -> None:
    """Randomise the weights that a module holds directly.

    They are initialised as the module itself does it, or else drawn from a normal distribution of the same mean and
    standard deviation.
    """
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
        correlation = 1.0 if torch.equal(_rescaled(original), _rescaled(randomised)) else 0.0
    window = min(USUAL_WINDOW, *original.shape)
    window -= 1 - window % 2
    if window < SMALLEST_WINDOW:
        raise InputError("A map of less than 3 voxels along an axis has no structure to compare.")
    similarity = structural_similarity(
        _rescaled(original).numpy(), _rescaled(randomised).numpy(), data_range=1.0, win_size=window
    )
    return Stage(layer, correlation, float(similarity))


def _rescaled(values: Tensor) -> Tensor:
    """Values mapped to [0, 1]; 0 where all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def _finite_map(explain: Callable[[nn.Module], Tensor], network: nn.Module) -> Tensor:
    saliency = explain(network).detach().cpu().double()
    if not bool(torch.isfinite(saliency).all()):
        raise InputError("A map holds values that are not finite, so that it cannot be compared.")
    return saliency
