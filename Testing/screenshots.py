"""Photographs of the Slicer module for README and tutorial: the panel, and the slice and 3D views, on the test host.

    python -m Testing.screenshots [--data ../shared/data] [--output Resources/Screenshots]

The panel is the real one with the real worker; the views are drawn by Slicer's own displayable managers. The scan is
the example CT of TotalSegmentator (Apache-2.0) where the data are, else the synthetic torso.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from Testing.host import host, modules

ROOT = Path(__file__).resolve().parents[1]
WIDTH, VIEW = 460, 520


def main() -> None:
    """Take all photographs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--output", type=Path, default=ROOT / "Resources" / "Screenshots")
    parser.add_argument("--prompt", default="liver")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        host.install(Path(folder))
        take(options.data, options.output, options.prompt)


def take(data: Path, output: Path, prompt: str) -> None:
    """Drive the panel from an empty scene to a result, and photograph it on the way."""
    import slicer

    from Testing.host import render
    from Testing.host.application import qSlicerLayoutManager

    slicer.app._layouts = qSlicerLayoutManager(slicer.app.applicationLogic())
    module = modules.load_scripted_module(ROOT / "XAICLIP" / "XAICLIP.py")
    panel = module.widgetRepresentation().self()
    panel.parent.show()
    volume = load(data / "totalseg" / "example_ct.nii.gz")
    ui, logic = panel.ui, panel.logic
    wait(lambda: ui.inputSelector.currentNode() is volume)
    ui.promptLineEdit.setText(prompt)
    shots = {"before": grab(panel)}
    ui.applyButton.click()
    wait(lambda: panel.panel.results._node is not None and ui.progressBar.value >= 30)
    shots["running"] = grab(panel)
    developing = views(render, volume)
    wait(lambda: logic.state.value == "idle")
    shots["after"] = grab(panel)
    Image.fromarray(beside([shots[name] for name in ("before", "running", "after")])).save(output / "slicer-panel.png")
    done = views(render, volume)
    ui.show3DCheckBox.setChecked(True)
    three = render.pixels(render.view_3d((VIEW, VIEW)))
    Image.fromarray(beside([*done, three])).save(output / "slicer-views.png")
    Image.fromarray(beside(developing)).save(output / "slicer-developing.png")
    for name in ("method", "region", "target", "installation", "outputs"):
        getattr(ui, f"{name}CollapsibleButton").collapsed = False
    ui.resultsCollapsibleButton.collapsed = True
    Image.fromarray(grab(panel)).save(output / "slicer-sections.png")
    for name in ("method", "region", "target", "installation", "outputs"):
        getattr(ui, f"{name}CollapsibleButton").collapsed = True
    ui.applyButton.click()
    wait(lambda: logic.state.value == "running")
    logic.session._process.kill()
    wait(lambda: logic.state.value == "idle")
    Image.fromarray(grab(panel)).save(output / "slicer-error.png")
    modules.unload_scripted_module("XAICLIP")


def load(path: Path) -> Any:
    """The example CT, or the synthetic torso, with a window for the abdomen."""
    import SimpleITK as sitk
    import slicer

    from XAICLIPModule.scene import sample_data

    if not path.is_file():
        return sample_data.loadPhantom()
    volume = sample_data.volumeFromImage(sitk.ReadImage(str(path)), "Example CT")
    volume.GetScalarVolumeDisplayNode().SetAutoWindowLevel(False)
    volume.GetScalarVolumeDisplayNode().SetWindowLevel(400, 40)
    slicer.util.setSliceViewerLayers(background=volume)
    return volume


def grab(panel: Any) -> Any:
    """The panel as it is, no taller than it needs to be."""
    import slicer

    widget = panel.parent
    widget.resize(WIDTH, 100)
    for _ in range(5):
        slicer.app.processEvents()
    widget.resize(WIDTH, widget.sizeHint.height())
    for _ in range(5):
        slicer.app.processEvents()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "panel.png")
        widget.grab().save(path)
        return np.asarray(Image.open(path).convert("RGB"))


def views(render: Any, volume: Any) -> list[Any]:
    """Axial and coronal slices through the most salient place."""
    import slicer

    from XAICLIPModule.display import surfaces

    maps = [n for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if n.GetAttribute("XAICLIP.Saliency")]
    place = surfaces.mostSalientPoint(maps[-1])
    return [
        render.pixels(render.slice_view(name, orientation, (VIEW, VIEW), offset))
        for name, orientation, offset in (("Red", "Axial", place[2]), ("Green", "Coronal", place[1]))
    ]


def beside(pictures: list[Any]) -> Any:
    """Pictures side by side, filled up to the tallest."""
    height = max(len(picture) for picture in pictures)
    filled = [np.pad(p, ((0, height - len(p)), (0, 0), (0, 0)), constant_values=p[-1, 0, 0]) for p in pictures]
    return np.ascontiguousarray(np.concatenate(filled, axis=1))


def wait(until: Callable[[], Any], seconds: float = 3600) -> None:
    """Let Qt work until something holds."""
    import slicer

    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s in vain")
        slicer.app.processEvents()
        time.sleep(0.01)


if __name__ == "__main__":
    main()
