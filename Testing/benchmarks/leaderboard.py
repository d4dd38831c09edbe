"""Which map says more than the outline: every method on real organs, beside the controls, at one anatomical scale.

Cubes of 12 mm are removed (deletion) and shown (insertion) as wholes, in the order of each map: everywhere (``whole``),
within what the network draws (``within``: which part of the organ carries it?), and outside it (``outside``: which
context?). The figure is the area of insertion less that of deletion, over the logarithm of the volume; high is good.
The outline's controls stand beside the methods, and the lead is that over the better one of mask and depth.

Beside the areas stands how much of the scan is *enough*: the shortest beginning of each order that keeps 90% of the
score when all else is hidden (`XAICLIPLib.evaluation.key_regions`); low is good. Its controls are the outline's depth
and orders that take the organ first and go on by brightness, by edges, or by both nearness and edges.

Choices are made on the subjects 18 and 19 (``--subjects 18,19``); the table in ``EXPLAINERS.md`` is of 20 to 23 and of
the CT of another source. Results are kept in ``--work`` and the program goes on where it was stopped.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from setting import CPU, Subject, arguments
from torch import Tensor

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.evaluation.controls import GRAIN_MM, centre_map, edge_map, outline_maps, random_map
from XAICLIPLib.evaluation.curves import removal_curves
from XAICLIPLib.evaluation.key_regions import KINDS, key_region
from XAICLIPLib.explainers import methods
from XAICLIPLib.explainers.base import final
from XAICLIPLib.explainers.setting import Setting
from XAICLIPLib.models import catalogue
from XAICLIPLib.segmentation.prediction import predict

ORGANS = ("spleen", "left kidney", "right kidney", "liver", "pancreas")
POINTS = 8
DOMAINS = ("whole", "within", "outside")
ENOUGH = "enough"
"""Not a domain of the curves: the regions that suffice and are necessary."""
OUTLINE = ("mask", "depth")

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "occlusion": ("occlusion", {}),
    "owen-gradients": ("owen-gradients", {}),
    "integrated-gradients": ("integrated-gradients", {"steps": 16}),
}
"""Named as in the table: method and parameters."""


def scans(data: Path, subjects: str) -> Iterator[tuple[str, Path]]:
    """Name and file of each scan."""
    for subject in subjects.split(","):
        if subject == "totalseg":
            yield "totalseg", data / "totalseg" / "example_ct.nii.gz"
        else:
            yield subject, data / "abdomen_ct" / f"abdomen_{subject}_image.nii.gz"


def controls(setting: Setting, domain: str, where: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Maps that know nothing of the network's reasons."""
    spacing, shape = setting.spacing_mm, tuple(where.shape)
    maps: dict[str, Callable[[], Tensor]] = {"random": lambda: random_map(shape, spacing, 7)}
    outline = outline_maps(setting.scorer.target.reference, spacing)
    maps["depth"] = lambda: outline["depth"]  # outside: how near to the organ
    maps["border"] = lambda: outline["border"]
    maps["edges of the scan"] = lambda: edge_map(setting.volume, spacing)
    maps["brightness"] = lambda: setting.volume.mean(0).cpu()
    if domain == "whole":
        maps["mask"] = lambda: outline["mask"]
    if domain == "within":
        maps["middle"] = lambda: centre_map(where, spacing)
    return maps


def main() -> int:
    """Measure what is missing, and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--subjects", default="20,21,22,23,totalseg")
    parser.add_argument("--organs", default="spleen,left kidney")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--domains", default=",".join((*DOMAINS, ENOUGH)))
    parser.add_argument("--model", help="another network than the one that ships")
    parser.add_argument("--work", type=Path, default=Path("results/leaderboard"))
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and measure nothing")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.table:
        for name, path in scans(options.data, options.subjects):
            if not path.is_file():
                print(f"Skipped: {path} is not here.", file=sys.stderr)
                continue
            measure_scan(name, path, options)
    print(table(options.work))
    return 0


def measure_scan(scan: str, path: Path, options: Any) -> None:
    """Measure all organs of a scan, each map into a file of its own."""
    image = imaging.read_volume(path)
    segmenter = catalogue.load_segmenter(options.model, CPU)
    prediction = predict(segmenter, image, CPU)
    for organ in options.organs.split(","):
        try:
            subject = Subject.of(image, prediction, organ)
        except InputError as error:
            print(f"{scan}, {organ}: {error}", file=sys.stderr)
            continue
        setting = subject.setting
        reference = setting.scorer.target.reference & setting.changeable
        fields = {
            ENOUGH: setting.changeable,
            "whole": setting.changeable,
            "within": reference,
            "outside": setting.changeable & ~reference,
        }
        maps = dict.fromkeys(options.methods.split(","))
        kept: dict[str, Tensor] = {}
        for domain in options.domains.split(","):
            makers = organ_first(setting) if domain == ENOUGH else controls(setting, domain, fields[domain])
            for name in [*makers, *maps]:
                file = options.work / f"{segmenter.name}_{scan}_{organ.replace(' ', '-')}_{domain}_{name}.json"
                if file.is_file():
                    continue
                cost: dict[str, float] = {}
                if name in makers:
                    values = makers[name]()
                else:
                    values, cost = saliency_of(name, setting, subject.volume_ml, kept)
                began = time.perf_counter()
                if domain == ENOUGH:
                    row = {"network": segmenter.name, "scan": scan, "organ": organ, "domain": domain, "map": name}
                    row |= {**enough(setting, values), **cost}
                    file.write_text(json.dumps(row), encoding="utf-8")
                    print(f"{scan}, {organ}, {name}: {row['sufficient']} ml", flush=True)
                    continue
                curves = removal_curves(
                    setting.scorer,
                    values,
                    setting.spacing_mm,
                    removable=fields[domain],
                    count=POINTS,
                    grain_mm=GRAIN_MM,
                    scores=("soft dice",),
                )
                row = {
                    "network": segmenter.name,
                    "scan": scan,
                    "organ": organ,
                    "domain": domain,
                    "map": name,
                    "gap": curves.gap(),
                    "deletion": curves.deletion["soft dice"].area,
                    "insertion": curves.insertion["soft dice"].area,
                    "ideal": curves.insertion["soft dice"].ideal - curves.deletion["soft dice"].ideal,
                    **cost,
                }
                file.write_text(json.dumps(row), encoding="utf-8")
                print(f"{scan}, {organ}, {domain}, {name}: {row['gap']:+.3f} ({time.perf_counter() - began:.0f} s)")


def organ_first(setting: Setting) -> dict[str, Callable[[], Tensor]]:
    """Orders that take the organ first, and then what might pass for its context without asking the network."""
    spacing = setting.spacing_mm
    outline = outline_maps(setting.scorer.target.reference, spacing)

    def scaled(values: Tensor) -> Tensor:
        return (values - values.min()) / (values.max() - values.min())

    edges, brightness = scaled(edge_map(setting.volume, spacing)), scaled(setting.volume.mean(0).cpu())
    return {
        "depth": lambda: outline["depth"],
        "organ, then brightness": lambda: 2 * outline["mask"] + brightness,
        "organ, then edges": lambda: 2 * outline["mask"] + edges,
        "depth and edges": lambda: 2 * scaled(outline["depth"].clamp(min=-60)) + edges,
    }


def enough(setting: Setting, values: Tensor) -> dict[str, float | None]:
    """Volume in ml of the sufficient and of the necessary region."""
    regions = {kind: key_region(kind, setting.scorer, values, setting.spacing_mm, setting.changeable) for kind in KINDS}
    return {kind: None if region is None else round(region.volume_ml, 1) for kind, region in regions.items()}


def saliency_of(
    name: str, setting: Setting, volume_ml: float, kept: dict[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """The map of a method and what it cost; made once for all domains."""
    if name in kept:
        return kept[name], {}
    method, parameters = METHODS[name]
    before, began = setting.scorer.forwards, time.perf_counter()
    last = final(methods.method(method, **parameters).sized_for(volume_ml).estimates(setting, 0))
    kept[name] = last.saliency()
    return kept[name], {
        "seconds": round(time.perf_counter() - began, 1),
        "patches": setting.scorer.forwards - before,
        "gradients": last.done if "gradients" in name else 0,
    }


def table(work: Path) -> str:
    """The rows as Markdown: the mean over cases of each map, and its lead over the better of mask and depth."""
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(work.glob("*.json"))]
    lines = []
    for domain in DOMAINS:
        here = [row for row in rows if row["domain"] == domain]
        cases = sorted({(r["network"], r["organ"], r["scan"]) for r in here})
        by = {(r["network"], r["organ"], r["scan"], r["map"]): r["gap"] for r in here}
        if not cases:
            continue
        names = sorted({r["map"] for r in here})
        best = {case: max(by.get((*case, name), -9.0) for name in OUTLINE) for case in cases}
        lines += [f"\n**{domain}**: insertion less deletion, and lead over the better of mask and depth\n"]
        lines += ["| map | " + " | ".join(f"{o}, {s}" for _, o, s in cases) + " | mean lead | wins |"]
        lines += ["| --- |" + " ---: |" * (len(cases) + 2)]
        for name in names:
            values = [by.get((*case, name)) for case in cases]
            leads = [v - best[c] for v, c in zip(values, cases, strict=True) if v is not None]
            shown = [" " if v is None else f"{v:+.3f}" for v in values]
            wins = f"{sum(lead > 0 for lead in leads)} of {len(leads)}"
            lines.append(f"| {name} | " + " | ".join(shown) + f" | {np.mean(leads):+.3f} | {wins} |")
    lines += table_of_regions([row for row in rows if row["domain"] == ENOUGH])
    costs: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        if "seconds" in row:
            costs.setdefault(row["map"], []).append(row)
    for name, measured in costs.items():
        means = {key: np.mean([row[key] for row in measured]) for key in ("seconds", "patches", "gradients")}
        lines.append(
            f"\n{name}, mean of {len(measured)} explanations: {means['seconds']:.0f} s, {means['patches']:.0f} network "
            f"patches, {means['gradients']:.0f} gradients (each about four times the target's patches)"
        )
    return "\n".join(lines)


def table_of_regions(rows: list[dict[str, Any]]) -> list[str]:
    """The volumes as Markdown, each over that of the outline's depth in the same case."""
    lines = []
    for kind in KINDS:
        cases = sorted({(r["network"], r["organ"], r["scan"]) for r in rows})
        by = {(r["network"], r["organ"], r["scan"], r["map"]): r[kind] for r in rows}
        names = sorted({r["map"] for r in rows})
        if not cases:
            continue
        lines += [f"\n**{kind} region**: ml, and the geometric mean of its ratio to that of the outline's depth\n"]
        lines += ["| map | " + " | ".join(f"{o}, {s}" for _, o, s in cases) + " | ratio | less in |"]
        lines += ["| --- |" + " ---: |" * (len(cases) + 2)]
        for name in names:
            values = [by.get((*case, name)) for case in cases]
            pairs = [(v, by.get((*case, "depth"))) for v, case in zip(values, cases, strict=True)]
            ratios = [v / depth for v, depth in pairs if v and depth]
            shown = [" " if v is None else f"{v:.0f}" for v in values]
            mean = f"{np.exp(np.mean(np.log(ratios))):.2f}" if ratios else " "
            less = f"{sum(ratio < 1 for ratio in ratios)} of {len(ratios)}"
            lines.append(f"| {name} | " + " | ".join(shown) + f" | {mean} | {less} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
