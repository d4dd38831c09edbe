"""How much memory large scans, many classes and whole-body maps take: the peak of a process of their own, and seconds.

``python Testing/benchmarks/memory.py [--data ../shared/data] [--only CASE] [--library FOLDER] [--limit-gb 12]``

Each case runs in a process that may take ``--limit-gb`` of address space beyond what its libraries map; one that needs
more ends, and the table says "more than". ``--library`` measures another version of XAICLIPLib, by its folder, with the
same program. The peak is ``VmHWM``: what the process held at most, the libraries (about 0.6 GB) included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import SimpleITK as sitk

GB = 1e9
LIBRARIES_GB = 1.0
"""Address space that the libraries map without holding it."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--library", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--limit-gb", type=float, default=12.0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the scan of many classes along each axis")
    parser.add_argument("--classes", type=int, default=105, help="of that network")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        CASES[options.only](options)
        return
    print("| case | peak, GB | seconds | |\n| --- | ---: | ---: | --- |", flush=True)
    for name in [options.only] if options.only else CASES:
        print(measured(name, options), flush=True)


def measured(name: str, options: argparse.Namespace) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, __file__, "--only", name, "--child", folder, "--data", str(options.data)]
        program += ["--limit-gb", str(options.limit_gb), "--scale", str(options.scale)]
        program += ["--classes", str(options.classes)]
        environment = {**os.environ, "PYTHONPATH": str(options.library)}
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not said:
        ending = (done.stderr.strip().splitlines() or ["killed"])[-1][:160]
        full = done.returncode == -9 or "MemoryError" in ending or "bad_alloc" in ending
        return f"| {name} | {f'more than {options.limit_gb:g}' if full else 'failed'} | | {ending} |"
    result = json.loads(said[-1])
    peak = f"{result['peak']:.2f}" if result["fits"] else f"more than {options.limit_gb:g}"
    return f"| {name} | {peak} | {result['seconds']:.0f} | {result['said']} |"


def in_child(limit_gb: float, work: Callable[[], str]) -> None:
    """Run the work under the limit, and print what it took."""
    import resource

    from XAICLIPLib.errors import InputError

    most = int((limit_gb + LIBRARIES_GB) * GB)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    begun, fits = time.perf_counter(), True
    try:
        said = work()
    except InputError as error:
        said = f"refused: {error}"
    except (MemoryError, RuntimeError) as error:
        fits, said = False, f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
    result = {"peak": peak_bytes() / GB, "seconds": time.perf_counter() - begun, "said": said, "fits": fits}
    print(json.dumps(result), flush=True)


def peak_bytes() -> int:
    """The most that this process has held."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


# --- the cases ----------------------------------------------------------------------------------------------------


def many_classes(options: argparse.Namespace) -> None:
    """512 × 512 × 600 voxels at 1.5 mm, which stay as many, and a network of 105 classes that draws 1.9 l of liver."""
    size = [int(n * options.scale) for n in (512, 512, 600)]
    path = options.child / "scan.nrrd"
    # Written by another process, whose peak does not count.
    subprocess.run([sys.executable, "-c", BODY, str(path), *map(str, size)], check=True)

    def work() -> str:
        from XAICLIPLib import explain

        result = explain(
            path,
            "liver",
            model=network(options.classes),
            region="prediction",
            device="cpu",
            window_mm=144.0,
            stride_mm=144.0,
        )
        return f"{result.measurements['target_volume_ml']:.0f} ml, {result.measurements['perturbations']} windows"

    in_child(options.limit_gb, work)


BODY = """
import sys, numpy as np, SimpleITK as sitk
path, *size = sys.argv[1:]
x, y, z = (np.arange(int(n), dtype=np.float32) * 1.5 for n in size)
middle = [float(a.mean()) for a in (x, y, z)]
radius = 1.9e6 ** (1 / 3) * (3 / (4 * np.pi)) ** (1 / 3)
image = np.full((len(z), len(y), len(x)), -1000, np.int16)
noise = np.random.default_rng(0).integers(-20, 20, (len(y), len(x)), dtype=np.int16)
for k, height in enumerate(z):
    plane = ((x - middle[0]) / middle[0])[None] ** 2 + ((y - middle[1]) / middle[1])[:, None] ** 2
    image[k][plane < 0.7] = 0
    near = (x - middle[0])[None] ** 2 + (y - middle[1])[:, None] ** 2 + (height - middle[2]) ** 2 < radius**2
    image[k][near] = 100
    image[k] += noise
scan = sitk.GetImageFromArray(image)
scan.SetSpacing([1.5] * 3)
sitk.WriteImage(scan, path)
"""


def network(classes: int) -> Any:
    """Classes from three layers of random weights; the class of the liver is the brighter the surer."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Many(nn.Module):
        description: ClassVar[dict[str, Any]] = {
            "labels": {0: "background", 1: "liver", **{n: f"class {n}" for n in range(2, classes)}},
            "activation": "softmax",
            "modality": "CT",
            "orientation": "RAS",
            "spacing_mm": [1.5] * 3,
            "intensity": {"range": [-175, 250]},
            "window": {"size": [96, 96, 96], "overlap": 0.25},
        }

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, classes, 1)

        def predict(self, batch: Any) -> Any:
            with torch.no_grad():
                drawn = self.last(torch.relu_(self.first(batch)))
                drawn[:, 1] += 60 * (nn.functional.avg_pool3d(batch, 3, 1, 1)[:, 0] - 0.53)
            return drawn

    return Many().eval()


def wrong_unit(options: argparse.Namespace) -> None:
    """62 × 75 × 82 voxels whose spacing of 3 mm was written as 30 mm: 620 × 750 × 820 for the network that ships."""
    scan = body_of((62, 75, 82))
    scan.SetSpacing([30.0] * 3)
    in_child(options.limit_gb, lambda: explained(scan, region="prediction"))


def whole_body(options: argparse.Namespace) -> None:
    """400 × 400 × 700 voxels at 1 mm, and everything that ships: localizer, network, occlusion as it is by default."""
    scan = long_scan(options)
    in_child(options.limit_gb, lambda: explained(scan))


def rise(options: argparse.Namespace) -> None:
    """RISE over the whole of the same scan, a hundred patterns."""
    scan = long_scan(options)
    in_child(options.limit_gb, lambda: explained(scan, region="whole", method="rise", samples=100, wanted_error=0.0))


def rise_map(options: argparse.Namespace) -> None:
    """What RISE makes of 400 scores over 300 × 300 × 600 voxels, all of them body; map and standard error once."""

    def work() -> str:
        import torch

        from XAICLIPLib.explainers.base import final
        from XAICLIPLib.explainers.rise import rise as estimates

        class Scores:
            def touched(self, perturbation: Any) -> list[int]:
                return [0]

            def lost(self, perturbations: Any) -> Any:
                draws = np.random.default_rng(0)
                for number, _ in enumerate(perturbations):
                    yield [(number, float(draws.random()))]

        region = torch.ones((300, 300, 600), dtype=torch.bool)
        last = final(estimates(Scores(), region, (1.5,) * 3, cell_mm=48.0, samples=400, wanted_error=0.0))
        begun = time.perf_counter()
        largest = float(last.saliency().max())
        error = last.standard_error()
        took = time.perf_counter() - begun
        return f"largest {largest:.4f}, error {float(error.max()):.4f}; both in {took:.1f} s"  # type: ignore[union-attr]

    in_child(options.limit_gb, work)


def body_of(size: tuple[int, ...]) -> sitk.Image:
    """A cylinder of water in air."""
    x, y = (np.linspace(-1, 1, n) for n in size[:2])
    inside = x[None] ** 2 + y[:, None] ** 2 < 0.7
    return sitk.GetImageFromArray(np.broadcast_to(np.where(inside, 40, -1000), size[::-1]).astype(np.int16))


def long_scan(options: argparse.Namespace) -> sitk.Image:
    """The real CT at 1 mm between its mirror images, in air: 400 × 400 × 700 voxels."""
    image = sitk.ReadImage(str(options.data / "totalseg" / "example_ct.nii.gz"))
    image = sitk.DICOMOrient(image, "LPS")
    spacing = image.GetSpacing()
    fine = sitk.Resample(
        image,
        [int(n * s) for n, s in zip(image.GetSize(), spacing, strict=True)],
        sitk.Transform(),
        sitk.sitkLinear,
        image.GetOrigin(),
        [1.0] * 3,
        image.GetDirection(),
        -1000.0,
        sitk.sitkInt16,
    )
    values = sitk.GetArrayFromImage(fine)[:, :400, :400]
    beyond = max(0, 700 - len(values))
    values = np.pad(values, ((beyond // 2, beyond - beyond // 2), (0, 0), (0, 0)), "symmetric")[:700]
    sides = [(n // 2, n - n // 2) for n in (400 - m for m in values.shape[1:])]
    values = np.pad(values, ((0, 0), *sides), constant_values=-1000)
    scan = sitk.GetImageFromArray(values)
    scan.SetDirection(fine.GetDirection())
    scan.SetOrigin(fine.GetOrigin())
    return scan


def explained(scan: sitk.Image, **choices: Any) -> str:
    """Explain the liver of a scan by what ships."""
    from XAICLIPLib import explain

    result = explain(scan, "liver", device="cpu", **choices)
    took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.record["timings_s"].items())
    return f"{result.measurements['target_volume_ml']:.0f} ml, {result.measurements['perturbations']} hidden ({took})"


CASES: dict[str, Callable[[argparse.Namespace], None]] = {
    "many-classes": many_classes,
    "wrong-unit": wrong_unit,
    "whole-body": whole_body,
    "rise": rise,
    "rise-map": rise_map,
}


if __name__ == "__main__":
    main()
