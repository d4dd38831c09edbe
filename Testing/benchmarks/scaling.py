"""What exact reuse saves with finer networks, and how the cost grows with the scan and with the organ.

``python Testing/benchmarks/scaling.py [--data ../shared/data]`` counts network patches, which the time follows, from
the real CT and the organs that were drawn in it; nothing but a few patches of each network is run, to compare.

The networks are MONAI's SegResNet and SwinUNETR with random weights, patches of 96³ at 1.5 mm, half overlapping.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from monai.networks.nets import SegResNet, SwinUNETR
from scipy import ndimage
from setting import arguments, patches, real_ct
from torch import Tensor

from XAICLIPLib import anatomy, imaging
from XAICLIPLib.explainers.base import size_for
from XAICLIPLib.explainers.occlusion import Windows, window_grid
from XAICLIPLib.localization.region import MARGIN_MM
from XAICLIPLib.scoring.scorer import Scorer
from XAICLIPLib.scoring.scores import target_score
from XAICLIPLib.scoring.target import RIM_MM, Target
from XAICLIPLib.segmentation.sliding_window import SlidingWindow, Tiling, predict_logits

FINE_MM = 1.5
WINDOW = SlidingWindow((96, 96, 96), 0.5, "gaussian")
ORGANS = ("left adrenal gland", "gallbladder", "left kidney", "spleen", "liver")


def silent(patches: Tensor) -> Tensor:
    """A network of two classes that costs nothing, for what is only counted."""
    return patches.new_zeros((len(patches), 2, *patches.shape[2:]))


def scorer_for(volume: Tensor, organ: Tensor, network: object = silent, batch_size: int | None = None) -> Scorer:
    """A scorer of an organ on the fine grid."""
    rim = torch.from_numpy(ndimage.distance_transform_edt(~organ.numpy(), sampling=FINE_MM) <= RIM_MM)
    target = Target("organ", 1, organ, rim)
    tiling = Tiling.of(volume.shape[1:], WINDOW)
    return Scorer(network, volume, torch.zeros_like(volume), tiling, target, batch_size=batch_size)  # type: ignore[arg-type]


def counted(scorer: Scorer, organ: Tensor, whole: bool = False) -> tuple[int, int, int]:
    """Windows, patches by exact reuse, patches by full inference, of exhaustive occlusion."""
    near = torch.from_numpy(ndimage.distance_transform_edt(~organ.numpy(), sampling=FINE_MM) <= MARGIN_MM)
    region = torch.ones_like(organ) if whole else near
    edge = size_for(float(organ.sum()) * FINE_MM**3 / 1000)
    spacing = (FINE_MM,) * 3
    found = Windows.of(region, *window_grid(edge, edge / 2, spacing), None, None).all
    return len(found), patches(scorer, found), len(found) * len(scorer.tiling.patches)


def reuse_tables(volume: Tensor, masks: dict[str, Tensor]) -> None:
    """Print what reuse saves by organ, in its surroundings and over the whole volume."""
    total = len(Tiling.of(volume.shape[1:], WINDOW).patches)
    print(f"\nExact reuse at {FINE_MM:g} mm: {total} patches of 96³ cover the scan\n")
    print(
        "| organ | ml | windows | fewer patches, guided | fewer patches, whole volume |\n"
        "| --- | ---: | ---: | ---: | ---: |"
    )
    for name, organ in masks.items():
        scorer = scorer_for(volume, organ)
        windows, few, full = counted(scorer, organ)
        _, few_whole, full_whole = counted(scorer, organ, whole=True)
        ml = float(organ.sum()) * FINE_MM**3 / 1000
        print(f"| {name} | {ml:.0f} | {windows} | {full / few:.1f} × | {full_whole / few_whole:.1f} × |", flush=True)


def length_table(volume: Tensor, organ: Tensor) -> None:
    """Print the cost of one organ in scans of different length."""
    voxels = torch.nonzero(organ)
    low, high = int(voxels[:, 2].min()), int(voxels[:, 2].max()) + 1
    margin = round(100 / FINE_MM)
    print("\nThe left kidney in scans of different length: guided, exhaustive occlusion\n")
    print("| scan | slices | patches of the scan | windows | patches computed | against the abdomen |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    start = max(0, low - margin) // 48 * 48  # on the patches' own grid, so that only the length differs
    stop = min(volume.shape[3], high + margin)
    pad = volume.shape[3] // 48 * 48  # likewise: patches stand every 48 voxels
    body = torch.cat([volume.flip(3)[..., -pad:], volume, volume.flip(3)], 3)
    cases = {
        "kidney and 10 cm": (volume[..., start:stop], organ[..., start:stop]),
        "abdomen": (volume, organ),
        "whole body (the abdomen and its mirror images)": (
            body,
            torch.nn.functional.pad(organ, (pad, volume.shape[3])),
        ),
    }
    results = {name: (v, counted(scorer_for(v, o), o)) for name, (v, o) in cases.items()}
    reference = results["abdomen"][1][1]
    for name, (v, (windows, few, _)) in results.items():
        total = len(Tiling.of(v.shape[1:], WINDOW).patches)
        print(f"| {name} | {v.shape[3]} | {total} | {windows} | {few} | {few / reference - 1:+.0%} |")


def networks_table(volume: Tensor, organ: Tensor, count: int = 2) -> None:
    """Print incremental against full inference with larger networks, timed on a part of the scan around the organ."""
    centre = torch.nonzero(organ).float().mean(0).round().long()
    part = tuple(slice(max(0, int(c) - 72), int(c) + 72) for c in centre)
    small, drawn = volume[(slice(None), *part)].contiguous(), organ[part].contiguous()
    print(f"\nLarger networks, timed on {' × '.join(map(str, small.shape[1:]))} voxels around the left kidney\n")
    print(
        "| network | parameters | patches | full inference against incremental, time per window | largest difference |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    torch.manual_seed(0)
    for name, network in {
        "SegResNet": SegResNet(init_filters=16, in_channels=1, out_channels=14),
        "SwinUNETR": SwinUNETR(in_channels=1, out_channels=14, feature_size=24),
    }.items():
        network = network.eval().requires_grad_(False)
        scorer = scorer_for(small, drawn, network, 2)
        spacing = (FINE_MM,) * 3
        edge = size_for(float(organ.sum()) * FINE_MM**3 / 1000)
        found = Windows.of(drawn, *window_grid(edge, edge / 2, spacing), None, None).all
        sample = found[:: max(1, len(found) // count)][:count]
        begun = time.perf_counter()
        lost = dict(pair for batch in scorer.lost(sample) for pair in batch)
        ours = time.perf_counter() - begun
        begun, differences = time.perf_counter(), []
        for number, window in enumerate(sample):
            perturbed = small.clone()
            perturbed[(slice(None), *window.box)] = 0
            with torch.inference_mode():
                logits = predict_logits(network, perturbed, scorer.tiling, 2)
            differences.append(abs(scorer.full_score - _score(scorer.target, logits) - lost[number]))
        full = time.perf_counter() - begun
        weights = sum(p.numel() for p in network.parameters()) / 1e6
        covering = len(scorer.tiling.patches)
        print(f"| {name} | {weights:.1f} M | {covering} | {full / ours:.1f} × | {max(differences):.0e} |", flush=True)


def _score(target: Target, logits: Tensor) -> float:
    inside = logits[:, target.voxels]
    return float(target_score("soft dice", inside, target.reference[target.voxels], target.label, "softmax"))


def main() -> None:
    """Command line."""
    parser = arguments(__doc__)
    options = parser.parse_args()
    image = real_ct(parser, options.data)
    folder: Path = options.data / "totalseg"
    listed = json.loads((folder / "labels.json").read_text(encoding="utf-8"))["total_v1"]
    names = {int(value): name for value, name in listed.items()}
    drawn = imaging.read_mask(folder / "example_seg_v1.nii.gz", image)
    fine = imaging.standard_axial(image, FINE_MM)
    on_fine = imaging.resample_like(drawn, fine, "nearest")
    labels = torch.from_numpy(sitk.GetArrayFromImage(on_fine).transpose(2, 1, 0).astype(np.int64))
    values = torch.from_numpy(np.ascontiguousarray(sitk.GetArrayFromImage(fine).transpose(2, 1, 0)))[None]
    volume = ((values + 125) / 400).clamp(0, 1)
    masks = {}
    for name in ORGANS:
        own = anatomy.match_label(anatomy.structure(name), names)
        mask = torch.isin(labels, torch.tensor(own))
        if bool(mask.any()):
            masks[name] = mask
    reuse_tables(volume, masks)
    length_table(volume, masks["left kidney"])
    networks_table(volume, masks["left kidney"])


if __name__ == "__main__":
    main()
