"""Which Python computes, and with what environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest


def choose(value: str) -> Any:
    import qt

    from XAICLIPModule.installation import interpreter

    qt.QSettings().setValue(interpreter.SETTING, value)
    return interpreter.chosen()


def test_slicers_own_is_the_default(module_path: Path, scene: Any, tmp_path: Path, monkeypatch: Any) -> None:
    program = tmp_path / "PythonSlicer"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    chosen = choose("")
    assert chosen.isSlicers
    assert chosen.program == str(program)


def test_without_pythonslicer_this_python_is_taken_where_it_is_one(
    module_path: Path, scene: Any, monkeypatch: Any
) -> None:
    from XAICLIPModule.installation import interpreter

    monkeypatch.setattr(interpreter.shutil, "which", lambda _name: None)
    assert choose("").program == sys.executable
    monkeypatch.setattr(sys, "executable", "")  # as in a build tree of Slicer
    with pytest.raises(ValueError, match="PythonSlicer"):
        choose("")
    monkeypatch.setattr(sys, "executable", "/opt/Slicer/bin/SlicerApp-real")
    with pytest.raises(ValueError, match="PythonSlicer"):
        choose("")


def test_a_virtual_environment_is_named_by_its_folder(module_path: Path, scene: Any, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    for named in (tmp_path, tmp_path / "bin" / "python"):
        chosen = choose(str(named))
        assert chosen.program == str(tmp_path / "bin" / "python")
        assert not chosen.isSlicers


def test_another_python_gets_nothing_of_slicers_and_neither_looks_in_the_current_folder(
    module_path: Path, scene: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/opt/Slicer/lib/Python")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "/opt/Slicer/bin/Python", "."]))
    environment = choose(sys.executable).environment
    assert "PYTHONHOME" not in environment
    assert "PYTHONPATH" not in environment
    own = choose("").environment
    assert own["PYTHONPATH"] == "/opt/Slicer/bin/Python"
    assert own["PYTHONIOENCODING"] == "utf-8"


def test_a_folder_to_start_in_is_empty_and_comes_back(module_path: Path, scene: Any) -> None:
    from XAICLIPModule.installation import interpreter

    folder = Path(interpreter.emptyFolder())
    assert folder.is_absolute() and list(folder.iterdir()) == [] and interpreter.emptyFolder() == str(folder)
    folder.rmdir()
    assert Path(interpreter.emptyFolder()).is_dir()
