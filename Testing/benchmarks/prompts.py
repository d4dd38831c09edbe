"""What learned prompts do for the shipped localizer: regions with hand-written prompts, and with learned ones.

``python Testing/benchmarks/prompts.py [--data ../shared/data] [--prompts FILE] [--train 18]`` tunes prompts on first
subjects of ``abdomen_ct``, validates on 18-19, and prints, as Markdown:

- per structure, Dice (of the region without its margin) and recall (of the region with it), on the validation subjects
  and the test subjects 20-23, whose labels neither tuning nor the localizer has seen, and on ``totalseg/example_ct``;
- in how many head-and-neck scans, which show no abdomen, a region is found for an abdominal organ.

With ``--prompts`` a file that was tuned before is looked at instead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from models import Case, cases, overlap
from setting import CPU, arguments

from XAICLIPLib import anatomy, imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.localization import learned_prompts
from XAICLIPLib.localization.localizer import ClipLocalizer, PreparedVolume
from XAICLIPLib.localization.region import clean, guided_region
from XAICLIPLib.models import catalogue
from XAICLIPLib.training import data, pairs, prompts

STRUCTURES = [anatomy.structure(name) for name in data.ORGANS[1:]]
ABSENT = [s for s in STRUCTURES if s.name != "esophagus"]
"""Not in a head-and-neck scan."""

HEAD_NECK = slice(10, 14)
"""The localizer was trained on the first ten."""


def tuned(localizer: ClipLocalizer, root: Path, count: int, steps: int, file: Path) -> Path:
    """Prompts learned on the first subjects."""
    folder = root / "abdomen_ct"
    found = pairs.find_pairs([folder], [folder])
    training = [found[n] for n in data.TRAIN][:count]
    labels = pairs.named_labels(dict(list(enumerate(data.ORGANS))[1:]))
    result = prompts.tune(
        localizer,
        training,
        [found[n] for n in data.VALIDATION],
        labels,
        steps=steps,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
    )
    return learned_prompts.save(result.prompts, localizer.model, file)


def overlaps(localizers: Sequence[ClipLocalizer], found: Sequence[Case]) -> dict[str, list[list[float]]]:
    """By structure, a row for each case that has it: Dice and recall for each localizer."""
    rows: dict[str, list[list[float]]] = {}
    for case in found:
        view = localizers[0].view(case.image, "CT")
        for structure in STRUCTURES:
            truth = case.mask(structure)
            if truth is not None:
                rows.setdefault(structure.name, []).append(
                    [value for one in localizers for value in _overlap(one, view, case, truth, structure)]
                )
    return rows


def _overlap(
    localizer: ClipLocalizer, view: PreparedVolume, case: Case, truth: sitk.Image, structure: anatomy.Structure
) -> tuple[float, float]:
    probability = localizer.probability(view, *localizer.class_embeddings(structure, "CT"))
    core = imaging.resample_like(clean(probability, localizer.threshold, 0), case.image, "nearest")
    region = guided_region(case.image, probability, truth, structure.name, threshold=localizer.threshold)
    recall = overlap(region.mask, truth)[1] if region.source == "guided" else 0.0
    return overlap(core, truth)[0], recall


def print_overlaps(heading: str, rows: dict[str, list[list[float]]]) -> None:
    """A table, its last line the mean over the structures."""
    print(f"\n{heading}\n\n| structure | Dice before | after | recall before | after |")
    print("| --- | ---: | ---: | ---: | ---: |")
    means = {name: np.mean(values, axis=0) for name, values in rows.items()}
    means["**mean**"] = np.mean(list(means.values()), axis=0)
    for name, (dice, recall, dice_after, recall_after) in means.items():
        print(f"| {name} | {dice:.2f} | {dice_after:.2f} | {recall:.2f} | {recall_after:.2f} |")


def print_absent(localizers: Sequence[ClipLocalizer], root: Path) -> None:
    """How many regions are found for organs that are not in the scan, and how large they are."""
    files = sorted((root / "openkbp").glob("*_ct.nii.gz"))[HEAD_NECK]
    counts, volumes = [0, 0], [0.0, 0.0]
    for path in files:
        image = sitk.ReadImage(str(path)) - 1024  # HU plus an offset
        view = localizers[0].view(image, "CT")
        for structure in ABSENT:
            for n, one in enumerate(localizers):
                probability = one.probability(view, *one.class_embeddings(structure, "CT"))
                try:
                    found = guided_region(image, probability, None, structure.name, threshold=one.threshold)
                except InputError:
                    continue
                counts[n], volumes[n] = counts[n] + 1, volumes[n] + found.volume_ml
    asked = len(files) * len(ABSENT)
    print(f"\nAbdominal organs in {len(files)} head-and-neck scans: regions of {asked} that should not be found\n")
    print("| | before | after |\n| --- | ---: | ---: |")
    print(f"| regions | {counts[0]} | {counts[1]} |")
    print(f"| their volume together (ml) | {volumes[0]:.0f} | {volumes[1]:.0f} |")


def main() -> None:
    """Command line."""
    parser: argparse.ArgumentParser = arguments(__doc__)
    parser.add_argument("--prompts", type=Path, help="a file that was tuned before")
    parser.add_argument("--train", type=int, default=len(data.TRAIN), help="subjects to learn from")
    parser.add_argument("--steps", type=int, default=prompts.STEPS)
    parser.add_argument("--no-test", action="store_true", help="leave the test subjects unseen")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.exit(0, f"Skipped: the real volumes are not here ({options.data}).\n")
    torch.set_flush_denormal(True)
    shipped = catalogue.load_localizer(None, CPU)
    assert isinstance(shipped, ClipLocalizer)
    before = shipped.with_prompts(None)
    with tempfile.TemporaryDirectory() as folder:
        file = options.prompts or tuned(
            before, options.data, options.train, options.steps, Path(folder) / "prompts.safetensors"
        )
        both = [before, before.with_prompts(learned_prompts.load(file, before.model))]
    print_overlaps("Validation subjects (18-19)", overlaps(both, list(cases(options.data, data.VALIDATION, False))))
    if not options.no_test:
        found = list(cases(options.data, data.TEST, other_source=True))
        by_source = {source: [c for c in found if c.source == source] for source in ("abdomen_ct", "totalseg")}
        print_overlaps("Test subjects (20-23)", overlaps(both, by_source["abdomen_ct"]))
        print_overlaps("totalseg/example_ct, labels of another network", overlaps(both, by_source["totalseg"]))
    print_absent(both, options.data)


if __name__ == "__main__":
    main()
