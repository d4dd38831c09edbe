"""What an explainer works on: the scorer of one target on one scan, and what surrounds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import SimpleITK as sitk
import torch
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.scoring.baselines import baseline_for, with_held
from XAICLIPLib.scoring.options import Baseline, Part, Precision, Score
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.target import Target
from XAICLIPLib.segmentation.prediction import Inference, label_values, network_near, values_of


@dataclass(frozen=True)
class Setting:
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
        (X, Y, Z) whole numbers: what the network drew; where classes overlap, a number for each set of classes.
    names
        Structure by number; 0 is what belongs to none.
    spacing_mm
        Voxel size along X, Y and Z.
    network
        The network itself, for methods that look into it; None where it is not to be had.
    parts
        Of each structure's number, where structures overlap, all numbers in ``labels`` where it is.
    """

    scorer: Scorer
    volume: Tensor
    region: Tensor
    changeable: Tensor
    labels: Tensor
    names: Mapping[int, str]
    spacing_mm: tuple[float, float, float]
    network: torch.nn.Module | None = None
    parts: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        inference: Inference,
        decision: Tensor,
        target: Target,
        image: sitk.Image,
        region: sitk.Image | None = None,
        *,
        baseline: Baseline = "air",
        score: Score = "soft dice",
        batch_size: int | None = None,
        precision: Precision = "full",
        effect: Part = "total",
        shared: Mapping[int, tuple[int, ...]] = MappingProxyType({}),
    ) -> Setting:
        """A target of a prediction, ready to be explained.

        Parameters
        ----------
        inference
            The network with the scan as it sees it; a `XAICLIPLib.segmentation.prediction.Prediction` is one.
        decision
            (X, Y, Z) whole numbers: what the network drew, as `Prediction.decision` gives it.
        target
            What is explained.
        image
            The scan, in which the body is looked for.
        region
            The mask, on any grid, of where perturbations are made; None: everywhere.
        baseline, score, batch_size, precision, effect
            As in `XAICLIPLib.explain`.
        shared
            The numbers of ``decision`` that stand for several overlapping classes, as `Prediction.shared` gives them.

        Raises
        ------
        InputError
            Nothing of the region can be perturbed, or the target is empty.
        """
        prepared, segmenter = inference.prepared, inference.segmenter
        channels = len(prepared.tensor)
        scan = inference.volume[:channels]
        held = None if prepared.held is None else inference.volume[channels:]
        whole = torch.ones(prepared.tensor.shape[1:], dtype=torch.bool)
        probed = whole if region is None else prepared.mask_from(region)
        body = prepared.mask_from(imaging.body_mask(image))
        replacement, changeable = baseline_for(baseline, scan, probed, prepared.spacing_mm, body)
        if not bool((probed & changeable).any()):
            raise InputError(
                "Nothing of the region lies in the part of the volume that the network sees: choose another region."
            )
        forward, patches = network_near(segmenter, inference.tiling, target.voxels)
        scorer = Scorer(
            forward,
            inference.volume,
            with_held(replacement, held),
            patches,
            target,
            segmenter.activation,
            score,
            batch_size,
            precision,
            effect,
            len(segmenter.labels),
        )
        values = label_values(segmenter)
        names = {values[channel]: name for channel, name in segmenter.labels.items() if values[channel]}
        network = getattr(segmenter, "network", None)
        parts = {values[channel]: values_of(segmenter, shared, [channel]) for channel in segmenter.labels}
        return cls(scorer, scan, probed, changeable, decision.cpu(), names, prepared.spacing_mm, network, parts)

    @property
    def target_numbers(self) -> tuple[int, ...]:
        """Numbers of the target in ``labels``."""
        label = self.scorer.target.label
        first = int(self.scorer.activation == "sigmoid")
        return tuple(channel + first for channel in ((label,) if isinstance(label, int) else label))
