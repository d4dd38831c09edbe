"""The experiment as a table and as sentences: which of the paper's claims hold here, and which come from its metric.

Every sentence is made from the numbers; none names a file or a patient.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from XAICLIPLib.experiment.benchmark import Outcome, Plan, parameters_of
from XAICLIPLib.experiment.comparison import Gains, Interval, gains, mean_over_cases
from XAICLIPLib.experiment.map_measurements import COLUMNS, REGIONS, MapMeasurements
from XAICLIPLib.system.displaytext import for_csv
from XAICLIPLib.system.files import atomic_file

PAPER_TIME, PAPER_DICE, PAPER_IOU = -0.60, 0.446, 0.967
"""What the XAI-CLIP paper reports of occlusion, guided against unguided: up to 60% less time, 44.6% more Dice, 96.7%
more IoU (arXiv 2602.07017, abstract)."""

FEW_CASES = 10
"""With fewer cases, an interval is valid only for normally distributed cases, which so few cases cannot show."""

SEEN_OUTSIDE = {
    "occlusion": "a guided map shows of it what lies within a window of the region",
    "structures": "a guided map shows of it what belongs to structures that reach into the region",
}
"""Which part of the effect outside the region a guided map shows, for the methods that show any of it."""

REGION_WORDS = {"guided": "guided", "whole": "unguided"}


def write_csv(rows: Sequence[MapMeasurements], path: Path) -> None:
    """Write the measurements of all maps as CSV, one map on each line."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow(_cell(getattr(row, column)) for column in COLUMNS)


def write_report(outcome: Outcome, plan: Plan, path: Path, figure: str | None = "figure.png") -> None:
    """Write the report, in Markdown."""
    with atomic_file(path) as temporary:
        temporary.write_text(report(outcome, plan, figure), encoding="utf-8")


def report(outcome: Outcome, plan: Plan, figure: str | None = None) -> str:
    """The report, in Markdown; ``figure`` is the picture beside it."""
    rows = outcome.rows
    cases, structures = sorted({r.case for r in rows}), list(dict.fromkeys(r.structure for r in rows))
    compared = [result for m in plan.methods if (result := gains(rows, m)) is not None]
    parts = [
        "# Guided against unguided explanations",
        f"{len(rows)} {_plural('map', len(rows))} of {len(cases)} {_plural('case', len(cases))} "
        f"({', '.join(map(str, cases))}) and {len(structures)} {_plural('structure', len(structures))} "
        f"({', '.join(structures)}), by `xaiclip benchmark`."
        + ("" if outcome.complete else " **Interrupted: more was to be measured.**"),
    ]
    if not rows:
        return "\n\n".join([*parts, "Nothing was measured.", *_left_out(outcome)]) + "\n"
    parts += ["## What holds", *(_bullets(sentences(result)) for result in compared), *_alone(rows, plan)]
    if compared:
        parts += ["## Gains by guiding, beside the paper's", gains_table(compared), _how_gains()]
    parts += ["## Means over the cases", means_table(rows, plan), HOW_TO_READ]
    if figure:
        parts.append(f"![Time, overlap and faithfulness of each method]({figure})")
    parts += ["## How it was made", _bullets(_made(outcome, plan)), *_left_out(outcome)]
    return "\n\n".join(parts) + "\n"


# --- sentences ----------------------------------------------------------------------------------


def sentences(result: Gains) -> list[str]:
    """What a method's numbers say about the paper's claims, in plain words."""
    lines = [_on_time(result), _on_overlap(result), _on_faithfulness(result)]
    if result.outside is not None:
        seen = SEEN_OUTSIDE.get(result.method, "a guided map cannot show it")
        lines.append(
            f"{result.outside.value:.0%}{_range(result.outside, plain=True)} of the effect in the unguided map lies "
            f"outside the guided region (of an even map's {result.outside_chance:.0%} would): {seen}."
        )
    cases, pairs = _plural("case", result.cases), _plural("pair", result.maps)
    lines[0] = f"**{result.method}** ({result.cases} {cases}, {result.maps} {pairs} of maps). {lines[0]}"
    return lines


def _on_time(result: Gains) -> str:
    time, total = result.explain_time, result.total_time
    if time is None:
        return "Time cannot be compared."
    what = f"Guiding changes the time of explaining by {_change(time)}"
    if total is not None:
        what += f", and with segmenting and finding the region by {_change(total)}"
    if time.sign > 0:
        verdict = "the claim of less time does not hold here"
    elif time.sign == 0:
        verdict = "whether it takes less time is not decided by these cases"
    elif time.value <= PAPER_TIME:
        verdict = "the claim of up to 60% less time holds here, and more"
    else:
        verdict = "it does take less time, within the paper's up to 60%"
    if time.sign < 0 and total is not None and total.sign > 0:
        verdict += ", but finding the region takes more than it saves"
    return f"{what}: {verdict}{_about_occlusion(result)}."


def _on_overlap(result: Gains) -> str:
    dice, iou, null = result.dice, result.iou, result.null_dice
    if dice is None or iou is None or null is None or result.null_iou is None:
        return "The unguided maps overlap the organ nowhere, so that there is no relative gain in Dice."
    what = f"Dice with the organ changes by {_change(dice)} and IoU by {_change(iou)} (the paper: +44.6% and +96.7%)"
    control = (
        f"a map that knows nothing of the network, cut to the same region, changes them by {null.value:+.0%} and "
        f"{result.null_iou.value:+.0%}"
    )
    if dice.sign < 0 or (dice.sign == 0 and dice.value <= 0):
        return f"{what}: the claimed gain does not show here; {control}."
    if null.value >= dice.value:
        return (
            f"{what}; {control}: the gain is an artefact of the metric, which the region alone wins, and says nothing "
            "about the explanation."
        )
    doubt = "" if dice.sign else " (these cases do not decide whether there is a gain at all)"
    return f"{what}{doubt}; {control}: the rest, {dice.value - null.value:.0%}, is not the region's doing alone."


def _on_faithfulness(result: Gains) -> str:
    change = result.faithfulness
    if change is None:
        return "Faithfulness cannot be compared."
    verdict = {
        1: "guided maps are the more faithful ones",
        -1: "guided maps are the less faithful ones",
        0: "no difference is shown by these cases",
    }[change.sign]
    ends = (
        "" if change.low is None or change.high is None else f" (95% interval {change.low:+.3f} to {change.high:+.3f})"
    )
    return (
        f"Faithfulness, the area between insertion and deletion, which drawing the region cannot raise, changes by "
        f"{change.value:+.3f}{ends}: {verdict}."
    )


def _about_occlusion(result: Gains) -> str:
    return "" if result.method == "occlusion" else " (the paper's number is of occlusion)"


def _alone(rows: Sequence[MapMeasurements], plan: Plan) -> list[str]:
    """Compare the maps of each method and region with random orders and with the best control map."""
    lines = []
    for method, region, some in _groups(rows, plan):
        faithful, chance = (
            mean_over_cases(some, quantity) for quantity in (lambda r: r.faithfulness, lambda r: r.random_faithfulness)
        )
        better = sum(row.faithfulness > row.random_faithfulness for row in some)
        above = sum(row.lead > 0 for row in some)
        lines.append(
            f"{method}, {REGION_WORDS[region]}: more faithful than a random order in {better} of {len(some)} maps "
            f"(mean {faithful:+.3f}, chance {chance:+.3f}); overlaps the organ better than the best null map in the "
            f"same region in {above} of {len(some)}."
        )
    return ["Against controls:", _bullets(lines)]


# --- tables -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    head: str
    of: Callable[[MapMeasurements], float]
    form: str


_COLUMNS = (
    _Column("explain, s", lambda r: r.explain_s, ".1f"),
    _Column("total, s", lambda r: r.total_s, ".1f"),
    _Column("perturbations", lambda r: r.perturbations, ".0f"),
    _Column("patches", lambda r: r.patches, ".0f"),
    _Column("Dice", lambda r: r.dice, ".3f"),
    _Column("null × region", lambda r: r.null_dice, ".3f"),
    _Column("IoU", lambda r: r.iou, ".3f"),
    _Column("null × region", lambda r: r.null_iou, ".3f"),
    _Column("deletion ↓", lambda r: r.deletion, ".3f"),
    _Column("random", lambda r: r.random_deletion, ".3f"),
    _Column("insertion ↑", lambda r: r.insertion, ".3f"),
    _Column("random", lambda r: r.random_insertion, ".3f"),
    _Column("pointing", lambda r: r.pointing, ".2f"),
    _Column("chance", lambda r: r.pointing_chance, ".2f"),
    _Column("mass in organ", lambda r: r.mass, ".2f"),
    _Column("chance", lambda r: r.mass_chance, ".2f"),
    _Column("effect outside region", lambda r: r.outside, ".2f"),
    _Column("chance", lambda r: r.outside_chance, ".2f"),
)


def means_table(rows: Sequence[MapMeasurements], plan: Plan) -> str:
    """One line for each method and region: means over the cases of the mean over each one's structures."""
    lines = [
        [method, REGION_WORDS[region], str(len(some)), *(format(mean_over_cases(some, c.of), c.form) for c in _COLUMNS)]
        for method, region, some in _groups(rows, plan)
    ]
    return _table(["method", "region", "maps", *(c.head for c in _COLUMNS)], lines, words=2)


def gains_table(compared: Sequence[Gains]) -> str:
    """One line with the paper's numbers, and one for each method."""
    head = ["method", "cases", "explain time", "total time", "patches", "Dice", "null × region: Dice", "IoU"]
    head += ["null × region: IoU", "faithfulness"]
    lines = [
        ["*XAI-CLIP paper, occlusion*", "", "up to −60%", "", "", "+44.6%", "not told", "+96.7%"] + ["not told"] * 2
    ]
    for result in compared:
        changes = (result.explain_time, result.total_time, result.patches, result.dice, result.null_dice, result.iou)
        shown = ["–" if c is None else _change(c) for c in (*changes, result.null_iou)]
        assert result.faithfulness is not None
        ends = _range(result.faithfulness, form="+.3f")
        lines.append([result.method, str(result.cases), *shown, f"{result.faithfulness.value:+.3f}{ends}"])
    return _table(head, lines, words=1)


HOW_TO_READ = (
    "Dice and IoU are the paper's: the map, within its region, divided by its maximum and thresholded at 0.5, against "
    "the expert's label. *null × region* is the best of four maps that know nothing of the network (even, depth in the "
    "region, white and smooth noise), cut to the same region and treated alike; for unguided maps the region is the "
    "whole scan. A map at or below it owes its overlap to the region. *Deletion* and *insertion* are areas under the "
    "soft Dice while voxels are removed or restored in the map's order, over the logarithm of the volume; *random* "
    "are random orders of cubes. Faithfulness is insertion less deletion. *Effect outside region* is the share of the "
    "absolute values that lies outside the guided region (occlusion reaches a window beyond it); *chance* is an even "
    "map's over all that was tried. "
    "Methods that take gradients do not count their passes as patches."
)


def _how_gains() -> str:
    return (
        "Relative changes of the means over cases, the unguided map being 100%; in brackets 95% intervals by Student's "
        "t over cases, in pairs; the sentences call a change decided where the whole interval lies on one side of 0. "
        "*null × region* is what a map that knows nothing gains over the explainer's own unguided map just by being "
        "cut to the region. Faithfulness is a difference."
    )


def _groups(rows: Sequence[MapMeasurements], plan: Plan) -> list[tuple[str, str, list[MapMeasurements]]]:
    keys = [(method, region) for method in plan.methods for region in REGIONS]
    groups = [(m, r, [row for row in rows if (row.method, row.region) == (m, r)]) for m, r in keys]
    return [group for group in groups if group[2]]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> str:
    rule = ["---" if n < words else "---:" for n in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


# --- provenance ---------------------------------------------------------------------------------


def _made(outcome: Outcome, plan: Plan) -> list[str]:
    settings, rows = outcome.settings, outcome.rows
    machines = sorted({row.machine for row in rows})
    lines = [
        f"Dataset: {settings['dataset'] or 'given'}, of {settings['cases']} cases; they are told by their numbers.",
        *(f"{what.capitalize()}: {_named(settings[what])}." for what in ("model", "localizer")),
        f"Score: {plan.score}; baseline: {plan.baseline}; seed {plan.seed}. Curves: {plan.points} points, "
        f"{plan.random_orders} random {_plural('order', plan.random_orders)}, soft Dice.",
        *(f"{method}: {_parameters(method, plan)}, the same guided and unguided." for method in plan.methods),
        f"Seconds were measured on {' and on '.join(machines)}"
        + ("; do not compare those of different machines." if len(machines) > 1 else "."),
        f"XAI-CLIP {settings['version']}.",
    ]
    if plan.paper_like:
        lines.append(
            "Paper-like: parameters that are told of the paper at second hand, in mm instead of pixels; they are not "
            "known to be the paper's."
        )
    guided = [row for row in rows if row.region == "guided"]
    extended = sum(row.region_source == "guided and prediction" for row in guided)
    fallen = sum(row.region_source != "guided" for row in guided) - extended
    if fallen:
        lines.append(
            f"In {fallen} of {len(guided)} guided maps the localizer's region was no use, and the box around the "
            "network's own drawing was taken."
        )
    if extended:
        lines.append(f"In {extended} of {len(guided)} guided maps what the network draws outside the region was added.")
    if len({row.case for row in rows}) < FEW_CASES:
        lines.append(
            f"With fewer than {FEW_CASES} cases, the intervals rest on the cases being normally distributed: they "
            "are wide, and to be read as a hint."
        )
    return lines


def _parameters(method: str, plan: Plan) -> str:
    parameters = parameters_of(method, plan)
    texts = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in parameters.items()}
    lines = [f"{name} {texts[name]}" for name, value in parameters.items() if value is not None]
    if method == "lime" and parameters.get("samples") is not None:
        lines.append("but at least two sets for each supervoxel of the whole scan, and all sets where there are fewer")
    by_size = any(name in parameters and parameters[name] is None for name in ("window_mm", "cell_mm", "size_mm"))
    return ", ".join(lines + ["size by the volume of the structure"] * by_size) or "no parameters"


def _named(provenance: Mapping[str, Any]) -> str:
    check = provenance.get("sha256")
    return f"{provenance.get('name', 'unnamed')}" + (f" (SHA-256 {str(check)[:12]}…)" if check else "")


def _left_out(outcome: Outcome) -> list[str]:
    if not outcome.left_out:
        return []
    return [
        "## Left out",
        "Could not be measured; why is told where the command was run, and in problems.txt, which may name files:",
        _bullets(outcome.left_out),
    ]


# --- words --------------------------------------------------------------------------------------


def _change(interval: Interval) -> str:
    return f"{interval.value:+.0%}{_range(interval)}".replace("-", "−")


def _range(interval: Interval, plain: bool = False, form: str = "") -> str:
    if interval.low is None or interval.high is None:
        return ""
    form = form or (".0%" if plain else "+.0%")
    return f" ({interval.low:{form}} to {interval.high:{form}})"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else for_csv(value)
