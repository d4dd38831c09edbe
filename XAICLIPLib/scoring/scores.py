"""How well a target survives: scores from logits.

A score is made from what each voxel contributes, so that a change of some voxels changes it by what they contribute.
"""

from __future__ import annotations

import torch
from torch import Tensor

from XAICLIPLib.scoring.options import Score
from XAICLIPLib.segmentation.segmenter import Activation


def probability(logits: Tensor, label: int | tuple[int, ...], activation: Activation) -> Tensor:
    """Probability of one channel, or of any of several, from logits (K, ...)."""
    channels = [label] if isinstance(label, int) else list(label)
    if activation == "softmax":
        return logits.softmax(0)[channels].sum(0)
    return logits[channels].amax(0).sigmoid()


def decided(logits: Tensor, label: int | tuple[int, ...], activation: Activation) -> Tensor:
    """Whether each voxel is given to one channel, or to any of several, from logits (K, ...)."""
    channels = [label] if isinstance(label, int) else list(label)
    if activation == "softmax":
        return torch.isin(logits.argmax(0), torch.tensor(channels, device=logits.device))
    return logits[channels].amax(0) > 0


def voxel_values(kind: Score, logits: Tensor, label: int | tuple[int, ...], activation: Activation) -> Tensor:
    """What each voxel contributes to a score, from logits (K, n): a tensor (n).

    The probability for ``soft dice`` and ``mean probability``; 0 or 1, as the network decides, for ``hard dice``; for
    ``logit margin`` how far the target's logit lies above the best other one (with sigmoid: above 0, where the
    probability is one half), of either sign.
    """
    if kind == "hard dice":
        return decided(logits, label, activation).to(logits.dtype)
    if kind != "logit margin":
        return probability(logits, label, activation)
    channels = [label] if isinstance(label, int) else list(label)
    own = logits[channels].amax(0)
    others = [k for k in range(len(logits)) if k not in channels]
    return own - logits[others].amax(0) if activation == "softmax" and others else own


def score_of(kind: Score, inside: Tensor, total: Tensor, size: Tensor | int) -> Tensor:
    """A score from the sums of `voxel_values` over the reference and over all voxels, and the reference's size."""
    if kind in ("soft dice", "hard dice"):
        return 2 * inside / (total + size)
    return inside / size


def share_of(kind: Score, reference: Tensor, score: float, total: Tensor, size: int) -> Tensor:
    """What of a score each voxel's value carries, so that a loss is a sum over voxels.

    A score lost is exactly the sum over the voxels of (value before - value after) times this; see
    `XAICLIPLib.scoring.effect.Effect`.

    Parameters
    ----------
    kind
        The score.
    reference
        (n) bool.
    score
        Before the change.
    total
        Sum of all values after it.
    size
        Of the reference.
    """
    if kind in ("soft dice", "hard dice"):
        return (2 * reference.to(total.dtype) - score) / (total + size)
    return reference.to(total.dtype) / size


def target_score(
    kind: Score, logits: Tensor, reference: Tensor, label: int | tuple[int, ...], activation: Activation
) -> Tensor:
    """Score of logits (K, n) against the reference (n) bool, a scalar tensor.

    ``soft dice`` is 2 sum(p r) / (sum(p) + sum(r)) with the probability p and the reference r; ``hard dice`` takes the
    decided voxels for p; ``mean probability`` is the mean of p over the reference; all these lie in [0, 1]. ``logit
    margin`` is the mean over the reference of how far the target's logit lies above the others: it has no bounds, and
    says how sure the network is where the probabilities are all 1.
    """
    values = voxel_values(kind, logits, label, activation)
    return score_of(kind, values[reference].sum(), values.sum(), reference.sum())
