"""Regions of the shipped localizer where a scan is cropped, and where the organ is not in it.

``python Testing/benchmarks/crops.py [--data ../shared/data] [--subjects validation|test]`` prints, as Markdown:

- for each of the 13 structures, recall of what is visible of the organ, and the share of the visible body that the
  region covers: in the whole scan, in boxes around the organ with a margin of 100 to 30 mm on all sides (cut where the
  scan ends), and in fields of view of 220 and 160 mm about the middle of the body;
- how many regions are found for organs that are not there: in head and brain, below the abdomen, and in the boxes
  around other organs.

An organ counts in a field of view when at least a quarter of it is visible. A region that is not usable (too small,
too large) counts as recall 0, as in `models.py`. The choices of this project are made with ``--subjects validation``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from models import Case, cases, overlap
from numpy.typing import NDArray
from setting import CPU, arguments

from XAICLIPLib import anatomy, imaging
from XAICLIPLib.anatomy import Structure
from XAICLIPLib.errors import InputError
from XAICLIPLib.localization.localizer import ClipLocalizer, PreparedVolume
from XAICLIPLib.localization.region import Region, guided_region
from XAICLIPLib.localization.slices import Modality
from XAICLIPLib.models import catalogue
from XAICLIPLib.training import data

STRUCTURES = [anatomy.structure(name) for name in data.ORGANS[1:]]

MARGINS_MM = (100, 60, 45, 30)
FIELDS_MM = (220, 160)

LEAST_VISIBLE = 0.25
"""Share of an organ that a field of view must show for the organ to count."""

PELVIS_GAP_MM = 15
"""Height between the lowest labelled organ and what counts as below the abdomen."""

RUNNING_ON = {"aorta", "inferior vena cava", "esophagus"}
"""Structures that go on where the labels of other organs end; they are not asked for as absent."""

HEAD_NECK, BRAIN = slice(10, 14), slice(10, 14)
"""Files of ``openkbp`` and ``hippocampus_mr``: the localizer was trained on the first ten of each."""


@dataclass(frozen=True)
class View:
    """One cut of a scan.

    Attributes
    ----------
    cut
        Which one: "whole scan", "organ + 30 mm", ...
    image
        The volume.
    visible
        (Z, Y, X) bool by structure: what is seen of it; structures without a label are left out.
    asked
        Structures whose regions are measured here.
    absent
        Structures that are not in it.
    modality
        As the user would say it.
    """

    cut: str
    image: sitk.Image
    visible: dict[str, NDArray[np.bool_]]
    asked: tuple[Structure, ...]
    absent: tuple[Structure, ...]
    modality: Modality = "CT"


def box_of(mask: NDArray[np.bool_], margin_mm: float, spacing_mm: NDArray[np.floating]) -> tuple[slice, ...]:
    """The bounds (z, y, x) of a mask and a margin, cut where the volume ends."""
    margin = np.round(margin_mm / spacing_mm).astype(int)
    voxels = np.argwhere(mask)
    low = np.maximum(voxels.min(0) - margin, 0)
    high = np.minimum(voxels.max(0) + margin + 1, mask.shape)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def cropped(image: sitk.Image, box: tuple[slice, ...]) -> sitk.Image:
    """A part of a volume, at its place in space."""
    z, y, x = box
    return image[x, y, z]


def views(case: Case, margins: Sequence[int], fields: Sequence[int]) -> Iterator[View]:
    """The cuts of a labelled scan."""
    masks = {}
    for structure in STRUCTURES:
        mask = case.mask(structure)
        if mask is not None:
            masks[structure.name] = sitk.GetArrayFromImage(mask) != 0
    known = tuple(s for s in STRUCTURES if s.name in masks)
    spacing = np.array(case.image.GetSpacing()[::-1])
    yield View("whole scan", case.image, masks, known, ())
    for margin in margins:
        for structure in known:
            box = box_of(masks[structure.name], margin, spacing)
            visible = {name: mask[box] for name, mask in masks.items()}
            absent = tuple(s for s in known if not visible[s.name].any() and s.name not in RUNNING_ON)
            yield View(
                f"organ + {margin} mm", cropped(case.image, box), visible, (structure,), absent if margin == 30 else ()
            )
    body = sitk.GetArrayFromImage(imaging.body_mask(case.image)) != 0
    for field in fields:
        columns = np.argwhere(body.any(0))
        middle = (columns.min(0) + columns.max(0)) / 2
        half = field / 2 / spacing[1:]
        low = np.maximum(np.round(middle - half).astype(int), 0)
        high = np.minimum(np.round(middle + half).astype(int), body.shape[1:])
        box = (slice(0, len(body)), *(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)))
        visible = {name: mask[box] for name, mask in masks.items()}
        asked = tuple(s for s in known if visible[s.name].sum() >= LEAST_VISIBLE * masks[s.name].sum())
        yield View(f"field of view {field} mm", cropped(case.image, box), visible, asked, ())
    ends = [np.argwhere(m.any((1, 2))).min() for n, m in masks.items() if n not in RUNNING_ON]
    top = int(min(ends) - PELVIS_GAP_MM / spacing[0])  # turned to LPS, a volume begins below
    if top >= 10:
        box = (slice(0, top), slice(None), slice(None))
        gone = tuple(s for s in STRUCTURES if s.name not in RUNNING_ON)
        yield View("below the abdomen", cropped(case.image, box), {}, (), gone)


def elsewhere(root: Path, test: bool) -> Iterator[View]:
    """Scans of other parts of the body: unseen head-and-neck CTs, hippocampus MRs, and a whole head."""
    gone = tuple(STRUCTURES)
    for path in sorted((root / "openkbp").glob("*_ct.nii.gz"))[HEAD_NECK]:
        image = sitk.ReadImage(str(path)) - 1024  # HU plus an offset
        yield View("head and neck", image, {}, (), tuple(s for s in gone if s.name != "esophagus"))
    for path in sorted((root / "hippocampus_mr").glob("*_image.nii.gz"))[BRAIN]:
        yield View("brain (MR crop)", imaging.read_volume(path), {}, (), gone, "MR")
    head = root / "brain_mr" / "t1_crop.nii.gz"
    if test and head.is_file():
        yield View("whole head (MR)", imaging.read_volume(head), {}, (), gone, "MR")


@dataclass
class Rows:
    """What was measured, by cut and structure."""

    regions: dict[tuple[str, str, str], list[tuple[float, float]]]
    absent: dict[str, list[tuple[bool, float]]]


def region_of(localizer: ClipLocalizer, view: View, prepared: PreparedVolume, structure: Structure) -> Region | None:
    """The region of a structure; None where the localizer says that there is none."""
    probability = localizer.probability(
        prepared, *localizer.class_embeddings(structure, view.modality), least_peak=localizer.least_peak(structure)
    )
    try:
        return guided_region(view.image, probability, None, structure.name, threshold=localizer.threshold)
    except InputError:
        return None


def measure(localizer: ClipLocalizer, source: str, view: View, rows: Rows) -> None:
    """Add the regions of a view."""
    prepared = localizer.view(view.image, view.modality)
    for structure in view.asked:
        region = region_of(localizer, view, prepared, structure)
        truth = sitk.GetImageFromArray(view.visible[structure.name].astype(np.uint8))
        row = (0.0, 0.0) if region is None else (overlap(region.mask, truth)[1], region.share_of_body)
        rows.regions.setdefault((source, view.cut, structure.name), []).append(row)
    for structure in view.absent:
        region = region_of(localizer, view, prepared, structure)
        what = "boxes of other organs" if view.cut.startswith("organ") else view.cut
        rows.absent.setdefault(what, []).append((region is None, 0.0 if region is None else region.volume_ml))


def print_rows(rows: Rows) -> None:
    """The tables."""
    for source in dict.fromkeys(source for source, _, _ in rows.regions):
        cuts = list(dict.fromkeys(cut for s, cut, _ in rows.regions if s == source))
        for heading, column in (("recall (lowest)", 0), ("share of the visible body", 1)):
            print(f"\n{source}: {heading}\n\n| structure | {' | '.join(cuts)} |\n| --- |{' ---: |' * len(cuts)}")
            means: dict[str, list[float]] = {}
            for structure in STRUCTURES:
                cells = []
                for cut in cuts:
                    values = [row[column] for row in rows.regions.get((source, cut, structure.name), [])]
                    if not values:
                        cells.append("")
                        continue
                    means.setdefault(cut, []).append(float(np.mean(values)))
                    lowest = f" ({min(values):.2f})" if len(values) > 1 else ""
                    cells.append(f"{np.mean(values):.2f}{lowest}" if column == 0 else f"{np.mean(values):.1%}")
                print(f"| {structure.name} | {' | '.join(cells)} |")
            form = "{:.3f}" if column == 0 else "{:.1%}"
            print(f"| **mean** | {' | '.join(form.format(np.mean(means[cut])) for cut in cuts)} |")
    print("\nOrgans that are not in the scan\n\n| scan | asked | reported as absent | mean region where found |")
    print("| --- | ---: | ---: | ---: |")
    for what, verdicts in rows.absent.items():
        volumes = [volume for is_absent, volume in verdicts if not is_absent]
        size = f"{np.mean(volumes):.0f} ml" if volumes else ""
        print(f"| {what} | {len(verdicts)} | {np.mean([v[0] for v in verdicts]):.1%} | {size} |")


def main() -> None:
    """Command line."""
    parser: argparse.ArgumentParser = arguments(__doc__)
    parser.add_argument("--subjects", choices=["test", "validation"], default="validation")
    parser.add_argument("--localizer", help="as in `xaiclip explain`; default: the shipped one")
    parser.add_argument("--margins", default=",".join(map(str, MARGINS_MM)), metavar="MM,MM")
    parser.add_argument("--fields", default=",".join(map(str, FIELDS_MM)), metavar="MM,MM")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single number there as well")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.exit(0, f"Skipped: the real volumes are not here ({options.data}).\n")
    torch.set_flush_denormal(True)
    localizer = catalogue.load_localizer(options.localizer, CPU)
    assert isinstance(localizer, ClipLocalizer)
    margins, fields = ([int(v) for v in text.split(",") if v] for text in (options.margins, options.fields))
    test = options.subjects == "test"
    rows = Rows({}, {})
    for case in cases(options.data, data.TEST if test else data.VALIDATION, other_source=test):
        print(case.source, file=sys.stderr, flush=True)
        upright = Case(case.source, *(sitk.DICOMOrient(v, "LPS") for v in (case.image, case.labels)), case.names)
        for view in views(upright, margins, fields):
            measure(localizer, case.source, view, rows)
    for view in elsewhere(options.data, test):
        measure(localizer, "", view, rows)
    print_rows(rows)
    if options.json:
        content = {"regions": {" | ".join(k): v for k, v in rows.regions.items()}, "absent": rows.absent}
        options.json.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
