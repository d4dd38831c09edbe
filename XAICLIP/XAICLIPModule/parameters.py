"""What the panel remembers with the scene: the module's parameter node.

Imported when it is first needed: the node classes are those of other modules of Slicer, which may be loaded later than
this one.
"""

# No ``from __future__ import annotations``: the wrapper reads the annotations themselves.

from typing import Annotated, Any

from slicer import vtkMRMLMarkupsROINode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import Default, WithinRange, parameterNodeWrapper


@parameterNodeWrapper
class XAICLIPParameterNode:
    """The choices of the panel that belong to the scene; those of the machine are in the settings.

    Attributes
    ----------
    inputVolume
        The scan.
    furtherImages, furtherVolumes
        How many images beside the scan a network of the user's own takes, and the volumes chosen for further images.
    model, localizer
        Names of the catalogue, or paths; empty for the default.
    method, methodParameters
        Its name, and JSON with the parameters of every method by its name.
    modality
        ``CT``, ``MR``, or empty to guess it.
    regionSource
        ``guided``, ``whole``, ``prediction``, ``segment`` or ``box``.
    targetSource
        ``prompt``, ``structure``, ``segment`` or ``box``.
    checkMap
        Whether the map is tested when it is done.
    ownThreshold, regionThreshold
        Whether the region's threshold is the user's, and that (similarity, 0 to 1).
    regionMargin
        mm; below 0 for the default.
    outputName
        Of the results; empty for volume, prompt and method.
    result, compared
        The saliency volumes that the results section shows and compares.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    furtherImages: Annotated[int, WithinRange(0, 7)]
    furtherVolumes: list[vtkMRMLScalarVolumeNode]
    model: str
    prompt: str
    method: str
    methodParameters: str
    score: str
    baseline: str
    modality: str
    seed: Annotated[int, WithinRange(0, 2147483647)]
    checkMap: bool
    localizer: str
    regionSource: Annotated[str, Default("guided")]
    ownThreshold: bool
    regionThreshold: Annotated[float, WithinRange(0.0, 1.0), Default(0.5)]
    regionMargin: Annotated[float, WithinRange(-1.0, 100.0), Default(-1.0)]
    regionSegmentation: vtkMRMLSegmentationNode
    regionSegment: str
    regionBox: vtkMRMLMarkupsROINode
    targetSource: Annotated[str, Default("prompt")]
    targetStructure: str
    targetSegmentation: vtkMRMLSegmentationNode
    targetSegment: str
    targetBox: vtkMRMLMarkupsROINode
    outputName: str
    result: vtkMRMLScalarVolumeNode
    compared: vtkMRMLScalarVolumeNode


NUMBERS: dict[str, tuple[type, float, float]] = {
    "furtherImages": (int, 0, 7),
    "furtherVolumes.len": (int, 0, 7),  # under this name Slicer keeps how many a list has
    "seed": (int, 0, 2147483647),
    "regionThreshold": (float, 0, 1),
    "regionMargin": (float, -1, 100),
}
"""What stands in the node for numbers, with their kinds and bounds."""


def repair(node: Any) -> None:
    """Take out of a parameter node what is not of its kind, before it is wrapped, so that its default is taken.

    A scene may be an older one, or a stranger's; the wrapper would raise wherever such a value is read.
    """
    for name, (kind, least, most) in NUMBERS.items():
        if not node.HasParameter(name):
            continue
        try:
            # What is not a number is in no bounds; nor is an empty text, which the wrapper would read as a number too.
            fits = least <= kind(node.GetParameter(name)) <= most
        except (ValueError, OverflowError):
            fits = False
        if not fits:
            node.UnsetParameter(name)
    for name in ("ownThreshold", "checkMap"):
        if node.GetParameter(name) not in ("", "True", "False"):
            node.UnsetParameter(name)
