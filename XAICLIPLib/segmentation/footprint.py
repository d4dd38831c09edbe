"""What an explanation takes of memory, estimated before it is begun, so that what does not fit is refused in time.

The numbers of bytes were measured with ``Testing/benchmarks/memory.py``, which compares them with a process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import SimpleITK as sitk
import torch

from XAICLIPLib.errors import CPU, FEWER_SLICES, NotEnoughMemory
from XAICLIPLib.imaging.geometry import ras_affine
from XAICLIPLib.segmentation.batching import OUTPUT_BYTES, USUAL_PATCH
from XAICLIPLib.segmentation.segmenter import Segmenter
from XAICLIPLib.segmentation.streaming import WAITING_BYTES
from XAICLIPLib.system.memory import free_memory, out_of_memory, ran_out

RESAMPLING_BYTES, OLD_BYTES = 56, 12
"""While MONAI resamples: for each voxel of the network's grid its place, twice, in double precision; for each voxel of
the scan, a copy in single and one in double precision."""

PREPARED_COPIES = 5
"""How many times the network's input is held while its intensities are scaled."""

NETWORK_BYTES, NETWORK_COPIES = 18, 2
"""For each voxel of the network's grid: masks, label map, sums of the method; and how many times its input is held."""

SCAN_BYTES = 8
"""For each voxel of the scan: maps and masks in its geometry."""

DEVICE_BYTES, DEVICE_COPIES = 4, 4
"""For each voxel of the network's grid on a GPU: the label map and masks; and how many times its input is held."""

BATCH_BYTES, LAYER_BYTES = 2**29, 1024
"""What the layers of a usual network hold of one batch, about, and of a voxel of a small one."""

BODY_MM = (1000.0, 2300.0)
"""No person is wider, or longer: the spacing of a scan that is has another unit."""


@dataclass(frozen=True)
class Footprint:
    """What an explanation takes at its peak, beside the network and the scan.

    Attributes
    ----------
    size
        Voxels on the network's grid, along the scan's axes where they are known before it is resampled.
    host, device
        Bytes here and on a GPU, 0 where there is none.
    """

    size: tuple[int, ...]
    host: int
    device: int

    @property
    def in_words(self) -> str:
        """The size on the network's grid and what it takes."""
        takes = self.device or self.host
        return f"{' × '.join(map(str, self.size))} voxels on the network's grid, which take about {gigabytes(takes)}"


def gigabytes(count: int) -> str:
    """Bytes for a reader."""
    return f"{count / 1e9:.1f} GB" if count < 9.95e9 else f"{count / 1e9:.0f} GB"


def resampled_size(segmenter: Segmenter, image: sitk.Image) -> tuple[int, ...] | None:
    """Voxels of an image on the network's grid, along the image's axes; None where that is known only afterwards."""
    spacing_mm = getattr(segmenter, "spacing_mm", None)
    if spacing_mm is None:
        return None
    sizes = []
    for axis, (count, old) in enumerate(zip(image.GetSize(), image.GetSpacing(), strict=True)):
        patient = int(abs(ras_affine(image)[:3, axis]).argmax())  # the network's axes are the patient's, save for signs
        new = spacing_mm[patient] or old
        sizes.append(max(1, round(count * old / new)))
    return tuple(sizes)


def footprint(
    segmenter: Segmenter,
    image: sitk.Image,
    size: Sequence[int],
    device: torch.device,
    resampled: bool = False,
) -> Footprint:
    """Estimate what an explanation takes.

    Parameters
    ----------
    segmenter, image
        The network, and what it is given.
    size
        Voxels on the network's grid.
    device
        Where the network runs.
    resampled
        Whether the image has already been brought to the network's grid.
    """
    new, old, inputs = math.prod(size), image.GetNumberOfPixels(), len(segmenter.inputs)
    classes = len(segmenter.labels)
    patch = new if segmenter.window is None else min(new, 2 * USUAL_PATCH)
    batch = min(max(OUTPUT_BYTES, 4 * classes * patch), 16 * classes * patch) + min(BATCH_BYTES, LAYER_BYTES * patch)
    logits = min(4 * classes * new, WAITING_BYTES) + batch
    same = tuple(size) == image.GetSize()
    resampling = 0 if same else RESAMPLING_BYTES * new + OLD_BYTES * inputs * old
    preparing = 0 if resampled else max(resampling, 4 * PREPARED_COPIES * inputs * new)
    maps = SCAN_BYTES * old + (NETWORK_BYTES + 4 * NETWORK_COPIES * inputs) * new
    if device.type != "cuda":
        return Footprint(tuple(size), max(preparing, maps + logits), 0)
    on_device = (DEVICE_BYTES + 4 * DEVICE_COPIES * inputs) * new + logits
    return Footprint(tuple(size), max(preparing, maps), on_device)


def refuse_what_does_not_fit(needed: Footprint, image: sitk.Image, device: torch.device) -> None:
    """Say so before the work where an explanation takes more memory than is free.

    Raises
    ------
    NotEnoughMemory
        It does. The spacing is named where it makes a scan larger than a person.
    """
    for bytes_needed, place, where in (
        (needed.host, None, "memory"),
        (needed.device, device, "the GPU's memory"),
    ):
        free = free_memory(place) if bytes_needed else None
        if free is None or bytes_needed <= free:
            continue
        size = " × ".join(map(str, needed.size))
        told = (
            f"On the network's grid the scan becomes {size} voxels, about {gigabytes(bytes_needed)} of {where}, and "
            f"{gigabytes(free)} are free"
        )
        if not_a_person(image):
            spacing = " × ".join(f"{s:g}" for s in image.GetSpacing())
            raise NotEnoughMemory(
                f"{told}: check its spacing of {spacing} mm, which makes it larger than a person, or {FEWER_SLICES}.",
                FEWER_SLICES,
            )
        if place is not None:
            raise NotEnoughMemory(f"{told}: {CPU}, or {FEWER_SLICES}.", CPU, FEWER_SLICES)
        raise NotEnoughMemory(f"{told}: {FEWER_SLICES}, or close other programs.", FEWER_SLICES)


def not_a_person(image: sitk.Image) -> bool:
    """Whether a scan is wider along two axes than a person, or longer than one."""
    extents = sorted(count * size for count, size in zip(image.GetSize(), image.GetSpacing(), strict=True))
    return extents[-2] > BODY_MM[0] or extents[-1] > BODY_MM[1]


def doubt_of_size(image: sitk.Image) -> str:
    """A warning of a scan that is larger than a person, whose volumes would be wrong; empty where it is not."""
    if not not_a_person(image):
        return ""
    extents = [f"{count * size / 10:.0f}" for count, size in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    spacing = " × ".join(f"{size:g}" for size in image.GetSpacing())
    return (
        f"The scan measures {' × '.join(extents)} cm, more than a person: check its spacing of {spacing} mm, on which "
        "all that is told of sizes and volumes depends."
    )


@contextmanager
def told_as_memory(doing: str, needed: Footprint | None = None) -> Iterator[None]:
    """Tell an allocation that fails within as what it is, with the sizes.

    Raises
    ------
    NotEnoughMemory
        Instead of a `MemoryError`, or what PyTorch, ITK and others raise in its place.
    """
    try:
        yield
    except NotEnoughMemory:
        raise
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise ran_out(error, doing, f"with {needed.in_words}" if needed else "") from None
