"""Imports point one way, and what the project refuses stays out.

The source is read, not run, so that a rule holds for every branch of it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A unit is a folder of XAICLIPLib, or a file at its root. It imports from units of lower floors alone: neither from
# higher ones nor from its neighbours on the same floor. A new folder gets its line here. "__init__" stands for the
# public names of the package, which anything above the pipeline may use.
FLOORS = {
    "errors": 0,
    "resources": 0,
    "system": 1,
    "anatomy": 2,
    "progress": 2,
    "imaging": 2,
    "localization": 3,
    "segmentation": 3,
    "scoring": 4,
    "explainers": 5,
    "models": 5,
    "evaluation": 6,
    "reporting": 7,
    "explanation": 8,
    "pipeline": 9,
    "several": 10,
    "__init__": 11,
    "experiment": 12,
    "training": 12,
    "commands": 13,
    "worker": 13,
    "__main__": 14,
}

# Imported by nothing outside themselves, save by these.
PRIVATE = {"training": {"commands"}, "experiment": {"commands"}}

# At most so many Python files lie in a folder; at the root of the library, and of the Slicer module's package.
MOST_FILES, MOST_IN_MODULE = 14, 8
MOST_AT_ROOT = {"XAICLIPLib": 10, "XAICLIP/XAICLIPModule": 4}

FORBIDDEN = {
    "XAICLIPLib": {"slicer", "qt", "ctk", "vtk", "vtkmodules"},
    "XAICLIP": {"torch", "monai", "open_clip"},
}

# Packages with one door: only this file imports them, because it knows what their import needs.
ONE_DOOR = {
    "open_clip": "XAICLIPLib/localization/openclip.py",
}

# XAICLIP/, the Slicer module, talks to the library through the worker's messages and these alone.
MODULE_MAY_IMPORT = {
    "errors",
    "anatomy",
    "resources",
    "imaging",
    "imaging.phantom",
    "explainers.methods",
    "scoring.options",
    "system.displaytext",
    "system.isolation",
    "worker.protocol",
    "reporting.output_folder",
    "system.files",
}


def imports(source: str, package: str) -> Iterator[str]:
    """Yield the dotted names that a module imports, wherever in it, with relative ones resolved.

    ``from a import b`` yields ``a.b``, since only that tells whether ``b`` is a module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            above = above[: len(above) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func).rpartition(".")[2]
            name = node.args[0].value
            if function in {"import_module", "__import__"} and isinstance(name, str):
                yield package + name if name.startswith(".") else name


def unit(dotted: str) -> str | None:
    """Name the unit of XAICLIPLib that an imported name belongs to, or None for another package."""
    first, _, rest = dotted.partition(".")
    name = rest.partition(".")[0]
    if first != "XAICLIPLib" or name == "__version__":
        return None
    exists = (ROOT / "XAICLIPLib" / name).is_dir() or (ROOT / "XAICLIPLib" / f"{name}.py").is_file()
    return name if name and (exists or name in FLOORS) else "__init__"


def module_of(dotted: str) -> str:
    """Name the module of XAICLIPLib that an imported name belongs to: a file, or a folder for its own names."""
    parts = dotted.split(".")[1:]
    while parts and not (ROOT / "XAICLIPLib").joinpath(*parts).with_suffix(".py").is_file():
        if (ROOT / "XAICLIPLib").joinpath(*parts).is_dir():
            break
        parts.pop()
    return ".".join(parts) or "__init__"


def unsafe_loads(source: str) -> Iterator[str]:
    """Yield the calls of ``torch.load`` that do not say ``weights_only=True``."""
    tree = ast.parse(source)
    known = {"torch": "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = ast.unparse(node.func).partition(".")
        name = known.get(first, first) + (f".{rest}" if rest else "")
        safe = any(
            k.arg == "weights_only" and isinstance(k.value, ast.Constant) and k.value.value is True
            for k in node.keywords
        )
        if name in {"torch.load", "torch.serialization.load"} and not safe:
            yield f"line {node.lineno}: torch.load without weights_only=True"


def violations(source: str, path: str) -> list[str]:
    """List what a source file, at a path relative to the repository, does against the rules."""
    parts = Path(path).with_suffix("").parts
    top, package = parts[0], ".".join(parts[:-1])
    found = [f"{path}: {problem}" for problem in unsafe_loads(source)]
    for dotted in imports(source, package):
        first = dotted.partition(".")[0]
        if first in FORBIDDEN.get(top, ()):
            found.append(f"{path}: {top} never imports {dotted}")
        elif top == "XAICLIPLib" and path != ONE_DOOR.get(first, path):
            found.append(f"{path}: {first} is imported through {ONE_DOOR[first]}")
        target = unit(dotted)
        if target is None:
            continue
        if top == "XAICLIP" and dotted != "XAICLIPLib" and module_of(dotted) not in MODULE_MAY_IMPORT:
            found.append(f"{path}: the Slicer module asks the worker instead of importing {dotted}")
        if top == "XAICLIPLib":
            problem = wrong_way(parts[1], target)
            if problem:
                found.append(f"{path}: {problem} ({dotted})")
    return found


def wrong_way(importer: str, target: str) -> str | None:
    """Say why one unit may not import another, or None where it may."""
    for name in (importer, target):
        if name not in FLOORS:
            return f"{name} has no floor yet: give it one in {Path(__file__).name}"
    if importer == target:
        return None
    if target in PRIVATE and importer not in PRIVATE[target]:
        return f"nothing imports {target}, save {', '.join(sorted(PRIVATE[target]))}"
    if FLOORS[target] >= FLOORS[importer]:
        return f"{importer} (floor {FLOORS[importer]}) imports {target} (floor {FLOORS[target]})"
    return None


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """List the circles in a graph of imports, each once, as found by depth-first search."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
        elif name not in done:
            for following in sorted(edges.get(name, ())):
                visit(following, [*trail, name])
            done.add(name)

    for start in sorted(edges):
        visit(start, [])
    return found


def python_files(*folders: str) -> list[str]:
    """List the Python files under folders of the repository, relative to it."""
    files = (file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return sorted(file.relative_to(ROOT).as_posix() for file in files)


@pytest.mark.parametrize("path", python_files("XAICLIPLib", "XAICLIP", "Testing"))
def test_file_keeps_the_rules(path: str) -> None:
    assert violations((ROOT / path).read_text(encoding="utf-8"), path) == []


def test_no_circle_of_imports() -> None:
    """Not even between two files of one folder."""
    edges: dict[str, set[str]] = {}
    for path in python_files("XAICLIPLib"):
        parts = Path(path).with_suffix("").parts
        own = ".".join(parts[1:]).removesuffix(".__init__") or "__init__"
        source = (ROOT / path).read_text(encoding="utf-8")
        names = [n for n in imports(source, ".".join(parts[:-1])) if unit(n) is not None]
        edges.setdefault(own, set()).update(module_of(name) for name in names if module_of(name) != own)
    assert "errors" in set().union(*edges.values()), "the reader of imports sees nothing"
    # A folder's public names stand for its files, and importing a file runs the folder's __init__ first.
    assert circles(edges) == []


def test_folders_can_be_taken_in_at_a_glance() -> None:
    for root, most in MOST_AT_ROOT.items():
        assert len([f for f in (ROOT / root).iterdir() if f.is_file()]) <= most, root
    for top in ("XAICLIPLib", "XAICLIP"):
        for folder in [f for f in (ROOT / top).rglob("*") if f.is_dir() and f.name != "__pycache__"]:
            most = MOST_IN_MODULE if top == "XAICLIP" else MOST_FILES
            assert len(list(folder.glob("*.py"))) <= most, folder


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("XAICLIPLib/imaging/volumes.py", "import slicer", "never imports slicer"),
        ("XAICLIPLib/imaging/volumes.py", "from vtkmodules.util import x", "never imports vtkmodules"),
        ("XAICLIPLib/imaging/volumes.py", "def f():\n    import qt", "never imports qt"),
        ("XAICLIPLib/commands/main.py", "import importlib\nimportlib.import_module('ctk')", "never imports"),
        ("XAICLIP/XAICLIP.py", "import torch.nn", "never imports torch.nn"),
        ("XAICLIP/XAICLIPModule/worker/worker_session.py", "from open_clip import tokenize", "never imports"),
        ("XAICLIP/XAICLIP.py", "import XAICLIPLib.scoring.scorer", "asks the worker"),
        ("XAICLIP/XAICLIP.py", "from XAICLIPLib import explain", "asks the worker"),
        ("XAICLIPLib/imaging/volumes.py", "from ..explanation import explain", "floor 2"),
        ("XAICLIPLib/imaging/volumes.py", "from .. import explain", "floor 2"),
        ("XAICLIPLib/errors.py", "from XAICLIPLib import imaging", "floor 0"),
        ("XAICLIPLib/localization/dense.py", "from ..reporting.figure import draw", "floor 3"),
        ("XAICLIPLib/localization/__init__.py", "from .. import segmentation", "floor 3"),
        ("XAICLIPLib/scoring/scorer.py", "from .. import commands", "floor 4"),
        ("XAICLIPLib/explanation.py", "if True:\n    import XAICLIPLib.commands.main as c", "floor 8"),
        ("XAICLIPLib/worker/process.py", "from XAICLIPLib.training import data", "nothing imports training"),
        ("XAICLIPLib/training/localizer.py", "import open_clip", "through"),
        ("XAICLIPLib/brandnew.py", "from . import errors", "no floor yet"),
        ("XAICLIPLib/segmentation/networks/bundle.py", "import torch\ntorch.load(p)", "weights_only"),
        (
            "XAICLIPLib/scoring/scorer.py",
            "import torch as t\nt.load(p, weights_only=False)",
            "weights_only",
        ),
        ("Testing/Python/test_x.py", "from torch import load\nload(p)", "weights_only"),
    ],
)
def test_bad_source_is_caught(path: str, source: str, complaint: str) -> None:
    (problem,) = violations(source, path)
    assert problem.startswith(path)
    assert complaint in problem


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("XAICLIP/XAICLIP.py", "import slicer, qt\nfrom XAICLIPLib.imaging import read_volume"),
        ("XAICLIPLib/commands/main.py", "from .. import __version__\nfrom ..explanation import explain"),
        ("XAICLIPLib/localization/dense.py", "from .region import Region\nfrom ..errors import E"),
        ("XAICLIPLib/localization/__init__.py", "from .region import Region"),
        ("XAICLIPLib/localization/openclip.py", "import open_clip"),
        ("XAICLIPLib/scoring/scorer.py", "from ..segmentation.segmenter import Segmenter"),
        ("XAICLIPLib/training/data.py", "from XAICLIPLib.evaluation import metrics"),
        ("XAICLIPLib/scoring/scorer.py", "import torch\ntorch.load(p, weights_only=True)"),
        ("XAICLIPLib/scoring/scorer.py", "import json\njson.load(p)\nself.load(p)"),
    ],
)
def test_good_source_passes(path: str, source: str) -> None:
    assert violations(source, path) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}}) == []


HEAVY = ("torch", "monai", "open_clip", "timm", "matplotlib")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("XAICLIPLib", (*HEAVY, "numpy", "SimpleITK")),
        # What Slicer's own Python imports, where torch need not be installed.
        *[(f"XAICLIPLib.{name}", HEAVY) for name in sorted(MODULE_MAY_IMPORT)],
    ],
)
def test_import_is_light(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_public_names_load_on_demand() -> None:
    import XAICLIPLib
    from XAICLIPLib.errors import InputError

    assert XAICLIPLib.InputError is InputError
    assert set(XAICLIPLib.__all__) <= set(dir(XAICLIPLib))
    for name in XAICLIPLib.__all__:
        assert getattr(XAICLIPLib, name) is not None
    with pytest.raises(AttributeError, match="nosuch"):
        XAICLIPLib.nosuch  # noqa: B018
