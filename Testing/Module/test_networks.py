"""The network that the user really uses: own files, several images, and what has to be downloaded first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from Testing.Python.misbehaving import Behaviour, serving

from .conftest import wait
from .test_panel import pick, plain

BRATS = ("T1c", "T1", "T2", "FLAIR")


@pytest.fixture
def ui(panel: Any) -> Any:
    return panel.ui


@pytest.fixture
def choices(panel: Any) -> Any:
    return panel.panel.choices


@pytest.fixture
def volumes(scene: Any, slicer_host: Any) -> list[Any]:
    """Four images of one patient."""
    return [added(slicer_host, name, number) for number, name in enumerate(BRATS)]


def added(slicer: Any, name: str, seed: int, shape: tuple[int, int, int] = (24, 24, 24)) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(node, np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    node.SetSpacing(4, 4, 4)
    node.CreateDefaultDisplayNodes()
    return node


def rows(ui: Any, choices: Any) -> list[str]:
    """The labels of the rows for further images that are shown."""
    shown = ui.inputsCollapsibleButton
    return [label.text for label, selector in choices.furtherImages._rows if selector.isVisibleTo(shown)]


def missing(ui: Any) -> str:
    return "" if ui.applyButton.isEnabled() else plain(ui.applyButton.toolTip)


# Several images


def test_a_network_that_takes_several_images_has_a_selector_for_each(
    panel: Any, ui: Any, choices: Any, session: Any, volumes: list[Any]
) -> None:
    session.installed = {"brats-mri"}
    wait(lambda: ui.inputSelector.currentNode() is volumes[0])
    assert rows(ui, choices) == [] and ui.inputLabel.text == "&Scan:"
    pick(ui.modelComboBox, "brats-mri")
    wait(lambda: session.hello is not None)
    assert rows(ui, choices) == ["T1:", "T2:", "FLAIR:"] and ui.inputLabel.text == "Scan (T1c):"
    assert not ui.furtherImagesSpinBox.isVisibleTo(ui.inputsCollapsibleButton)
    ui.promptLineEdit.setText("whole tumor")
    assert missing(ui) == "Choose a volume for T1.\nChoose a volume for T2.\nChoose a volume for FLAIR."
    for number in (0, 1):
        choices.furtherImages.selector(number).setCurrentNode(volumes[number + 1])
    choices.furtherImages.selector(2).setCurrentNode(volumes[0])
    assert missing(ui) == "The volume T1c is chosen twice: choose another for each image."
    choices.furtherImages.selector(2).setCurrentNode(volumes[3])
    assert missing(ui) == ""
    ui.applyButton.click()
    (asked,) = session.requests
    assert [Path(path).name for path in asked.further_volumes] == ["volume-2.nrrd", "volume-3.nrrd", "volume-4.nrrd"]
    assert not choices.furtherImages.selector(0).isEnabled()
    session.answer("error", kind="cancelled", message="Cancelled.")
    pick(ui.modelComboBox, "abdomen-ct")
    assert rows(ui, choices) == []
    ui.promptLineEdit.setText("liver")
    ui.applyButton.click()
    assert session.requests[-1].further_volumes is None


def test_the_images_are_saved_with_the_scene(
    ui: Any, choices: Any, session: Any, volumes: list[Any], tmp_path: Path
) -> None:
    import slicer

    session.installed = {"brats-mri"}
    pick(ui.modelComboBox, "brats-mri")
    for number in range(3):
        choices.furtherImages.selector(number).setCurrentNode(volumes[number + 1])
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(path)
    wait(lambda: ui.modelComboBox.currentData == "brats-mri")
    wait(lambda: None not in choices.furtherImages.volumes())
    assert [node.GetName() for node in choices.furtherImages.volumes()] == list(BRATS[1:])


def test_a_network_of_the_users_own_takes_as_many_images_as_the_user_says(
    panel: Any, ui: Any, choices: Any, session: Any, volumes: list[Any], tmp_path: Path, monkeypatch: Any
) -> None:
    import qt

    wait(lambda: ui.inputSelector.currentNode() is volumes[0])
    asked: list[Any] = []
    path = tmp_path / "net.yaml"
    path.write_text("name: net")
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *given: asked.append(given) or str(path))
    choices.models.fileAction.trigger()
    assert "*.yaml *.yml *.ts *.pt *.pth *.safetensors *.zip" in asked[0][-1]
    assert (ui.modelComboBox.currentData, ui.modelComboBox.currentText) == (str(path), "net.yaml")
    shown = ui.inputsCollapsibleButton
    assert ui.trustCheckBox.isVisibleTo(shown) and ui.furtherImagesSpinBox.isVisibleTo(shown)
    assert rows(ui, choices) == []
    ui.furtherImagesSpinBox.setValue(2)
    assert rows(ui, choices) == ["Image 2:", "Image 3:"]
    ui.promptLineEdit.setText("liver")
    assert missing(ui) == "Choose a volume for Image 2.\nChoose a volume for Image 3."
    for number in range(2):
        choices.furtherImages.selector(number).setCurrentNode(volumes[number + 1])
    ui.applyButton.click()
    assert session.requests[0].model == str(path) and len(session.requests[0].further_volumes) == 2
    ui.furtherImagesSpinBox.setValue(99)
    assert ui.furtherImagesSpinBox.value == 7


def test_images_under_different_transforms_lie_to_each_other_as_in_the_world(volumes: list[Any]) -> None:
    import slicer
    import vtk

    from XAICLIPLib.errors import InputError
    from XAICLIPModule.scene import export

    def under(volume: Any, *rows: list[float]) -> None:
        matrix = vtk.vtkMatrix4x4()
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                matrix.SetElement(i, j, value)
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        node.SetMatrixTransformToParent(matrix)
        volume.SetAndObserveTransformNodeID(node.GetID())

    scan, other = volumes[:2]
    under(scan, [0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30])
    under(other, [1, 0, 0, 5], [0, 1, 0, 6], [0, 0, 1, 7])
    image = export.imageFromVolume(other, scan)
    # The first voxel, at (5, 6, 7) in the world, lies at (-14, 5, -23) in the scan's own RAS, and x and y turn for LPS.
    assert image.GetOrigin() == pytest.approx((14, -5, -23))
    assert export.imageFromVolume(other).GetOrigin() == pytest.approx((0, 0, 0))
    under(other, [1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0])
    with pytest.raises(InputError, match="sheared against the scan"):
        export.imageFromVolume(other, scan)


# What is not here


def test_a_network_that_is_not_here_is_offered_with_size_licence_and_source(
    ui: Any, choices: Any, session: Any, volume: Any
) -> None:
    wait(lambda: ui.inputSelector.currentNode() is volume)
    ui.promptLineEdit.setText("white matter")
    shown = ui.inputsCollapsibleButton
    assert not ui.modelDownloadWidget.isVisibleTo(shown) and "does not draw the white matter" in missing(ui)
    assert session.hello is None, "what ships needs no worker to be looked up"
    pick(ui.modelComboBox, "brainchop-tissue")
    assert "looked up" in missing(ui) and not ui.modelDownloadButton.isVisibleTo(shown)
    wait(lambda: session.hello is not None)
    assert ui.modelDownloadWidget.isVisibleTo(shown) and ui.modelDownloadButton.isVisibleTo(shown)
    for said in ("0.38 MB", "licence MIT", "https://raw.githubusercontent.com/neuroneural/brainchop"):
        assert said in ui.modelAbsenceLabel.text
    assert missing(ui) == "Download the network first."
    assert session.requests == [], "nothing is downloaded without a click"
    description = ui.modelDescriptionLabel.text
    for said in ("MeshNet. For MR. Licence: MIT.", "Knows: white matter, grey matter.", "Cite: Masoud M"):
        assert said in description


def test_the_download_shows_how_far_it_is_and_what_came_of_it(ui: Any, session: Any, volume: Any) -> None:
    wait(lambda: ui.inputSelector.currentNode() is volume)
    ui.promptLineEdit.setText("white matter")
    pick(ui.modelComboBox, "brainchop-tissue")
    wait(lambda: session.hello is not None)
    ui.modelDownloadButton.click()
    (asked,) = session.requests
    assert (asked.type, asked.name) == ("download", "brainchop-tissue")
    assert ui.applyButton.text == "Cancel" and not ui.modelDownloadButton.isEnabled()
    session.answer("progress", stage="download", done=190_000, total=380_000, seconds_left=100)
    assert ui.statusLabel.text == "Downloading: 0.2 / 0.4 MB – 2 min left"
    assert (ui.progressBar.value, ui.progressBar.maximum) == (50, 100)
    session.answer("progress", stage="download", done=1_000_000, total=0)
    assert ui.statusLabel.text == "Downloading: 1.0 MB" and ui.progressBar.maximum == 0
    ui.applyButton.click()
    assert session.cancelled == [asked.id]
    session.answer("error", kind="cancelled", message="Cancelled.")
    assert ui.statusLabel.text == "The download was cancelled."
    assert ui.modelDownloadButton.isEnabled() and missing(ui) == "Download the network first."
    ui.modelDownloadButton.click()
    session.answer("error", kind="input", message="https://x cannot be downloaded (no connection): do otherwise.")
    assert "do otherwise" in ui.statusLabel.text
    ui.modelDownloadButton.click()
    session.installed = {"brainchop-tissue"}
    session.answer("downloaded", name="brainchop-tissue", path="/somewhere")
    assert ui.statusLabel.text == "brainchop-tissue is on this machine now."
    assert not ui.modelDownloadWidget.isVisibleTo(ui.inputsCollapsibleButton)
    assert missing(ui) == ""


def test_a_download_outlives_the_scene(panel: Any, ui: Any, session: Any, volume: Any) -> None:
    import slicer

    pick(ui.modelComboBox, "brainchop-tissue")
    wait(lambda: session.hello is not None)
    ui.modelDownloadButton.click()
    slicer.mrmlScene.Clear(0)
    assert session.cancelled == [] and panel.logic.state.value == "running"
    session.answer("downloaded", name="brainchop-tissue")
    assert panel.logic.state.value == "idle"


def test_a_localizer_is_downloaded_by_the_same_button(ui: Any, session: Any, volume: Any) -> None:
    wait(lambda: ui.inputSelector.currentNode() is volume)
    ui.promptLineEdit.setText("liver")
    ui.regionCollapsibleButton.collapsed = False
    pick(ui.localizerComboBox, "clip-vit-b-16")
    wait(lambda: session.hello is not None)
    assert missing(ui) == "Download the localizer first, in the section Search area."
    assert not ui.showRegionButton.isEnabled()
    assert ui.localizerDownloadButton.isVisibleTo(ui.regionCollapsibleButton)
    assert "from open_clip:ViT-B-16-quickgelu:openai" in ui.localizerAbsenceLabel.text
    pick(ui.regionSourceComboBox, "whole")
    assert missing(ui) == "" and not ui.localizerDownloadWidget.isVisibleTo(ui.regionCollapsibleButton)
    pick(ui.regionSourceComboBox, "guided")
    ui.localizerDownloadButton.click()
    assert session.requests[0].name == "clip-vit-b-16"
    session.installed = {"clip-vit-b-16"}
    session.answer("downloaded", name="clip-vit-b-16")
    assert missing(ui) == "" and not ui.localizerDownloadWidget.isVisibleTo(ui.regionCollapsibleButton)


def test_an_id_of_the_hub_in_a_scene_is_not_downloaded_unasked(panel: Any, ui: Any, session: Any, volume: Any) -> None:
    wait(lambda: ui.inputSelector.currentNode() is volume)
    ui.promptLineEdit.setText("liver")
    panel.logic.getParameterNode().localizer = "hf-hub:someone/clip"
    wait(lambda: session.hello is not None)
    assert missing(ui) == "Confirm the localizer that the scene names, or choose another."
    ui.localizerFromSceneButton.click()
    assert missing(ui) == "Choose another model: hf-hub:someone/clip is not on this machine."


def test_a_package_is_left_to_pip(ui: Any, session: Any, volume: Any) -> None:
    pick(ui.modelComboBox, "deepbet")
    wait(lambda: session.hello is not None)
    assert "Install the Python package deepbet first." in missing(ui)
    assert not ui.modelDownloadButton.isVisibleTo(ui.inputsCollapsibleButton)
    assert "Python package deepbet" in ui.modelAbsenceLabel.text


def test_a_long_list_of_structures_is_cut_short(choices: Any) -> None:
    (model,) = (model for model in choices.models.models if model.name == "wholebody-ct")
    assert "and 84 more." in model.description() and "For CT." in model.description()


def test_the_description_takes_two_lines_and_unfolds(ui: Any) -> None:
    label, line = ui.modelDescriptionLabel, ui.modelDescriptionLabel.fontMetrics().lineSpacing()
    assert len(label.text.splitlines()) > 2 and label.height < 3 * line
    assert ui.modelMoreButton.isVisibleTo(ui.inputsCollapsibleButton)
    ui.modelMoreButton.click()
    wait(lambda: label.height >= 3 * line)
    ui.modelMoreButton.click()
    wait(lambda: label.height < 3 * line)


# The region


def test_the_prediction_is_a_region_where_the_worker_offers_it(ui: Any, session: Any, monkeypatch: Any) -> None:
    from XAICLIPLib.worker import protocol

    monkeypatch.setattr(protocol, "REGIONS", ("guided", "whole"))
    session.greet()
    assert ui.regionSourceComboBox.findData("prediction") < 0
    monkeypatch.setattr(protocol, "REGIONS", ("guided", "whole", "prediction"))
    session.greet()
    ui.regionCollapsibleButton.collapsed = False
    pick(ui.regionSourceComboBox, "prediction")
    assert ui.regionMarginSpinBox.isVisibleTo(ui.regionCollapsibleButton)
    assert not ui.localizerComboBox.isVisibleTo(ui.regionCollapsibleButton)


# With the real worker


@pytest.fixture
def real(scene: Any, module_path: Path, load_module: Callable[[str], Any], tmp_path: Path, monkeypatch: Any) -> Any:
    """The panel with the real worker, whose models lie in a folder of the test."""
    for package in ("torch", "monai", "yaml"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path / "mine"))
    return load_module


def test_a_network_of_two_images_is_explained(
    real: Any, slicer_host: Any, tmp_path: Path, slot_errors: list[BaseException], monkeypatch: Any
) -> None:
    import qt
    import torch
    import yaml
    from monai.networks.nets import UNet

    images = [added(slicer_host, name, seed) for seed, name in enumerate(("T1", "FLAIR"))]
    arguments = {"spatial_dims": 3, "in_channels": 2, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    torch.manual_seed(0)
    torch.save(UNet(**arguments).state_dict(), tmp_path / "net.pt")
    description = {
        "network": {"name": "UNet", "arguments": arguments},
        "weights": "net.pt",
        "labels": {0: "background", 1: "lesion"},
        "inputs": ["T1", "FLAIR"],
        "intensity": "z-score",
    }
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(description))
    widget = real("XAICLIP")
    ui, choices = widget.ui, widget.panel.choices
    wait(lambda: ui.inputSelector.currentNode() is images[0])
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_given: str(tmp_path / "net.yaml"))
    choices.models.fileAction.trigger()
    wait(lambda: rows(ui, choices) == ["FLAIR:"], 240)  # the worker says what it takes
    ui.promptLineEdit.setText("lesion")
    pick(ui.regionSourceComboBox, "whole")
    pick(ui.deviceComboBox, "cpu")
    pick(ui.methodComboBox, "occlusion")
    choices.methodForm.widget("window_mm").setValue(48)
    choices.methodForm.widget("stride_mm").setValue(48)
    assert missing(ui) == "Choose a volume for FLAIR."
    choices.furtherImages.selector(0).setCurrentNode(images[1])
    ui.applyButton.click()
    wait(lambda: widget.logic.state.value == "idle", 240)
    assert ui.statusLabel.text.startswith("Done."), ui.statusLabel.text
    record = json.loads(ui.resultSelector.currentNode().GetAttribute("XAICLIP.Record"))
    voxels = np.ascontiguousarray(slicer_host.util.arrayFromVolume(images[1])).tobytes()
    assert record["further_images"] == {"FLAIR": {"voxels_sha256": hashlib.sha256(voxels).hexdigest()}}
    assert record["measurements"]["largest_score_lost"] != 0


CONTENT = np.random.default_rng(0).bytes(2_000_000)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[], Behaviour]]:
    """A server on this machine, and a catalogue of the user with a network on it."""
    pytest.importorskip("pooch", reason="pooch is not installed")
    behaviour = Behaviour(CONTENT)
    with serving(behaviour) as url:
        remote = {"url": url, "sha256": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT)}
        model = {"name": "net", "kind": "segmenter", "format": "meshnet", "title": "a net", "modality": "MR"}
        model |= {"structures": ["brain"], "licence": "MIT", "source": {"files": {"model.bin": remote}}}
        catalogue = json.dumps({"models": [model]})

        def serve() -> Behaviour:
            (tmp_path / "mine" / "catalogue.json").write_text(catalogue, encoding="utf-8")
            return behaviour

        yield serve


def test_a_network_is_downloaded_after_a_cancel(
    real: Any, slicer_host: Any, tmp_path: Path, served: Callable[[], Behaviour]
) -> None:
    behaviour = served()
    added(slicer_host, "scan", 0)
    widget = real("XAICLIP")
    ui, state = widget.ui, lambda: widget.logic.state.value
    ui.promptLineEdit.setText("brain")
    widget.logic.getParameterNode().model = "net"  # of the user's catalogue, which the worker alone knows
    wait(lambda: ui.modelDownloadButton.isVisibleTo(ui.inputsCollapsibleButton), 120)
    assert "2 MB, licence MIT, from http://127.0.0.1" in ui.modelAbsenceLabel.text
    assert missing(ui) == "Download the network first." and behaviour.asked == []
    behaviour.drip_s = 0.05
    ui.modelDownloadButton.click()
    wait(lambda: ui.statusLabel.text.startswith("Downloading: 0.") and ui.progressBar.value > 0, 60)
    ui.applyButton.click()
    wait(lambda: state() == "idle")
    assert ui.statusLabel.text == "The download was cancelled."
    assert missing(ui) == "Download the network first."
    behaviour.drip_s = 0
    ui.modelDownloadButton.click()
    wait(lambda: state() == "idle" and missing(ui) == "", 60)
    assert ui.statusLabel.text == "net is on this machine now."
    assert [bool(range_) for range_ in behaviour.asked] == [False, True], "it went on where it was"
    assert (tmp_path / "mine" / "models" / "net" / "model.bin").read_bytes() == CONTENT
