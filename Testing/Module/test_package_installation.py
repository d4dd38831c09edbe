"""Packages are installed once, in sight, and only as long as the user wants."""

# ruff: noqa: F811

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from XAICLIPLib.errors import InputError

from .conftest import wait
from .test_panel import plain, ready, ui  # noqa: F401

PIP = """
import os, pathlib, sys, time
folder = pathlib.Path({folder!r})
number = len(list(folder.glob("pip-*")))
(folder / f"pip-{{number}}").write_text("\\n".join(sys.argv[1:]))
constraints = sys.argv[sys.argv.index("--constraint") + 1]
(folder / "constraints.txt").write_text(pathlib.Path(constraints).read_text())
(folder / "beside").write_text(" ".join(os.listdir(".")))
{body}
"""


class Pip:
    """A pip that the test plays, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.says('print("Collecting einops", flush=True)')

    def says(self, body: str) -> None:
        (self.folder / "program.py").write_text(PIP.format(folder=str(self.folder), body=body))

    @property
    def calls(self) -> list[list[str]]:
        return [path.read_text().splitlines() for path in sorted(self.folder.glob("pip-*"))]


@pytest.fixture
def pip(module_path: Path, scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    """What runs in the place of Slicer's Python."""
    from XAICLIPModule.installation import interpreter

    (tmp_path / "pip").mkdir()
    script = tmp_path / "pip" / "PythonSlicer"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/pip/program.py" "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(interpreter, "slicersPython", lambda: str(script))
    return Pip(tmp_path / "pip")


@pytest.fixture
def asked(pip: Pip, slicer_host: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Slicer outside its testing mode, with a user who agrees; packages are missing until pip was called."""
    from XAICLIPModule.installation import dependencies

    seen: dict[str, Any] = {"answer": True, "missing": ["monai>=1.5.1", "einops>=0.7"], "texts": [], "left": []}
    monkeypatch.setattr(slicer_host.app, "_testing", False)
    monkeypatch.setattr(
        slicer_host.util, "confirmOkCancelDisplay", lambda text, *_more: seen["texts"].append(text) or seen["answer"]
    )
    monkeypatch.setattr(slicer_host.util, "errorDisplay", lambda text, **_more: seen["texts"].append(text))
    monkeypatch.setattr(dependencies, "missing", lambda: seen["left"] if pip.calls else seen["missing"])
    return seen


@pytest.fixture
def installation(asked: dict[str, Any]) -> Any:
    from XAICLIPModule.installation.package_installation import PackageInstallation

    ended: list[str] = []
    made = PackageInstallation(lambda: ended.append("worker"))
    made.workersEnded, made.outcomes, made.lines = ended, [], []
    made.ended.connect(made.outcomes.append)
    made.logged.connect(made.lines.append)
    yield made
    made.stop()


def done(installation: Any) -> Callable[[], bool]:
    return lambda: not installation.isBusy


def test_pip_keeps_to_what_is_installed_and_is_read_line_by_line(installation: Any, pip: Pip) -> None:
    proceeded: list[str] = []
    installation.ensure(lambda: proceeded.append("now"))
    assert installation.isBusy and proceeded == []
    wait(done(installation))
    (arguments,) = pip.calls
    assert arguments[:5] == ["-m", "pip", "install", "monai>=1.5.1", "einops>=0.7"] and "--no-index" not in arguments
    assert "numpy==" in (pip.folder / "constraints.txt").read_text()
    assert (pip.folder / "beside").read_text() == "constraints.txt", "what lies beside pip could be imported by it"
    assert installation.lines == ["Collecting einops"] and installation.outcomes == [""]
    assert proceeded == ["now"] and installation.workersEnded == ["worker", "worker"]
    assert not Path(arguments[arguments.index("--constraint") + 1]).exists()
    installation.ensure(lambda: proceeded.append("at once"))
    assert proceeded == ["now", "at once"] and len(pip.calls) == 1


def test_one_installation_at_a_time(installation: Any, asked: dict[str, Any], pip: Pip) -> None:
    pip.says("time.sleep(0.5)")
    for _ in range(3):
        installation.ensure(lambda: None)
    wait(done(installation))
    assert len(asked["texts"]) == 1 and len(pip.calls) == 1


def test_cancel_ends_pip_at_once(installation: Any, pip: Pip) -> None:
    pip.says('print("Collecting torch", flush=True); time.sleep(60)')
    proceeded: list[str] = []
    installation.ensure(lambda: proceeded.append("now"))
    wait(lambda: installation.lines)
    process = installation._process.processId()
    installation.cancel()
    wait(done(installation), 5)
    assert installation.outcomes == ["The installation was cancelled."] and proceeded == []
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_what_pip_says_is_wrong_is_told(installation: Any, pip: Pip, asked: dict[str, Any]) -> None:
    asked["left"] = asked["missing"]
    pip.says('print("Collecting monai"); print("ERROR: No matching distribution"); sys.exit(1)')
    installation.ensure(lambda: None)
    wait(done(installation))
    assert "could not be installed (ERROR: No matching distribution)" in installation.outcomes[0]


def test_what_is_still_missing_afterwards_is_told(installation: Any, asked: dict[str, Any]) -> None:
    asked["left"] = ["einops>=0.7"]
    installation.ensure(lambda: None)
    wait(done(installation))
    assert "still missing" in installation.outcomes[0] and "einops" in installation.outcomes[0]


def test_a_python_that_does_not_start_is_told(installation: Any, monkeypatch: Any, tmp_path: Path) -> None:
    from XAICLIPModule.installation import interpreter

    monkeypatch.setattr(interpreter, "slicersPython", lambda: str(tmp_path / "none"))
    installation.ensure(lambda: None)
    wait(done(installation))
    assert "could not be installed" in installation.outcomes[0]


def test_who_declines_gets_nothing_installed(installation: Any, asked: dict[str, Any], pip: Pip) -> None:
    asked["answer"] = False
    proceeded: list[str] = []
    installation.ensure(lambda: proceeded.append("now"))
    assert pip.calls == [] and proceeded == [] and not installation.isBusy


def test_an_offline_folder_keeps_pip_off_the_network(
    installation: Any, asked: dict[str, Any], pip: Pip, tmp_path: Path
) -> None:
    import qt

    from XAICLIPModule.installation import dependencies

    qt.QSettings().setValue(dependencies.WHEELHOUSE_SETTING, str(tmp_path / "gone"))
    with pytest.raises(InputError, match="is not there"):
        installation.ensure(lambda: None)
    qt.QSettings().setValue(dependencies.WHEELHOUSE_SETTING, str(tmp_path))
    asked["missing"] = ["torch>=2.8", "monai>=1.5.1"]
    installation.ensure(lambda: None)
    wait(done(installation))
    (arguments,) = pip.calls
    assert arguments[3:5] == ["torch>=2.8", "monai>=1.5.1"]
    assert arguments[arguments.index("--no-index") :][:3] == ["--no-index", "--find-links", str(tmp_path)]
    assert str(tmp_path) in asked["texts"][0]


def test_torch_comes_from_the_pytorch_extension_under_the_same_constraints(
    installation: Any, asked: dict[str, Any], pip: Pip, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked["missing"] = ["torch>=2.8", "monai>=1.5.1"]
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    installation.ensure(lambda: None)
    assert "extension PyTorch" in installation.outcomes[0] and pip.calls == []
    calls = []

    class PyTorchUtilsLogic:
        def installTorch(self, **options: Any) -> Any:
            calls.append((options, Path(os.environ["PIP_CONSTRAINT"]).read_text()))
            print("Downloading torch")
            installation.ensure(lambda: None)  # a click while the extension lets Slicer process events
            return types

    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = PyTorchUtilsLogic  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    installation.ensure(lambda: None)
    wait(done(installation))
    ((options, constraints),) = calls
    assert options == {"askConfirmation": False, "torchVersionRequirement": ">=2.8"}
    assert "numpy==" in constraints and "\ntorch==" not in constraints
    assert "PIP_CONSTRAINT" not in os.environ
    assert installation.lines[0] == "Downloading torch"
    assert len(pip.calls) == 1 and pip.calls[0][3] == "monai>=1.5.1"


def test_nothing_is_installed_while_testing_nor_beside_slicers_own_installation(
    installation: Any, asked: dict[str, Any], slicer_host: Any, monkeypatch: Any
) -> None:
    from XAICLIPModule.installation import dependencies

    monkeypatch.setattr(dependencies, "isSlicerInstalling", lambda: True)
    with pytest.raises(InputError, match="other packages"):
        installation.ensure(lambda: None)
    slicer_host.app._testing = True
    with pytest.raises(InputError, match="while testing"):
        installation.ensure(lambda: None)
    assert asked["texts"] == []


def test_a_python_of_the_users_own_is_left_alone(installation: Any, asked: dict[str, Any]) -> None:
    import qt

    qt.QSettings().setValue("XAICLIP/PythonInterpreter", sys.executable)
    proceeded: list[str] = []
    installation.ensure(lambda: proceeded.append("now"))
    assert proceeded == ["now"] and asked["texts"] == []


# In the panel


def test_an_impatient_user_gets_one_question_and_one_pip(
    panel: Any,
    ready: Any,
    session: Any,
    asked: dict[str, Any],
    pip: Pip,
) -> None:
    pip.says('print("Collecting monai", flush=True); time.sleep(1); print("Installing monai", flush=True)')
    ready.applyButton.click()
    assert (ready.applyButton.text, ready.progressBar.isVisibleTo(ready.applyButton.window())) == ("Cancel", True)
    assert "End the installation" in plain(ready.applyButton.toolTip) and not ready.promptLineEdit.isEnabled()
    ready.promptLineEdit.returnPressed()
    ready.showRegionButton.click()
    wait(lambda: "Collecting monai" in ready.statusLabel.text)
    assert not ready.installationCollapsibleButton.collapsed and "Collecting monai" in ready.logTextEdit.plainText
    assert session.requests == []
    wait(lambda: session.requests)
    assert len(asked["texts"]) == 1 and len(pip.calls) == 1 and len(session.requests) == 1


def test_the_installation_can_be_cancelled_with_apply(
    panel: Any, ready: Any, session: Any, asked: Any, pip: Pip
) -> None:
    pip.says('print("Collecting monai", flush=True); time.sleep(60)')
    ready.applyButton.click()
    wait(lambda: "Collecting monai" in ready.statusLabel.text)
    assert ready.installButton.text == "Cancel installation"
    ready.applyButton.click()
    wait(lambda: ready.applyButton.text == "Apply", 5)
    assert ready.statusLabel.text == "The installation was cancelled." and ready.applyButton.isEnabled()
    assert ready.installButton.text == "Install packages…" and session.requests == []
