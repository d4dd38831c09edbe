"""The files of an explanation → nodes of the scene, and back from a saved scene.

The saliency volume is the head of a run: it references the other nodes, and its attributes hold the provenance, so that
a scene that was saved and loaded again shows the same results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from XAICLIPLib.errors import InputError
from XAICLIPModule.display import saliency_display, tables
from XAICLIPModule.display.saliency_display import SALIENCY_ATTRIBUTE
from XAICLIPModule.live import map_place, nrrd
from XAICLIPModule.live.map_place import Survey
from XAICLIPModule.live.nodes import isInScene
from XAICLIPModule.live.turns import Work, slabs
from XAICLIPModule.scene import saved_record, terminology

RECORD_ATTRIBUTE = "XAICLIP.Record"
"""JSON of the record; a saliency without it is still being computed."""
INPUT_ROLE, SEGMENTATION_ROLE = "xaiclipInput", "xaiclipSegmentation"
MEASUREMENTS_ROLE, STRUCTURES_ROLE = "xaiclipMeasurements", "xaiclipStructures"
SURFACE_ROLE, ERROR_ROLE = "xaiclipSurface", "xaiclipStandardError"

REGION_SEGMENT, TARGET_SEGMENT = "region", "target"
SUFFICIENT_SEGMENT, NECESSARY_SEGMENT = "sufficient", "necessary"
REGION_COLOUR, TARGET_COLOUR = (0.2, 0.75, 1.0), (0.35, 0.85, 0.35)
SUFFICIENT_COLOUR, NECESSARY_COLOUR = (0.95, 0.95, 0.95), (0.95, 0.6, 0.2)


@dataclass(frozen=True)
class ExplanationNodes:
    """The nodes of one explanation.

    Attributes
    ----------
    saliency
        vtkMRMLScalarVolumeNode: the score lost because of each voxel, in the geometry of the input.
    volume
        The input, or None where it was deleted.
    segmentation
        Region and target as segments; where the map was checked, also what is enough and what is necessary.
    measurements
        vtkMRMLTableNode.
    structures
        vtkMRMLTableNode of the structures, for the methods that weigh structures; else None.
    standardError
        vtkMRMLScalarVolumeNode, for the methods that give one; else None.
    figure
        ``figure.png`` as the worker wrote it, while the session lasts; else None.
    further
        The explanations of the other structures, where several were asked for.
    missing
        Why a structure that was asked for was not explained, by its name.
    """

    saliency: Any
    volume: Any
    segmentation: Any
    measurements: Any
    structures: Any = None
    standardError: Any = None
    figure: Path | None = field(default=None, compare=False)
    further: tuple[ExplanationNodes, ...] = field(default=(), compare=False)
    missing: Mapping[str, str] = field(default_factory=dict, compare=False)

    @cached_property
    def record(self) -> dict[str, Any]:
        """What ``explanation.json`` holds: target, measurements, models, parameters, versions, warnings."""
        return recordOf(self.saliency)

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        return list(self.record.get("warnings", []))

    @property
    def complete(self) -> bool:
        """False where the run was cancelled and the saliency is what was known by then."""
        return bool(self.record.get("complete", True))


def explanationOf(saliencyNode: Any) -> ExplanationNodes | None:
    """The run that a saliency volume heads; None where it heads none (yet)."""
    if saliencyNode is None or not saliencyNode.GetAttribute(SALIENCY_ATTRIBUTE) or not recordOf(saliencyNode):
        return None
    return ExplanationNodes(
        saliencyNode,
        *(
            saliencyNode.GetNodeReference(role)
            for role in (INPUT_ROLE, SEGMENTATION_ROLE, MEASUREMENTS_ROLE, STRUCTURES_ROLE, ERROR_ROLE)
        ),
    )


def recordOf(saliencyNode: Any) -> dict[str, Any]:
    """The record of a run; empty where the attribute is missing or no record of this kind."""
    return saved_record.parse(saliencyNode.GetAttribute(RECORD_ATTRIBUTE))


# --- from files ---


def shapeOf(volumeNode: Any) -> tuple[int, ...]:
    """Voxels of a volume along k, j, i; all 0 where it has none."""
    image = volumeNode.GetImageData()
    return tuple(reversed(image.GetDimensions())) if image is not None else (0, 0, 0)


def mappedFor(path: str | Path, volumeNode: Any) -> NDArray[Any]:
    """The voxels (k, j, i) of a file that the worker wrote, which lies on the grid of a volume.

    Raises
    ------
    InputError
        It cannot be read, or the volume was changed meanwhile.
    """
    array = nrrd.mapped(path)
    if array.shape != shapeOf(volumeNode):
        raise InputError(
            _("The volume {name} was changed during the computation: click Apply to compute it again.").format(
                name=volumeNode.GetName()
            )
        )
    return array


def saliencyVolume(volumeNode: Any, name: str) -> Any:
    """A new saliency volume of zeros, beside the input; without a record it counts as being computed."""
    node = _volumeLike(volumeNode, name, {SALIENCY_ATTRIBUTE: "1"})
    node.SetNodeReferenceID(INPUT_ROLE, volumeNode.GetID())
    placeBeside(volumeNode, None, [node])
    saliency_display.prepare(node, (0.0, 0.0))
    return node


def fill(saliencyNode: Any, voxels: NDArray[Any]) -> Work:
    """Copy the voxels (k, j, i) of a map into its node, and show them as they are then, with their window.

    Raises
    ------
    InputError
        The node left the scene, or was changed.
    """
    survey = Survey(voxels.shape)
    for at in slabs(voxels):
        target = _arrayOf(saliencyNode)
        if target is None or target.shape != voxels.shape:
            raise InputError(_("The map was removed during the computation: click Apply to compute it again."))
        part = voxels[at]
        target[at] = part
        survey.look(part, at)
        if at.stop < len(voxels):
            yield
    slicer.util.arrayFromVolumeModified(saliencyNode)
    map_place.note(saliencyNode, survey)
    saliency_display.prepare(saliencyNode, survey.extremes)


def _arrayOf(node: Any) -> NDArray[Any] | None:
    """The voxels of a volume that is still in the scene, to be changed in place; else None."""
    if not isInScene(node) or node.GetImageData() is None:
        return None
    array: NDArray[Any] = slicer.util.arrayFromVolume(node)
    return array


def load(
    volumeNode: Any, files: Mapping[str, str], record: Mapping[str, Any], name: str, saliencyNode: Any = None
) -> Work:
    """Make the nodes of a finished explanation, which are what the work returns (`ExplanationNodes`).

    Parameters
    ----------
    volumeNode
        The input.
    files
        Paths of ``saliency``, ``region`` and ``segmentation``; ``figure``, ``standard_error``, ``sufficient`` and
        ``necessary`` where there are such.
    record
        What ``explanation.json`` holds.
    name
        What the nodes are called after.
    saliencyNode
        The developing map of the same run, which becomes the result.

    Raises
    ------
    InputError
        A file cannot be read, or the volume was changed or removed meanwhile. No node is left of what was begun.
    """
    further = ("standard_error", SUFFICIENT_SEGMENT, NECESSARY_SEGMENT)
    read = ("saliency", "region", "segmentation", *(what for what in further if what in files))
    arrays = {what: mappedFor(files[what], volumeNode) for what in read}
    made: list[tuple[str, Any]] = []
    saliency = saliencyNode if isInScene(saliencyNode) else saliencyVolume(volumeNode, name)
    try:
        yield from fill(saliency, arrays["saliency"])
        name = saliency.GetName()
        labels, target = arrays["segmentation"], record["target"]
        drawn = target["label"] if isinstance(target["label"], list) else [target["label"]]
        masks = {
            TARGET_SEGMENT: (yield from crop(labels, lambda part: _anyOf(part, drawn))),
            REGION_SEGMENT: (yield from crop(arrays["region"], lambda part: part != 0)),
        }
        if tables.isCredited(record) and target["voxels"] == "predicted":
            around = yield from _extremesAround(arrays["saliency"], labels, drawn)
            if max(-around[0], around[1]) > 0:
                saliency_display.prepare(saliency, around)
        for key in (SUFFICIENT_SEGMENT, NECESSARY_SEGMENT):
            if key in arrays:
                masks[key] = yield from crop(arrays[key], lambda part: part != 0)
        if not isInScene(volumeNode):
            raise InputError(_("The volume was removed during the computation: there is no result."))
        made.append((SEGMENTATION_ROLE, _segmentation(volumeNode, name, masks, record)))
        made.append((MEASUREMENTS_ROLE, tables.measurementsTable(name, record)))
        structures = tables.structureRows(record)
        if structures:
            value = tables.structureHeader(record)[1]
            made.append((STRUCTURES_ROLE, tables.structuresTable(name, structures, value)))
        if "standard_error" in arrays:
            spread = _volumeLike(volumeNode, _("{name} standard error").format(name=name))
            made.append((ERROR_ROLE, spread))
            largest = yield from _copyInto(spread, arrays["standard_error"])
            spread.GetDisplayNode().SetWindowLevelMinMax(0, max(largest, 1e-6))
        for role, node in made:
            saliency.SetNodeReferenceID(role, node.GetID())
        _noteProvenance(saliency, record)
        placeBeside(volumeNode, name, [saliency, *(node for _role, node in made)])
    except BaseException:
        for node in (*(node for _role, node in made), *([saliency] if saliency is not saliencyNode else [])):
            if isInScene(node):
                slicer.mrmlScene.RemoveNode(node)
        raise
    figure = Path(files["figure"]) if "figure" in files else None
    nodes = explanationOf(saliency)
    assert nodes is not None
    return ExplanationNodes(**{**nodes.__dict__, "figure": figure})


def _extremesAround(
    voxels: NDArray[Any], labels: NDArray[Any], drawn: list[int]
) -> Generator[None, None, tuple[float, float]]:
    """Smallest and largest value of a map (k, j, i) around the target; 0 at least and at most.

    The target itself is nearly always the strongest, and on its scale nothing around it would be seen.
    """
    low, high = 0.0, 0.0
    for at in slabs(voxels):
        around = np.where(_anyOf(labels[at], drawn), 0.0, voxels[at])
        low, high = min(low, float(around.min())), max(high, float(around.max()))
        if at.stop < len(voxels):
            yield
    return low, high


def _copyInto(node: Any, voxels: NDArray[Any]) -> Generator[None, None, float]:
    """Copy voxels into a volume, and return the largest."""
    largest = 0.0
    for at in slabs(voxels):
        target = _arrayOf(node)
        if target is None:
            raise InputError(_("The volume was removed during the computation: there is no result."))
        target[at] = voxels[at]
        largest = max(largest, float(voxels[at].max()))
        if at.stop < len(voxels):
            yield
    slicer.util.arrayFromVolumeModified(node)
    return largest


def _volumeLike(volumeNode: Any, name: str, attributes: Mapping[str, str] = MappingProxyType({})) -> Any:
    """A float32 volume of zeros in the geometry, and under the transform, of another."""
    image = vtk.vtkImageData()
    image.SetDimensions(volumeNode.GetImageData().GetDimensions())
    # numpy's zeros take no time, however many: the system gives the memory when it is written to.
    zeros = np.zeros(image.GetNumberOfPoints(), np.float32)
    image.GetPointData().SetScalars(numpy_to_vtk(zeros))
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
    node.UnRegister(None)  # Python holds it from here on
    node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
    for key, value in attributes.items():
        node.SetAttribute(key, value)
    slicer.mrmlScene.AddNode(node)
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveImageData(image)
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    # Not CreateDefaultDisplayNodes: it works out a window from the histogram, which takes seconds for a large scan.
    view = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScalarVolumeDisplayNode")
    view.UnRegister(None)
    view.SetAutoWindowLevel(False)
    view.SetAutoThreshold(False)
    view.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    slicer.mrmlScene.AddNode(view)
    node.SetAndObserveDisplayNodeID(view.GetID())
    return node


# --- segments ---


@dataclass(frozen=True)
class Crop:
    """The part of a mask that has something in it.

    Attributes
    ----------
    mask
        uint8 (k, j, i), 1 inside.
    start
        Indices (i, j, k) of its first voxel in the whole.
    """

    mask: NDArray[np.uint8]
    start: tuple[int, int, int]


def crop(array: NDArray[Any], isInside: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> Generator[None, None, Any]:
    """Find the voxels (k, j, i) of an array for which something holds: a `Crop`, or None where there are none."""
    planes, columns = np.zeros(len(array), bool), np.zeros(array.shape[1:], bool)
    for at in slabs(array):
        inside = isInside(array[at])
        planes[at] = inside.any(axis=(1, 2))
        columns |= inside.any(axis=0)
        if at.stop < len(array):
            yield
    if not planes.any():
        return None
    k, j, i = (_span(line) for line in (planes, columns.max(axis=1), columns.max(axis=0)))
    part = array[k, j, i]
    mask = np.zeros(part.shape, np.uint8)
    for at in slabs(part):
        mask[at] = isInside(part[at])
        if at.stop < len(part):
            yield
    return Crop(mask, (i.start, j.start, k.start))


def _span(line: NDArray[np.bool_]) -> slice:
    return slice(int(line.argmax()), len(line) - int(line[::-1].argmax()))


def _addSegment(segmentationNode: Any, key: str, name: str, colour: Sequence[float], mask: Any, volumeNode: Any) -> Any:
    """Add a segment with a `Crop` of a mask on the grid of a volume, or an empty one (None)."""
    if mask is None:
        segmentationNode.GetSegmentation().AddEmptySegment(key, name, colour)
        return segmentationNode.GetSegmentation().GetSegment(key)
    image = slicer.vtkOrientedImageData()
    (i, j, k), (depth, height, width) = mask.start, mask.mask.shape
    image.SetExtent(i, i + width - 1, j, j + height - 1, k, k + depth - 1)
    image.GetPointData().SetScalars(numpy_to_vtk(mask.mask.ravel()))
    toRas = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(toRas)
    image.SetImageToWorldMatrix(toRas)
    segment = slicer.vtkSegment()
    segment.SetName(name)
    segment.SetColor(colour)
    kind = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    segment.AddRepresentation(kind, image)
    segmentationNode.GetSegmentation().AddSegment(segment, key)
    return segment


def _segmentationFor(volumeNode: Any, name: str) -> Any:
    """A segmentation without segments in the geometry, and under the transform, of a volume."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    return node


def _segmentation(volumeNode: Any, name: str, masks: Mapping[str, Any], record: Mapping[str, Any]) -> Any:
    """Region, target, and what is enough or necessary where it is known, as segments in the geometry of the volume."""
    structure = str(record["target"]["name"])
    node = _segmentationFor(volumeNode, _("{name} segments").format(name=name))
    segments = (
        (TARGET_SEGMENT, _("{structure} (predicted)").format(structure=structure), TARGET_COLOUR),
        (REGION_SEGMENT, _('region of "{structure}"').format(structure=record["prompt"]), REGION_COLOUR),
        (SUFFICIENT_SEGMENT, _("enough when all else is hidden"), SUFFICIENT_COLOUR),
        (NECESSARY_SEGMENT, _("half of the score is lost without it"), NECESSARY_COLOUR),
    )
    code = terminology.entry(structure)
    for key, title, colour in segments:
        if key not in masks:
            continue
        segment = _addSegment(node, key, title, colour, masks[key], volumeNode)
        if code and key in (TARGET_SEGMENT, REGION_SEGMENT):
            segment.SetTag(segment.GetTerminologyEntryTagName(), code)
    view = node.GetDisplayNode()
    view.SetOpacity2DFill(0.0)  # outlines: fills would hide the map
    for key in masks:
        if key != TARGET_SEGMENT:
            view.SetSegmentVisibility3D(key, False)
    for key in (SUFFICIENT_SEGMENT, NECESSARY_SEGMENT):  # four outlines over a map hide it: a tick in Segmentations
        if key in masks:
            view.SetSegmentVisibility(key, False)
    view.SetVisibility3D(False)  # until it is asked for: surfaces take a while to make
    return node


def _anyOf(labels: NDArray[Any], drawn: list[int]) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = labels == drawn[0] if len(drawn) == 1 else np.isin(labels, drawn)
    return mask


def loadRegion(volumeNode: Any, prompt: str, path: str) -> Work:
    """Make a segment of a region that was looked for alone, which the user can edit and then explain within.

    Raises
    ------
    InputError
        The region is empty or cannot be read, or the volume was changed or removed meanwhile.
    """
    mask = yield from crop(mappedFor(path, volumeNode), lambda part: part != 0)
    if not isInScene(volumeNode):
        raise InputError(_("The volume was removed during the computation: there is no result."))
    if mask is None:
        raise InputError(
            _(
                '"{prompt}" was not found in the volume {name}: lower the threshold, or draw the region yourself.'
            ).format(prompt=prompt, name=volumeNode.GetName())
        )
    node = _segmentationFor(volumeNode, _('Region of "{prompt}"').format(prompt=prompt))
    _addSegment(node, REGION_SEGMENT, prompt, REGION_COLOUR, mask, volumeNode)
    placeBeside(volumeNode, None, [node])
    return node


# --- provenance and place ---


def _noteProvenance(saliencyNode: Any, record: Mapping[str, Any]) -> None:
    """Write what made a saliency into its attributes, in plain words and as the whole record."""
    segmenter = (record.get("models") or {}).get("segmenter") or {}
    for key, value in {
        "Prompt": record["prompt"],
        "Structure": record["target"]["name"],
        "Method": record["parameters"].get("method", ""),
        "Model": segmenter.get("name", ""),
        "Complete": "1" if record.get("complete", True) else "0",
        "Version": (record.get("versions") or {}).get("xaiclip", ""),
    }.items():
        saliencyNode.SetAttribute(f"XAICLIP.{key}", str(value))
    saliencyNode.SetAttribute(RECORD_ATTRIBUTE, json.dumps(record, separators=(",", ":")))


def placeBeside(volumeNode: Any, folder: str | None, nodes: Iterable[Any]) -> None:
    """Put nodes into a folder beside a volume in the subject hierarchy, so into its study where it has one."""
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    if hierarchy is None:
        return
    study = hierarchy.GetItemParent(_item(hierarchy, volumeNode)) or hierarchy.GetSceneItemID()
    place = hierarchy.CreateFolderItem(study, folder) if folder else study
    for node in nodes:
        hierarchy.SetItemParent(_item(hierarchy, node), place)


def _item(hierarchy: Any, node: Any) -> int:
    """A node's item in the subject hierarchy; made where Slicer has not made it yet."""
    found = hierarchy.GetItemByDataNode(node)
    return int(found or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node))
