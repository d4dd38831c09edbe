"""What comes of explaining: the result, and how it is saved and reported.

>>> explanation = XAICLIPLib.explain("scan.nii.gz", prompt="liver")  # doctest: +SKIP
>>> explanation.save("results/liver")  # doctest: +SKIP
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers import methods
from XAICLIPLib.imaging.dicom.source import DicomSource
from XAICLIPLib.localization.region import Region
from XAICLIPLib.reporting import output_folder, record
from XAICLIPLib.reporting.saved_explanation import SavedExplanation

_REGION_WORDS = {
    "guided": "guided ",
    "whole": "unguided ",
    "prediction": "around the prediction: ",
    "prediction box": "in the prediction's box: ",
    "guided and prediction": "guided, and around the prediction: ",
    "file": "in a given region: ",
}
"""Before the name of a method, by the source of the region."""


@dataclass(frozen=True)
class Explanation:
    """Why a network drew a structure where it did.

    All volumes lie in the geometry of the input.

    Attributes
    ----------
    image
        The input.
    saliency
        float32: the score lost because of each voxel, 0 where nothing was perturbed; what a value of each method means
        is told by its `captions` in `XAICLIPLib.explainers.methods.METHODS`.
    region
        Where perturbations were made.
    segmentation
        The network's label map; where its classes overlap, each set of classes that meet has a label of its own.
    probed
        uint8: 1 where the saliency is known, also where it is 0 because nothing was lost; 0 where nothing was tried, or
        a cancelled run had not come to.
    prediction
        uint8: the target as it was explained, predicted or given.
    target
        ``name`` and ``label`` of what is explained.
    labels
        Structure by label of `segmentation`.
    measurements
        Numbers about the target, the saliency and the work done.
    record
        All that ``explanation.json`` holds: the above, and models, versions, parameters, timings, warnings.
    complete
        False where the computation was cancelled: the saliency is what was known by then.
    standard_error
        float32, of the saliency, where the method is random; else None.
    sufficient, necessary
        uint8, where the map was checked: the places that suffice for most of the score when all else is hidden, and
        those whose hiding costs half of it (`XAICLIPLib.evaluation.key_regions`); else None.
    source
        The DICOM images that the input was read from; None where it was none. For `save_dicom` alone: nothing else that
        is written holds it.
    """

    image: sitk.Image
    saliency: sitk.Image
    region: Region
    segmentation: sitk.Image
    probed: sitk.Image
    prediction: sitk.Image
    target: Mapping[str, Any]
    labels: Mapping[int, str]
    measurements: Mapping[str, Any]
    record: Mapping[str, Any]
    complete: bool = True
    standard_error: sitk.Image | None = None
    sufficient: sitk.Image | None = None
    necessary: sitk.Image | None = None
    source: DicomSource | None = field(default=None, repr=False, compare=False)

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        return list(self.record["warnings"])

    def save(self, folder: str | Path, compress: bool = True) -> dict[str, Path]:
        """Write volumes (``saliency.nrrd``, ``probed.nrrd``, ...), ``explanation.json`` and ``figure.png``.

        A random method writes ``standard_error.nrrd`` as well, a checked map ``sufficient.nrrd`` and
        ``necessary.nrrd``, and a target that was given or lies in a box ``target.nrrd``. Returns the path of each by
        its name without the ending. The files of an earlier explanation are replaced, all of them or none
        (`XAICLIPLib.reporting.output_folder`). Without ``compress`` the volumes are larger and read at once, for a
        reader on the same machine.

        Raises
        ------
        InputError
            The folder cannot be written, another run writes to it, or it holds a file of one of these names that no
            explanation wrote.
        """
        folder = Path(folder)
        with output_folder.replaced(folder) as new:
            return {name: folder / path.name for name, path in self._write(new, compress).items()}

    def _write(self, folder: Path, compress: bool) -> dict[str, Path]:
        """Write all files into an empty folder, the record last."""
        written = {
            name: imaging.write_volume(volume, folder / f"{name}.nrrd", compress)
            for name, volume in (
                ("saliency", self.saliency),
                ("probed", self.probed),
                ("region", self.region.mask),
                ("segmentation", self.segmentation),
                ("standard_error", self.standard_error),
                ("sufficient", self.sufficient),
                ("necessary", self.necessary),
                # The network's own label says what was explained, where no one drew it.
                ("target", None if self.target["voxels"] == "predicted" else self.prediction),
            )
            if volume is not None
        }
        written["figure"] = self._save_figure(folder / "figure.png")
        kept = {**self.record, "written": output_folder.checksums(folder)}
        written["explanation"] = record.write(kept, folder / "explanation.json")
        return written

    def _save_figure(self, path: Path) -> Path:
        from XAICLIPLib.reporting.figure import save_figure  # matplotlib only when a picture is drawn

        parameters = self.record["parameters"]
        captions = methods.METHODS[parameters["method"]].captions
        return save_figure(
            path,
            self.image,
            self.saliency,
            self.region.mask,
            self.prediction,
            title=f"Why did the network draw the {self.target['name']} here?",
            subtitle=f"{self.record['models']['segmenter']['name']} · "
            f"{_REGION_WORDS[parameters['region']] if captions.value else ''}{parameters['described']}, "
            f"baseline {parameters['baseline']}" + ("" if self.complete else " · cancelled before the end"),
            modality=self.record["input"]["modality"],
            target_label="Given mask" if self.target["voxels"] == "given" else "Predicted target",
            region_label=captions.region,
            pieces=captions.pieces,
            sufficient=self.sufficient,
            warnings=self.warnings,
            saliency_label=captions.of_colours(parameters["score"], parameters["effect"]),
        )

    def save_dicom(
        self,
        folder: str | Path,
        source: str | Path | None = None,
        series: int | str | None = None,
        anonymous: bool = False,
    ) -> dict[str, Path]:
        """Write it as DICOM objects of the scan's study: maps, segments, structured report, PDF and picture.

        Needs the package highdicom. The UIDs are new each time. The objects name patient and study as the scan does.

        Parameters
        ----------
        folder
            Where the objects are written, all or none; those of an earlier run are replaced.
        source
            The DICOM series (folder or zip file), where the scan was not read from it here but has its grid.
        series
            Which series of a folder that holds several.
        anonymous
            Leave out what the scan's header says of patient, study and scanner. UIDs stay.

        Returns
        -------
        dict
            The path of each object by its name without the ending.

        Raises
        ------
        InputError
            The scan was not read from DICOM and no source is named, nothing can refer to its images, highdicom is
            missing, the map lies on another grid, or the folder cannot be written.
        """
        from XAICLIPLib.reporting.dicom import saving

        saving.require_highdicom()
        images = self.source if source is None else imaging.read_dicom_source(source, series)
        if images is None:
            raise InputError(
                "The scan was not read from DICOM, so that no DICOM object can refer to it: explain the DICOM series, "
                "or name it with source=."
            )
        with tempfile.TemporaryDirectory(prefix="xaiclip-") as place:
            figure = self._save_figure(Path(place) / "figure.png").read_bytes()
        saved = SavedExplanation(
            self.record,
            self.saliency,
            self.prediction,
            self.region.mask,
            figure,
            checksums={},
            standard_error=self.standard_error,
            sufficient=self.sufficient,
            necessary=self.necessary,
        )
        return saving.save_objects(saved, self.image, images, Path(folder), anonymous)

    def report(self, path: str | Path, pdf: bool = False) -> dict[str, Path]:
        """Write it as one page for a reader; see `XAICLIPLib.reporting.report.save_report`.

        Parameters
        ----------
        path
            The file, ``.html`` or ``.pdf``.
        pdf
            Beside an HTML file write a PDF as well.

        Raises
        ------
        InputError
            The file cannot be written, or has another ending.
        """
        from XAICLIPLib.reporting.report import save_report

        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            return save_report(folder, path, volume=self.image, pdf=pdf)
