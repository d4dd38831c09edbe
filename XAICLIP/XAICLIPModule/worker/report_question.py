"""A report of an explanation that is shown: what the worker is asked to write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from XAICLIPLib.errors import InputError
from XAICLIPModule.live.turns import Work
from XAICLIPModule.scene import export, saving
from XAICLIPModule.scene.results import ExplanationNodes

ENDINGS = (".html", ".pdf")


@dataclass(frozen=True)
class OutputQuestion:
    """An explanation that is shown, and the place for what is made of it."""

    nodes: ExplanationNodes
    output: Path

    @property
    def volumeNode(self) -> Any:
        """The scan; None where it was deleted."""
        return self.nodes.volume

    def written(self, folder: Path) -> Work:
        """Make the fields that every such request has; explanation and scan, if it is there, are written into a folder.

        Raises
        ------
        InputError
            They cannot be written.
        """
        saved = folder / "explanation"
        saved.mkdir()
        saving.save(self.nodes, saved, compress=False)
        asked = {"folder": str(saved), "output": str(self.output)}
        if self.volumeNode is not None:
            volume = yield from export.writeVolume(self.volumeNode, folder / "volume.nrrd")
            asked["volume"] = str(volume)
        return asked


@dataclass(frozen=True)
class ReportQuestion(OutputQuestion):
    """An explanation, and the file that it is to be told in."""

    def check(self) -> None:
        """Refuse at once what the worker would refuse after a while.

        Raises
        ------
        InputError
            The file has another ending.
        """
        if self.output.suffix.lower() not in ENDINGS:
            raise InputError(_("A report is an .html or a .pdf file: give the name one of these endings."))

    def reportRequest(self, folder: Path) -> Work:
        """Make the fields of a ``report`` request: see `written`."""
        return (yield from self.written(folder))
