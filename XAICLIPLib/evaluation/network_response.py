"""Whether a network answers at all: the same to the same scan, and something else to another one.

Dropout or batch statistics that were left on make any map a matter of chance, and a network that answers the same to
everything has no map. Both show in three patches, before a single perturbation.
"""

from __future__ import annotations

from torch import Tensor

from XAICLIPLib.evaluation.reliability_flag import ReliabilityFlag
from XAICLIPLib.scoring.scorer import Scorer

CHANCE = 0.01
"""Root mean square of the difference of two answers to the same patch, over that of the answer, from which chance has a
part in it. Other algorithms for other batches differ by 1e-5, on GPUs with TF32 by 1e-3."""

UNMOVED = 1e-6
"""Below this an answer has not changed but for rounding."""


def response_flags(scorer: Scorer) -> list[ReliabilityFlag]:
    """Show the network the patch with most of the target twice, once together with another, and once without it."""
    once, again, hidden = scorer.answers()
    name = scorer.target.name
    chance = _change(once, again)
    flags = [
        ReliabilityFlag(
            "answers by chance",
            f"Shown the same scan twice, the network gives two answers, which differ by {chance:.0%}: dropout or batch "
            "statistics were left on, as in training, and this map is partly chance. Set the network to evaluation."
            if chance > CHANCE
            else "Shown the same scan twice, the network gives the same answer.",
            chance,
            CHANCE,
            chance > CHANCE,
        )
    ]
    if hidden is not None:
        change = _change(once, hidden)
        flags.append(
            ReliabilityFlag(
                "answers the same",
                f"The network's answer is the same with all of the {name} hidden: it does not look at the scan there, "
                "and this map explains nothing."
                if change <= UNMOVED
                else f"The network's answer is another one with all of the {name} hidden.",
                change,
                UNMOVED,
                change <= UNMOVED,
            )
        )
    return flags


def _change(before: Tensor, after: Tensor) -> float:
    """Root mean square of a change of logits over that of the logits."""
    scale = float(before.double().square().mean().sqrt())
    return float((after.double() - before.double()).square().mean().sqrt()) / (scale or 1.0)
