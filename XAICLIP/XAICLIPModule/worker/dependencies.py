"""The Python packages that the worker needs: which are missing in Slicer's Python, and how they get there.

Nothing is looked at before it is needed, nothing is installed without asking, and nothing at all where the user named a
Python of their own. Slicer's own packages are pinned, so that pip cannot replace one under the running application.
"""

from __future__ import annotations

import importlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from XAICLIPLib.errors import InputError
from XAICLIPLib.system import isolation
from XAICLIPModule.worker import interpreter

REQUIREMENTS = Path(__file__).resolve().parents[2] / "Resources" / "XAICLIPRequirements.txt"
WHEELHOUSE_SETTING = "XAICLIP/Wheelhouse"

PINNED = ("numpy", "scipy", "SimpleITK", "requests", "vtk")
"""Packages of Slicer that must stay as they are."""

DOWNLOAD_MB: Mapping[str, int] = {
    "torch": 900,
    "monai": 2,
    "open_clip_torch": 10,
    "scikit-image": 15,
    "matplotlib": 10,
    "scikit-learn": 10,
    "captum": 2,
}
"""What a package and what it brings along weigh, roughly; torch with CUDA weighs up to 3 GB, without it 200 MB."""


def requirements(path: Path = REQUIREMENTS) -> list[str]:
    """The requirements, one string each, as in ``monai>=1.5.1``."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def missing(wanted: Iterable[str] | None = None) -> list[str]:
    """The requirements that Slicer's Python does not meet; no package is imported to find out."""
    importlib.invalidate_caches()
    return [requirement for requirement in (wanted or requirements()) if not _isMet(requirement)]


def nameOf(requirement: str) -> str:
    """The package that a requirement is about."""
    return re.split(r"[<>=!~;\[ ]", requirement)[0]


def _isMet(requirement: str) -> bool:
    try:
        installed = metadata.version(nameOf(requirement))
    except metadata.PackageNotFoundError:
        return False
    oldest = requirement.partition(">=")[2]
    return not oldest or _numbers(installed) >= _numbers(oldest)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, which is all that lower bounds are made of."""
    return tuple(int(n) for n in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))


def question(absent: Iterable[str], wheelhouse: Path | None) -> str:
    """What the user is asked before anything is installed: what, how large, where to and where from."""
    absent = list(absent)
    size = sum(DOWNLOAD_MB.get(nameOf(requirement), 3) for requirement in absent)
    source = str(wheelhouse) if wheelhouse else _("the Python package index (pypi.org) and pytorch.org")
    text = _(
        "XAI-CLIP needs {count} Python packages that are not installed: {packages}.\n\n"
        "They are installed into Slicer's own Python, from {source}. About {size} MB are downloaded (up to 3 GB for "
        "PyTorch on a computer with an NVIDIA GPU), once. Slicer's own packages are not changed.\n\n"
        "To leave Slicer as it is, cancel, and name a Python of yours under Device and installation."
    )
    return text.format(
        count=len(absent), packages=", ".join(nameOf(requirement) for requirement in absent), source=source, size=size
    )


def wheelhouse() -> Path | None:
    """The folder of wheels to install from without a network; None for the package index.

    Raises
    ------
    InputError
        The folder of the settings is not there.
    """
    folder = str(qt.QSettings().value(WHEELHOUSE_SETTING) or "").strip()
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise InputError(
            _("The folder of wheels {folder} is not there: name another under Device and installation.").format(
                folder=folder
            )
        )
    return Path(folder)


def ensure(installed: Callable[[], None] = lambda: None) -> bool:
    """Install what is missing in Slicer's Python, after asking; False where the user declined.

    Nothing is done where the user named a Python of their own: its worker tells what it lacks.

    Parameters
    ----------
    installed
        Called after packages were installed: a worker from before cannot see them.

    Raises
    ------
    InputError
        Something is missing and cannot be installed here: the message says what to do.
    """
    if not interpreter.chosen().isSlicers:
        return True
    absent = missing()
    if not absent:
        return True
    if slicer.app.testingEnabled():
        raise InputError(
            _("These Python packages are missing, and nothing is installed while testing: {packages}.").format(
                packages=", ".join(absent)
            )
        )
    source = wheelhouse()
    if not slicer.util.confirmOkCancelDisplay(question(absent, source), _("XAI-CLIP - install Python packages")):
        return False
    install(absent, source)
    installed()
    absent = missing()
    if absent:
        raise InputError(
            _(
                "These Python packages are still missing after the installation: {packages}. See the Python console."
            ).format(packages=", ".join(absent))
        )
    return True


def install(absent: Iterable[str], source: Path | None) -> None:
    """Install packages into Slicer's Python: torch through the PyTorch extension, the others with pip.

    Raises
    ------
    InputError
        The PyTorch extension is needed and not there, or the installation failed.
    """
    absent = list(absent)
    torch = [requirement for requirement in absent if nameOf(requirement) == "torch"]
    if torch and source is None:
        _installTorch(torch[0])
        absent.remove(torch[0])
    if not absent:
        return
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(pins(absent)) + "\n", encoding="utf-8")
        offline = ["--no-index", "--find-links", str(source)] if source else []
        try:
            slicer.util.pip_install([*absent, "--constraint", str(constraints), *offline])
        except Exception as error:  # CalledProcessError, RuntimeError or uv's, by the version of Slicer
            raise InputError(
                _(
                    "The packages could not be installed ({reason}): check the network or the folder of wheels; the "
                    "Python console says more."
                ).format(reason=error)
            ) from error


def pins(absent: Iterable[str] = ()) -> list[str]:
    """Slicer's own packages as they are, for pip's constraints; torch is free where it is to be installed itself."""
    found = []
    free = any(nameOf(requirement) == "torch" for requirement in absent)
    for name in (*PINNED, *(() if free else ("torch", "torchvision"))):
        try:
            found.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _installTorch(requirement: str) -> None:
    try:
        import PyTorchUtils
    except ModuleNotFoundError as error:
        raise InputError(
            _(
                "PyTorch is missing: install the extension PyTorch (View, Extensions Manager), restart Slicer and "
                "click Apply again."
            )
        ) from error
    bound = requirement[len(nameOf(requirement)) :]
    try:
        installed = PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=bound)
    except Exception as error:  # whatever pip, the network or a torch that does not load may raise
        raise InputError(
            _(
                "PyTorch could not be installed ({reason}): check network and disk, or install it in the module "
                "PyTorch Util; the Python console says more."
            ).format(reason=(str(error).splitlines() or [type(error).__name__])[0])
        ) from error
    if installed is None:
        raise InputError(
            _("PyTorch was not installed: open the module PyTorch Util, install it there and click Apply again.")
        )


# --- check installation ---


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was looked at, what was found, and the way out where it is not right."""

    name: str
    found: str
    ok: bool
    remedy: str
    optional: bool

    def __str__(self) -> str:
        mark = "✓" if self.ok else "–" if self.optional else "✗"
        return f"{mark} {self.name}: {self.found}" + (f" → {self.remedy}" if self.remedy and not self.ok else "")


class Examination:
    """The library's doctor, run in the Python that computes.

    Parameters
    ----------
    done
        Called with the findings, and with a sentence where there are none.
    """

    def __init__(self, done: Callable[[list[Finding], str], None]) -> None:
        self._done = done
        self._process: Any = None

    @property
    def isRunning(self) -> bool:
        """Whether the doctor is still looking."""
        return self._process is not None and self._process.state() != qt.QProcess.NotRunning

    def start(self) -> None:
        """Begin; `done` follows.

        Raises
        ------
        InputError
            There is no such Python.
        """
        chosen = interpreter.chosen()
        environment = qt.QProcessEnvironment()
        for name, value in chosen.environment.items():
            environment.insert(name, value)
        self._process = qt.QProcess()
        self._process.setProcessEnvironment(environment)
        self._process.setWorkingDirectory(interpreter.emptyFolder())
        self._process.finished.connect(self._onFinished)
        self._process.errorOccurred.connect(self._onError)
        self._process.start(chosen.program, isolation.arguments("XAICLIPLib", "doctor", "--json"))

    def stop(self) -> None:
        """Give up, without a word."""
        if self.isRunning:
            self._done = lambda _findings, _message: None
            self._process.kill()
            self._process.waitForFinished(1000)

    def _onError(self, *_error: Any) -> None:
        if not self.isRunning:
            self._done(
                [],
                _("The Python interpreter could not be started: {reason}").format(reason=self._process.errorString()),
            )

    def _onFinished(self, *_status: Any) -> None:
        output = bytes(self._process.readAllStandardOutput().data()).decode("utf-8", "replace")
        try:
            self._done(findings(json.loads(output)), "")
        except (ValueError, TypeError, KeyError):
            problem = bytes(self._process.readAllStandardError().data()).decode("utf-8", "replace").strip()
            last = problem.splitlines()[-1] if problem else _("no answer")
            self._done([], _("The installation could not be checked: {reason}").format(reason=last))


def findings(report: Any) -> list[Finding]:
    """The doctor's JSON as findings."""
    listed = report["checks"] if isinstance(report, dict) else report
    return [
        Finding(c["name"], c["found"], bool(c["ok"]), c.get("remedy", ""), bool(c.get("optional", False)))
        for c in listed
    ]
