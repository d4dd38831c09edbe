"""What is missing, what is asked, and what pip is told."""

from __future__ import annotations

import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from .conftest import wait


@pytest.fixture
def dependencies(module_path: Path, scene: Any) -> Any:
    from XAICLIPModule.installation import dependencies

    return dependencies


@pytest.mark.parametrize("newer", [True, False], ids=["Slicer 5.12", "Slicer 5.10"])
def test_requirements_are_looked_up_without_importing_them(dependencies: Any, newer: bool, monkeypatch: Any) -> None:
    if not newer:
        monkeypatch.setitem(sys.modules, "slicer.packaging", None)
        assert not dependencies.isSlicerInstalling()
    assert dependencies.missing(["numpy>=1.26", "SimpleITK>=2.4", "numpy"]) == []
    wanted = ["numpy>=99", "no_such_package>=1", "open_clip_torch>=3.0"]
    assert dependencies.missing(wanted) == wanted[:2]
    assert dependencies.requirements()[0].startswith("torch")


def test_slicers_own_check_of_requirements_is_used_where_there_is_one(dependencies: Any, monkeypatch: Any) -> None:
    seen: list[str] = []
    packaging = types.ModuleType("slicer.packaging")
    packaging.pip_check = lambda requirement: seen.append(requirement) or requirement != "monai>=1.5.1"  # type: ignore[attr-defined]
    packaging.isPipInstallInProgress = lambda: True  # type: ignore[attr-defined]
    assert not dependencies.isSlicerInstalling()
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    assert dependencies.missing(["monai>=1.5.1", "no_such_package"]) == ["monai>=1.5.1"]
    assert seen == ["monai>=1.5.1", "no_such_package"]
    assert dependencies.isSlicerInstalling()


def test_one_question_says_what_how_large_where_from_and_what_stays(dependencies: Any) -> None:
    text = dependencies.question(["monai>=1.5.1", "einops>=0.7", "no_such_package"], None)
    for said in (
        "3 Python packages",
        "monai, einops, no_such_package",
        "MB",
        "Slicer's own Python",
        "pypi.org",
        "cancel",
    ):
        assert said in text
    kept = int(text.split(" packages stay")[0].rsplit(" ", 1)[1])
    assert kept == len(dependencies.pins(["monai>=1.5.1", "einops>=0.7"])) > 30
    assert "may be replaced by newer ones: " in text and "einops" in text.split("newer ones: ")[1]


def test_all_that_is_installed_is_pinned_but_for_what_is_too_old_and_what_that_needs(dependencies: Any) -> None:
    everything = dict(pin.lower().split("==") for pin in dependencies.pins())
    for name in ("numpy", "scipy", "simpleitk", "vtk", "torch", "matplotlib"):
        assert everything[name] == metadata.version(name)
    assert len(everything) == len(dependencies.pins()) > 30
    free = dependencies.replaceable(["torch>=99", "no_such_package>=1"])
    assert {"torch", "sympy", "typing-extensions"} <= free and not {"numpy", "scipy", "matplotlib"} & free
    left = {pin.split("==")[0].lower() for pin in dependencies.pins(["torch>=99"])}
    assert "torch" not in left and {"numpy", "matplotlib"} <= left


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
