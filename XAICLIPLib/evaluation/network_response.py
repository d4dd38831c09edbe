"""Whether a network's output depends on the scan and on nothing else: both are tested before the map is computed.

With dropout or batch statistics left on, the output changes from run to run, and any map is partly chance. A network
whose output is the same for every scan has no map. Three patches show both, before the first perturbation.
"""

from __future__ import annotations

from torch import Tensor

from XAICLIPLib.evaluation.reliability_flag import ReliabilityFlag
from XAICLIPLib.scoring.scorer import Scorer

CHANCE = 0.01
"""Relative root mean square difference of two outputs for the same patch above which the network counts as random.

Different algorithms for different batch sizes cause differences of 1e-5, on GPUs with TF32 of 1e-3."""

UNMOVED = 1e-6
"""A relative change of the output below this is rounding."""


def response_flags(scorer: Scorer) -> list[ReliabilityFlag]:
    """Compare the network's outputs for one patch: run twice, in different batches, and with the target hidden.

    The patch is the one that holds most of the target.
    """
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
    """Root mean square of the change of the logits, divided by that of the logits."""
    scale = float(before.double().square().mean().sqrt())
    return float((after.double() - before.double()).square().mean().sqrt()) / (scale or 1.0)
