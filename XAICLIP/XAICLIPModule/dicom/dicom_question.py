"""DICOM objects of an explanation that is shown: what the worker is asked to write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slicer.i18n import tr as _

from XAICLIPLib.errors import InputError
from XAICLIPModule.dicom import database
from XAICLIPModule.live.turns import Work
from XAICLIPModule.worker.report_question import OutputQuestion


@dataclass(frozen=True)
class DicomQuestion(OutputQuestion):
    """An explanation, and the folder that its DICOM objects go to."""

    def check(self) -> None:
        """Refuse at once what the worker could not write.

        Raises
        ------
        InputError
            The scan is gone, or its images are not in the DICOM database.
        """
        if not database.isFromDicom(self.volumeNode):
            raise InputError(_("The scan was not loaded from DICOM, so that no DICOM object can refer to it."))
        if not database.imageFiles(self.volumeNode):
            raise InputError(
                _("The images of {name} are not in the DICOM database any more: import and load them again.").format(
                    name=self.volumeNode.GetName()
                )
            )

    def dicomRequest(self, folder: Path) -> Work:
        """Make the fields of a ``dicom`` request; explanation and scan are written into the folder.

        Raises
        ------
        InputError
            They cannot be written.
        """
        images = [str(path) for path in database.imageFiles(self.volumeNode)]
        return {**(yield from self.written(folder)), "images": images}
