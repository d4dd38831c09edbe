"""What is missing, what is asked, and what pip is told."""

from __future__ import annotations

import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from XAICLIPLib.errors import InputError

from .conftest import wait


@pytest.fixture
def dependencies(module_path: Path, scene: Any) -> Any:
    from XAICLIPModule.worker import dependencies

    return dependencies


@pytest.fixture
def asked(dependencies: Any, slicer_host: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Slicer outside its testing mode, with a user who agrees, and two packages missing until pip was called."""
    seen: dict[str, Any] = {"answer": True, "missing": ["monai>=1.5.1", "einops>=0.7"]}

    def confirm(text: str, *_more: Any) -> bool:
        seen["text"] = text
        return bool(seen["answer"])

    def pip_install(arguments: list[str]) -> None:
        seen["pip"] = arguments
        seen["constraints"] = Path(arguments[arguments.index("--constraint") + 1]).read_text()
        seen["missing"] = seen.get("left", [])

    monkeypatch.setattr(slicer_host.app, "_testing", False)
    monkeypatch.setattr(slicer_host.util, "confirmOkCancelDisplay", confirm)
    monkeypatch.setattr(slicer_host.util, "pip_install", pip_install)
    monkeypatch.setattr(dependencies, "missing", lambda: seen["missing"])
    return seen


def test_requirements_are_looked_up_without_importing_them(dependencies: Any) -> None:
    assert dependencies.missing(["numpy>=1.26", "SimpleITK>=2.4", "numpy"]) == []
    wanted = ["numpy>=99", "no_such_package>=1", "open_clip_torch>=3.0"]
    assert dependencies.missing(wanted) == wanted[:2]
    assert dependencies.requirements()[0].startswith("torch")


def test_one_question_says_what_how_large_and_where(dependencies: Any, asked: dict[str, Any]) -> None:
    assert dependencies.ensure()
    for said in ("2 Python packages", "monai, einops", "MB", "Slicer's own Python", "pypi.org", "cancel"):
        assert said in asked["text"]


def test_pip_may_not_touch_slicers_own_packages(dependencies: Any, asked: dict[str, Any]) -> None:
    dependencies.ensure()
    assert asked["pip"][:2] == ["monai>=1.5.1", "einops>=0.7"]
    for name in ("numpy", "scipy", "SimpleITK", "vtk", "torch"):
        assert f"{name}=={metadata.version(name)}\n" in asked["constraints"]


def test_a_folder_of_wheels_keeps_pip_off_the_network(dependencies: Any, asked: dict[str, Any], tmp_path: Path) -> None:
    import qt

    qt.QSettings().setValue(dependencies.WHEELHOUSE_SETTING, str(tmp_path))
    asked["missing"] = ["torch>=2.8", "monai>=1.5.1"]
    dependencies.ensure()
    assert asked["pip"][:2] == ["torch>=2.8", "monai>=1.5.1"]
    assert asked["pip"][-3:] == ["--no-index", "--find-links", str(tmp_path)]
    assert str(tmp_path) in asked["text"]
    qt.QSettings().setValue(dependencies.WHEELHOUSE_SETTING, str(tmp_path / "gone"))
    asked["missing"] = ["monai>=1.5.1"]
    with pytest.raises(InputError, match="is not there"):
        dependencies.ensure()


def test_torch_comes_from_the_pytorch_extension(
    dependencies: Any, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked["missing"] = ["torch>=2.8", "monai>=1.5.1"]
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    with pytest.raises(InputError, match="extension PyTorch"):
        dependencies.ensure()
    assert "pip" not in asked
    calls = []

    class PyTorchUtilsLogic:
        def installTorch(self, **options: Any) -> Any:
            calls.append(options)
            return types

    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = PyTorchUtilsLogic  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    assert dependencies.ensure()
    assert calls == [{"askConfirmation": False, "torchVersionRequirement": ">=2.8"}]
    assert asked["pip"][0] == "monai>=1.5.1"


def test_a_worker_from_before_is_ended(dependencies: Any, asked: dict[str, Any]) -> None:
    ended: list[str] = []
    dependencies.ensure(lambda: ended.append("ended"))
    assert ended == ["ended"]
    dependencies.ensure(lambda: ended.append("again"))  # nothing is missing any more
    assert ended == ["ended"]


def test_who_declines_gets_nothing_installed(dependencies: Any, asked: dict[str, Any]) -> None:
    asked["answer"] = False
    assert not dependencies.ensure()
    assert "pip" not in asked


def test_what_is_still_missing_afterwards_is_told(dependencies: Any, asked: dict[str, Any]) -> None:
    asked["left"] = ["einops>=0.7"]
    with pytest.raises(InputError, match=r"still missing.*einops"):
        dependencies.ensure()


def test_a_python_of_the_users_own_is_left_alone(dependencies: Any, asked: dict[str, Any]) -> None:
    import qt

    qt.QSettings().setValue("XAICLIP/PythonInterpreter", sys.executable)
    assert dependencies.ensure()
    assert "text" not in asked


def test_nothing_is_installed_while_testing(dependencies: Any, asked: dict[str, Any], slicer_host: Any) -> None:
    slicer_host.app._testing = True
    with pytest.raises(InputError, match="while testing"):
        dependencies.ensure()
    assert "text" not in asked


def test_a_failed_installation_is_one_sentence(
    dependencies: Any, asked: dict[str, Any], slicer_host: Any, monkeypatch: Any
) -> None:
    def fail(_arguments: list[str]) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(slicer_host.util, "pip_install", fail)
    with pytest.raises(InputError, match=r"could not be installed \(no route to host\)"):
        dependencies.ensure()


def test_the_installation_is_examined_in_the_python_that_computes(dependencies: Any) -> None:
    told: list[Any] = []
    examination = dependencies.Examination(lambda *answer: told.append(answer))
    examination.start()
    wait(lambda: told, 90)
    findings, problem = told[0]
    assert problem == ""
    assert {"Python", "torch", "abdomen-ct"} <= {finding.name for finding in findings}
    assert all(finding.ok or finding.optional for finding in findings)


def test_an_examination_that_cannot_run_says_why(dependencies: Any, tmp_path: Path) -> None:
    import qt

    (tmp_path / "python").write_text("no program")
    qt.QSettings().setValue("XAICLIP/PythonInterpreter", str(tmp_path / "python"))
    told: list[Any] = []
    dependencies.Examination(lambda *answer: told.append(answer)).start()
    wait(lambda: told)
    assert told[0][0] == [] and "could not be started" in told[0][1]


def test_a_finding_is_one_line_with_the_way_out(dependencies: Any) -> None:
    report = [
        {"name": "torch", "found": "not installed", "ok": False, "remedy": "pip install torch", "optional": False},
        {"name": "device", "found": "CPU", "ok": False, "remedy": "slow", "optional": True},
        {"name": "numpy", "found": "2.4", "ok": True, "remedy": "", "optional": False},
    ]
    lines = [str(finding) for finding in dependencies.findings(report)]
    assert lines == ["✗ torch: not installed → pip install torch", "– device: CPU → slow", "✓ numpy: 2.4"]
