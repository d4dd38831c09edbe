"""DICOM objects: sizes and seconds for a large scan, and every way that a series may lie, read back by others.

``python Testing/benchmarks/dicom.py [--size 512 512 300] [--folder DIR] [--lies]``. With ``--lies`` it writes and reads
back all 192 series of `dicom_orientations` with pydicom, highdicom and dcmqi, which takes two minutes.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Python"))

import dicom_orientations as orientations
from dicom_study import explanation_of, write_series

from XAICLIPLib import imaging
from XAICLIPLib.reporting.dicom import writer


def check_lies(folder: Path) -> None:
    """All ways to lie × three readers."""
    lies = list(orientations.lies())
    for number, lie in enumerate(lies):
        case = orientations.make(lie, folder / f"{number}")
        orientations.by_pydicom(case)
        orientations.by_highdicom(case)
        orientations.by_dcmqi(case)
    print(
        f"{len(lies)} series (8 flips × 3 orders of axes × straight and oblique × equal and unequal spacing × both "
        f"orders of the files), map and segments read back by pydicom, highdicom and dcmqi: every voxel has its value, "
        f"and the island around the planted cue is whole, where they lie in the patient ({3 * len(lies)} comparisons)."
    )


def measure(size: tuple[int, int, int], folder: Path) -> None:
    """A scan of this size: columns, rows, slices."""
    shape = size[::-1]
    k, j, i = np.ogrid[: shape[0], : shape[1], : shape[2]]
    place = ((k / shape[0] - 0.5) ** 2 + (j / shape[1] - 0.5) ** 2 + (i / shape[2] - 0.5) ** 2) ** 0.5
    values = np.where(place < 0.45, 40, -1000).astype(np.int16)
    values += np.random.default_rng(0).integers(-30, 30, shape, dtype=np.int16)
    write_series(folder / "scan", values, (-200, -200, -300), np.eye(3), (0.78, 0.78, 1.0))
    del values
    started = time.perf_counter()
    scan = imaging.read_scan(folder / "scan")
    read_s = time.perf_counter() - started
    # Random values: nothing that is written can be small because it is simple.
    saliency = np.random.default_rng(1).normal(0, 0.02, shape).astype(np.float32)
    explained = explanation_of(
        scan, saliency, place < 0.15, place < 0.25, structure="liver", standard_error=np.abs(saliency)
    )
    del saliency, place
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows: list[tuple[str, float, int]] = []
    write = writer._write

    def timed(made: object, path: Path, into: Path) -> None:
        nonlocal started
        write(made, path, into)  # type: ignore[arg-type]
        rows.append((path.stem, time.perf_counter() - started, path.stat().st_size))
        started = time.perf_counter()

    writer._write = timed
    begun = started = time.perf_counter()
    explained.save_dicom(folder / "dicom")
    total = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n_bytes = sum(path.stat().st_size for path in (folder / "scan").iterdir())
    print(f"| {'×'.join(map(str, size))} | s | MB |\n| --- | ---: | ---: |")
    print(f"| the scan, read ({shape[0]} files) | {read_s:.1f} | {n_bytes / 1e6:.0f} |")
    for name, seconds, size_bytes in rows:
        print(f"| {name} | {seconds:.1f} | {size_bytes / 1e6:.2f} |")
    print(f"| all objects, with the figure drawn | {total:.1f} | {sum(row[2] for row in rows) / 1e6:.0f} |")
    print(f"\nPeak memory {after / 1e6:.1f} GB, {before / 1e6:.1f} GB before the objects were written.")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", nargs=3, type=int, default=(512, 512, 300), metavar=("COLUMNS", "ROWS", "SLICES"))
    parser.add_argument("--folder", type=Path, help="for the files, which are removed; default: the temporary folder")
    parser.add_argument("--lies", action="store_true", help="check every way to lie, instead of measuring")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        if options.lies:
            check_lies(Path(name))
        else:
            measure(tuple(options.size), Path(name))


if __name__ == "__main__":
    main()
