"""One call for every method: its defaults worked out for the case at hand, then its estimates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers.gradients import integrated_gradients, seg_grad_cam
from XAICLIPLib.explainers.lime import lime
from XAICLIPLib.explainers.methods import METHODS, IntegratedGradients, Lime, Method, Occlusion, Rise, Structures
from XAICLIPLib.explainers.occlusion import occlusion, window_for
from XAICLIPLib.explainers.rise import rise
from XAICLIPLib.explainers.structures import structures
from XAICLIPLib.explainers.supervoxels import supervoxels
from XAICLIPLib.scoring.perturbation import Estimate
from XAICLIPLib.scoring.scorer import Scorer


@dataclass(frozen=True)
class Ground:
    """What an explainer works on, all on the segmenter's grid.

    Attributes
    ----------
    scorer
        What scores the perturbations.
    volume
        (C, X, Y, Z), the unperturbed input.
    region
        (X, Y, Z) bool: where perturbations are made.
    changeable
        (X, Y, Z) bool: the voxels that perturbations can change.
    labels
        (X, Y, Z) whole numbers: what the network drew.
    names
        Structure by number; 0 is what belongs to none.
    spacing_mm
        Voxel size along X, Y and Z.
    network
        The network itself, for methods that look into it; None where it is not to be had.
    """

    scorer: Scorer
    volume: Tensor
    region: Tensor
    changeable: Tensor
    labels: Tensor
    names: Mapping[int, str]
    spacing_mm: tuple[float, float, float]
    network: torch.nn.Module | None = None

    @property
    def own(self) -> tuple[int, ...]:
        """Numbers of the target in ``labels``."""
        label = self.scorer.target.label
        first = int(self.scorer.activation == "sigmoid")
        return tuple(channel + first for channel in ((label,) if isinstance(label, int) else label))


def with_defaults(method: Method, volume_ml: float) -> Method:
    """The method with the sizes that were left open chosen by the volume of the structure that is explained.

    Raises
    ------
    InputError
        The stride that was given is longer than the window that is chosen.
    """
    edge = window_for(volume_ml)
    if isinstance(method, Occlusion):
        window = method.window_mm or edge
        stride = method.stride_mm or window / 2
        if stride > window:
            raise InputError(
                f"stride_mm is {stride:g}, more than the window for this structure, {window:g} mm: that leaves gaps, "
                "give a shorter stride or a larger window_mm."
            )
        return replace(method, window_mm=window, stride_mm=stride)
    if isinstance(method, Rise):
        return replace(method, cell_mm=method.cell_mm or edge)
    if isinstance(method, Lime):
        return replace(method, size_mm=method.size_mm or edge)
    return method


def estimates(method: Method, ground: Ground, seed: int) -> Iterator[Estimate]:
    """Run a method whose defaults are worked out; see the function of its name for what it yields.

    Raises
    ------
    InputError
        The method cannot work on this network.
    """
    scorer, region, spacing = ground.scorer, ground.region & ground.changeable, ground.spacing_mm
    if isinstance(method, Occlusion):
        assert method.window_mm is not None and method.stride_mm is not None
        return occlusion(
            scorer,
            region,
            spacing,
            window_mm=method.window_mm,
            stride_mm=method.stride_mm,
            exhaustive=method.exhaustive,
            tolerance=method.tolerance,
            target=scorer.target.reference,
            changeable=ground.changeable,
        )
    if isinstance(method, Rise):
        assert method.cell_mm is not None
        return rise(
            scorer,
            region,
            spacing,
            cell_mm=method.cell_mm,
            samples=method.samples,
            keep=method.keep,
            estimator=method.estimator,
            wanted_error=method.wanted_error,
            seed=seed,
        )
    if isinstance(method, Lime):
        assert method.size_mm is not None
        pieces = supervoxels(ground.volume, region, spacing, method.size_mm, method.supervoxels)
        return lime(scorer, pieces, samples=method.samples, kernel=method.kernel, seed=seed)
    if isinstance(method, Structures):
        rest = max([*ground.names, int(ground.labels.max())]) + 1
        labels = torch.where(ground.changeable & (ground.labels == 0), rest, ground.labels.long())
        return structures(
            scorer, labels, ground.names, ground.region, spacing, own=ground.own, pairs=method.pairs, rest=rest
        )
    if isinstance(method, IntegratedGradients):
        return integrated_gradients(scorer, steps=method.steps)
    if ground.network is None:
        raise InputError("The method seg-grad-cam looks into the network, and this one cannot be looked into.")
    return seg_grad_cam(scorer, ground.network, layer=method.layer)


def name_of(method: Method) -> str:
    """What a method is called."""
    return next(name for name, kind in METHODS.items() if isinstance(method, kind))


def in_words(method: Method) -> str:
    """The method and what it was told, in a few words for a caption."""
    said = [name_of(method)]
    for parameter in fields(method):
        value = getattr(method, parameter.name)
        name = parameter.name.removesuffix("_mm").replace("_", " ")
        if isinstance(value, bool):
            said += [name] if value else []
        elif value is not None and (parameter.name.endswith("_mm") or value != parameter.default):
            unit = f" {parameter.metadata['unit']}" if parameter.metadata["unit"] else ""
            said.append(f"{name} {value:g}{unit}" if isinstance(value, (int, float)) else f"{name} {value}")
    return ", ".join(said)
