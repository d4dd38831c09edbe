"""A scan as it was read: its voxels, and what its file says about them."""

from __future__ import annotations

from dataclasses import dataclass, field

import SimpleITK as sitk

from XAICLIPLib.imaging.dicom.source import DicomSource


@dataclass(frozen=True)
class Scan:
    """The result of reading a file or a DICOM series.

    Attributes
    ----------
    image
        LPS in mm, without metadata.
    notes
        Warnings for the user, each the rest of a sentence about the scan: "does not say how it is oriented ...".
        They name no path, because they go into records.
    modality
        DICOM's code (0008,0060), such as CT, MR or PT; None where the file has none.
    oriented
        False where the file does not say how its axes are oriented.
    source
        The DICOM images that it was read from; None for any other file. It is for DICOM objects alone, see there.
    """

    image: sitk.Image
    notes: tuple[str, ...] = ()
    modality: str | None = None
    oriented: bool = True
    source: DicomSource | None = field(default=None, repr=False, compare=False)

    def warnings(self, name: str = "The scan") -> list[str]:
        """The notes as sentences."""
        return [f"{name} {note}." for note in self.notes]
