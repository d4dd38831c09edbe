"""Volumes: reading, checking, grids, intensities. Imports system; needs NumPy and SimpleITK, and pydicom for DICOM.

At the borders a volume is a ``SimpleITK.Image`` (LPS, mm); inside PyTorch it is a MONAI ``MetaTensor`` of shape
(1, X, Y, Z) with an RAS affine. PyTorch and MONAI are imported only by `as_metatensor`.
"""

from XAICLIPLib.imaging.geometry import (
    as_metatensor,
    box_mask,
    image_from_array,
    ras_affine,
    resample_labels,
    resample_like,
    same_geometry,
    standard_axial,
    volume_ml,
    without_metadata,
)
from XAICLIPLib.imaging.intensities import body_mask, guess_modality
from XAICLIPLib.imaging.scan import Scan
from XAICLIPLib.imaging.volumes import (
    MIN_SIZE,
    SPACING_RANGE,
    check_grid,
    check_intensities,
    check_volume,
    dicom_source_of,
    read_dicom_source,
    read_mask,
    read_scan,
    read_volume,
    write_volume,
)

__all__ = [
    "MIN_SIZE",
    "SPACING_RANGE",
    "Scan",
    "as_metatensor",
    "body_mask",
    "box_mask",
    "check_grid",
    "check_intensities",
    "check_volume",
    "dicom_source_of",
    "guess_modality",
    "image_from_array",
    "ras_affine",
    "read_dicom_source",
    "read_mask",
    "read_scan",
    "read_volume",
    "resample_labels",
    "resample_like",
    "same_geometry",
    "standard_axial",
    "volume_ml",
    "without_metadata",
    "write_volume",
]
