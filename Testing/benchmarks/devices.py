"""What a GPU saves, and that it draws the same map: the same explanations on the CPU and on the GPU, full and half.

``python Testing/benchmarks/devices.py [--data ../shared/data] [--structures liver,"left kidney"]`` takes a real CT and
the shipped models. Each explanation runs twice on the GPU, and the second one counts: the first also prepares the GPU.
Printed as Markdown; the difference is the largest one over the largest value.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch
from setting import arguments, real_ct

from XAICLIPLib.experiment.trial import machine
from XAICLIPLib.explanation import Explanation
from XAICLIPLib.pipeline import explain

RUNS = (("cpu", "full"), ("cuda", "full"), ("cuda", "reduced"))
METHODS = ("occlusion", "rise")


def explained(image: sitk.Image, structure: str, method: str, device: str, precision: str) -> Explanation:
    """The second of two runs on a GPU."""
    for _ in range(1 if device == "cpu" else 2):
        found = explain(image, structure, method=method, device=device, precision=precision)
    return found


def compare(image: sitk.Image, structure: str, method: str) -> None:
    """Print one line of the table for each device and precision; the first is what the others are compared with."""
    first = None
    for device, precision in RUNS:
        found = explained(image, structure, method, device, precision)
        saliency, told = sitk.GetArrayFromImage(found.saliency), found.record["parameters"]
        seconds = found.record["timings_s"]["explain"], sum(found.record["timings_s"].values())
        if first is None:
            first = saliency, seconds
        faster = [of_first / own for of_first, own in zip(first[1], seconds, strict=True)]
        agreement = np.corrcoef(saliency.ravel(), first[0].ravel())[0, 1]
        difference = np.abs(saliency - first[0]).max() / np.abs(first[0]).max()
        used = precision if told["precision"] == precision else f"{precision} asked, {told['precision']} used"
        cells = [structure, method, f"{device}, {used}", told["batch_size"], f"{seconds[0]:.1f}", f"{faster[0]:.1f}"]
        cells += [f"{seconds[1]:.1f}", f"{faster[1]:.1f}", f"{agreement:.5f}", f"{difference:.0e}"]
        print("|", " | ".join(map(str, cells)), "|", flush=True)


def main() -> None:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--structures", default="liver,left kidney")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(0, "Skipped: PyTorch sees no CUDA GPU here.\n")
    image = real_ct(parser, options.data)
    print(f"{machine(torch.device('cpu'))}; {machine(torch.device('cuda'))}.\n")
    print("| structure | method | device, precision | batch | explain, s | ratio | all, s | ratio | r | difference |")
    print("| --- " * 10 + "|")
    for structure in options.structures.split(","):
        for method in METHODS:
            compare(image, structure, method)


if __name__ == "__main__":
    main()
