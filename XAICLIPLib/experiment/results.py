"""The folder of an experiment: one file for each map's measurements, all made with the same settings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from XAICLIPLib.errors import InputError
from XAICLIPLib.experiment.map_measurements import MapMeasurements, from_text, to_text
from XAICLIPLib.system.files import atomic_file, ensure_writable_folder


class Results:
    """A folder with the measurements of maps, all made with the same settings.

    Parameters
    ----------
    folder
        It is made if it does not exist.
    settings
        All that determines a map and its measurements: JSON types only.

    Raises
    ------
    InputError
        The folder cannot be written, or holds results of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.checksum = folder, checksum(settings)
        path = folder / "settings.json"
        try:
            ensure_writable_folder(folder / "measured")
            if path.exists():
                self._compare(path, settings)
            else:
                _write(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be used ({error.strerror}): choose another one.") from error

    def _compare(self, path: Path, settings: Mapping[str, Any]) -> None:
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(saved, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise InputError(f"{path} is damaged: choose another folder for the results.") from error
        if checksum(saved) != self.checksum:
            differ = sorted(k for k in {*saved, *settings} if saved.get(k) != settings.get(k))
            raise InputError(
                f"The folder {self.folder} holds results of other settings ({', '.join(differ)}): choose another "
                "folder, or give the settings that it has."
            )

    def path(self, case: int, structure: str, method: str, region: str) -> Path:
        """The file of a map's measurements."""
        name = re.sub(r"[\W_]+", "-", structure.lower())
        return self.folder / "measured" / f"{case:04d}_{name}_{method}_{region}.json"

    def read(self, case: int, structure: str, method: str, region: str) -> MapMeasurements | None:
        """Read the measurements of a map; None if it was not measured yet.

        Raises
        ------
        InputError
            The file is damaged, or of other settings.
        """
        path = self.path(case, structure, method, region)
        if not path.exists():
            return None
        row, settings = from_text(path.read_text(encoding="utf-8"), str(path))
        if settings != self.checksum or (row.case, row.structure, row.method, row.region) != (
            case,
            structure,
            method,
            region,
        ):
            raise InputError(f"{path} is of other settings: delete it, and it is measured again.")
        return row

    def write(self, row: MapMeasurements) -> None:
        """Save the measurements of a map."""
        _write(self.path(row.case, row.structure, row.method, row.region), to_text(row, self.checksum))


def checksum(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings; their order does not matter."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
