"""What exact incremental scoring saves against full re-inference, and that both give the same scores.

``python Testing/benchmarks/incremental.py [--data ../shared/data] [--windows 24]`` takes a real CT and, for a liver
and a kidney, a random sample of the windows of a guided and of a whole-volume occlusion. Every window is scored twice
in the same run: incrementally, and by sliding-window inference on the perturbed volume. Printed as Markdown, ratios.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import SimpleITK as sitk
import torch
from scipy import ndimage

from XAICLIPLib import anatomy, catalog, imaging
from XAICLIPLib.localization.region import guided_region
from XAICLIPLib.perturbation.baselines import baseline_volume
from XAICLIPLib.perturbation.occlusion import in_voxels, window_for, windows
from XAICLIPLib.perturbation.perturbation import Perturbation
from XAICLIPLib.scoring import Scorer, Target, decided, target_score
from XAICLIPLib.segmentation.prediction import Prediction, predict
from XAICLIPLib.segmentation.sliding_window import predict_logits

CPU = torch.device("cpu")


def in_full(prediction: Prediction, scorer: Scorer, perturbation: Perturbation) -> float:
    """Score lost by full inference on the perturbed volume."""
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
    segmenter, structure = prediction.segmenter, anatomy.structure(name)
    label = anatomy.match_label(structure, segmenter.labels)[0]
    reference = decided(prediction.logits, label, segmenter.activation)
    spacing = prediction.prepared.spacing_mm
    rim = ndimage.distance_transform_edt(~reference.numpy(), sampling=spacing) <= 6.0
    mask = imaging.resample_labels(prediction.prepared.as_image(reference.to(torch.uint8)), image)
    probed = torch.ones(reference.shape, dtype=torch.bool)
    if guided:
        localizer = catalog.load_localizer(None, CPU)
        probability = localizer.locate(image, structure, imaging.guess_modality(image))
        region = guided_region(image, probability, mask, name, threshold=localizer.threshold)
        probed = prediction.prepared.mask_from(region.mask)
    scorer = Scorer(
        segmenter.logits,
        prediction.volume,
        baseline_volume("air", prediction.volume, probed, spacing),
        prediction.tiling,
        Target(name, label, reference, torch.from_numpy(rim)),
        segmenter.activation,
    )
    edge = window_for(imaging.volume_ml(mask))
    planned = windows(probed, in_voxels(edge, spacing), in_voxels(edge / 2, spacing))
    patches = sum(len(scorer.touched(w)) for w in planned)
    order = torch.randperm(len(planned), generator=torch.Generator().manual_seed(0))[:count].tolist()
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
        f"| {name} | {'guided' if guided else 'whole volume'} | {len(planned)} | {everything / max(1, patches):.1f} | "
        f"{full_s / incremental_s:.1f} | {difference:.0e} |"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--windows", type=int, default=24, help="windows timed in each line")
    options = parser.parse_args()
    path = options.data / "totalseg" / "example_ct.nii.gz"
    if not path.is_file():
        parser.exit(0, f"Skipped: the real CT is not here ({path}).\n")
    torch.set_flush_denormal(True)
    image = imaging.read_volume(path)
    segmenter = catalog.load_segmenter(None, CPU)
    prediction = predict(segmenter, image, CPU)
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
