"""A folder of DICOM objects, written all or nothing: the maps, the segments, the report, its pages and its picture.

The folder holds an ``explanation.json`` as well, with the checksums of its files and nothing else, by which the next
run recognises what it may replace.
"""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from pydicom.dataset import Dataset

from XAICLIPLib import __version__
from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers.methods import METHODS
from XAICLIPLib.imaging.dicom.slices import values_unheard
from XAICLIPLib.imaging.dicom.source import DicomSource
from XAICLIPLib.reporting import output_folder, report
from XAICLIPLib.reporting.dicom import codes
from XAICLIPLib.reporting.dicom.encapsulated_pdf import encapsulated_pdf
from XAICLIPLib.reporting.dicom.parametric_map import parametric_map
from XAICLIPLib.reporting.dicom.secondary_capture import secondary_capture
from XAICLIPLib.reporting.dicom.segmentation import segmentation, segments_of
from XAICLIPLib.reporting.dicom.structured_report import structured_report
from XAICLIPLib.reporting.dicom.study import Study
from XAICLIPLib.reporting.document import write_pdf
from XAICLIPLib.reporting.figure import Scale
from XAICLIPLib.reporting.saved_explanation import SavedExplanation
from XAICLIPLib.system.displaytext import one_line
from XAICLIPLib.system.files import write_atomically

WORDS = "RESEARCH ONLY – NOT FOR DIAGNOSIS"
"""Burnt into the picture."""


def write_objects(
    saved: SavedExplanation, scan: sitk.Image | None, source: DicomSource, folder: Path, anonymous: bool
) -> dict[str, Path]:
    """Write all objects into a folder, in the place of an earlier run's.

    Parameters
    ----------
    saved
        The explanation.
    scan
        The scan, for the slices in the report and the figure where the explanation has none.
    source
        The images that the scan was read from.
    folder
        Is made where it is missing.
    anonymous
        Leave out all that the scan's header says of patient, study and scanner. UIDs stay: without them nothing would
        refer to the scan.

    Returns
    -------
    dict
        The path of each object: ``parametric_map``, ``standard_error`` (where there is one), ``segmentation``,
        ``structured_report``, ``report`` and ``figure``.

    Raises
    ------
    InputError
        The map lies on another grid than the scan, the scan is gone or changed, or the folder cannot be written or
        holds a file of one of these names that no run wrote.
    """
    with output_folder.claimed(folder, names=output_folder.DICOM_FILES), values_unheard():
        with output_folder.replaced(folder) as new:
            names = []
            for name, made in _objects(saved, scan, source, anonymous):
                _write(made, new / f"{name}.dcm", folder)
                names.append(name)
                del made
            _write_record(new)
        return {name: folder / f"{name}.dcm" for name in names}


def _objects(saved: SavedExplanation, scan: sitk.Image | None, source: DicomSource, anonymous: bool) -> Any:
    """Name and content of each object, one after the other, because they are large."""
    try:
        yield from _made(saved, scan, source, anonymous)
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:
        # What highdicom and pydicom say may quote the patient's name, and so do the values in a traceback's frames.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"The DICOM objects cannot be made ({type(error).__name__} in {Path(frame.filename).name}, line "
            f"{frame.lineno}): please report it, and try --anonymous, which does without the scan's header."
        ) from None


def _made(saved: SavedExplanation, scan: sitk.Image | None, source: DicomSource, anonymous: bool) -> Any:
    record = _in_dicom(saved.record)
    name = record["target"]["name"]
    captions = METHODS[record["parameters"]["method"]].captions
    label = captions.of_colours(record["parameters"]["score"], record["parameters"].get("effect", "total"))
    study = Study.of(source, record, anonymous)
    credited = "credit_of_organ" in record["measurements"]  # most of it lies in the target, as everybody knows
    mask = sitk.GetArrayViewFromImage(saved.target) > 0
    scale = Scale.of(saved.saliency, ~mask) if credited and not mask.all() else Scale.of(saved.saliency)
    limit = scale.limit or 1.0
    saliency = parametric_map(
        study,
        saved.saliency,
        number=0,
        label="SALIENCY",
        quantity=codes.CLASS_ACTIVATION if record["parameters"]["method"] == "seg-grad-cam" else codes.SALIENCY,
        explanation=label,
        description=f"XAI-CLIP saliency of {name}: research only",
        colour_range=(-limit if scale.signed else 0.0, limit),
    )
    yield "parametric_map", saliency
    maps = [_reference(saliency)]
    del saliency
    if saved.standard_error is not None:
        spread = parametric_map(
            study,
            saved.standard_error,
            number=1,
            label="STANDARD_ERROR",
            quantity=codes.STANDARD_ERROR,
            explanation=f"standard error of {label}",
            description=f"XAI-CLIP standard error of {name}: research only",
            colour_range=(0.0, Scale.of(saved.standard_error).limit or 1.0),
        )
        yield "standard_error", spread
        maps.append(_reference(spread))
        del spread
    drawn = segments_of(record, saved.target, saved.region, saved.sufficient, saved.necessary)
    segments: Any = None
    if drawn:
        segments = segmentation(study, drawn, number=2, description=f"XAI-CLIP segments of {name}: research only")
        yield "segmentation", segments
        segments = _reference(segments)
    document = report.document_of(saved, scan)
    yield (
        "structured_report",
        structured_report(
            study,
            maps=maps,
            segments=segments,
            notice=report.NOTICE,
            comments=[*document.cautions] or [document.without_cautions],
            number=3,
            description=f"XAI-CLIP measurements of {name}: research only",
        ),
    )
    with tempfile.TemporaryDirectory(prefix="xaiclip-") as place:
        write_pdf(document, Path(place) / "report.pdf")
        pdf = (Path(place) / "report.pdf").read_bytes()
    title = f"XAI-CLIP report of {name}: research only"
    yield "report", encapsulated_pdf(study, pdf, title=title[:64], number=4, description=title)
    pictures = [section.picture.png for section in document.sections if section.picture is not None]
    png = saved.figure or next(iter(pictures), None)
    if png is not None:
        description = f"XAI-CLIP figure of {name}: research only"
        yield "figure", secondary_capture(study, png, words=WORDS, number=5, description=description)


def _reference(made: Dataset) -> Dataset:
    """An object without its pixels, for those that refer to it."""
    reference = Dataset()
    for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(reference, name, made[name].value)
    return reference


def _in_dicom(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record with names that any DICOM object can hold, and with models whose names are no paths.

    A path may name a patient; a prompt or a label of a network may hold any character.
    """
    models = {
        role: model and {key: _name(value) if isinstance(value, str) else value for key, value in model.items()}
        for role, model in record["models"].items()
    }
    target = {**record["target"], "name": _name(record["target"]["name"])}
    parameters = {**record["parameters"], "described": _name(record["parameters"]["described"])}
    return {**record, "models": models, "target": target, "prompt": _name(record["prompt"]), "parameters": parameters}


def _name(text: Any) -> str:
    """A text on one line without paths, invisible characters, and backslashes, which separate values in DICOM."""
    return one_line(report.without_paths(str(text))).replace("\\", "/") or "unknown"


def _write(made: Dataset, path: Path, folder: Path) -> None:
    made.file_meta.ImplementationVersionName = f"XAICLIP_{__version__}"[:16]
    try:
        with path.open("xb") as file:
            made.save_as(file, enforce_file_format=True)
    except OSError as error:
        raise InputError(
            f"The DICOM objects cannot be written to {folder} ({error.strerror or error}): choose another folder or "
            "free some space."
        ) from error


def _write_record(folder: Path) -> None:
    content = {"format": output_folder.DICOM_FORMAT, "written": output_folder.checksums(folder)}
    write_atomically(folder / output_folder.RECORD, (json.dumps(content, indent=2) + "\n").encode())
