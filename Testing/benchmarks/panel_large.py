"""How long the panel keeps Slicer's user interface waiting with a large scan, on the test host with a played worker.

``python Testing/benchmarks/panel_large.py [--size 512 512 300] [--compressed] [--whole]`` begins a run, sends two
estimates and a result whose files were written before, and prints for each stage the longest gap between the beats of a
timer of 5 ms, and the most work of the main thread between two beats, which other programs do not lengthen. What a view
needs to draw is not in it. ``--compressed`` has the result's files compressed, as in a folder of the user.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "XAICLIP")]

BEAT_MS = 5


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 300), help="voxels along i, j, k")
    parser.add_argument("--compressed", action="store_true")
    parser.add_argument("--whole", action="store_true", help="a region that is the whole scan")
    options = parser.parse_args()
    try:
        from Testing.host import host
    except ImportError as error:
        parser.exit(0, f"Skipped: the stand-in for 3D Slicer is not installed ({error.name}).\n")
    with tempfile.TemporaryDirectory() as folder:
        host.install(Path(folder))
        print("| stage | longest gap, ms | most work between beats, ms | time, ms |\n| --- | ---: | ---: | ---: |")
        for stage, *times in stages(Path(folder), options):
            print(f"| {stage} | " + " | ".join(f"{1000 * seconds:.0f}" for seconds in times) + " |")


def stages(folder: Path, options: Any) -> list[tuple[Any, ...]]:
    """Each stage of a run with the longest gap and its duration, in seconds."""
    import slicer

    from Testing.host import modules
    from Testing.host.application import qSlicerLayoutManager
    from XAICLIPModule import logic as logic_module
    from XAICLIPModule.testing import played_session

    slicer.app._layouts = qSlicerLayoutManager(slicer.app.applicationLogic())
    session = played_session.PlayedSession(folder)
    logic_module.WorkerSession = lambda: session
    module = modules.load_scripted_module(ROOT / "XAICLIP" / "XAICLIP.py")
    panel = module.widgetRepresentation().self()
    panel.parent.show()
    volume = scan(tuple(options.size))
    panel.ui.promptLineEdit.setText("liver")
    wait(lambda: panel.ui.applyButton.isEnabled())
    shape = tuple(reversed(options.size))
    saliency = np.zeros(shape, np.float32)
    box = tuple(slice(n // 4, n // 4 + n // 3) for n in shape)
    saliency[box] = np.random.default_rng(0).random(saliency[box].shape, np.float32) * 0.4
    region = np.ones(shape, np.uint8) if options.whole else (saliency > 0).astype(np.uint8)
    arrays = {"saliency": saliency, "region": region, "segmentation": (saliency > 0.1).astype(np.uint8) * 6}
    files = {name: write(folder / f"{name}.nrrd", array, options.compressed) for name, array in arrays.items()}
    estimates = [write(folder / f"e-{number}.nrrd", saliency, False) for number in range(2)]
    beat = Beat()
    measured: list[tuple[Any, ...]] = []

    def measure(stage: str, act: Callable[[], Any], until: Callable[[], bool]) -> None:
        settle()
        beat.start()
        act()
        wait(until)
        settle(0.1)
        measured.append((stage, *beat.stop()))

    measure("Apply", panel.ui.applyButton.click, lambda: bool(session.requests))
    for number, path in enumerate(estimates):
        send = lambda path=path: session.answer("estimate", files={"saliency": path}, done=1, total=2)  # noqa: E731
        measure(f"estimate {number + 1}", send, lambda path=path: not Path(path).exists())
    record = played_session.recordFor("liver")
    finish = lambda: session.answer("explanation", complete=True, files=files, record=record)  # noqa: E731
    measure("result", finish, lambda: panel.logic.state.value == "idle")
    assert panel.ui.resultSelector.currentNode() is not None and volume is not None
    panel.ui.overlayCheckBox.setChecked(False)
    modules.unload_scripted_module("XAICLIP")
    return measured


class Beat:
    """A timer, and the longest time that it was kept waiting."""

    def __init__(self) -> None:
        import qt

        self._beats: list[tuple[float, float]] = []
        self._timer = qt.QTimer()
        self._timer.setInterval(BEAT_MS)
        self._timer.connect("timeout()", self._beat)

    def _beat(self) -> None:
        self._beats.append((time.perf_counter(), time.thread_time()))

    def start(self) -> None:
        self._beats.clear()
        self._beat()
        self._timer.start()

    def stop(self) -> tuple[float, float, float]:
        self._timer.stop()
        self._beat()
        longest, work = np.diff(self._beats, axis=0).max(axis=0)
        return float(longest), float(work), self._beats[-1][0] - self._beats[0][0]


def scan(size: tuple[int, int, int]) -> Any:
    """A scan of noise, int16 as CTs are."""
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "scan")
    array = np.random.default_rng(1).integers(-1000, 1000, tuple(reversed(size)), np.int16)
    slicer.util.updateVolumeFromArray(node, array)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAutoWindowLevel(False)
    return node


def write(path: Path, array: Any, compressed: bool) -> str:
    """A file as the worker writes it."""
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=compressed)
    return str(path)


def settle(seconds: float = 0.5) -> None:
    """Let Qt do what waits."""
    end = time.perf_counter() + seconds
    wait(lambda: time.perf_counter() > end)


def wait(until: Callable[[], bool], seconds: float = 300) -> None:
    """Let Qt work until something holds."""
    import slicer

    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s in vain")
        slicer.app.processEvents()
        time.sleep(0.001)


if __name__ == "__main__":
    main()
