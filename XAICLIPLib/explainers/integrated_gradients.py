"""Integrated gradients, for comparison: gradients of the score on the way from the baseline to the scan.

They need a network that can be differentiated, explain the same score over the same target as the perturbation methods
do, are exact under the sliding window, and hold the graphs of two patches at a time.

References
----------
M. Sundararajan, A. Taly, Q. Yan. "Axiomatic Attribution for Deep Networks", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from XAICLIPLib.errors import MethodUnsuited
from XAICLIPLib.explainers.base import Captions, Estimate, Method, RunningMap
from XAICLIPLib.explainers.parameters import parameter
from XAICLIPLib.system.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from XAICLIPLib.explainers.setting import Setting
    from XAICLIPLib.scoring.scorer import Scorer
else:
    np, torch = lazy("numpy"), lazy("torch")


@dataclass(frozen=True)
class IntegratedGradients(Method):
    """For comparison: gradients of the score along the way from the baseline to the scan."""

    name: ClassVar[str] = "integrated-gradients"
    captions: ClassVar[Captions] = Captions(
        "steps", "", "attribution per voxel (share of the {score})", "Region of interest"
    )

    steps: int = parameter(32, "points on the way", 2, 1000)

    def estimates(self, setting: Setting, seed: int) -> Iterator[Estimate]:
        """See `integrated_gradients`."""
        return integrated_gradients(setting.scorer, steps=self.steps)


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
    from scipy.stats.qmc import Halton

    baseline = fixed_baseline(scorer, "Integrated gradients")
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    order = Halton(1, scramble=False).random(steps).ravel().argsort()
    difference = scorer.volume - baseline
    change = scorer.differentiable_score() - scorer.differentiable_score(baseline)
    running = _GradientsMap(torch.zeros_like(difference), difference, change)
    for done, point in enumerate(order, 1):
        gradient = scorer.gradient(baseline + float(nodes[point] + 1) / 2 * difference)
        running.total += float(weights[point]) * gradient
        running.covered += float(weights[point])
        yield Estimate(done, steps, running)


def fixed_baseline(scorer: Scorer, method: str) -> Tensor:
    """(C, X, Y, Z): the baseline of a scorer, on the volume's device.

    Raises
    ------
    InputError
        It is another one for each perturbation: ``method`` needs one.
    """
    if not isinstance(scorer.baseline, torch.Tensor):
        raise MethodUnsuited(
            f"{method} need one baseline for the whole volume, and surroundings are others for each place",
            "choose the baseline air, mean or blur.",
        )
    return scorer.baseline.to(scorer.volume)


@dataclass
class _GradientsMap(RunningMap):
    """What the points so far say.

    Attributes
    ----------
    total
        (C, X, Y, Z): weighted sum of the gradients.
    difference
        (C, X, Y, Z): of the volume from the baseline.
    change
        Of the score, from the baseline to the volume.
    covered
        Sum of the weights.
    """

    total: Tensor
    difference: Tensor
    change: float
    covered: float = 0.0

    def saliency(self) -> Tensor:
        return (self.total * self.difference).sum(0).float().cpu() / self.covered

    def probed(self) -> Tensor:
        return torch.ones(self.difference.shape[1:], dtype=torch.bool)

    def findings(self) -> dict[str, Any]:
        gap = abs(float(self.saliency().sum(dtype=torch.float64)) - self.change)
        return {"score_change": self.change, "completeness_gap": gap}
