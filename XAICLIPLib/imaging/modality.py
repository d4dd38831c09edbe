"""What kind of scan a volume is, and who says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from XAICLIPLib.imaging.intensities import guess_modality
from XAICLIPLib.imaging.scan import Scan


@dataclass(frozen=True)
class KnownModality:
    """The modality of a scan.

    Attributes
    ----------
    code
        DICOM's: CT, MR, or another such as PT; None where nothing tells.
    source
        Who says so: the user, the file's header, or the intensities, which can be wrong.
    contradicted
        What the header says, where the user says something else.
    """

    code: str | None
    source: Literal["user", "header", "intensities"]
    contradicted: str | None = None

    @property
    def for_methods(self) -> Literal["CT", "MR"] | None:
        """CT or MR, of which the methods know something; None for any other."""
        return "CT" if self.code == "CT" else "MR" if self.code == "MR" else None

    def warnings(self) -> list[str]:
        """What the user should know."""
        if self.contradicted is None:
            return []
        return [f"The file says that the scan is {self.contradicted}, and it was taken for {self.code}, as you said."]


def modality_of(scan: Scan, given: Literal["CT", "MR"] | None = None) -> KnownModality:
    """The modality of a scan: what the user says, else what its header says, else what its intensities look like."""
    header = scan.modality if scan.modality and scan.modality.isalnum() and len(scan.modality) <= LONGEST else None
    if given is not None:
        return KnownModality(given, "user", header if header not in (None, given) else None)
    if header is not None:
        return KnownModality(header, "header")
    return KnownModality(guess_modality(scan.image), "intensities")


LONGEST = 16
"""Characters of a code (DICOM's CS)."""
