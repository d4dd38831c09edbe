"""The files that describe the project tell one story, and they package what is on the disk."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import XAICLIPLib

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
HOMEPAGE = "https://github.com/xaiclip/SlicerXAICLIP"

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
CATALOGUE: dict[str, Any] = json.loads((ROOT / "XAICLIP.json").read_text(encoding="utf-8"))


def cmake_sets(path: Path) -> dict[str, str]:
    """Read the ``set(NAME value)`` commands of a CMake file; a list is joined with spaces."""
    text = re.sub(r"(?m)^\s*#.*$", "", path.read_text(encoding="utf-8"))
    commands = re.findall(r'\bset\(\s*(\w+)\s*("[^"]*"|[^")]*)\)', text)
    return {name: " ".join(value.strip('"').split()) for name, value in commands}


def read_s4ext(path: Path) -> dict[str, str]:
    """Read a Slicer extension description: the first word of a line is the key."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(" ") for line in lines if line.strip() and not line.startswith("#"))
    return {key: value.strip() for key, _, value in pairs}


CMAKE = cmake_sets(ROOT / "CMakeLists.txt")
S4EXT = read_s4ext(ROOT / "XAICLIP.s4ext")


def shipped_resources() -> set[str]:
    """List the files under Resources that are packaged: all but the screenshots."""
    files = (p.relative_to(ROOT / "Resources") for p in (ROOT / "Resources").rglob("*"))
    return {
        file.as_posix()
        for file in files
        if (ROOT / "Resources" / file).is_file() and file.parts[0] != "Screenshots" and not file.name.startswith(".")
    }


def library_scripts() -> set[str]:
    """List the Python files of the library, relative to its folder."""
    package = ROOT / "XAICLIPLib"
    return {file.relative_to(package).as_posix() for file in package.rglob("*.py")}


def test_name_is_one() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.search(r"(?m)^project\(XAICLIP\)$", text)
    assert PROJECT["name"] == "xaiclip"
    assert PROJECT["scripts"] == {"xaiclip": "XAICLIPLib.commands.main:main"}
    assert HOMEPAGE.endswith("/SlicerXAICLIP")


@pytest.mark.parametrize(
    ("fact", "value", "places"),
    [
        (
            "description",
            PROJECT["description"],
            [CMAKE["EXTENSION_DESCRIPTION"], S4EXT["description"]],
        ),
        (
            "homepage",
            HOMEPAGE,
            [
                PROJECT["urls"]["Homepage"],
                CMAKE["EXTENSION_HOMEPAGE"],
                S4EXT["homepage"],
                S4EXT["scmurl"].removesuffix(".git"),
                CATALOGUE["scm_url"].removesuffix(".git"),
            ],
        ),
        (
            "contributors",
            PROJECT["authors"][0]["name"],
            [CMAKE["EXTENSION_CONTRIBUTORS"], S4EXT["contributors"]],
        ),
        (
            "category",
            "Segmentation",
            [CMAKE["EXTENSION_CATEGORY"], S4EXT["category"], CATALOGUE["category"]],
        ),
        ("status", CMAKE["EXTENSION_STATUS"], [S4EXT["status"]]),
        (
            "dependencies",
            CMAKE["EXTENSION_DEPENDS"],
            [S4EXT["depends"], " ".join(CATALOGUE["build_dependencies"])],
        ),
        ("branch", S4EXT["scmrevision"], [CATALOGUE["scm_revision"]]),
        ("icon", CMAKE.get("EXTENSION_ICONURL"), [S4EXT.get("iconurl")]),
        ("screenshots", CMAKE.get("EXTENSION_SCREENSHOTURLS"), [S4EXT.get("screenshoturls")]),
    ],
)
def test_fact_is_the_same_everywhere(fact: str, value: str, places: list[str]) -> None:
    assert places == [value] * len(places), fact


def test_description_is_one_plain_sentence() -> None:
    text = PROJECT["description"]
    assert re.fullmatch(r"[A-Z][^\n.;\"]*\.", text), "CMake splits at semicolons and ends at quotes"
    assert len(text) <= 200


def test_pictures_named_by_address_exist() -> None:
    addresses = " ".join(CMAKE.get(f"EXTENSION_{k}", "") for k in ("ICONURL", "SCREENSHOTURLS"))
    for address in addresses.split():
        path = address.partition("/SlicerXAICLIP/main/")[2]
        assert path and (ROOT / path).is_file(), address


def test_catalogue_entry_has_only_the_fields_of_its_schema() -> None:
    assert re.search(r"slicer-extension-catalog-entry-schema-v1\.0\.\d\.json#$", CATALOGUE["$schema"])
    assert set(CATALOGUE) <= {
        "$schema",
        "build_dependencies",
        "build_subdirectory",
        "category",
        "enabled",
        "scm_revision",
        "scm_type",
        "scm_url",
        "tier",
    }
    assert CATALOGUE["tier"] in range(1, 6)


def test_licence_is_apache_everywhere() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert CMAKE["EXTENSION_LICENSE_FILE"] == "${CMAKE_CURRENT_SOURCE_DIR}/LICENSE"
    assert CMAKE["EXTENSION_README_FILE"] == "${CMAKE_CURRENT_SOURCE_DIR}/README.md"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_version_is_one() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "XAICLIPLib.__version__"}
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"(?m)^## \[(\d[^\]]*)\]", changelog)
    assert newest and newest[1] == XAICLIPLib.__version__


def test_constraints_hold_every_dependency_and_torch_first() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins[0] == "torch==2.13.0"
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( ; python_version >= \"3\.11\")?", p) for p in pins)
    extras = PROJECT["optional-dependencies"].values()
    wanted = [*PROJECT["dependencies"], *(name for extra in extras for name in extra)]
    pinned = {canonical(pin) for pin in pins}
    assert {canonical(name) for name in wanted} <= pinned
    assert len(pinned) == len(pins), "a package is pinned twice"


def canonical(requirement: str) -> str:
    """Give the name of a requirement as package indices compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s=<>!~;\[]", requirement)[0]).lower()


def test_cmake_packages_every_script_and_resource() -> None:
    lists = cmake_sets(ROOT / "XAICLIPLib" / "CMakeLists.txt")
    assert set(lists["XAICLIPLIB_SCRIPTS"].split()) == library_scripts()
    assert set(lists["XAICLIPLIB_RESOURCES"].split()) == shipped_resources()


def test_cmake_packages_every_file_of_the_module() -> None:
    lists = cmake_sets(ROOT / "XAICLIP" / "CMakeLists.txt")
    folder = ROOT / "XAICLIP"
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    assert set(lists["XAICLIP_SCRIPTS"].split()) == {file for file in files if file.endswith(".py")}
    assert set(lists["XAICLIP_RESOURCES"].split()) == {file for file in files if file.startswith("Resources/")}
    named = [Path(file).name for file in files if file.startswith("Resources/")]
    assert all(name.startswith("XAICLIP") for name in named), "all modules share one Resources folder once installed"


def test_module_asks_for_the_packages_that_the_library_needs() -> None:
    text = (ROOT / "XAICLIP" / "Resources" / "XAICLIPRequirements.txt").read_text(encoding="utf-8")
    wanted = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert wanted == PROJECT["dependencies"]


ONLY_DECLARED = """
import importlib.metadata, re, sys
from packaging.requirements import Requirement

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

declared, waiting = set(), ["xaiclip"]
while waiting:
    name = plain(waiting.pop())
    if name not in declared:
        declared.add(name)
        try:
            needed = [Requirement(text) for text in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue  # a marker's, for another platform
        waiting += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
owners = importlib.metadata.packages_distributions()
hidden = {module for module, names in owners.items() if not declared & {plain(name) for name in names}}
hidden -= sys.stdlib_module_names
assert {"pytest", "nnunetv2"} & hidden and not {"torch", "monai", "XAICLIPLib"} & hidden, hidden

class Declared:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Declared(finder) for finder in sys.meta_path]
from XAICLIPLib.commands.main import main
sys.exit(main(sys.argv[1:]))
"""
"""Runs the command as where nothing is installed but what pyproject.toml asks for, and what that asks for."""


def test_the_declared_packages_are_enough(tmp_path: Path) -> None:
    """The shipped models on a slab of the phantom, and the report; extras and tools of this environment are hidden."""
    import SimpleITK as sitk

    from XAICLIPLib.imaging.phantom import torso_phantom

    scan, found = tmp_path / "slab.nrrd", tmp_path / "found"
    volume = torso_phantom(0, 8.0).image
    middle = volume.GetSize()[2] * 6 // 10
    sitk.WriteImage(volume[:, :, middle : middle + 10], str(scan))
    explain = ["explain", str(scan), "--prompt", "liver", "--method", "structures", "--device", "cpu"]
    for command in ([*explain, "--output", str(found)], ["report", str(found)]):
        result = subprocess.run(
            [sys.executable, "-c", ONLY_DECLARED, *command], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert (found / "report.html").is_file()


def test_no_pin_keeps_the_oldest_python_out() -> None:
    """A version that has left it behind is pinned for later ones only, or `make` could install nothing there."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    oldest = re.sub(r"[^\d.]", "", PROJECT["requires-python"])
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    looked_at = 0
    for pin in (Requirement(line) for line in lines if line and not line.startswith("#")):
        if pin.marker is not None and not pin.marker.evaluate({"python_version": oldest}):
            continue
        try:
            metadata = importlib.metadata.metadata(pin.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        if metadata["Version"] in pin.specifier:
            assert f"{oldest}.99" in SpecifierSet(metadata.get("Requires-Python") or ""), pin.name
            looked_at += 1
    assert looked_at > 20


def test_cmake_enters_only_folders_that_exist() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    folders = re.findall(r"(?m)^\s*add_subdirectory\((\S+)\)", text)
    assert "XAICLIPLib" in folders
    assert all((ROOT / folder / "CMakeLists.txt").is_file() for folder in folders)


def test_pyproject_names_every_subpackage() -> None:
    folders = {Path("XAICLIPLib", file).parent for file in library_scripts()}
    names = {".".join(folder.parts) for folder in folders} | {"XAICLIPLib.Resources"}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == names
    for folder in folders:
        assert (ROOT / folder / "__init__.py").is_file(), folder


def test_wheel_holds_the_library_and_its_resources(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("XAICLIPLib", "Resources"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--disable-pip-version-check", "--no-index", "-w", str(tmp_path), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr

    (wheel,) = tmp_path.glob(f"xaiclip-{XAICLIPLib.__version__}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        info = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = archive.read(info).decode()
    scripts = {f"XAICLIPLib/{name}" for name in library_scripts()}
    resources = {f"XAICLIPLib/Resources/{name}" for name in shipped_resources()}
    assert names == scripts | resources | {"XAICLIPLib/py.typed"}
    assert "License-Expression: Apache-2.0" in metadata

    # Unpacked, as pip would install it, the library finds its resources inside itself.
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from XAICLIPLib.resources import resource_path; print(resource_path())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()) == tmp_path / "site" / "XAICLIPLib" / "Resources"


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert text.rstrip().endswith("exec make test")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^([a-z]+):", makefile))
    assert {"demo", "test", "lint", "bench", "clean", "help"} <= targets


def test_text_files_end_their_lines_with_lf() -> None:
    names = ["*.txt", "*.md", "*.json", "*.s4ext", "*.toml", "XAICLIPLib/**/*.py", "XAICLIP/**/*.py", "XAICLIP/**/*.ui"]
    files = [file for name in names for file in ROOT.glob(name)]
    assert [str(file) for file in files if b"\r" in file.read_bytes()] == []


def test_every_benchmark_can_be_imported(repository: Path) -> None:
    """They run once in a while: what they import may have moved since."""
    code = (
        "import importlib.util, pathlib, sys, traceback\n"
        "folder = pathlib.Path('Testing/benchmarks')\n"
        "sys.path[:0] = [str(folder), '.', 'Testing/Python']\n"
        "for file in sorted(folder.glob('*.py')):\n"
        "    spec = importlib.util.spec_from_file_location(f'{file.stem}_to_import', file)\n"
        "    module = importlib.util.module_from_spec(spec)\n"
        "    sys.modules[spec.name] = module\n"
        "    try:\n"
        "        spec.loader.exec_module(module)\n"
        "    except Exception:\n"
        "        sys.exit(f'{file}: {traceback.format_exc(limit=-1)}')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
