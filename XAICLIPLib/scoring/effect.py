"""What a perturbation costs, split by where the loss lands.

To hide the organ removes the organ: true, and trivial. What the rest of the target loses because a place was hidden is
the explanation. Both come from the same network calls.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effect:
    """The score that a perturbation costs.

    Every score is made from what each target voxel contributes, so that the loss is a sum over them: for soft Dice
    D = 2 I / (P + R) with the probabilities p before and p' after, the reference r, and P' the sum of p',

        D - D' = sum over v of (p_v - p'_v) (2 r_v - D) / (P' + R),

    exactly. A voxel whose probability stays gets 0, so that a network that looks at single voxels has no remote effect.

    Attributes
    ----------
    total
        The score lost.
    local
        The share of the voxels whose own input was changed.
    added
        The share of voxels outside the reference that became more probable: what the network draws elsewhere instead.
    landed
        The loss by group of target voxels, where groups were given; it sums up to the total.
    """

    total: float
    local: float
    added: float = 0.0
    landed: tuple[float, ...] = ()

    @property
    def remote(self) -> float:
        """The share of the voxels whose own input stayed what it was."""
        return self.total - self.local
