"""Whether a volume is what a network was trained on, as far as intensities, grid and the network's own words tell."""

from __future__ import annotations

import re

import numpy as np
import SimpleITK as sitk

from XAICLIPLib import imaging
from XAICLIPLib.segmentation.segmenter import Prepared, Segmenter, SlidingWindow

AIR_HU = -50.0
"""A CT that shows anything but soft tissue reaches below it; one that does not is no CT in HU."""

COARSE = 3.0
"""Voxels of the scan this many times as long as the network's along an axis: what is between them is invented."""

MOSTLY_PADDING = 0.5
"""Share of the network's window that the scan fills along an axis, below which the network sees mostly padding."""


def mismatches(volume: sitk.Image, modality: str | None, segmenter: Segmenter, prepared: Prepared) -> list[str]:
    """What the user should know before relying on a network on this volume, one sentence each.

    Parameters
    ----------
    volume
        The scan, scalar.
    modality
        CT or MR, said by the user or guessed; None where it is neither.
    segmenter, prepared
        The network, and the volume as it sees it.
    """
    found = []
    wanted = modalities(segmenter.modality)
    if modality and modality not in (wanted or {modality}):
        found.append(
            f"The network {segmenter.name} is for {segmenter.modality}, and this volume looks like {modality}: "
            "do not rely on its segmentation."
        )
    elif wanted == {"CT"}:
        found += _units(volume, segmenter.name)
    found += _grid(volume, segmenter, prepared)
    return found


def modalities(words: str | None) -> set[str]:
    """Which of CT and MR a network's own words for its modality mean; empty where they mean neither."""
    signs = {"CT": r"\bCT|computed tomography", "MR": r"\bMR|magnetic resonance|\bT[12]w?\b"}
    return {name for name, pattern in signs.items() if re.search(pattern, words or "", re.IGNORECASE)}


def _units(volume: sitk.Image, network: str) -> list[str]:
    """A CT whose values are no Hounsfield units."""
    values = sitk.GetArrayViewFromImage(volume)
    low, high = (float(v) for v in np.percentile(values[::2, ::2, ::2], (0.5, 99.5)))
    if low <= AIR_HU:
        return []
    if high > 900:
        return [
            f"The values of this volume run from {low:.0f} to {high:.0f}, as of a CT with an offset (often 1024), "
            f"and the network {network} expects Hounsfield units: subtract the offset."
        ]
    return [
        f"The values of this volume run from {low:g} to {high:g}, and the network {network} expects Hounsfield units, "
        "of which air is −1000: do not rely on its segmentation."
    ]


def _grid(volume: sitk.Image, segmenter: Segmenter, prepared: Prepared) -> list[str]:
    """A scan much coarser than the network's grid, or much smaller than its window."""
    found = []
    affine = imaging.ras_affine(volume)
    # Along each axis of the network's grid, how far apart the scan's voxels are.
    directions = prepared.affine[:3, :3] / np.linalg.norm(prepared.affine[:3, :3], axis=0)
    apart = np.abs(np.linalg.inv(affine[:3, :3]) @ directions)
    scan = 1 / np.maximum(apart.max(axis=0), 1e-9)
    worst = int(np.argmax(scan / np.array(prepared.spacing_mm)))
    if scan[worst] > COARSE * prepared.spacing_mm[worst]:
        found.append(
            f"The scan's voxels are {scan[worst]:.1f} mm apart along one axis, and the network {segmenter.name} works "
            f"at {prepared.spacing_mm[worst]:.1f} mm: what lies between them is interpolated, so take its details with "
            "care."
        )
    window = segmenter.window
    if isinstance(window, SlidingWindow):
        sizes = zip(prepared.tensor.shape[1:], window.roi_size, prepared.spacing_mm, strict=True)
        short = [(n * s, roi * s) for n, roi, s in sizes if roi and n < MOSTLY_PADDING * roi]
        if short:
            found.append(
                f"The scan is {short[0][0]:.0f} mm long along one axis, and the network {segmenter.name} looks at "
                f"{short[0][1]:.0f} mm at once: most of what it sees there is padding."
            )
    return found
