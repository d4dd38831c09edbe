"""Child processes of the library run nothing of the folder that someone is in, on any Python."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from XAICLIPLib.commands import main as cli
from XAICLIPLib.models import libraries
from XAICLIPLib.system import isolation

ROOT = Path(__file__).resolve().parents[3]

SHADOWED = ("huggingface_hub", "monai", "torch", "json", "runpy", "sitecustomize")
"""Modules that an attacker puts into a folder under the names of those that are imported."""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is an attacker's: whatever of it is imported leaves a file."""
    folder, proof = tmp_path / "trap", tmp_path / "ran"
    folder.mkdir()
    for name in SHADOWED:
        (folder / f"{name}.py").write_text(f"open({str(proof)!r}, 'a').write({name + ' '!r})\nraise SystemExit(9)\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XAICLIP_MODELS", str(tmp_path / "models"))
    return proof


def run(*command: str, **changed: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        [sys.executable, *command], env=environment | changed, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("safe", ["", "1"])
def test_a_module_of_the_library_runs_and_nothing_of_the_current_folder(trap: Path, safe: str) -> None:
    """Also where Python does not know PYTHONSAFEPATH, as 3.10, and before the child has another folder."""
    told = run(*isolation.arguments("XAICLIPLib.worker", "--help"), PYTHONSAFEPATH=safe)
    assert (told.returncode, told.stderr) == (0, "") and "JSON requests on stdin" in told.stdout
    assert not trap.exists()


def test_python_itself_would_have_run_it(trap: Path) -> None:
    """So that the tests above and below can fail."""
    run("-c", "import huggingface_hub")
    assert trap.read_text().startswith("huggingface_hub")


def test_models_download_runs_nothing_of_the_current_folder(trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hugging Face's library is asked, which has no network here; its namesake beside the user is not."""
    assert cli.main(["models", "download", "medsam-vit-base"]) == 1
    assert "medsam" in capsys.readouterr().err
    assert not trap.exists()


@pytest.mark.parametrize("path", ["", ".", f".{os.pathsep}", f"{os.pathsep}{ROOT}"])
def test_no_place_of_pythonpath_stands_for_the_current_folder(
    trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "made").mkdir()
    with pytest.raises(OSError, match=r"\w+"):
        libraries.fetch("hf-hub", "nobody/nothing", tmp_path / "made")
    assert not trap.exists()


def test_a_download_starts_in_an_empty_folder_that_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    start = subprocess.Popen

    def spied(*given: object, cwd: str, **named: object) -> object:
        assert os.listdir(cwd) == []
        seen.append(cwd)
        return start(*given, cwd=cwd, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(libraries.subprocess, "Popen", spied)  # type: ignore[attr-defined]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"\w+"):
        libraries.fetch("hf-hub", "nobody/nothing", tmp_path)
    assert len(seen) == 1 and not Path(seen[0]).exists()


def test_the_child_runs_the_library_of_its_parent(tmp_path: Path) -> None:
    """Not one that is installed beside it, nor one in the current folder."""
    (tmp_path / "XAICLIPLib").mkdir()
    (tmp_path / "XAICLIPLib" / "__init__.py").write_text("raise SystemExit('another')")
    told = run(*isolation.arguments("XAICLIPLib.worker", "--help"), PYTHONPATH=str(tmp_path))
    assert told.returncode == 0, told.stderr


def test_variables_keep_their_meaning_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "XAICLIP_MODELS": "models",
        "HF_HOME": "/abs",
        "PYTHONPATH": os.pathsep.join(["", "src", "/abs"]),
        "A": "b",
    }
    assert isolation.environment(given) == {
        "XAICLIP_MODELS": str(tmp_path / "models"),
        "HF_HOME": "/abs",
        "PYTHONPATH": "/abs",
        "A": "b",
        "PYTHONSAFEPATH": "1",
    }
    assert "PYTHONPATH" not in isolation.environment({"PYTHONPATH": "."})


def starts(source: str) -> Iterator[int]:
    """Lines of a list or call that holds ``"-m"`` or ``"-c"`` as Python's option."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.List, ast.Tuple)) and any(
            isinstance(item, ast.Constant) and item.value in ("-m", "-c") for item in node.elts
        ):
            yield node.lineno


def test_only_isolated_children_are_started() -> None:
    """The library and the module have one way to start a Python: pip apart, which is none of the library."""
    assert list(starts('run([sys.executable, "-m", "XAICLIPLib"])')) == [1]
    places = [path for folder in ("XAICLIPLib", "XAICLIP") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {path.relative_to(ROOT).as_posix() for path in places if list(starts(path.read_text(encoding="utf-8")))}
    # pip's working directory is an empty folder, and Slicer's Python needs the variables that ``-I`` would drop.
    pip = "XAICLIP/XAICLIPModule/installation/package_installation.py"
    assert found == {"XAICLIPLib/system/isolation.py", pip}
    assert "process.setWorkingDirectory(" in (ROOT / pip).read_text(encoding="utf-8")
