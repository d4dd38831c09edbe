"""Slicer's DICOM database, where this Slicer has one: a build without its DICOM module has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer

INSTANCES = "DICOM.instanceUIDs"
"""Attribute of a volume that was loaded from the database: the UIDs of its images."""


def isFromDicom(volumeNode: Any) -> bool:
    """Whether a volume was loaded from the database."""
    return volumeNode is not None and bool(volumeNode.GetAttribute(INSTANCES))


def imageFiles(volumeNode: Any) -> list[Path]:
    """The files of the images that a volume was loaded from; empty where one is not to be found any more."""
    database = _database()
    if database is None or not isFromDicom(volumeNode):
        return []
    names = [database.fileForInstance(uid) for uid in volumeNode.GetAttribute(INSTANCES).split()]
    # Of an image with many frames, there may be the same file for several volumes: once is enough.
    files = [Path(name) for name in dict.fromkeys(names) if name]
    return files if all(names) and all(path.is_file() for path in files) else []


def add(folder: Path) -> bool:
    """Copy the objects of a folder into the database; False where this Slicer has none, or cannot."""
    database = _database()
    if database is None:
        return False
    try:
        from DICOMLib import DICOMUtils
    except ImportError:
        return False
    importing = getattr(DICOMUtils, "importDicom", None)
    return importing is not None and importing(str(folder), database, True) is not False


def _database() -> Any:
    """The database; None where there is none, or none is open."""
    database = getattr(slicer, "dicomDatabase", None)
    if database is None or not hasattr(database, "fileForInstance"):
        return None
    return database if getattr(database, "isOpen", True) else None
