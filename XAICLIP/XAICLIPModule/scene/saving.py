"""The results of a run as files, as `xaiclip explain` writes them, from the nodes of the scene."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import SimpleITK as sitk
import slicer
from slicer.i18n import tr as _

from XAICLIPLib import imaging
from XAICLIPLib.errors import InputError
from XAICLIPLib.reporting import output_folder
from XAICLIPLib.system.displaytext import for_csv
from XAICLIPLib.system.files import write_atomically
from XAICLIPModule.scene import export, results
from XAICLIPModule.scene.results import ExplanationNodes


def save(nodes: ExplanationNodes, folder: Path, compress: bool = True) -> list[Path]:
    """Write saliency, region, target, measurements and record of a run into a folder, all or nothing.

    The volumes lie in the scan's own space, without its transform, so that they fit the file it came from.
    ``figure.png`` is written while the worker's picture is at hand, which a scene does not keep. Without ``compress``
    the volumes are larger, and written much faster.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    InputError
        The folder cannot be written, or holds a file of one of these names that was not written so.
    """
    with output_folder.replaced(folder) as new:
        return [folder / path.name for path in _write(nodes, new, compress)]


def _write(nodes: ExplanationNodes, folder: Path, compress: bool) -> list[Path]:
    """Write all files into an empty folder, the record last."""
    written = [_saveVolume(nodes.saliency, folder / "saliency.nrrd", compress)]
    if nodes.standardError is not None:
        written.append(_saveVolume(nodes.standardError, folder / "standard_error.nrrd", compress))
    for segment in (
        results.REGION_SEGMENT,
        results.TARGET_SEGMENT,
        results.SUFFICIENT_SEGMENT,
        results.NECESSARY_SEGMENT,
    ):
        if nodes.segmentation is not None and nodes.segmentation.GetSegmentation().GetSegment(segment):
            try:
                mask = export.maskFromSegment(nodes.segmentation, segment, nodes.saliency)
            except InputError:
                continue  # an empty region is no file
            written.append(imaging.write_volume(mask, folder / f"{segment}.nrrd", compress))
    try:
        for node, name in ((nodes.measurements, "measurements"), (nodes.structures, "structures")):
            if node is not None:
                written.append(_saveTable(node, folder / f"{name}.csv"))
        if nodes.figure is not None and nodes.figure.is_file():
            written.append(Path(shutil.copy(nodes.figure, folder / "figure.png")))
        record = json.dumps({**nodes.record, "written": output_folder.checksums(folder)}, indent=2, ensure_ascii=False)
        written.append(folder / output_folder.RECORD)
        write_atomically(written[-1], f"{record}\n".encode())
    except OSError as error:
        raise InputError(
            _("The folder {folder} cannot be written ({reason}): choose another one.").format(
                folder=folder, reason=error.strerror or error
            )
        ) from error
    return written


def _saveVolume(node: object, path: Path, compress: bool) -> Path:
    image = sitk.GetImageFromArray(slicer.util.arrayFromVolume(node))
    image.CopyInformation(export.grid(node))
    return imaging.write_volume(image, path, compress)


def _saveTable(tableNode: object, path: Path) -> Path:
    table = tableNode.GetTable()  # type: ignore[attr-defined]
    columns = [table.GetColumn(i) for i in range(table.GetNumberOfColumns())]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(for_csv(column.GetName()) for column in columns)
        for row in range(table.GetNumberOfRows()):
            writer.writerow(for_csv(column.GetValue(row)) for column in columns)
    return path
