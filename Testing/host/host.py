"""Puts the host in the place of Slicer: `import slicer, qt, ctk` find it from then on."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NEWER_THAN_5_10 = ("LazyImport", "executePythonModule")
"""Names of slicer.util that Slicer 5.10, the oldest that the module supports, lacks; slicer-core 5.12 has them."""


def missing() -> str:
    """Why there can be no host here; empty where there can be one."""
    for name in ("slicer", "PySide6.QtWidgets", "PySide6.QtUiTools"):
        try:
            importlib.import_module(name)
        except ImportError as error:  # not installed, or without the system's libraries for OpenGL
            return f"the test host needs the packages of pip install -e '.[host]': {error}"
    return ""


def install(folder: Path) -> None:
    """Make the modules `qt`, `ctk` and the parts of `slicer` that slicer-core lacks; once in a process.

    Parameters
    ----------
    folder
        For the settings and Slicer's temporary files.
    """
    if "qt" in sys.modules:
        return
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    import slicer
    import slicer.util

    from Testing.host import application, ctk, modules, parameter_node, qmrml, qt

    sys.modules["qt"] = qt.QtModule("qt")
    sys.modules["ctk"] = _module("ctk", (cls for name, cls in vars(ctk).items() if name.startswith("ctk")))
    for widgets in (
        qmrml.CLASSES.values(),
        (modules.qSlicerScriptedLoadableModule, modules.qSlicerScriptedLoadableModuleWidget),
    ):
        for cls in widgets:
            setattr(slicer, cls.__name__, cls)
    for name in NEWER_THAN_5_10:
        delattr(slicer.util, name)
    slicer.mrmlScene = application.new_scene()
    slicer.modules = types.ModuleType("slicer.modules")
    slicer.app = application.qSlicerApplication(folder)
    _write_colour_files(folder)
    for made in (modules.base_class_module(), parameter_node.module(), _translation(), _packaging()):
        sys.modules[made.__name__] = made
        setattr(slicer, made.__name__.split(".")[1], made)
    sys.modules["SampleData"] = _sample_data()
    modules.load_slicer_modules()


def _write_colour_files(folder: Path) -> None:
    """Slicer's perceptually uniform colour tables: it reads them from files that slicer-core lacks; from matplotlib."""
    import slicer
    from matplotlib import colormaps

    share = folder / "share"
    (share / "ColorFiles").mkdir(parents=True, exist_ok=True)
    for name in ("Cividis", "Inferno", "Magma", "Plasma", "Viridis"):
        colours = (colormaps[name.lower()](range(256)) * 255).round().astype(int)
        lines = [f"{index} {index} {' '.join(map(str, rgba))}" for index, rgba in enumerate(colours)]
        (share / "ColorFiles" / f"{name}.txt").write_text("# Color table file\n" + "\n".join(lines) + "\n")
    slicer.app.applicationLogic().SetHomeDirectory(str(folder))
    slicer.app.applicationLogic().SetShareDirectory("share")


def _module(name: str, items: Iterable[Any]) -> types.ModuleType:
    module = types.ModuleType(name)
    for item in items:
        setattr(module, item.__name__, item)
    return module


def _translation() -> types.ModuleType:
    """`slicer.i18n`, in English."""

    def tr(text: str) -> str:
        return text

    def translate(context: str, text: str) -> str:
        return text

    return _module("slicer.i18n", (tr, translate))


def _packaging() -> types.ModuleType:
    """`slicer.packaging` of Slicer 5.12: looks, and installs nothing, as Slicer does in testing mode."""
    from packaging.requirements import Requirement

    def pip_check(req: str | Requirement | list[str | Requirement]) -> bool:
        for given in req if isinstance(req, list) else [req]:
            requirement = Requirement(given) if isinstance(given, str) else given
            try:
                version = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                return False
            if not requirement.specifier.contains(version, prereleases=True):
                return False
        return True

    def isPipInstallInProgress() -> bool:
        return False

    def pip_ensure(
        requirements: list[Requirement],
        constraints: str | Path | None = None,
        skip_packages: list[str] | None = None,
        prompt_install: bool = True,
        prompt_restart: bool = True,
        requester: str | None = None,
        skip_in_testing: bool = True,
        show_progress: bool = True,
    ) -> list[str] | None:
        if not skip_in_testing:
            pip_install([str(requirement) for requirement in requirements])
        return None

    def pip_install(requirements: str | list[str], **options: Any) -> None:
        raise RuntimeError(f"The test host installs nothing: {requirements} was asked for.")

    def pip_uninstall(requirements: str | list[str], **options: Any) -> None:
        raise RuntimeError(f"The test host uninstalls nothing: {requirements} was asked for.")

    return _module("slicer.packaging", (pip_check, isPipInstallInProgress, pip_ensure, pip_install, pip_uninstall))


def _sample_data() -> types.ModuleType:
    """The module `SampleData`, which remembers what is registered and downloads nothing."""
    import slicer

    class SampleDataLogic:
        @staticmethod
        def registerCustomSampleDataSource(
            category: str = "Custom",
            sampleName: str | None = None,
            uris: Any = None,
            fileNames: Any = None,
            nodeNames: Any = None,
            customDownloader: Any = None,
            thumbnailFileName: str | None = None,
            loadFileTypes: Any = None,
            loadFiles: Any = None,
            loadFileProperties: Any = None,
            checksums: Any = None,
            loadFileType: Any = None,
        ) -> None:
            source = types.SimpleNamespace(**{name: value for name, value in locals().items() if name != "category"})
            known = vars(slicer.modules).setdefault("sampleDataSources", {}).setdefault(category, [])
            if source not in known:  # as Slicer compares: by all that they hold, the downloader's address too
                known.append(source)

    return _module("SampleData", (SampleDataLogic,))
