"""CHAOS: abdominal CT and MR as DICOM slices, their labels as one PNG a slice.

Which PNG belongs to which slice is not written in any file. The challenge's own evaluation takes both sorted by file
name, "NOT by position tags in DICOM files" [1]_: the first PNG is drawn on the first DICOM file, whichever way through
the body the files run. They run from the head down in CT, where the PNGs (``liver_GT_000.png``) carry no name of a
DICOM file, and mostly from the feet up in MR, whose PNGs have the names of the in-phase (T1-DUAL) or T2 files. So the
order comes from the names, but each mask goes where `ImagePositionPatient` puts its slice. Copies that went through a
PACS may have lost the names; the instance number then tells the order (`series_order`).

References
----------
.. [1] Kavur, CHAOSmetrics.py, ``transformToRealCoordinates``, github.com/emrekavur/CHAOS-evaluation. Data: Kavur et
   al., CHAOS challenge, Medical Image Analysis 69, 2021; zenodo.org/records/3431873.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.experiment.datasets.case import Case, attempt, label_image, natural
from XAICLIPLib.imaging.dicom.series import series_files

GREYS: dict[int, tuple[int, int]] = {1: (55, 70), 2: (110, 135), 3: (175, 200), 4: (240, 255)}
"""Ranges of grey values of the MR masks, by label here, both ends included; 0 is background."""

MR_STRUCTURES = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
CT_STRUCTURES = {1: "liver"}

# Sequence: name, end of the identifier, folder of the slices, folder of the masks, under the patient's.
_SEQUENCES = (
    ("T1-DUAL in phase", "T1-in", Path("T1DUAL/DICOM_anon/InPhase"), Path("T1DUAL/Ground")),
    ("T1-DUAL out of phase", "T1-out", Path("T1DUAL/DICOM_anon/OutPhase"), Path("T1DUAL/Ground")),
    ("T2-SPIR", "T2", Path("T2SPIR/DICOM_anon"), Path("T2SPIR/Ground")),
)


def find_chaos(root: Path) -> Iterator[Case | InputError]:
    """Cases of a folder that is or holds ``Train_Sets``; in- and out-phase are two, with one set of masks."""
    inside = (root / "CHAOS_Train_Sets" / "Train_Sets", root / "Train_Sets", root)
    sets = next((folder for folder in inside if (folder / "CT").is_dir() or (folder / "MR").is_dir()), None)
    if sets is None:
        raise InputError(f"{root} is no copy of CHAOS: give the folder that holds Train_Sets with CT or MR.")
    for patient in _patients(sets / "CT"):
        yield attempt(_ct_case, patient)
    for patient in _patients(sets / "MR"):
        for sequence in _SEQUENCES:
            # A copy may hold only some of the sequences; half a sequence is an error.
            if (patient / sequence[2]).exists() or (patient / sequence[2].parts[0]).exists():
                yield attempt(_mr_case, patient, *sequence)


def _patients(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=natural)


def _ct_case(patient: Path) -> Case:
    slices, masks = patient / "DICOM_anon", patient / "Ground"
    pairs = pair(slices, masks)
    labels = partial(_read_labels, pairs, slices, False)
    return Case(f"CT-{patient.name}", "CT", None, CT_STRUCTURES, partial(imaging.read_volume, slices), labels)


def _mr_case(patient: Path, name: str, suffix: str, slices: Path, masks: Path) -> Case:
    slices, masks = patient / slices, patient / masks
    pairs = pair(slices, masks)
    labels = partial(_read_labels, pairs, slices, True)
    image = partial(imaging.read_volume, slices)
    return Case(f"MR-{patient.name}-{suffix}", "MR", name, MR_STRUCTURES, image, labels)


def pair(slices: Path, masks: Path) -> tuple[Path, ...]:
    """Masks in the order of the volume's slices, that is of their positions along the normal.

    Parameters
    ----------
    slices : Path
        Folder of one DICOM series.
    masks : Path
        Folder of PNGs, as many as slices.

    Raises
    ------
    InputError
        A folder is missing or empty, their numbers differ, the series cannot be a volume, or its order is unknown.
    """
    for folder, kind in ((slices, "DICOM slices"), (masks, "PNG masks")):
        if not folder.is_dir():
            raise InputError(f"The folder {folder} with the {kind} is missing: complete the copy of CHAOS.")
    # Archives made on a Mac have a ._ file beside each.
    pngs = sorted((p for p in masks.glob("*.png") if not p.name.startswith(".")), key=natural)
    if not pngs:
        raise InputError(f"The folder {masks} holds no PNG masks: complete the copy of CHAOS.")
    files = series_files(slices)
    if len(pngs) != len(files):
        raise InputError(
            f"The folder {masks} holds {len(pngs)} PNG masks for the {len(files)} slices of {slices}: "
            f"complete the copy of CHAOS."
        )
    mask_of = dict(zip(series_order(files, [p.stem for p in pngs]), pngs, strict=True))
    return tuple(mask_of[file] for file in files)


def series_order(files: list[Path], names: list[str]) -> list[Path]:
    """The files of a series as its masks are numbered.

    Parameters
    ----------
    files : list of Path
        Along the normal.
    names : list of str
        Of the masks, without ending, in order.

    Returns
    -------
    list of Path
        By file name, where that runs along the normal one way or the other (as published); else by instance number,
        where that does; else by file name again where the masks have the very same names.

    Raises
    ------
    InputError
        None of these holds.
    """
    by_name = sorted(files, key=natural)
    if by_name in (files, files[::-1]):
        return by_name
    numbers = [_instance_number(file) for file in files]
    if None not in numbers:
        by_number = [files[i] for i in np.argsort(np.array(numbers, dtype=int), kind="stable")]
        if len(set(numbers)) == len(files) and by_number in (files, files[::-1]):
            return by_number
    if [file.stem for file in by_name] == names:
        return by_name
    raise InputError(
        f"The order of the slices in {files[0].parent} is unknown, neither their names nor their instance numbers run "
        f"along the patient: restore the published file names."
    )


def _instance_number(file: Path) -> int | None:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    text = reader.GetMetaData("0020|0013").strip("\0 ") if reader.HasMetaDataKey("0020|0013") else ""
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else None


def _read_labels(masks: tuple[Path, ...], slices: Path, greys: bool) -> sitk.Image:
    grid = imaging.read_volume(slices)
    width, height, _ = grid.GetSize()
    array = np.stack([_read_mask(path, (height, width), greys) for path in masks])
    if not array.any():
        raise InputError(f"The masks in {masks[0].parent} are empty, no pixel is above 0: complete the copy of CHAOS.")
    return label_image(array, grid)


def _read_mask(path: Path, shape: tuple[int, int], greys: bool) -> NDArray[Any]:
    """Read a PNG as labels (rows, columns)."""
    try:
        image = sitk.ReadImage(str(path), imageIO="PNGImageIO")
    except RuntimeError as error:
        raise InputError(f"The mask {path} cannot be read, it is damaged or no PNG: copy it again.") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"The mask {path} is in colour, CHAOS has grey ones: copy it again.")
    pixels = sitk.GetArrayFromImage(image).reshape(image.GetSize()[1::-1])
    if pixels.shape != shape:
        raise InputError(
            f"The mask {path} has {pixels.shape[1]}×{pixels.shape[0]} pixels, its slice {shape[1]}×{shape[0]}: "
            f"give masks and slices that belong together."
        )
    if not greys:
        return (pixels > 0).astype(np.uint8)
    labels = np.zeros(shape, np.uint8)
    for label, (low, high) in GREYS.items():
        labels[(pixels >= low) & (pixels <= high)] = label
    unknown = np.unique(pixels[(labels == 0) & (pixels != 0)])
    if len(unknown):
        listing = ", ".join(map(str, unknown[:5]))
        raise InputError(
            f"The mask {path} has the grey value {listing}, which means no organ in CHAOS (liver 55–70, "
            f"right kidney 110–135, left kidney 175–200, spleen 240–255): copy it again as published."
        )
    return labels
