"""The files of an explanation → nodes of the scene, and back from a saved scene.

The saliency volume is the head of a run: it references the other nodes, and its attributes hold the provenance, so that
a scene that was saved and loaded again shows the same results.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from numpy.typing import NDArray
from slicer.i18n import tr as _

from XAICLIPLib.errors import InputError
from XAICLIPModule.display import saliency_display, tables
from XAICLIPModule.display.saliency_display import SALIENCY_ATTRIBUTE
from XAICLIPModule.scene import terminology
from XAICLIPModule.scene.nodes import isInScene

RECORD_ATTRIBUTE = "XAICLIP.Record"
"""JSON of the record; a saliency without it is still being computed."""
INPUT_ROLE, SEGMENTATION_ROLE = "xaiclipInput", "xaiclipSegmentation"
MEASUREMENTS_ROLE, STRUCTURES_ROLE = "xaiclipMeasurements", "xaiclipStructures"
SURFACE_ROLE, ERROR_ROLE = "xaiclipSurface", "xaiclipStandardError"

REGION_SEGMENT, TARGET_SEGMENT = "region", "target"
REGION_COLOUR, TARGET_COLOUR = (0.2, 0.75, 1.0), (0.35, 0.85, 0.35)


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
        Region and target as segments.
    measurements
        vtkMRMLTableNode.
    structures
        vtkMRMLTableNode of the structures, for the methods that weigh structures; else None.
    standardError
        vtkMRMLScalarVolumeNode, for the methods that give one; else None.
    figure
        ``figure.png`` as the worker wrote it, while the session lasts; else None.
    """

    saliency: Any
    volume: Any
    segmentation: Any
    measurements: Any
    structures: Any = None
    standardError: Any = None
    figure: Path | None = field(default=None, compare=False)

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
    try:
        record = json.loads(saliencyNode.GetAttribute(RECORD_ATTRIBUTE) or "{}")
    except ValueError:
        return {}
    needed = ("prompt", "target", "region", "measurements", "parameters")
    return record if isinstance(record, dict) and all(record.get(key) for key in needed) else {}


# --- from files ---


def readImage(path: str | Path) -> sitk.Image:
    """An image that the worker wrote.

    Raises
    ------
    InputError
        It is not there or damaged.
    """
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(
            _("The result {file} cannot be read: click Apply to compute it again.").format(file=Path(path).name)
        ) from error


def arrayFromFile(path: str | Path, volumeNode: Any) -> NDArray[Any]:
    """The voxels (k, j, i) of an image that the worker wrote, which lies on the grid of a volume.

    Raises
    ------
    InputError
        It cannot be read, or the volume was changed meanwhile.
    """
    image = readImage(path)
    if image.GetSize() != tuple(volumeNode.GetImageData().GetDimensions()):
        raise InputError(
            _("The volume {name} was changed during the computation: click Apply to compute it again.").format(
                name=volumeNode.GetName()
            )
        )
    return arrayFromImage(image)


def arrayFromImage(image: sitk.Image) -> NDArray[Any]:
    """The voxels (k, j, i) of an image; a copy, which outlives it."""
    array: NDArray[Any] = sitk.GetArrayFromImage(image)
    return array


def saliencyVolume(volumeNode: Any, name: str, array: NDArray[Any]) -> Any:
    """A new saliency volume, beside the input; without a record it counts as being computed."""
    node = _volumeLike(volumeNode, name, array, {SALIENCY_ATTRIBUTE: "1"})
    node.SetNodeReferenceID(INPUT_ROLE, volumeNode.GetID())
    placeBeside(volumeNode, None, [node])
    saliency_display.prepare(node)
    return node


def arrayOf(node: Any) -> NDArray[Any] | None:
    """The voxels of a volume that is still in the scene, to be changed in place; else None."""
    if not isInScene(node) or node.GetImageData() is None:
        return None
    array: NDArray[Any] = slicer.util.arrayFromVolume(node)
    return array


def load(
    volumeNode: Any, files: Mapping[str, str], record: Mapping[str, Any], name: str, saliencyNode: Any = None
) -> ExplanationNodes:
    """Nodes for a finished explanation.

    Parameters
    ----------
    volumeNode
        The input.
    files
        Paths of ``saliency``, ``region`` and ``segmentation``; ``figure`` and ``standard_error`` where there are such.
    record
        What ``explanation.json`` holds.
    name
        What the nodes are called after.
    saliencyNode
        The developing map of the same run, which becomes the result.

    Raises
    ------
    InputError
        A file cannot be read, or the volume was changed meanwhile.
    """
    arrays = {what: arrayFromFile(files[what], volumeNode) for what in ("saliency", "region", "segmentation")}
    error = arrayFromFile(files["standard_error"], volumeNode) if "standard_error" in files else None
    saliency = saliencyNode
    if saliency is None:
        saliency = saliencyVolume(volumeNode, name, arrays["saliency"])
    else:
        slicer.util.updateVolumeFromArray(saliency, arrays["saliency"].astype(np.float32, copy=False))
        saliency_display.prepare(saliency)
    name = saliency.GetName()
    made = [
        (SEGMENTATION_ROLE, _segmentation(volumeNode, name, arrays["region"], arrays["segmentation"], record)),
        (MEASUREMENTS_ROLE, tables.measurementsTable(name, record)),
    ]
    structures = tables.structureRows(record)
    if structures:
        made.append((STRUCTURES_ROLE, tables.structuresTable(name, structures)))
    if error is not None:
        spread = _volumeLike(volumeNode, _("{name} standard error").format(name=name), error)
        spread.GetDisplayNode().SetWindowLevelMinMax(0, max(float(error.max()), 1e-6))
        made.append((ERROR_ROLE, spread))
    for role, node in made:
        saliency.SetNodeReferenceID(role, node.GetID())
    _noteProvenance(saliency, record)
    placeBeside(volumeNode, name, [saliency, *(node for _role, node in made)])
    figure = Path(files["figure"]) if "figure" in files else None
    found = explanationOf(saliency)
    assert found is not None
    return ExplanationNodes(**{**found.__dict__, "figure": figure})


def _volumeLike(
    volumeNode: Any, name: str, array: NDArray[Any], attributes: Mapping[str, str] = MappingProxyType({})
) -> Any:
    """A float32 volume in the geometry, and under the transform, of another."""
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
    node.UnRegister(None)  # Python holds it from here on
    node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
    for key, value in attributes.items():
        node.SetAttribute(key, value)
    slicer.mrmlScene.AddNode(node)
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(array, dtype=np.float32))
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


def _segmentation(
    volumeNode: Any, name: str, region: NDArray[Any], labels: NDArray[Any], record: Mapping[str, Any]
) -> Any:
    """Region and target as segments in the geometry of the volume."""
    target = record["target"]
    wanted = target["label"] if isinstance(target["label"], list) else [target["label"]]
    structure = str(target["name"])
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", _("{name} segments").format(name=name))
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    segments = (
        (TARGET_SEGMENT, _("{structure} (predicted)"), _anyOf(labels, wanted), TARGET_COLOUR),
        (REGION_SEGMENT, _('region of "{structure}"'), region != 0, REGION_COLOUR),
    )
    for key, title, mask, colour in segments:
        title = title.format(structure=record["prompt"] if key == REGION_SEGMENT else structure)
        node.GetSegmentation().AddEmptySegment(key, title, colour)
        segment = node.GetSegmentation().GetSegment(key)
        code = terminology.entry(structure)
        if code:
            segment.SetTag(segment.GetTerminologyEntryTagName(), code)
        if mask.any():
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), node, key, volumeNode)
    view = node.GetDisplayNode()
    view.SetOpacity2DFill(0.0)  # outlines: fills would hide the map
    view.SetSegmentVisibility3D(REGION_SEGMENT, False)
    view.SetVisibility3D(False)  # until it is asked for: surfaces take a while to make
    return node


def _anyOf(labels: NDArray[Any], wanted: list[int]) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = labels == wanted[0] if len(wanted) == 1 else np.isin(labels, wanted)
    return mask


def regionSegmentation(volumeNode: Any, prompt: str, region: NDArray[Any]) -> Any:
    """A region that was looked for alone, as a segment that the user can edit and then explain within.

    Raises
    ------
    InputError
        The region is empty.
    """
    if not region.any():
        raise InputError(
            _(
                '"{prompt}" was not found in the volume {name}: lower the threshold, or draw the region yourself.'
            ).format(prompt=prompt, name=volumeNode.GetName())
        )
    title = _('Region of "{prompt}"').format(prompt=prompt)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", title)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    node.GetSegmentation().AddEmptySegment(REGION_SEGMENT, prompt, REGION_COLOUR)
    mask = (region != 0).astype(np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, REGION_SEGMENT, volumeNode)
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
