"""An explanation in a few lines for a person at a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from XAICLIPLib.explainers import methods
from XAICLIPLib.system.displaytext import one_line

if TYPE_CHECKING:
    from XAICLIPLib.explanation import Explanation


LEAST_CREDIT = 0.005
"""A structure with less credit than that is not worth a line."""


def where_written(explanation: Explanation, written: Mapping[str, Path]) -> str:
    """Where the files of an explanation are, and whether they hold all of it."""
    what = "Written" if explanation.complete else "Interrupted; the partial result was written"
    return f"{what} to {written['figure'].parent}: {', '.join(path.name for path in written.values())}"


def for_programs(written: Mapping[str, Path]) -> dict[str, Any]:
    """The record of an explanation with the paths of its files, for JSON.

    It is read from the file, which has null for numbers that are not finite: JSON cannot hold those.
    """
    record: dict[str, Any] = json.loads(written["explanation"].read_text(encoding="utf-8"))
    return record | {"files": {name: str(path.resolve()) for name, path in written.items()}}


def summary(explanation: Explanation) -> str:
    """An explanation in a few lines for a person."""
    values, region, name = explanation.measurements, explanation.region, one_line(explanation.target["name"])
    target = "the mask given" if explanation.target["voxels"] == "given" else "what the network drew"
    region_words = {
        "guided": "the region found for the prompt",
        "prediction box": "a box around what the network drew",
        "guided and prediction": "the region found for the prompt, and what the network drew beside it",
        "whole": "the whole scan",
        "prediction": "what the network drew, and a margin",
        "file": "the mask given",
    }[region.source]
    overlap = f", with {region.agreement.recall:.0%} of {target} inside" if region.agreement else ""
    lines = [
        f"Explained: {name}, {values['target_volume_ml']:.0f} ml ({target})",
    ]
    captions = methods.METHODS[explanation.record["parameters"]["method"]].captions
    if "structures" in values:
        lines += [
            f"Tried:     {len(values['structures'])} structures were removed whole, those in or across {region_words}",
            f"Effect:    of the score of {values['score_unperturbed']:.3f} up to "
            f"{max(0.0, values['largest_score_lost']):.3f} was lost ({captions.value})",
        ]
    elif captions.value:
        lines += [
            f"Tried:     {region_words}, {region.volume_ml:.0f} ml, {region.share_of_body:.0%} of the body{overlap}",
            f"Effect:    hiding a part of it lowers the score of {values['score_unperturbed']:.3f} by up to "
            f"{max(0.0, values['largest_score_lost']):.3f} ({captions.value})",
        ]
    elif "credit_of_organ" in values:
        lines.append(f"Tried:     the {name} and all around it, each with the other and without it, by gradients")
    else:
        lines.append("Tried:     nothing was hidden: gradients over all that the network sees around the target")
    if "credit_of_organ" in values:
        lines += [
            f"Credit:    {values['credit_of_organ']:.3f} of the score to the {name} itself, "
            f"{values['credit_of_context']:.3f} to what lies around it",
            f"           shown alone, the {name} scores {values['organ_alone']:.3f}, and all around it "
            f"{values['context_alone']:.3f}, of {values['score_unperturbed']:.3f}",
        ]
    for row in values.get("context_credits", [])[:3]:
        if abs(row["credit"]) >= LEAST_CREDIT and row["volume_ml"]:
            lines.append(f"           around it, {one_line(row['structure'])}: {row['credit']:+.3f}")
    for row in values.get("structures", [])[:5]:
        without = f"           without {one_line(row['structure'])}"
        lines.append(f"{without}: {row['score_lost']:+.3f} lost ({row['volume_ml']:.0f} ml)")
    if values.get("not_removed"):
        lines.append(f"           not removed, as they lie outside: {', '.join(map(one_line, values['not_removed']))}")
    if values["effect_inside_target"] is None:
        lines.append("           nothing made any difference")
    elif "structures" in values:
        lines.append(
            f"           {values['effect_inside_target']:.0%} of all that was lost went with {name} itself; were all "
            f"structures alike, {values['effect_inside_target_if_uniform']:.0%} would"
        )
    elif "credit_of_organ" not in values:  # the two credits say it already
        lines.append(
            f"           {values['effect_inside_target']:.0%} of the effect lies inside the structure; spread evenly, "
            f"{values['effect_inside_target_if_uniform']:.0%} would"
        )
    follows = values.get("correlation_with_overlap")
    if follows is not None:
        lines.append(
            f"           the effect of a cube follows how much of the {name} it hides: r = {follows:.2f} (1: it is "
            "the outline again)"
        )
    record = explanation.record
    regions = record.get("key_regions") or {}
    kinds = (
        ("sufficient", "Enough:   ", "shown alone keep {keeps:.0%}"),
        ("necessary", "Needed:   ", "hidden cost {costs:.0%}"),
    )
    for kind, heading, words in kinds:
        if regions and (by_map := regions[kind]["map"]) is not None:
            outline = regions[kind]["outline"]
            beside = f"; in the order of the outline it takes {outline['volume_ml']:.0f} ml" if outline else ""
            lines.append(f"{heading} {by_map['volume_ml']:.0f} ml {words.format(**regions)} of the score{beside}")
    if record.get("faithfulness") or record.get("stability"):
        lines += ["Checked:"] + [
            f"           {'passed' if not flag['raised'] else 'FAILED'}: {flag['sentence']}"
            for flag in record["reliability"]
            if flag["name"] in ("like the null", "no more than the outline", "unstable")
        ]
    work = f"{sum(record['timings_s'].values()):.0f} s on {record['parameters']['device']}"
    work += f", {values['perturbations']} {captions.counted}"
    full, computed = values["patches_full_inference_would_compute"], values["patches_computed"]
    if computed:
        work += f", {computed} network patches"
        if full > computed:
            work += f" instead of {full}" + (f" ({full / computed:.1f} times fewer)" if full > 1.1 * computed else "")
    return "\n".join([*lines, f"Work:      {work}"])
