"""Imports point one way, and what the project refuses stays out.

The source is read, not run, so that a rule holds for every branch of it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A unit is a module or subpackage of XAICLIPLib. It imports from its own layer or a lower one, not
# from a higher one, and no circle closes. A new unit gets its line here. "__init__" stands for the
# public names of the package. A module of a subpackage with a line of its own is a unit of its own:
# measuring one map lies below the pipeline, and running it over datasets above.
LAYERS = {
    "errors": 0,
    "resources": 0,
    "versions": 0,
    "checksums": 0,
    "files": 0,
    "flags": 0,
    "methods": 0,
    "checks": 0,
    "scratch": 0,
    "trainedfolders": 0,
    "models": 0,
    "models.modelfolder": 1,
    "models.downloads": 1,
    "models.archives": 1,
    "models.entry": 2,
    "models.catalogfile": 3,
    "models.usercatalog": 4,
    "models.acquisition": 4,
    "models.libraries": 4,
    "torchvision_operators": 0,
    "protocol": 1,
    "dicom": 1,
    "geometry": 1,
    "intensities": 1,
    "imaging": 1,
    "anatomy": 1,
    "devices": 1,
    "channels": 2,
    "suitability": 3,
    "measurements": 5,
    "explainers": 5,
    "phantom": 2,
    "segmentation": 2,
    "localization": 2,
    "perturbation": 3,
    "scoring": 4,
    "models.catalog": 4,
    "figure": 4,
    "record": 4,
    "gradients": 5,
    "target": 5,
    "terminal": 7,
    "modelscommand": 7,
    "benchmarkcommand": 8,
    "progress": 1,
    "finding": 5,
    "explanation": 6,
    "doctor": 7,
    "evaluation": 7,
    "evaluation.controls": 5,
    "evaluation.curves": 5,
    "evaluation.metrics": 5,
    "evaluation.stability": 5,
    "evaluation.reliability": 5,
    "evaluation.assessment": 5,
    "saved": 5,
    "charts": 5,
    "report": 5,
    "pages": 5,
    "cohort": 7,
    "failures": 7,
    "answers": 8,
    "worker": 9,
    "cli": 8,
    "__init__": 8,
    "__main__": 9,
    "training": 7,
    "tuning": 8,
}

# Tighter than the layers: the only units that these may import.
ONLY = {
    "phantom": {"errors", "imaging"},
}

# Imported by nothing outside themselves, save by these.
PRIVATE = {"training": {"tuning"}}

FORBIDDEN = {
    "XAICLIPLib": {"slicer", "qt", "ctk", "vtk", "vtkmodules"},
    "XAICLIP": {"torch", "monai", "open_clip"},
}

# Packages with one door: only this file imports them, because it knows what their import needs.
ONE_DOOR = {
    "open_clip": "XAICLIPLib/localization/openclip.py",
}

# XAICLIP/, the Slicer module, talks to the library through the worker's messages and these alone.
MODULE_MAY_IMPORT = {"errors", "imaging", "methods", "phantom", "protocol", "resources"}


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
    if first != "XAICLIPLib":
        return None
    name = rest.partition(".")[0]
    if name == "__version__":
        return None
    inner = ".".join(rest.split(".")[:2])
    if inner in LAYERS:
        return inner
    exists = (ROOT / "XAICLIPLib" / name).is_dir() or (ROOT / "XAICLIPLib" / f"{name}.py").is_file()
    return name if name and (exists or name in LAYERS) else "__init__"


def own_unit(parts: Sequence[str]) -> str:
    """Name the unit that a file of XAICLIPLib, given by the parts of its path, belongs to."""
    inner = ".".join(parts[1:3])
    return inner if inner in LAYERS else parts[1]


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
        if (
            top == "XAICLIP" and dotted != "XAICLIPLib" and target not in MODULE_MAY_IMPORT
        ):  # the package itself is light
            found.append(f"{path}: the Slicer module asks the worker instead of importing {dotted}")
        if top == "XAICLIPLib":
            problem = wrong_way(own_unit(parts), target)
            if problem:
                found.append(f"{path}: {problem} ({dotted})")
    return found


def wrong_way(importer: str, target: str) -> str | None:
    """Say why one unit may not import another, or None where it may."""
    for name in (importer, target):
        if name not in LAYERS:
            return f"{name} has no layer yet: give it one in {Path(__file__).name}"
    if importer == target:
        return None
    if target in PRIVATE and importer not in PRIVATE[target]:
        return f"nothing imports {target}, save {', '.join(sorted(PRIVATE[target]))}"
    if importer in ONLY and target not in ONLY[importer]:
        return f"{importer} imports only {sorted(ONLY[importer])}"
    if LAYERS[target] > LAYERS[importer]:
        return f"{importer} (layer {LAYERS[importer]}) imports {target} (layer {LAYERS[target]})"
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
    edges: dict[str, set[str]] = {}
    for path in python_files("XAICLIPLib"):
        parts = Path(path).with_suffix("").parts
        source = (ROOT / path).read_text(encoding="utf-8")
        targets = {unit(name) for name in imports(source, ".".join(parts[:-1]))}
        own = own_unit(parts)
        edges.setdefault(own, set()).update(t for t in targets if t and t != own)
    assert "errors" in set().union(*edges.values()), "the reader of imports sees nothing"
    assert circles(edges) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("XAICLIPLib/imaging.py", "import slicer", "never imports slicer"),
        ("XAICLIPLib/imaging.py", "from vtkmodules.util import x", "never imports vtkmodules"),
        ("XAICLIPLib/imaging.py", "def f():\n    import qt", "never imports qt"),
        ("XAICLIPLib/cli.py", "import importlib\nimportlib.import_module('ctk')", "never imports"),
        ("XAICLIP/XAICLIP.py", "import torch.nn", "never imports torch.nn"),
        ("XAICLIP/XAICLIPModule/session.py", "from open_clip import tokenize", "never imports"),
        ("XAICLIP/XAICLIP.py", "import XAICLIPLib.scoring", "asks the worker"),
        ("XAICLIP/XAICLIP.py", "from XAICLIPLib import explain", "asks the worker"),
        ("XAICLIPLib/imaging.py", "from .explanation import explain", "layer 1"),
        ("XAICLIPLib/imaging.py", "from . import explain", "layer 1"),
        ("XAICLIPLib/errors.py", "from XAICLIPLib import imaging", "layer 0"),
        ("XAICLIPLib/localization/dense.py", "from ..figure import draw", "layer 2"),
        ("XAICLIPLib/localization/__init__.py", "from .. import figure", "layer 2"),
        ("XAICLIPLib/scoring.py", "from . import cli", "layer 4"),
        ("XAICLIPLib/explanation.py", "if True:\n    import XAICLIPLib.cli as c", "layer 6"),
        ("XAICLIPLib/cli.py", "from XAICLIPLib.training import data", "nothing imports training"),
        ("XAICLIPLib/training/localizer.py", "import open_clip", "through"),
        ("XAICLIPLib/phantom.py", "from .anatomy import resolve", "phantom imports only"),
        ("XAICLIPLib/brandnew.py", "from . import errors", "no layer yet"),
        ("XAICLIPLib/segmentation/bundle.py", "import torch\ntorch.load(p)", "weights_only"),
        (
            "XAICLIPLib/scoring.py",
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
        ("XAICLIPLib/cli.py", "from . import __version__\nfrom .explanation import explain"),
        ("XAICLIPLib/localization/dense.py", "from .region import Region\nfrom ..errors import E"),
        ("XAICLIPLib/localization/__init__.py", "from .region import Region"),
        ("XAICLIPLib/localization/openclip.py", "import open_clip"),
        ("XAICLIPLib/scoring.py", "from .segmentation.bundle import Segmenter"),
        ("XAICLIPLib/training/data.py", "from XAICLIPLib.evaluation import metrics"),
        ("XAICLIPLib/scoring.py", "import torch\ntorch.load(p, weights_only=True)"),
        ("XAICLIPLib/scoring.py", "import json\njson.load(p)\nself.load(p)"),
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
