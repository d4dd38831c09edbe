"""Fixtures of the tests that run the Slicer module on the test host."""

from __future__ import annotations

import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from Testing.host import host

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def slicer_host(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The package `slicer`, with the host in the place of the application."""
    if host.missing():
        pytest.skip(host.missing())
    host.install(tmp_path_factory.mktemp("slicer"))
    import slicer

    return slicer


@pytest.fixture
def scene(slicer_host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty scene and empty settings; afterwards both are as they were, and no exception was left in a slot.

    Slicer prints the exceptions of slots and goes on. Here they fail the test, unless it takes them from `slot_errors`.
    """
    settings = slicer_host.app.settings()
    saved = {key: settings.value(key) for key in settings.allKeys()}
    settings.clear()
    slicer_host.mrmlScene.Clear(False)
    errors: list[BaseException] = []
    monkeypatch.setattr(slicer_host.app, "_slot_errors", errors, raising=False)
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: errors.append(error))
    yield slicer_host.mrmlScene
    slicer_host.app.processEvents()
    slicer_host.mrmlScene.Clear(False)
    _remove_parameter_nodes(slicer_host)
    settings.clear()
    for key, value in saved.items():
        settings.setValue(key, value)
    for error in errors:
        traceback.print_exception(error)
    assert not errors, f"{len(errors)} exception(s) in slots, the first: {errors[0]!r}"


def _remove_parameter_nodes(slicer: ModuleType) -> None:
    """Singletons outlive the closing of a scene, and would bring one test's choices into the next."""
    for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode"):
        slicer.mrmlScene.RemoveNode(node)


@pytest.fixture
def slot_errors(slicer_host: ModuleType, scene: Any) -> list[BaseException]:
    """The exceptions raised in slots so far; a test that expects one takes it out."""
    errors: list[BaseException] = slicer_host.app._slot_errors
    return errors


@pytest.fixture
def layout_manager(slicer_host: ModuleType, scene: Any) -> Iterator[Any]:
    """`slicer.app.layoutManager()` with three slice views, for code that shows something; without it there is none."""
    from Testing.host.application import qSlicerLayoutManager

    slicer_host.app._layouts = qSlicerLayoutManager(slicer_host.app.applicationLogic())
    yield slicer_host.app._layouts
    slicer_host.app._layouts._close()
    slicer_host.app._layouts = None


@pytest.fixture
def load_module(slicer_host: ModuleType, scene: Any) -> Iterator[Callable[[str], Any]]:
    """A function that loads a scripted module and gives the Python object of its panel, set up and entered.

    Without a folder it is one of this repository. The C++ side is `panel.parent`; the module object is
    `slicer.modules.<name in lower case>`.
    """
    from Testing.host.modules import load_scripted_module, unload_scripted_module

    loaded: list[str] = []

    def load(name: str = "XAICLIP", folder: Path = ROOT) -> Any:
        module = load_scripted_module(
            folder / name / f"{name}.py" if (folder / name).is_dir() else folder / f"{name}.py"
        )
        loaded.append(name)
        widget = module.widgetRepresentation()
        widget.enter()
        return widget.self()

    yield load
    for name in loaded:
        widget = slicer_host.modules.__dict__.get(name.lower()).widgetRepresentation()
        widget.exit()
        _remove_parameter_nodes(slicer_host)  # before their widgets go
        unload_scripted_module(name)
        widget.delete()


@pytest.fixture
def same_modules() -> Iterator[None]:
    """For tests that reload the module, which replaces its parts and the library: later tests get their own back."""
    import XAICLIPLib.errors  # noqa: F401

    before = {name: module for name, module in sys.modules.items() if name.startswith("XAICLIP")}
    yield
    sys.modules.update(before)


@pytest.fixture
def module_path(slicer_host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the module, from where its parts can be imported."""
    monkeypatch.syspath_prepend(str(ROOT / "XAICLIP"))
    return ROOT / "XAICLIP"


@pytest.fixture
def session(module_path: Path, scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A worker that the test plays, in the place of the process that the logic would start."""
    from XAICLIPModule.testing.played_session import PlayedSession
    from XAICLIPModule.worker import shared_session

    played = PlayedSession(tmp_path)
    monkeypatch.setattr(shared_session.SHARED, "_session", played)
    monkeypatch.setattr(shared_session.SHARED, "_users", weakref.WeakSet())
    return played


@pytest.fixture
def panel(session: Any, load_module: Callable[[str], Any]) -> Any:
    """The panel of the module (`XAICLIPWidget`), on the screen, whose worker the test plays."""
    widget = load_module("XAICLIP")
    widget.parent.show()
    return widget


@pytest.fixture
def volume(scene: Any, slicer_host: ModuleType) -> Any:
    """A small oblique scan."""
    import numpy as np

    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "scan")
    array = np.zeros((12, 14, 16), dtype=np.int16)
    array[3:-3, 3:-3, 3:-3] = 100
    slicer_host.util.updateVolumeFromArray(node, array)
    turned = np.array([[1.9, -0.9, 0, 10], [0.6, 2.8, 0, -20], [0, 0, 4, 5], [0, 0, 0, 1]])
    turned[:3, 1] -= turned[:3, 0] * (turned[:3, 0] @ turned[:3, 1]) / (turned[:3, 0] @ turned[:3, 0])
    node.SetIJKToRASMatrix(slicer_host.util.vtkMatrixFromArray(turned))
    node.CreateDefaultDisplayNodes()
    return node


def wait(until: Callable[[], Any], seconds: float = 20.0) -> None:
    """Let Qt work until something holds."""
    import time

    import slicer

    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain"
        slicer.app.processEvents()
        time.sleep(0.005)
