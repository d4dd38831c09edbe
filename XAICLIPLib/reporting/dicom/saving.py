"""Saving an explanation as DICOM objects: what the rest of the library asks for. `highdicom` is imported only here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import SimpleITK as sitk

from XAICLIPLib.errors import InputError, installing, reason
from XAICLIPLib.imaging.dicom.source import DicomSource
from XAICLIPLib.reporting import output_folder
from XAICLIPLib.reporting.saved_explanation import SavedExplanation


def require_highdicom() -> None:
    """Refuse where the package that writes the objects is missing.

    Raises
    ------
    InputError
        With the way out.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        way = installing("highdicom")
        raise InputError(
            f"DICOM objects are written with the package highdicom, which is not here ({reason(error)}): {way}.", way
        ) from error


@contextmanager
def claimed(folder: Path, source: DicomSource) -> Iterator[None]:
    """Make the folder of the objects, check that they can be written there, and keep other runs out of it.

    Raises
    ------
    InputError
        As of `XAICLIPLib.reporting.output_folder.claimed`; or the scan itself lies in the folder.
    """
    scan = {item.path.parent.resolve() for item in source.slices} if source.archive is None else set()
    if folder.resolve() in scan:
        raise InputError(
            f"{folder} holds the scan itself, which the objects would be mixed with: choose another folder for them."
        )
    with output_folder.claimed(folder, names=output_folder.DICOM_FILES):
        yield


def save_objects(
    saved: SavedExplanation,
    scan: sitk.Image | None,
    source: DicomSource,
    folder: Path,
    anonymous: bool = False,
) -> dict[str, Path]:
    """Write an explanation as DICOM objects; see `XAICLIPLib.reporting.dicom.writer.write_objects`.

    Raises
    ------
    InputError
        `highdicom` is missing, nothing can refer to the scan's images, or as of `write_objects`.
    """
    require_highdicom()
    source.check("The DICOM series of the scan")
    from XAICLIPLib.reporting.dicom.writer import write_objects

    with claimed(folder, source):
        return write_objects(saved, scan, source, folder, anonymous)
