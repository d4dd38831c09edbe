"""Grey values of slices for an image-text model: windows and contrast equalisation."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from skimage.exposure import equalize_adapthist

Modality = Literal["CT", "MR"]

CT_WINDOW_HU = (-125.0, 275.0)
"""Soft-tissue window of a CT whose values are HU."""


def window_ct(slices: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale HU to [0, 1] in `CT_WINDOW_HU`."""
    low, high = CT_WINDOW_HU
    return np.clip((slices - low) / (high - low), 0, 1).astype(np.float32)


def window_percentiles(image: NDArray[np.floating], low: float = 5, high: float = 95) -> NDArray[np.float32]:
    """Window one slice (rows, columns) between two percentiles and equalise it (CLAHE), as the paper does.

    Pixels of the slice's lowest value are left out of the percentiles: otherwise the air around the patient would
    determine them.
    """
    inside = image[image > image.min()]
    if inside.size < 16:
        return np.zeros(image.shape, np.float32)
    bottom, top = np.percentile(inside, (low, high))
    scaled = np.clip((image - bottom) / max(float(top - bottom), 1e-6), 0, 1)
    return equalize_adapthist(scaled, clip_limit=0.01).astype(np.float32)


def prepare_slices(slices: NDArray[np.floating], modality: Modality | None) -> NDArray[np.float32]:
    """Prepare a stack (slices, rows, columns): HU window for CT, percentiles and CLAHE for anything else."""
    if modality == "CT":
        return window_ct(slices)
    return np.stack([window_percentiles(image) for image in slices])
