"""Reading and writing of files: `slicer.app.coreIOManager()`, by MRML's own storage nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtCore

from Testing.host.pythonqt import wrapped

FILE_TYPES = {
    (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"): "VolumeFile",
    (".seg.nrrd", ".seg.nhdr"): "SegmentationFile",
    (".mrml", ".mrb"): "SceneFile",
    (".tsv", ".csv"): "TableFile",
    (".ctbl",): "ColorTableFile",
    (".h5", ".tfm"): "TransformFile",
    (".vtk", ".vtp", ".stl", ".obj", ".ply"): "ModelFile",
    (".mrk.json",): "MarkupsFile",
}
NODE_CLASSES = {
    "SegmentationFile": "vtkMRMLSegmentationNode",
    "TableFile": "vtkMRMLTableNode",
    "ColorTableFile": "vtkMRMLColorTableNode",
    "TransformFile": "vtkMRMLTransformNode",
    "ModelFile": "vtkMRMLModelNode",
}


class qSlicerCoreIOManager(wrapped(QtCore.QObject)):
    """Loads and saves nodes and scenes; a file type that it does not know is refused."""

    cpp_class = True

    def fileType(self, path: str) -> str:
        name = Path(path).name.lower()
        fitting = [(end, kind) for ends, kind in FILE_TYPES.items() for end in ends if name.endswith(end)]
        return max(fitting, key=lambda pair: len(pair[0]))[1] if fitting else "NoFile"

    def loadNodes(self, kind: str, properties: dict[str, Any], nodes: Any = None, messages: Any = None) -> bool:
        path = properties["fileName"]
        if kind == "SceneFile":
            return bool(self._loadScene(path, properties))
        if kind == "VolumeFile":
            node = _load_volume(path, properties)
        elif kind in NODE_CLASSES:
            node = slicer.mrmlScene.AddNewNodeByClass(
                NODE_CLASSES[kind], properties.get("name", Path(path).name.split(".")[0])
            )
            node.AddDefaultStorageNode(path)
            if not node.GetStorageNode().ReadData(node):
                slicer.mrmlScene.RemoveNode(node)
                node = None
        else:
            raise AttributeError(f"The test host does not read files of type '{kind}'.")
        if node is not None and nodes is not None:
            nodes.AddItem(node)
        return node is not None

    def _loadScene(self, path: str, properties: dict[str, Any]) -> bool:
        scene = slicer.mrmlScene
        if path.endswith(".mrb"):
            return bool(scene.ReadFromMRB(path, properties.get("clear", False)))
        scene.SetURL(path)
        return bool(scene.Connect() if properties.get("clear", False) else scene.Import())

    def fileWriterFileType(self, node: Any) -> str:
        return next((kind for kind, name in NODE_CLASSES.items() if node.IsA(name)), "VolumeFile")

    def saveNodes(self, kind: str, properties: dict[str, Any], messages: Any = None) -> bool:
        path, scene = properties["fileName"], slicer.mrmlScene
        if kind != "SceneFile":
            node = scene.GetNodeByID(properties["nodeID"])
            node.AddDefaultStorageNode(path)
            node.GetStorageNode().SetFileName(path)
            return bool(node.GetStorageNode().WriteData(node))
        if path.endswith(".mrb"):
            return bool(scene.WriteToMRB(path, None))
        if path.endswith(".mrml"):
            scene.SetURL(path)
            return bool(scene.Commit())
        return bool(scene.SaveSceneToSlicerDataBundleDirectory(path, None))


def _load_volume(path: str, properties: dict[str, Any]) -> Any:
    name = properties.get("name", Path(path).name.split(".")[0])
    options = int(bool(properties.get("labelmap"))) | 2 * int(bool(properties.get("center")))
    return slicer.modules.volumes.logic().AddArchetypeVolume(path, name, options)
