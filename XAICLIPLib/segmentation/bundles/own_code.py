"""The code that a trusted bundle brings, importable only while the bundle is built or run.

A bundle's configuration names its own classes by their path from its root: ``scripts.networks.unest.UNesT``. Nearly
all bundles call their package ``scripts``, so that two of them would get each other's classes, and a bundle's package
could stand in for an installed one. Here the root is on the import path, and the bundle's modules are among the
imported ones, only within `OwnCode.importable`; afterwards everything is as it was.

Nothing here is used for a bundle that the user does not trust.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

from monai.bundle import ConfigParser

from XAICLIPLib.segmentation.untrusted.configuration import is_reading_step

_LOCK = threading.RLock()
"""The import path is one for all threads."""

_NEVER_REPLACED = frozenset({"torch", "monai", "numpy", "XAICLIPLib", *sys.stdlib_module_names})
"""Packages that a file of the same name in a bundle does not replace: all else here is built upon them."""


class OwnCode:
    """The modules of one bundle that the user trusts.

    Parameters
    ----------
    root
        The bundle's folder.

    Attributes
    ----------
    names
        Of the packages and modules at its top.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self.names = _importable_names(self._root)
        self._modules: dict[str, ModuleType] = {}
        self._active = False

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Within the block, the bundle's modules can be imported, and those that were imported are there again."""
        with _LOCK:
            if self._active:
                yield
                return
            path, writes_bytecode = list(sys.path), sys.dont_write_bytecode
            others = self._take()
            sys.modules.update(self._modules)
            sys.path.insert(0, str(self._root))
            sys.dont_write_bytecode = True  # the bundle's folder is the user's
            importlib.invalidate_caches()
            self._active = True
            try:
                yield
            finally:
                self._active = False
                self._modules = self._take()
                sys.modules.update(others)
                sys.path[:] = path
                sys.dont_write_bytecode = writes_bytecode
                sys.path_importer_cache.pop(str(self._root), None)

    def _take(self) -> dict[str, ModuleType]:
        """Remove the modules of the bundle's names, and of its files, from those that are imported, and return them."""
        taken = [
            name for name, module in sys.modules.items() if name.partition(".")[0] in self.names or self._is_own(module)
        ]
        return {name: sys.modules.pop(name) for name in taken}

    def _is_own(self, module: ModuleType) -> bool:
        """Whether a module is a file of the bundle: one may have the name of a standard module that nobody imported."""
        file = getattr(module, "__dict__", {}).get("__file__")  # without a lazy module's own __getattr__
        return isinstance(file, str) and file.startswith(f"{self._root}{os.sep}")


class MissingPackageError(Exception):
    """The code of a bundle imports a package that is not installed; `package` names it."""

    def __init__(self, package: str) -> None:
        super().__init__(package)
        self.package = package


class TrustedConfiguration:
    """A configuration of a trusted bundle, of which MONAI's own parser builds sections, running the code in them.

    Reading steps, which are skipped later, are disabled first: their readers may need packages that are not here. The
    same holds for the configuration's imports, of which those that fail are left out.

    Parameters
    ----------
    content
        The configuration as read from its file.
    own_code
        The bundle's modules.
    """

    def __init__(self, content: Mapping[str, Any], own_code: OwnCode) -> None:
        self._content = _without_reading_steps(deepcopy(dict(content)))
        self._own_code = own_code
        self._parser: ConfigParser | None = None
        self._missing: str | None = None

    def build(self, key: str) -> Any:
        """Build a section.

        Raises
        ------
        MissingPackageError
            The code imports a package that is not installed.
        Exception
            Whatever the code raises.
        """
        with self._own_code.importable():
            if self._parser is None:
                self._leave_out_failing_imports()
                self._parser = ConfigParser(self._content)
            try:
                return self._parser.get_parsed_content(key)
            except Exception as error:
                missing = _missing_package(error) or self._package_behind(key)
                if missing is None:
                    raise
                raise MissingPackageError(missing) from error

    def _leave_out_failing_imports(self) -> None:
        imports = self._content.get("imports")
        if isinstance(imports, list):
            self._content["imports"] = [statement for statement in imports if self._imports(statement)]

    def _imports(self, statement: Any) -> bool:
        """Whether an import of the configuration succeeds; whatever is no import stays."""
        try:
            tree = ast.parse(str(statement).strip().removeprefix("$").strip())
        except (SyntaxError, ValueError):
            return True
        for node in tree.body:
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in filter(None, names):
                try:
                    importlib.import_module(name)
                except ImportError as error:
                    self._missing = _missing_package(error)
                    return False
        return True

    def _package_behind(self, key: str) -> str | None:
        """The missing package for want of which a class that a section names is not found: MONAI's parser hides it."""
        for target in _targets(self._content.get(key)):
            module = target.rpartition(".")[0]
            if module.partition(".")[0] in self._own_code.names:
                try:
                    importlib.import_module(module)
                except ImportError as error:
                    return _missing_package(error)
        return self._missing


def _missing_package(error: BaseException | None) -> str | None:
    """The package whose absence an error, or one that it comes from, tells of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ModuleNotFoundError) and error.name:
            return error.name.partition(".")[0]
        error = error.__cause__ or error.__context__
    return None


def _targets(part: Any) -> Iterator[str]:
    """The names of all classes in a part of a configuration."""
    if isinstance(part, dict):
        if isinstance(part.get("_target_"), str):
            yield part["_target_"]
        for value in part.values():
            yield from _targets(value)
    elif isinstance(part, list):
        for value in part:
            yield from _targets(value)


def _without_reading_steps(part: Any) -> Any:
    """A part of a configuration in which steps that read an image are disabled, without their arguments."""
    if is_reading_step(part):
        return {"_target_": part["_target_"], "_disabled_": True}
    if isinstance(part, dict):
        return {key: _without_reading_steps(value) for key, value in part.items()}
    return [_without_reading_steps(value) for value in part] if isinstance(part, list) else part


def _importable_names(root: Path) -> frozenset[str]:
    """Names of the packages and modules at a folder's top."""
    names = set()
    for path in root.iterdir():
        if path.suffix == ".py":
            names.add(path.stem)
        elif path.is_dir() and path.name.isidentifier() and any(path.rglob("*.py")):
            names.add(path.name)
    return frozenset(names) - _NEVER_REPLACED
