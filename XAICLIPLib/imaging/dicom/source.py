"""The DICOM images that a scan was read from: what an object in DICOM that is made of the scan must refer to.

A source lives in memory alone. It names a study, and with that a patient: no record, log, message or pickle holds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.dicom import zipped
from XAICLIPLib.imaging.dicom.slices import Slice

_UID = re.compile(r"[0-9.]{1,64}")
"""What a UID may consist of (PS3.5, 9.1)."""


def _forgotten() -> None:
    """What becomes of a source that is pickled or copied."""


@dataclass(frozen=True, eq=False)  # arrays cannot be compared
class DicomSource:
    """The slices of a scan and the grid that it was read on (LPS, mm).

    A pickle or a deep copy of it is None, so that nothing that is kept can name the patient.

    Attributes
    ----------
    slices
        In the order of the volume's slices, along the normal of the image plane.
    size
        Columns, rows and slices of the volume.
    origin, spacing, axes
        Of its grid; the columns of ``axes`` are the directions of a row, of a column, and of the normal.
    straightened
        Whether the slices were shifted against each other (gantry tilt), so that the volume lies on a grid of its own.
    archive
        The zip file that holds the slices; their own paths name files in it.
    """

    slices: tuple[Slice, ...] = field(repr=False)
    size: tuple[int, int, int]
    origin: tuple[float, float, float] = field(repr=False)
    spacing: tuple[float, float, float]
    axes: NDArray[np.float64] = field(repr=False)
    straightened: bool = False
    archive: Path | None = field(default=None, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _forgotten, ()

    def check(self, name: str) -> None:
        """Refuse slices that nothing can refer to.

        Raises
        ------
        InputError
            UIDs are missing or none, or the slices are of several studies or frames of reference.
        """
        advice = "export the original series again"
        first = self.slices[0]
        for item in self.slices:
            if not all((item.study, item.series, item.instance, item.kind)):
                raise InputError(
                    f"{name} has images without UIDs (were they blanked with the names?), to which no DICOM object can "
                    f"refer: {advice}."
                )
            if not all(map(_UID.fullmatch, (item.study, item.series, item.instance, item.kind))) or (
                item.frame_of_reference and not _UID.fullmatch(item.frame_of_reference)
            ):
                raise InputError(
                    f"{name} has images whose UIDs are none, but other text, which could name the patient and by which "
                    f"no DICOM object can refer to them: {advice}."
                )
            if not item.frame_of_reference:
                raise InputError(
                    f"{name} does not name its frame of reference (FrameOfReferenceUID), without which no DICOM object "
                    f"can lie on it: {advice}."
                )
            if (item.study, item.frame_of_reference) != (first.study, first.frame_of_reference):
                raise InputError(f"{name} is of several studies or frames of reference: keep the images of one.")
        keys = {(item.instance, item.frame) for item in self.slices}
        if len(keys) < len(self.slices):
            raise InputError(f"{name} has several images of the same UID: {advice}.")

    @contextmanager
    def files(self) -> Iterator[list[Path]]:
        """The file of each slice, in their order; those of a zip file are there until the block ends."""
        if self.archive is None:
            yield [item.path for item in self.slices]
            return
        with zipped.unpacked(self.archive) as folder:
            yield [folder / item.path.name for item in self.slices]
