"""Quality of the shipped models on volumes that they were not trained on.

``python Testing/benchmarks/models.py [--data ../shared/data] [--subjects test|validation]`` prints, as Markdown:

- the Dice of the network for each organ, per source;
- for each prompt, recall and Dice of the region, and the share of the body that it covers;
- the same for words that the localizer was never trained on, given as free text.

``abdomen_ct`` 20-23 have expert labels; ``totalseg/example_ct`` is another source; its labels are those of
another network. With ``--mr`` only ``totalseg/example_mr_sm``, an abdominal MR, for the localizer, which was trained on
none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
import torch

from XAICLIPLib import anatomy, imaging
from XAICLIPLib.anatomy import Structure
from XAICLIPLib.localization.region import guided_region
from XAICLIPLib.models import catalogue
from XAICLIPLib.segmentation.prediction import predict
from XAICLIPLib.training import data
from XAICLIPLib.training.localizer import HELD_OUT


@dataclass(frozen=True)
class Case:
    """A volume with what an expert, or another network, drew in it."""

    source: str
    image: sitk.Image
    labels: sitk.Image
    names: dict[int, str]
    modality: Literal["CT", "MR"] = "CT"

    def mask(self, structure: Structure) -> sitk.Image | None:
        """What was drawn of a structure (uint8), None where there is nothing of it."""
        own = anatomy.match_label(structure, self.names)
        drawn = np.isin(sitk.GetArrayViewFromImage(self.labels), own).astype(np.uint8)
        if drawn.sum() < 10:
            return None
        mask = sitk.GetImageFromArray(drawn)
        mask.CopyInformation(self.image)
        return mask


def cases(root: Path, numbers: range, other_source: bool) -> Iterator[Case]:
    """The subjects of ``abdomen_ct``, and the CT of ``totalseg``."""
    names = dict(enumerate(data.ORGANS))
    for number in numbers:
        stem = root / "abdomen_ct" / f"abdomen_{number:02d}"
        image = imaging.read_volume(f"{stem}_image.nii.gz")
        yield Case("abdomen_ct", image, imaging.read_mask(f"{stem}_label.nii.gz", image), names)
    if other_source:
        folder = root / "totalseg"
        image = imaging.read_volume(folder / "example_ct.nii.gz")
        listed = json.loads((folder / "labels.json").read_text(encoding="utf-8"))["total_v1"]
        names = {int(value): name for value, name in listed.items()}
        yield Case("totalseg", image, imaging.read_mask(folder / "example_seg_v1.nii.gz", image), names)


def mr_case(root: Path) -> Case:
    """The abdominal MR of ``totalseg``."""
    folder = root / "totalseg"
    image = imaging.read_volume(folder / "example_mr_sm.nii.gz")
    listed = json.loads((folder / "labels.json").read_text(encoding="utf-8"))["total_mr"]
    names = {int(value): name for value, name in listed.items()}
    return Case("totalseg MR", image, imaging.read_mask(folder / "example_seg_mr.nii.gz", image), names, "MR")


def overlap(a: sitk.Image, b: sitk.Image) -> tuple[float, float]:
    """Dice, and the share of ``b`` that lies in ``a``."""
    x, y = (sitk.GetArrayViewFromImage(m) != 0 for m in (a, b))
    shared = float((x & y).sum())
    return 2 * shared / float(x.sum() + y.sum()), shared / float(y.sum())


def segmenter_table(found: list[Case]) -> None:
    """Print the Dice of each organ."""
    segmenter = catalogue.load_segmenter(None, torch.device("cpu"))
    sources = list(dict.fromkeys(case.source for case in found))
    scores: dict[tuple[str, str], list[float]] = {}
    for case in found:
        label_map = predict(segmenter, case.image, torch.device("cpu")).label_map(case.image)
        for label, name in segmenter.labels.items():
            truth = case.mask(anatomy.structure(name)) if label else None
            if truth is not None:
                scores.setdefault((name, case.source), []).append(overlap(label_map == label, truth)[0])
    print(f"\nDice of {segmenter.name}\n\n| structure | {' | '.join(sources)} |\n| --- |{' ---: |' * len(sources)}")
    for name in data.ORGANS[1:]:
        row = [scores.get((name, source), []) for source in sources]
        cells = [
            f"{np.mean(v):.2f} ({min(v):.2f}–{max(v):.2f})" if len(v) > 1 else "".join(f"{x:.2f}" for x in v)
            for v in row
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def region_tables(found: list[Case]) -> None:
    """Print recall, Dice and share of the body of the regions."""
    localizer = catalogue.load_localizer(None, torch.device("cpu"))
    known = [(name, anatomy.structure(name), anatomy.structure(name)) for name in (*data.ORGANS[1:], "kidneys")]
    unseen = [(word, word, anatomy.structure(name)) for name, words in HELD_OUT.items() for word in words]
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for case in found:  # the localizer embeds each volume once
        for words, prompt, structure in (*known, *unseen):
            truth = case.mask(structure)
            if truth is None:
                continue
            probability = localizer.locate(case.image, prompt, case.modality)
            region = guided_region(case.image, probability, truth, words, threshold=localizer.threshold)
            row = (0.0, 0.0, 0.0)  # nothing usable was found
            if region.source == "guided":
                dice, recall = overlap(region.mask, truth)
                row = (recall, dice, region.share_of_body)
            rows.setdefault((words, case.source), []).append(row)
    sources = list(dict.fromkeys(case.source for case in found))
    for heading, prompts in (("Regions", known), ("Regions of words that were never trained on", unseen)):
        columns = " | ".join(f"{source}: recall | Dice | share of body" for source in sources)
        print(f"\n{heading} of {localizer.name}\n\n| prompt | {columns} |")
        print(f"| --- |{' ---: | ---: | ---: |' * len(sources)}")
        for words, _, _ in prompts:
            print(f"| {words} | {' | '.join(_cells(rows.get((words, source), [])) for source in sources)} |")


def _cells(rows: list[tuple[float, float, float]]) -> str:
    if not rows:
        return " | | "
    recall, dice, share = np.mean(rows, axis=0)
    lowest = f" (≥ {min(row[0] for row in rows):.2f})" if len(rows) > 1 else ""
    return f"{recall:.2f}{lowest} | {dice:.2f} | {share:.1%}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--subjects", choices=["test", "validation"], default="test")
    parser.add_argument("--only", choices=["segmenter", "localizer"])
    parser.add_argument("--mr", action="store_true")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.exit(0, f"Skipped: the real volumes are not here ({options.data}).\n")
    torch.set_flush_denormal(True)
    if options.mr:
        region_tables([mr_case(options.data)])
        return
    test = options.subjects == "test"
    found = list(cases(options.data, data.TEST if test else data.VALIDATION, other_source=test))
    if options.only != "localizer":
        segmenter_table(found)
    if options.only != "segmenter":
        region_tables(found)


if __name__ == "__main__":
    main()
