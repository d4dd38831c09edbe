"""Ours against captum and MONAI on the same windows, network and score, side by side in one run.

``python Testing/benchmarks/peers.py [--organ "left kidney"] [--windows 8] [--data ../shared/data]``

The peers know nothing of sliding windows, so that each of their evaluations segments the whole scan: a function from
the volume to the target's soft Dice. Times are per evaluation. Windows of the peers are as large as ours, where they
let one choose; what one of their evaluations costs does not depend on it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import torch
from captum.attr import FeatureAblation, Lime, Occlusion
from monai.inferers import sliding_window_inference
from monai.visualize import OcclusionSensitivity
from setting import Subject, arguments, real_ct, shipped_prediction
from torch import Tensor, nn

from XAICLIPLib.explainers.base import size_for
from XAICLIPLib.explainers.lime import lime
from XAICLIPLib.explainers.occlusion import Windows, window_grid
from XAICLIPLib.explainers.pieces.supervoxels import supervoxels
from XAICLIPLib.scoring.scores import target_score


class Score(nn.Module):
    """From volumes (N, C, X, Y, Z) to the target's scores (N, 1), by MONAI's sliding window."""

    def __init__(self, setting: Subject, batch: int) -> None:
        super().__init__()
        self.setting, self.batch, self.calls = setting, batch, 0

    @torch.inference_mode()
    def forward(self, volumes: Tensor) -> Tensor:
        """Segment each volume in full."""
        segmenter, target = self.setting.prediction.segmenter, self.setting.scorer.target
        window = segmenter.window
        assert window is not None
        scores = []
        for volume in volumes:
            self.calls += 1
            logits = sliding_window_inference(
                volume[None],
                window.roi_size,
                self.batch,
                segmenter.logits,
                overlap=window.overlap,
                mode=window.mode,
                sigma_scale=window.sigma_scale,
                cval=window.padding_value,
            )
            inside = logits[0][:, target.voxels]
            scores.append(
                target_score("soft dice", inside, target.reference[target.voxels], target.label, segmenter.activation)
            )
        return torch.stack(scores)[:, None]


def seconds_each(score: Score, run: Callable[[Callable[[Tensor], Tensor]], object]) -> float:
    """Seconds for each evaluation of a peer."""
    score.calls = 0
    begun = time.perf_counter()
    run(lambda volumes: score(volumes)[:, 0])
    return (time.perf_counter() - begun) / score.calls


def main() -> None:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--organ", default="left kidney")
    parser.add_argument("--windows", type=int, default=8)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    image = real_ct(parser, options.data)
    guided = Subject.of(image, shipped_prediction(image), options.organ)
    spacing, scorer = guided.prediction.prepared.spacing_mm, guided.scorer
    edge = size_for(guided.volume_ml)
    size, stride = window_grid(edge, edge / 2, spacing)
    found = Windows.of(guided.region, size, stride, guided.reference, guided.changeable)
    chosen, taken = [], torch.zeros(guided.region.shape, dtype=torch.long)
    for number in torch.randperm(len(found.all), generator=torch.Generator().manual_seed(0)).tolist():
        box = found.all[number].box
        if not bool(taken[box].any()) and len(chosen) < options.windows:  # captum's features do not overlap
            chosen.append(found.all[number])
            taken[box] = len(chosen)

    begun = time.perf_counter()
    lost = dict(pair for batch in scorer.lost(chosen) for pair in batch)
    ours = (time.perf_counter() - begun) / len(chosen)
    volume, baseline = guided.prediction.volume[None], scorer.baseline
    assert isinstance(baseline, Tensor)
    one, four = Score(guided, 1), Score(guided, 4)
    ablated: list[Tensor] = []
    ablation = seconds_each(
        four,
        lambda f: ablated.append(
            FeatureAblation(f).attribute(volume, baselines=baseline[None], feature_mask=taken[None, None])
        ),
    )
    difference = max(abs(float(ablated[0][0, 0][window.box].flatten()[0]) - lost[n]) for n, window in enumerate(chosen))
    half = (1, *(n // 2 + 1 for n in guided.region.shape))  # eight windows
    rows = {
        "captum Occlusion, patch after patch": seconds_each(
            one, lambda f: Occlusion(f).attribute(volume, half, strides=half, baselines=0.0)
        ),
        "captum Occlusion, patches in batches of 4": seconds_each(
            four, lambda f: Occlusion(f).attribute(volume, half, strides=half, baselines=0.0)
        ),
        "captum FeatureAblation, patches in batches of 4": ablation,
    }
    corner = [s.start for s in chosen[0].box]
    bounds = [b for c, n, w in zip(corner, guided.region.shape, size, strict=True) for b in (c, min(n - 1, c + w))]
    sensitivity = OcclusionSensitivity(four, mask_size=size[0], n_batch=1, overlap=0.5, mode=0.0, verbose=False)
    begun, four.calls = time.perf_counter(), 0
    try:
        sensitivity(volume, b_box=bounds)
        rows["MONAI OcclusionSensitivity, patches in batches of 4"] = (time.perf_counter() - begun) / four.calls
    except Exception as error:  # whatever it has against a volume of scores
        print(f"MONAI's OcclusionSensitivity cannot do the job: {type(error).__name__}: {str(error)[:200]}\n")
    print(f"\nThe {options.organ} on totalseg/example_ct, windows of {edge:g} mm: time per window, times ours\n")
    print(f"| one window ({ours:.2f} s for ours) | times ours |\n| --- | ---: |")
    for name, seconds in rows.items():
        print(f"| {name} | {seconds / ours:.1f} × |", flush=True)
    print(f"\nLargest difference from captum FeatureAblation's score lost: {difference:.0e}.")
    whole = Windows.of(torch.ones_like(guided.region), size, stride, None, None)
    print(
        f"captum's Occlusion has no region: the same stride over the whole volume is {len(whole.all)} windows where "
        f"the region has {len(found.all)}."
    )

    pieces = supervoxels(guided.prediction.volume, guided.region & guided.changeable, spacing, edge, "slic")
    count = int(pieces.max())
    begun, done = time.perf_counter(), 0
    for estimate in lime(scorer, pieces, samples=max(2 * count, 40), seed=0):
        done = estimate.done
        if done >= options.windows:
            break
    own = (time.perf_counter() - begun) / done
    captum = seconds_each(
        four,
        lambda f: Lime(f).attribute(volume, baselines=baseline[None], feature_mask=pieces[None, None], n_samples=4),
    )
    print(f"\n| one set of supervoxels ({own:.2f} s for ours) | times ours |\n| --- | ---: |")
    print(f"| captum Lime, patches in batches of 4 | {captum / own:.1f} × |")


if __name__ == "__main__":
    main()
