"""Whether a volume is like the network's training data, judged by intensities, grid and the network's description."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from XAICLIPLib import imaging
from XAICLIPLib.evaluation.reliability_flag import ReliabilityFlag
from XAICLIPLib.imaging.modality import KnownModality, modalities_named
from XAICLIPLib.segmentation.segmenter import Prepared, Segmenter
from XAICLIPLib.segmentation.sliding_window import SlidingWindow

AIR_HU = -50.0
"""The lowest values of a CT in HU lie below this, because it shows fat, lung or air. Otherwise it is no CT in HU."""

COARSE = 3.0
"""From this many times the network's voxel size along an axis, most of what the network sees is interpolated."""

MOSTLY_PADDING = 0.5
"""If the scan fills less than this share of the network's window along an axis, the network sees mostly padding."""


def suitability_flags(
    volume: sitk.Image, modality: KnownModality, segmenter: Segmenter, prepared: Prepared
) -> list[ReliabilityFlag]:
    """Check whether a network was made for a volume like this one.

    Parameters
    ----------
    volume
        The scan, scalar.
    modality
        That of the scan, and its source: the user, the header or the intensities.
    segmenter, prepared
        The network, and the volume as it sees it.
    """
    flags = []
    network_modalities = modalities_named(segmenter.modality)
    if (flag := modality_flag(modality, segmenter.name, segmenter.modality)) is not None:
        flags.append(flag)
    if network_modalities == {"CT"} and modality.code in (None, "CT"):
        flags.append(_units(volume, segmenter.name))
    flags.append(_spacing(volume, segmenter, prepared))
    padding = _padding(segmenter, prepared)
    return [*flags, padding] if padding else flags


def modality_flag(scan: KnownModality, network: str, made_for: str | None) -> ReliabilityFlag | None:
    """Whether a network is for the modality of a scan; known before any work. None where one of the two is unknown.

    Parameters
    ----------
    scan
        The modality of the scan, and its source.
    network, made_for
        The network's name, and its modality in its own words.
    """
    network_modalities = modalities_named(made_for)
    if not (scan.code and network_modalities):
        return None
    other = scan.code not in network_modalities
    sentence = f"The network {network} is for {made_for}, and {_said(scan, 'this volume')}"
    sentence += ": do not rely on its segmentation." if other else "."
    return ReliabilityFlag("unfamiliar modality", sentence, float(other), 0.0, other)


def mismatch(scan: KnownModality, made_for: str | None) -> str:
    """For a sentence on what was not found: that the network is for another modality; empty where it is not."""
    if scan.code and (named := modalities_named(made_for)) and scan.code not in named:
        return f"; the network is for {made_for}, and {_said(scan, 'the volume')}"
    return ""


def localizer_caution(scan: KnownModality, localizer: str, listed: str | None) -> str | None:
    """What follows where the localizer is not reliable on the modality of a scan; None where nothing is known against.

    Parameters
    ----------
    scan
        The modality of the scan, and its source.
    localizer, listed
        The localizer's name, and its modality in the catalogue.
    """
    named = modalities_named(listed)
    if not scan.code or not named or scan.code in named:
        return None
    return (
        f"The localizer {localizer} is for {listed}, and {_said(scan, 'this volume')}: the region that it finds may be "
        "elsewhere, or hold far more than the structure; look at it, or explain within the prediction instead."
    )


def _said(scan: KnownModality, volume: str) -> str:
    """What a scan is, and who says so."""
    return {
        "user": f"you say that {volume} is {scan.code}",
        "header": f"{volume} is {scan.code}, as its file says",
        "intensities": f"{volume} looks like {scan.code}",
    }[scan.source]


def _units(volume: sitk.Image, network: str) -> ReliabilityFlag:
    """Whether the values of a CT are Hounsfield units; the flag's value is the lowest of them (0.5th percentile)."""
    values = sitk.GetArrayViewFromImage(volume)
    low, high = (float(v) for v in np.percentile(values[::2, ::2, ::2], (0.5, 99.5)))
    value_range = f"The values of this volume run from {low:g} to {high:g}"
    if low <= AIR_HU:
        sentence = f"The lowest values of this volume, about {low:.0f}, are those of a CT in Hounsfield units.".replace(
            "-", "−"
        )
    elif high > 900:
        sentence = (
            f"The values of this volume run from {low:.0f} to {high:.0f}, as of a CT with an offset (often 1024), "
            f"and the network {network} expects Hounsfield units: subtract the offset."
        )
    else:
        sentence = (
            f"{value_range}, and the network {network} expects Hounsfield units, of which air is −1000: do not rely on "
            "its segmentation."
        )
    return ReliabilityFlag("unfamiliar intensities", sentence, low, AIR_HU, low > AIR_HU)


def _spacing(volume: sitk.Image, segmenter: Segmenter, prepared: Prepared) -> ReliabilityFlag:
    """Whether a scan is much coarser than the network's grid; the flag's value is the ratio along the worst axis."""
    affine = imaging.ras_affine(volume)
    # Distance of the scan's voxels along each axis of the network's grid.
    directions = prepared.affine[:3, :3] / np.linalg.norm(prepared.affine[:3, :3], axis=0)
    voxels_per_mm = np.abs(np.linalg.inv(affine[:3, :3]) @ directions)
    scan_spacing_mm = 1 / np.maximum(voxels_per_mm.max(axis=0), 1e-9)
    worst = int(np.argmax(scan_spacing_mm / np.array(prepared.spacing_mm)))
    factor = float(scan_spacing_mm[worst] / prepared.spacing_mm[worst])
    sentence = (
        f"The scan's voxels are {scan_spacing_mm[worst]:.1f} mm apart along one axis, and the network "
        f"{segmenter.name} works at {prepared.spacing_mm[worst]:.1f} mm: what lies between them is interpolated, so "
        "take its details with care."
    )
    if factor <= COARSE:
        sentence = f"The scan is fine enough for the network {segmenter.name}, which works at "
        sentence += f"{prepared.spacing_mm[worst]:.1f} mm."
    return ReliabilityFlag("unfamiliar spacing", sentence, factor, COARSE, factor > COARSE)


def _padding(segmenter: Segmenter, prepared: Prepared) -> ReliabilityFlag | None:
    """Whether the network's window is mostly padding; the flag's value is the share filled along the worst axis."""
    window = segmenter.window
    if not isinstance(window, SlidingWindow):
        return None
    sizes = zip(prepared.tensor.shape[1:], window.roi_size, prepared.spacing_mm, strict=True)
    axes = [(n / roi, n * s, roi * s) for n, roi, s in sizes if roi]
    if not axes:
        return None
    share, scan_mm, window_mm = min(axes)
    sentence = f"The scan fills the {window_mm:.0f} mm that the network {segmenter.name} looks at once well enough."
    if share < MOSTLY_PADDING:
        sentence = (
            f"The scan is {scan_mm:.0f} mm long along one axis, and the network {segmenter.name} looks at "
            f"{window_mm:.0f} mm at once: most of what it sees there is padding."
        )
    return ReliabilityFlag("mostly padding", sentence, min(share, 1.0), MOSTLY_PADDING, share < MOSTLY_PADDING)
