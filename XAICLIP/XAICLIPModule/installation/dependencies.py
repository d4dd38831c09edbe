"""The Python packages that the worker needs: which are missing in Slicer's Python, and how they get there.

Nothing is looked at before it is needed. What is installed already is pinned, so that pip cannot replace a package
under the running application or another extension; `package_installation` does what is decided here.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from XAICLIPLib.errors import InputError
from XAICLIPLib.system import isolation
from XAICLIPModule.installation import interpreter

REQUIREMENTS = Path(__file__).resolve().parents[2] / "Resources" / "XAICLIPRequirements.txt"
WHEELHOUSE_SETTING = "XAICLIP/Wheelhouse"

NEVER_REPLACED = frozenset({"numpy", "scipy", "simpleitk", "requests", "vtk", "pip", "setuptools", "packaging"})
"""Packages of Slicer that must stay as they are, whatever another package wants."""

VERSION = re.compile(r"(\d+!)?\d+(\.\d+)*[\w.+-]*")
"""What pip takes for a version."""

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
    packaging = _packaging()
    if packaging is not None:
        return bool(packaging.pip_check(requirement))
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
    kept = len(pins(absent))
    newer = sorted(replaceable(absent))
    source = str(wheelhouse) if wheelhouse else _("the Python package index (pypi.org) and pytorch.org")
    text = _(
        "XAI-CLIP needs {count} Python packages that are not installed: {packages}.\n\n"
        "They are installed into Slicer's own Python, from {source}. About {size} MB are downloaded (up to 3 GB for "
        "PyTorch on a computer with an NVIDIA GPU), once.\n\n"
        "Of what is installed already, {kept} packages stay at their versions{exceptions}.\n\n"
        "To leave Slicer as it is, cancel, and name a Python of yours under Device and installation."
    )
    return text.format(
        count=len(absent),
        packages=", ".join(nameOf(requirement) for requirement in absent),
        source=source,
        size=size,
        kept=kept,
        exceptions=_("; these may be replaced by newer ones: {names}").format(names=", ".join(newer)) if newer else "",
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
            _("The offline package folder {folder} is not there: name another under Device and installation.").format(
                folder=folder
            )
        )
    return Path(folder)


def isSlicerInstalling() -> bool:
    """Whether Slicer itself is installing packages without blocking; Slicer up to 5.10 does not say so."""
    isInProgress = getattr(_packaging(), "isPipInstallInProgress", None)
    return bool(isInProgress is not None and isInProgress())


def _packaging() -> Any:
    """`slicer.packaging`, which Slicer has from 5.12 on; None before."""
    try:
        return importlib.import_module("slicer.packaging")
    except ImportError:
        return None


def pins(absent: Iterable[str] = ()) -> list[str]:
    """All that is installed, as it is, for pip's constraints; `replaceable` is free.

    Slicer has loaded some of it, and other extensions rely on the rest.
    """
    free = replaceable(absent)
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name, version = distribution.metadata["Name"], distribution.version
        if name and version and VERSION.fullmatch(version) and _canonical(name) not in free:
            found.setdefault(_canonical(name), f"{name}=={version}")  # the first on the path is the one in use
    return [found[name] for name in sorted(found)]


def replaceable(absent: Iterable[str]) -> set[str]:
    """The installed packages that may get another version: what is missing because it is too old, and what that needs.

    Never those that Slicer has loaded (`NEVER_REPLACED`).
    """
    left, free = [nameOf(requirement) for requirement in absent], set[str]()
    if any(_canonical(name) == "torch" for name in left):
        left += ["torchvision", "torchaudio"]  # each fits one version of torch alone
    while left:
        name = _canonical(left.pop())
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if name not in free and name not in NEVER_REPLACED:
            free.add(name)
            left += [nameOf(requirement) for requirement in needed if "extra ==" not in requirement]
    return free


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installTorch(requirement: str) -> None:
    """Install torch with Slicer's PyTorch extension.

    Raises
    ------
    InputError
        The extension is not there, or did not install it.
    """
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
