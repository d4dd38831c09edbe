"""What exact incremental scoring saves against full re-inference, and that both give the same scores.

``python Testing/benchmarks/incremental.py [--data ../shared/data] [--windows 24]`` takes a real CT and, for a liver
and a kidney, a random sample of the windows of a guided and of a whole-volume occlusion. Every window is scored twice
in the same run: incrementally, and by sliding-window inference on the perturbed volume. Printed as Markdown, ratios.
"""

from __future__ import annotations

import time

import SimpleITK as sitk
from setting import Subject, arguments, patches, real_ct, shipped_prediction
from torch import Generator, Tensor, randperm

from XAICLIPLib.explainers.base import size_for
from XAICLIPLib.explainers.occlusion import window_grid, windows
from XAICLIPLib.scoring.perturbation import Perturbation
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.scores import target_score
from XAICLIPLib.segmentation.prediction import Prediction
from XAICLIPLib.segmentation.sliding_window import predict_logits


def in_full(prediction: Prediction, scorer: Scorer, perturbation: Perturbation) -> float:
    """Score lost by full inference on the perturbed volume."""
    assert isinstance(scorer.baseline, Tensor)
    perturbed = prediction.volume.clone()
    box = (slice(None), *perturbation.box)
    perturbed[box] = scorer.baseline[box]
    logits = predict_logits(prediction.segmenter.logits, perturbed, prediction.tiling, scorer.batch_size)
    target = scorer.target
    inside = logits[:, target.voxels]
    score = target_score(scorer.kind, inside, target.reference[target.voxels], target.label, scorer.activation)
    return scorer.full_score - float(score)


def compare(image: sitk.Image, prediction: Prediction, name: str, guided: bool, count: int) -> str:
    """One line of the table."""
    setting = Subject.of(image, prediction, name, guided)
    scorer, spacing = setting.scorer, prediction.prepared.spacing_mm
    edge = size_for(setting.volume_ml)
    planned = windows(setting.region, *window_grid(edge, edge / 2, spacing))
    needed = patches(scorer, planned)
    order = randperm(len(planned), generator=Generator().manual_seed(0))[:count].tolist()
    sample = [planned[n] for n in order]
    begun = time.perf_counter()
    lost = dict(pair for batch in scorer.lost(sample) for pair in batch)
    incremental_s = time.perf_counter() - begun
    begun = time.perf_counter()
    full = [in_full(prediction, scorer, window) for window in sample]
    full_s = time.perf_counter() - begun
    difference = max(abs(lost[n] - value) for n, value in enumerate(full))
    everything = len(planned) * len(prediction.tiling.patches)
    return (
        f"| {name} | {'guided' if guided else 'whole volume'} | {len(planned)} | {everything / max(1, needed):.1f} | "
        f"{full_s / incremental_s:.1f} | {difference:.0e} |"
    )


def main() -> None:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--windows", type=int, default=24, help="windows timed in each line")
    options = parser.parse_args()
    image = real_ct(parser, options.data)
    prediction = shipped_prediction(image)
    segmenter = prediction.segmenter
    print(
        f"\nIncremental scoring of {segmenter.name} on totalseg/example_ct, {len(prediction.tiling.patches)} patches\n"
    )
    print("| target | occlusion | windows | fewer patches (all windows) | faster (sample) | largest difference |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name in ("liver", "left kidney"):
        for guided in (True, False):
            print(compare(image, prediction, name, guided, options.windows), flush=True)


if __name__ == "__main__":
    main()
