"""What ``--check`` says of maps whose region is right, and of maps whose region is elsewhere.

``python Testing/benchmarks/verdicts.py [--subjects totalseg] [--organs "left kidney,spleen"] [--methods occlusion]``
explains each organ twice: with the shipped localizer, and with the same localizer displaced by 80 mm towards the
patient's right. It prints, as Markdown, where region and prediction agree, and which checks are passed: a map must not
pass where the words were found elsewhere than the network draws, and must not be called worse than noise where it beats
it. Rows are kept in ``--work``, and the program goes on where it was stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch
from leaderboard import scans
from setting import CPU, arguments

from XAICLIPLib.localization.localizer import Localizer
from XAICLIPLib.models import catalogue
from XAICLIPLib.pipeline import explain

DISPLACED_MM = 80.0
CHECKS = ("region disagrees", "like the null", "no more than the outline", "unstable")


@dataclass(frozen=True)
class Displaced:
    """A localizer that finds everything beside where it is."""

    localizer: Localizer

    @property
    def name(self) -> str:
        """Of the localizer that is displaced."""
        return self.localizer.name

    @property
    def threshold(self) -> float:
        """As of that localizer."""
        return self.localizer.threshold

    @property
    def provenance(self) -> dict[str, Any]:
        """As of that localizer."""
        return self.localizer.provenance

    def locate(self, *arguments: Any) -> sitk.Image:
        """What that localizer finds, moved towards the patient's right."""
        probability = self.localizer.locate(*arguments)
        x, y, z = probability.GetOrigin()
        probability.SetOrigin((x - DISPLACED_MM, y, z))
        return probability


def main() -> int:
    """Measure what is missing, and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--subjects", default="totalseg")
    parser.add_argument("--organs", default="left kidney,spleen,liver")
    parser.add_argument("--methods", default="owen-gradients,occlusion")
    parser.add_argument("--work", type=Path, default=Path("results/verdicts"))
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    options.work.mkdir(parents=True, exist_ok=True)
    localizer = catalogue.load_localizer(None, CPU)
    for scan, path in scans(options.data, options.subjects):
        for organ in options.organs.split(","):
            for method in options.methods.split(","):
                for place, finder in (("right", localizer), ("displaced", Displaced(localizer))):
                    file = options.work / f"{scan}_{organ}_{method}_{place}.json"
                    if not file.is_file():
                        result = explain(path, organ, localizer=finder, method=method, device="cpu", check=True)
                        row = {"scan": scan, "organ": organ, "method": method, "place": place}
                        file.write_text(json.dumps(row | _said(result.record)), encoding="utf-8")
    print(table(options.work))
    return 0


def _said(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the record says of region and checks."""
    found = record["region"].get("localizer_agreement") or record["region"]["agreement_with_prediction"]
    flags = {flag["name"]: flag for flag in record["reliability"] if flag["name"] in CHECKS}
    return {
        "recall": found["recall"] if found else None,
        "source": record["region"]["source"],
        "raised": {name: flag["raised"] for name, flag in flags.items()},
        "values": {name: flag["value"] for name, flag in flags.items()},
    }


def table(work: Path) -> str:
    """The rows as Markdown."""
    lines = [
        "\n| scan | structure | method | words found | of the drawing there | region used | "
        + " | ".join(CHECKS)
        + " |"
    ]
    lines.append("| --- | --- | --- | --- | ---: | --- |" + " --- |" * len(CHECKS))
    for file in sorted(work.glob("*.json")):
        row = json.loads(file.read_text(encoding="utf-8"))
        cells = []
        for name in CHECKS:
            if name in row["raised"]:
                cells.append(f"{'**WARNING**' if row['raised'][name] else 'passed'} ({row['values'][name]:.2f})")
            else:
                cells.append("not compared")
        recall = "–" if row["recall"] is None else f"{row['recall']:.0%}"
        where = "where it is" if row["place"] == "right" else f"{DISPLACED_MM:.0f} mm beside"
        head = [row["scan"], row["organ"], row["method"], where, recall, row["source"]]
        lines.append("| " + " | ".join([*head, *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
