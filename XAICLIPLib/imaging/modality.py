"""The modality of a scan, and where it is known from."""

from __future__ import annotations

import re
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
        DICOM's code: CT, MR, or another such as PT; None if it is unknown.
    source
        Where it is known from: the user, the file's header, or the intensities, which can be wrong.
    contradicted
        The header's code, where the user states another one.
    """

    code: str | None
    source: Literal["user", "header", "intensities"]
    contradicted: str | None = None

    @property
    def for_methods(self) -> Literal["CT", "MR"] | None:
        """CT or MR, which the methods treat differently; None for any other modality."""
        return "CT" if self.code == "CT" else "MR" if self.code == "MR" else None

    def warnings(self) -> list[str]:
        """Warnings for the user."""
        if self.contradicted is None:
            return []
        return [f"The file says that the scan is {self.contradicted}, and it was taken for {self.code}, as you said."]


def modality_of(scan: Scan, stated: Literal["CT", "MR"] | None = None) -> KnownModality:
    """The modality of a scan: as the user states it, else from its header, else guessed from its intensities."""
    header = (
        scan.modality if scan.modality and scan.modality.isalnum() and len(scan.modality) <= MAX_CODE_LENGTH else None
    )
    if stated is not None:
        return KnownModality(stated, "user", header if header not in (None, stated) else None)
    if header is not None:
        return KnownModality(header, "header")
    return KnownModality(guess_modality(scan.image), "intensities")


def modalities_named(words: str | None) -> set[str]:
    """Which of CT and MR are meant by a network's description of its modality ("MRI", "T1w"); empty for neither."""
    patterns = {"CT": r"\bCT|computed tomography", "MR": r"\bMR|magnetic resonance|\bT[12]w?\b"}
    return {name for name, pattern in patterns.items() if re.search(pattern, words or "", re.IGNORECASE)}


MAX_CODE_LENGTH = 16
"""Longest code in DICOM (value representation CS), in characters."""
