"""Several images of one patient, as networks for MR take them: on one grid, in the order that the network expects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError

Volume = sitk.Image | str | Path
"""A volume, or the path of one."""

LEAST_OVERLAP = 0.5
"""Share of the first image that another one must cover: less is another part of the body, or another patient."""


def read_images(images: Volume | Sequence[Volume], series: int | str | None = None) -> list[imaging.Scan]:
    """Read the images for a network: one volume, or several of one patient, each on its own grid.

    Parameters
    ----------
    images
        Volumes, or their paths.
    series
        Which series of each DICOM folder (`read_volume`).

    Raises
    ------
    InputError
        A volume cannot be read or used.
    """
    volumes = [images] if isinstance(images, (sitk.Image, str, os.PathLike)) else list(images)
    if not volumes:
        raise InputError("No volume is given: give the scan.")
    scans = []
    for number, image in enumerate(volumes):
        if isinstance(image, sitk.Image):
            imaging.check_volume(image, "the volume" if len(volumes) == 1 else f"the volume {number + 1}")
        scans.append(imaging.Scan(image) if isinstance(image, sitk.Image) else imaging.read_scan(image, series))
    return scans


def warnings_of(scans: Sequence[imaging.Scan]) -> list[str]:
    """Warnings for the user about the files that were read, as sentences."""
    names = ["The scan"] if len(scans) == 1 else [f"The scan {number + 1}" for number in range(len(scans))]
    return [warning for scan, name in zip(scans, names, strict=True) for warning in scan.warnings(name)]


def stack(images: Sequence[sitk.Image], inputs: Sequence[str], network: str) -> tuple[sitk.Image, list[str]]:
    """One image with a component per pixel for each of the network's inputs, on the grid of the first.

    Parameters
    ----------
    images
        Scalar volumes.
    inputs
        What the network takes.
    network
        Its name, for the message.

    Returns
    -------
    SimpleITK.Image
        The image itself where there is one.
    list of str
        Warnings for the user: which images were resampled.

    Raises
    ------
    InputError
        More or fewer images than the network takes, copies of one, or images of different parts of the body.
    """
    if len(images) != len(inputs):
        listing = f"{len(inputs)} images of one patient at once ({', '.join(inputs)}, in this order)"
        takes = "one image" if len(inputs) == 1 else listing
        was = "one was" if len(images) == 1 else f"{len(images)} were"
        raise InputError(
            f"The network {network} takes {takes}, and {was} given: give as many, or choose another "
            "(a description of your own network names them under inputs)."
        )
    if len(images) == 1:
        return images[0], []
    _refuse_copies(images, inputs)
    first, warnings = images[0], []
    channels = [sitk.Cast(first, sitk.sitkFloat32)]
    for image, name in zip(images[1:], inputs[1:], strict=True):
        resampled = sitk.Cast(image, sitk.sitkFloat32)
        if imaging.same_geometry(image, first):
            resampled.CopyInformation(first)
        else:
            share = _covered_share(image, first)
            if share < LEAST_OVERLAP:
                raise InputError(
                    f"The image {name} covers only {share:.0%} of the image {inputs[0]}: give images of one patient "
                    "and one place, registered to each other."
                )
            resampled = imaging.resample_like(resampled, first, "linear")
            warnings.append(
                f"The image {name} lies on another grid than {inputs[0]} and was resampled to it: check that the two "
                "are registered."
            )
        channels.append(resampled)
    return sitk.Compose(channels), warnings


def _refuse_copies(images: Sequence[sitk.Image], inputs: Sequence[str]) -> None:
    """Refuse one image in place of several: the network would answer, and its answer mean nothing."""
    for later, image in enumerate(images):
        for earlier, other in enumerate(images[:later]):
            if imaging.same_geometry(image, other) and np.array_equal(
                sitk.GetArrayViewFromImage(image), sitk.GetArrayViewFromImage(other)
            ):
                raise InputError(
                    f"The images {inputs[earlier]} and {inputs[later]} are the same: give each of the images that the "
                    "network takes, or choose a network that takes fewer."
                )


def _covered_share(image: sitk.Image, reference: sitk.Image) -> float:
    """Share of the reference's voxels that lie inside an image."""
    inside = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    inside.CopyInformation(image)
    return float(np.mean(sitk.GetArrayViewFromImage(imaging.resample_like(inside, reference, "nearest")) != 0))
