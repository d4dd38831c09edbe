"""LIME and kernel SHAP: random sets of supervoxels are removed, and a linear model says what each contributes.

References
----------
M. T. Ribeiro, S. Singh, C. Guestrin. "'Why Should I Trust You?': Explaining the Predictions of Any Classifier",
KDD 2016.
S. M. Lundberg, S.-I. Lee. "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers.base import Captions, Estimate, Method, RunningMap, Scores, size_for
from XAICLIPLib.explainers.parameters import parameter
from XAICLIPLib.system.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from XAICLIPLib.explainers.pieces.coalitions import Coalitions
    from XAICLIPLib.explainers.pieces.pieces import Pieces
    from XAICLIPLib.explainers.setting import Setting
else:
    np = lazy("numpy")

Supervoxels = Literal["slic", "felzenszwalb"]
Kernel = Literal["exponential", "shap"]

FEWEST, EACH = 200, 8
"""Samples by default: at least, and for each supervoxel."""

ALPHA = 1e-8
"""Of the ridge, over the weight of all sets: enough to make the answer unique while there are few of them, and too
little to be seen in it."""


@dataclass(frozen=True)
class Lime(Method):
    """Hide random sets of supervoxels, and fit a linear model of what each contributes."""

    name: ClassVar[str] = "lime"
    captions: ClassVar[Captions] = Captions(
        "sets of supervoxels", "because of a supervoxel, were their effects to add up", pieces=True
    )

    size_mm: float | None = parameter(
        None, "edge of a cube as large as a supervoxel; default: as the cubes of occlusion", 1, 500, "mm"
    )
    samples: int | None = parameter(
        None, "sets to hide; default: eight for each supervoxel, at least 200", 2, 1_000_000
    )
    supervoxels: Supervoxels = parameter("slic", "how the region is cut into pieces")
    kernel: Kernel = parameter("exponential", "weights of the sets: LIME's exponential kernel, or kernel SHAP's")

    def sized_for(self, volume_ml: float) -> Lime:
        """With supervoxels by the volume of the structure."""
        return replace(self, size_mm=self.size_mm or size_for(volume_ml))

    @property
    def reach_mm(self) -> float:
        """Half a supervoxel."""
        return (self.size_mm or 0.0) / 2

    def estimates(self, setting: Setting, seed: int) -> Iterator[Estimate]:
        """See `lime`; the pieces are supervoxels of the region."""
        from XAICLIPLib.explainers.pieces.supervoxels import supervoxels

        assert self.size_mm is not None
        region = setting.region & setting.changeable
        pieces = supervoxels(setting.volume, region, setting.spacing_mm, self.size_mm, self.supervoxels)
        return lime(setting.scorer, pieces, samples=self.samples, kernel=self.kernel, seed=seed)


def lime(
    scorer: Scores, pieces: Tensor, *, samples: int | None = None, kernel: Kernel = "exponential", seed: int = 0
) -> Iterator[Estimate]:
    """Remove random sets of pieces; the saliency of a piece is its coefficient in a linear model of the score lost.

    Yields an estimate after every network batch; the last one is complete. Close the iterator to cancel.

    Parameters
    ----------
    scorer
        What scores the perturbations, usually a `XAICLIPLib.scoring.scorer.Scorer`.
    pieces
        (X, Y, Z) whole numbers on the segmenter's grid: 1 ... M, each with a voxel; 0 outside. Usually
        `XAICLIPLib.explainers.pieces.supervoxels.supervoxels`.
    samples
        Sets to remove besides all pieces at once; by default `EACH` for each piece and at least `FEWEST`. There are
        never more than there are sets.
    kernel
        ``exponential``: LIME. Every piece is missing with probability 1/2, and sets near the whole count more.
        ``shap``: kernel SHAP. Sets are weighted by the Shapley kernel, and the coefficients add up to what removing all
        pieces costs; they are the Shapley values where all sets are evaluated, and estimates of them elsewhere.
    seed
        Of the sets.

    Raises
    ------
    InputError
        Fewer samples than tell the pieces apart.

    Notes
    -----
    The findings are ``pieces``, ``samples``, ``r2`` (how much of the scores the linear model explains; None where they
    do not vary), ``intercept`` (the model's loss where nothing is removed; it should be near 0, and is with kernel
    SHAP), ``removing_all`` (the score lost without any piece) and ``completeness_gap`` (how far the coefficients are
    from adding up to that). The standard error is that of chance in the choice of the sets: the sandwich estimate of
    weighted least squares.
    """
    from XAICLIPLib.explainers.pieces.pieces import Pieces

    cut = Pieces(pieces)
    count = len(cut.sizes) - 1
    if count == 0:
        yield Estimate(0, 0, _LimeMap(cut, None, np.zeros(0), kernel))
        return
    sets = _sets(count, samples, kernel, np.random.default_rng(seed))
    running = _LimeMap(cut, sets, np.full(len(sets), np.nan), kernel)
    perturbations = (cut.without(1 + np.flatnonzero(row)) for row in sets.removed)
    for batch in scorer.lost(perturbations):
        for number, value in batch:
            running.lost[number] = value
        yield Estimate(running.done, len(sets), running)


@dataclass
class _LimeMap(RunningMap):
    """What the sets scored so far say.

    Attributes
    ----------
    pieces, sets
        The pieces, and the sets of them that are removed; None where there are no pieces.
    lost
        (N,): the score lost by each set, NaN where it is not known yet.
    kernel
        Of the regression.
    """

    pieces: Pieces
    sets: Coalitions | None
    lost: NDArray[np.float64]
    kernel: Kernel
    _fitted: tuple[int, _Fit] | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """Number of pieces."""
        return len(self.pieces.sizes) - 1

    @property
    def done(self) -> int:
        """Number of sets scored."""
        return int((~np.isnan(self.lost)).sum())

    def fit(self) -> _Fit:
        """The linear model of what is known."""
        assert self.sets is not None
        if self._fitted is None or self._fitted[0] != self.done:
            self._fitted = self.done, _fit(self.sets, self.lost, self.kernel)
        return self._fitted[1]

    def saliency(self) -> Tensor:
        if self.sets is None:
            return self.pieces.paint([], [])
        return self.pieces.paint(range(1, self.count + 1), self.fit().coefficients)

    def probed(self) -> Tensor:
        return self.pieces.labels > 0

    def standard_error(self) -> Tensor | None:
        if self.sets is None or not _has_error(self.sets[~np.isnan(self.lost)]):
            return None
        errors = self.fit().standard_errors
        assert errors is not None
        return self.pieces.paint(range(1, self.count + 1), errors)

    def findings(self) -> dict[str, Any]:
        counts = {"pieces": self.count, "samples": self.done}
        return counts if self.sets is None else {**counts, **self.fit().findings}


def _sets(count: int, samples: int | None, kernel: Kernel, rng: np.random.Generator) -> Coalitions:
    """The sets to evaluate, if they are enough to tell the pieces apart."""
    from XAICLIPLib.explainers.pieces.coalitions import all_sets, exponential, shapley

    number = max(FEWEST, EACH * count) if samples is None else samples
    if number < min(2 * count, all_sets(count) - 1):
        raise InputError(
            f"{number} samples cannot tell {count} supervoxels apart: give at least {2 * count} samples, or make the "
            "supervoxels larger."
        )
    return exponential(count, number, rng) if kernel == "exponential" else shapley(count, number, rng)


@dataclass(frozen=True)
class _Fit:
    """A linear model of the score lost: each piece's coefficient and its standard error, and what else is known."""

    coefficients: NDArray[np.float64]
    standard_errors: NDArray[np.float64] | None
    findings: dict[str, Any]


def _has_error(sets: Coalitions) -> bool:
    """Whether chance chose sets, and there are more of them than coefficients."""
    return len(sets) > sets.removed.shape[1] + 1 and bool(sets.random.any())


def _fit(every: Coalitions, lost: NDArray[np.float64], kernel: Kernel) -> _Fit:
    """Weighted ridge regression of the score lost (N, NaN where not known yet) on what was removed."""
    from sklearn.linear_model import Ridge

    sets, known = every[~np.isnan(lost)], lost[~np.isnan(lost)]
    removed, weight = sets.removed.astype(np.float64), sets.weight
    if not len(known):  # the first batch of a large network may finish no set
        none = dict.fromkeys(("r2", "intercept", "removing_all", "completeness_gap"))
        return _Fit(np.zeros(removed.shape[1]), None, none)
    free = kernel == "exponential"
    if free:  # LIME counts the unperturbed volume, which loses nothing, among its samples; kernel SHAP: no intercept
        removed, weight = np.r_[removed, np.zeros((1, removed.shape[1]))], np.r_[weight, 1.0]
        known = np.r_[known, 0.0]
    others = np.arange(len(known)) > 0  # than what kernel SHAP takes for certain
    model = Ridge(alpha=ALPHA * weight[others].sum(), fit_intercept=free, solver="svd").fit(removed, known, weight)
    residual = known - model.predict(removed)
    design = np.c_[np.ones(len(removed)), removed] if free else removed
    errors = _standard_errors(design, weight, residual, sets)[int(free) :] if _has_error(sets) else None
    all_lost = float(lost[0])
    findings = {
        "r2": _r2(known[others], residual[others], weight[others]),
        "intercept": float(model.intercept_),
        "removing_all": None if np.isnan(all_lost) else all_lost,
        "completeness_gap": None if np.isnan(all_lost) else abs(float(model.coef_.sum()) - all_lost),
    }
    return _Fit(model.coef_, errors, findings)


def _r2(known: NDArray[np.float64], residual: NDArray[np.float64], weight: NDArray[np.float64]) -> float | None:
    """The share of the weighted variance that the model explains."""
    if len(known) == 0 or np.ptp(known) == 0:
        return None
    mean = np.average(known, weights=weight)
    return float(1 - (weight * residual**2).sum() / (weight * (known - mean) ** 2).sum())


def _standard_errors(
    design: NDArray[np.float64], weight: NDArray[np.float64], residual: NDArray[np.float64], sets: Coalitions
) -> NDArray[np.float64]:
    """Sandwich estimate (P) of weighted least squares with a design (N, P) whose first rows are these sets.

    Only what chance chose adds to the variance, sets drawn together as one. Residuals are divided by 1 - leverage, as
    the model has bent towards them (HC3).
    """
    bread = np.linalg.pinv((design * weight[:, None]).T @ design, hermitian=True)
    leverage = weight * np.einsum("ij,ij->i", design @ bread, design)
    pull = weight * residual / np.clip(1 - leverage, 1e-3, None)
    random = np.flatnonzero(sets.random)
    influence = (design[random] * pull[random, None]) @ bread
    _, first, draw = np.unique(sets.group[random], return_index=True, return_inverse=True)
    together = np.zeros((len(first), design.shape[1]))
    np.add.at(together, draw, influence)
    errors: NDArray[np.float64] = np.sqrt((together**2 * sets.randomness[random][first, None]).sum(axis=0))
    return errors
