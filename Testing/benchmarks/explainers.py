"""The explainers side by side on a real CT with the shipped network: cost, faithfulness to the exhaustive map, noise.

``python Testing/benchmarks/explainers.py [--organ "left kidney"] [--data ../shared/data]`` prints, as Markdown:

- coarse-to-fine occlusion against exhaustive occlusion in the same region, against whole-volume occlusion, and its
  running estimates on the way;
- what guiding saves each explainer: patches in the region and in the whole volume;
- RISE's three estimators on the same scores;
- how near the scheduler comes to the bare network;
- every method through the command line: time, patches, peak memory.

Whole-volume runs are not made: their patches are counted one by one, and their time is that of as many patches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from setting import Subject, arguments, patches, real_ct, shipped_prediction
from torch import Tensor

from XAICLIPLib.explainers import rise as rise_module
from XAICLIPLib.explainers.base import Estimate, in_voxels, size_for
from XAICLIPLib.explainers.methods import METHODS
from XAICLIPLib.explainers.occlusion import Windows, _mean_over_windows, occlusion, window_grid
from XAICLIPLib.explainers.pieces.supervoxels import supervoxels
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.segmentation.batching import run_batch

EARLY = 0.05
"""Share of the time after which a running estimate is looked at."""


def pearson(a: Tensor, b: Tensor) -> float:
    """Correlation of two maps (n,)."""
    return float(np.corrcoef(a.numpy(), b.numpy())[0, 1])


def top_overlap(a: Tensor, b: Tensor, share: float = 0.05) -> float:
    """IoU of the voxels with the highest values of two maps (n,)."""
    count = max(1, round(share * len(a)))
    first, second = (set(x.topk(count).indices.tolist()) for x in (a, b))
    return len(first & second) / len(first | second)


def occlusion_tables(guided: Subject, edge: float) -> None:
    """Print coarse to fine against exhaustive and against the whole volume."""
    spacing = guided.prediction.prepared.spacing_mm
    told = {"window_mm": edge, "stride_mm": edge / 2, "target": guided.reference, "changeable": guided.changeable}
    begun, before = time.perf_counter(), guided.scorer.forwards
    *_, every = occlusion(guided.scorer, guided.region, spacing, exhaustive=True, **told)
    exhaustive_s, exhaustive_patches = time.perf_counter() - begun, guided.scorer.forwards - before
    region = guided.region & every.probed()
    truth = every.saliency()[region]

    begun, before, early = time.perf_counter(), guided.scorer.forwards, []
    spent = 0.0  # on looking, which a user does every two seconds and not after every batch
    estimate: Estimate | None = None
    for estimate in occlusion(guided.scorer, guided.region, spacing, **told):
        look = time.perf_counter()
        if len(early) < 60:
            early.append((look - begun - spent, pearson(estimate.saliency()[region], truth)))
            spent += time.perf_counter() - look
    assert estimate is not None
    fine_s, fine_patches = time.perf_counter() - begun - spent, guided.scorer.forwards - before
    fine = estimate.saliency()[region]
    size, stride = window_grid(edge, edge / 2, spacing)
    whole = Windows.of(torch.ones_like(guided.region), size, stride, None, guided.changeable)
    naive = len(Windows.of(torch.ones_like(guided.region), size, stride, None, None).all)
    whole_patches = patches(guided.scorer, whole.all)
    full = naive * len(guided.prediction.tiling.patches)
    first = [r for t, r in early if t <= EARLY * fine_s]

    print(f"\nOcclusion of the {guided.name}, windows of {edge:g} mm every {edge / 2:g} mm\n")
    print("| occlusion | windows | network patches | against coarse to fine |")
    print("| --- | ---: | ---: | ---: |")
    print(f"| whole volume, full inference for every window | {naive} | {full} | {full / fine_patches:.0f} × |")
    print(
        f"| whole volume, windows of air skipped, incremental | {len(whole.all)} | {whole_patches} | "
        f"{whole_patches / fine_patches:.1f} × |"
    )
    print(
        f"| guided, exhaustive | {every.done} | {exhaustive_patches} | {exhaustive_patches / fine_patches:.1f} × "
        f"(timed: {exhaustive_s / fine_s:.1f} ×) |"
    )
    print(f"| guided, coarse to fine | {estimate.done} | {fine_patches} | 1 |")
    print(
        f"\nAgainst the exhaustive map inside the region: Pearson {pearson(fine, truth):.4f}, Spearman "
        f"{spearmanr(fine.numpy(), truth.numpy()).statistic:.4f}, largest error "
        f"{float((fine - truth).abs().max() / truth.abs().max()):.1%} of the largest value, "
        f"IoU of the top 5% {top_overlap(fine, truth):.2f}. Running estimate within {EARLY:.0%} of the time: "
        + (f"Pearson {first[-1]:.2f} after {len(first)} batches." if first else "there was none.")
    )
    # What needs no network: each window counts by how much of the target it hides.
    grid = Windows.of(guided.region & guided.changeable, size, stride, guided.reference, guided.changeable)
    null, _ = _mean_over_windows(grid.all, grid.overlap, tuple(guided.region.shape), guided.changeable)
    overlap = null[region]
    unexplained = pearson(rest(fine, overlap), rest(truth, overlap))
    print(
        f"The overlap with the target alone, without any network: Pearson {pearson(overlap, truth):.4f}. On what it "
        f"does not explain of the exhaustive map, coarse to fine has Pearson {unexplained:.4f}."
    )


def rest(values: Tensor, other: Tensor) -> Tensor:
    """What a straight line by other values does not explain."""
    x = torch.stack([other, torch.ones_like(other)], 1).double()
    slope = torch.linalg.lstsq(x, values.double()[:, None]).solution
    return (values.double() - (x @ slope).squeeze(1)).float()


def guiding_table(guided: Subject, edge: float) -> None:
    """Print the patches that each explainer takes in the region and in the whole volume."""
    scorer, spacing = guided.scorer, guided.prediction.prepared.spacing_mm
    everywhere = torch.ones_like(guided.region)
    print("\nWhat guiding saves: network patches in the region and in the whole volume\n")
    print("| explainer | guided | whole volume | fewer |")
    print("| --- | ---: | ---: | ---: |")
    rows: dict[str, list[int]] = {}
    for region in (guided.region & guided.changeable, everywhere & guided.changeable):
        found = Windows.of(region, *window_grid(edge, edge / 2, spacing), None, guided.changeable)
        rows.setdefault("occlusion, exhaustive", []).append(patches(scorer, found.all))
        coarse = [w for w, c in zip(found.all, found.coarse, strict=True) if c]
        rows.setdefault("occlusion, coarse grid", []).append(patches(scorer, coarse))
        masks = rise_module._Masks(region, in_voxels(edge, spacing), 0.5, 0)
        cells = len(rise_module._Cells(masks))
        each = len(scorer.touched(Perturbation(masks.box)))
        rows.setdefault("rise, three patterns for each cell", []).append(3 * cells * each)
        pieces = int(supervoxels(guided.prediction.volume, region, spacing, edge, "slic").max())
        rows.setdefault("lime, eight sets for each supervoxel", []).append(max(200, 8 * pieces) * each)
    for name, (few, many) in rows.items():
        print(f"| {name} | {few} | {many} | {many / max(few, 1):.1f} × |")


def rise_table(guided: Subject, edge: float, count: int) -> None:
    """Print the signal-to-noise of RISE's estimators, from two halves of the same patterns."""
    spacing = guided.prediction.prepared.spacing_mm
    masks = rise_module._Masks(guided.region & guided.changeable, in_voxels(edge, spacing), 0.5, 0)
    cells = rise_module._Cells(masks)
    lost: dict[int, float] = {}
    for batch in guided.scorer.lost(masks.perturbation(n) for n in range(count)):
        lost.update(batch)
    print(f"\nRISE's estimators on the same {count // 2} patterns, {len(cells)} cells of {edge:g} mm\n")
    print("| estimator | correlation of two independent halves | signal-to-noise | against the plain mean |")
    print("| --- | ---: | ---: | ---: |")
    ratios: dict[str, tuple[float, float]] = {}
    for estimator in ("mean", "debiased", "ridge"):
        maps = []
        for half in (range(0, count, 2), range(1, count, 2)):
            running = rise_module._Regression(cells) if estimator == "ridge" else rise_module._Sums(masks, estimator)
            for number in half:
                running.add(number, lost[number])
            maps.append(running.saliency())
        r = pearson(*maps)
        ratios[estimator] = r, max(r, 1e-3) / (1 - r)
    for estimator, (r, ratio) in ratios.items():
        print(f"| {estimator} | {r:.3f} | {ratio:.2f} | {ratio / ratios['mean'][1]:.1f} × |")


def overhead_table(guided: Subject, edge: float, count: int = 16, rounds: int = 3) -> None:
    """Print how much longer scoring takes than the bare network on as many patches, turn and turn about."""
    spacing, scorer = guided.prediction.prepared.spacing_mm, guided.scorer
    found = Windows.of(guided.region, *window_grid(edge, edge / 2, spacing), None, guided.changeable)
    sample = found.all[:: max(1, len(found.all) // count)][:count]
    box = guided.prediction.tiling.patches[0]
    patch = guided.prediction.tiling.pad(guided.prediction.volume)[(slice(None), *box)]
    bare, ours = [], []
    for _ in range(rounds):
        begun, before = time.perf_counter(), scorer.forwards
        for _ in scorer.lost(sample):
            pass
        ours.append((time.perf_counter() - begun) / (scorer.forwards - before))
        size = scorer.batch_in_use
        batch = patch.expand(size, *patch.shape).contiguous()
        begun = time.perf_counter()
        with torch.inference_mode():
            for _ in range(4):
                run_batch(scorer.forward, batch)
        bare.append((time.perf_counter() - begun) / (4 * size))
    print(
        f"\nScheduler: {np.median(ours) / np.median(bare) - 1:+.1%} over the bare network at batches of {size} "
        f"({1000 * np.median(bare):.0f} ms a patch, {rounds} rounds turn and turn about)."
    )


def methods_table(path: Path, organ: str) -> None:
    """Print every method through the command line."""
    print("\nEvery method from the command line, guided (a process each; with reading, localizing and segmenting)\n")
    print("| method | seconds | of these explaining | network patches | peak memory (GB) |")
    print("| --- | ---: | ---: | ---: | ---: |")
    few = {"rise": ["--samples", "150"], "integrated-gradients": ["--steps", "8"]}
    for method in METHODS:
        with tempfile.TemporaryDirectory() as folder:
            line = [sys.executable, "-m", "XAICLIPLib", "explain", str(path), "--prompt", organ, "--json"]
            line += ["--method", method, "--output", folder, *few.get(method, [])]
            begun = time.perf_counter()
            process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            printed = process.stdout.read() if process.stdout else ""
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - begun
            if status:
                print(f"| {method} | failed | | | |", flush=True)
                continue
            record = json.loads(printed)
        gigabytes = usage.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
        told = f"{method} {' '.join(few.get(method, []))}".strip()
        explaining, computed = record["timings_s"]["explain"], record["measurements"]["patches_computed"]
        print(f"| {told} | {seconds:.0f} | {explaining:.0f} | {computed} | {gigabytes:.1f} |", flush=True)


def main() -> None:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--organ", default="left kidney")
    parser.add_argument("--patterns", type=int, default=400, help="of RISE")
    options = parser.parse_args()
    image = real_ct(parser, options.data)
    guided = Subject.of(image, shipped_prediction(image), options.organ)
    edge = size_for(guided.volume_ml)
    overhead_table(guided, edge)
    guiding_table(guided, edge)
    occlusion_tables(guided, edge)
    sys.stdout.flush()
    rise_table(guided, edge, options.patterns)
    methods_table(options.data / "totalseg" / "example_ct.nii.gz", options.organ)


if __name__ == "__main__":
    main()
