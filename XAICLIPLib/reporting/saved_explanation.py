"""An explanation that was saved in a folder: it is read and checked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.channels import Volume, read_images
from XAICLIPLib.reporting import record
from XAICLIPLib.reporting.output_folder import FILES
from XAICLIPLib.system.checksums import sha256


@dataclass(frozen=True)
class SavedExplanation:
    """An explanation that was saved in a folder.

    Attributes
    ----------
    record
        The content of explanation.json, checked.
    saliency, target
        The map, and the mask of the explained structure, both on the grid of the scan.
    region
        Mask of the region that was perturbed, on the same grid; None if it was empty, and therefore not saved.
    figure
        The bytes of figure.png; None if there is no such file.
    checksums
        SHA-256 of each file, by name.
    standard_error
        Of the map, on the same grid; None where the method is not random.
    sufficient, necessary
        Masks of what suffices for the structure and of what it needs, on the same grid; None where it was not checked.
    """

    record: Mapping[str, Any]
    saliency: sitk.Image
    target: sitk.Image
    region: sitk.Image | None
    figure: bytes | None
    checksums: Mapping[str, str]
    standard_error: sitk.Image | None = None
    sufficient: sitk.Image | None = None
    necessary: sitk.Image | None = None


def read(folder: str | Path) -> SavedExplanation:
    """Read an explanation from the folder it was saved in.

    Raises
    ------
    InputError
        The folder holds no explanation, or a file is missing, damaged, or does not belong to the others.
    """
    folder = Path(folder)
    content = record.read(folder / "explanation.json")
    saliency = _image(folder / "saliency.nrrd")
    region = _on_grid_of(saliency, folder / "region.nrrd")
    target = _on_grid_of(saliency, folder / "target.nrrd")
    further = {
        name: _on_grid_of(saliency, folder / f"{name}.nrrd") for name in ("standard_error", "sufficient", "necessary")
    }
    if target is None:
        labels = _on_grid_of(saliency, folder / "segmentation.nrrd")
        if labels is None or content["target"]["voxels"] != "predicted":
            raise InputError(f"{folder} does not hold what was explained: save the explanation again.")
        label = content["target"]["label"]
        values = np.isin(sitk.GetArrayViewFromImage(labels), label).astype(np.uint8)
        target = sitk.GetImageFromArray(values)
        target.CopyInformation(labels)
    if list(saliency.GetSize()) != content["input"]["size"]:
        raise InputError(f"The files in {folder} do not belong together: save the explanation again.")
    figure_path = folder / "figure.png"
    try:
        figure = figure_path.read_bytes() if figure_path.is_file() else None
        checksums = {name: sha256(folder / name) for name in FILES if (folder / name).is_file()}
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror or error}): check its files.") from error
    return SavedExplanation(content, saliency, target, region, figure, checksums, **further)


def scan_of(saved: SavedExplanation, volume: Volume, series: int | str | None = None) -> sitk.Image:
    """Read the scan that was explained, and check by its voxels that it is the right one.

    Raises
    ------
    InputError
        It cannot be read, or is another scan.
    """
    image = read_images(volume, series)[0].image
    known = record.voxels_sha256(image) == saved.record["input"]["voxels_sha256"]
    if not known or not imaging.same_geometry(image, saved.saliency):
        name = "The volume" if isinstance(volume, sitk.Image) else f"{volume}"
        raise InputError(
            f"{name} is not the scan that this explanation was made of: give that one, or none to do without slices."
        )
    return image


def _on_grid_of(saliency: sitk.Image, path: Path) -> sitk.Image | None:
    """A volume of the folder, which must lie on the map's grid; None if the file does not exist."""
    if not path.is_file():
        return None
    volume = _image(path)
    if not imaging.same_geometry(volume, saliency):
        raise InputError(f"{path} does not lie on the grid of saliency.nrrd: save the explanation again.")
    return volume


def _image(path: Path) -> sitk.Image:
    """A volume that was written with the explanation. It may be constant, which `read_volume` refuses for a scan."""
    if not path.is_file():
        raise InputError(f"{path.parent} holds no {path.name}: save the explanation again.")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} is damaged or cut off: save the explanation again.") from error
    values = sitk.GetArrayViewFromImage(image)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1 or not np.isfinite(values).all():
        raise InputError(f"{path} is no scalar 3D volume of finite values: save the explanation again.")
    return image
