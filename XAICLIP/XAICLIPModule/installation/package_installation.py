"""The installation of the packages that are missing: asked for once, followed line by line, and cancelled at will.

pip runs in a process of its own that is read by events, as the worker is, so that it can be ended at once; only PyTorch
is left to Slicer's PyTorch extension, which knows the build for the graphics card.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from XAICLIPLib.errors import InputError
from XAICLIPModule.installation import dependencies, interpreter
from XAICLIPModule.panel.foreign_text import shown
from XAICLIPModule.worker.signals import Signal


class InstallationState(Enum):
    """What the installation is doing."""

    IDLE = "idle"
    ASKING = "asking"
    INSTALLING = "installing"
    CANCELLING = "cancelling"


class PackageInstallation:
    """Installs what is missing into Slicer's Python, one installation at a time.

    Parameters
    ----------
    endWorker
        Called before and after: a worker holds files of packages, and does not see new ones.

    Attributes
    ----------
    state
        What it is doing.
    stateChanged
        Emitted with the new `InstallationState`.
    logged
        Emitted with each line that pip writes.
    ended
        Emitted with a sentence where packages were not installed, and "" where they were.
    """

    def __init__(self, endWorker: Callable[[], None]) -> None:
        self.stateChanged, self.logged, self.ended = Signal(), Signal(), Signal()
        self.state = InstallationState.IDLE
        self._endWorker = endWorker
        self._process: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._proceed: Callable[[], None] = lambda: None
        self._errors: list[str] = []
        self._rest = b""

    @property
    def isBusy(self) -> bool:
        """Whether it asks or installs: nothing else is started meanwhile."""
        return self.state is not InstallationState.IDLE

    def ensure(self, proceed: Callable[[], None]) -> None:
        """Do something that needs the packages: at once where they are there, else once they are installed.

        The user is asked first, and nothing happens where they decline. Nothing is installed where they named a Python
        of their own: its worker tells what it lacks. While one installation goes on, another call does nothing.

        Raises
        ------
        InputError
            Something is missing and cannot be installed here, or ``proceed`` refuses.
        """
        if self.isBusy:
            return
        absent = dependencies.missing() if interpreter.chosen().isSlicers else []
        if not absent:
            proceed()
            return
        if slicer.app.testingEnabled():
            raise InputError(
                _("These Python packages are missing, and nothing is installed while testing: {packages}.").format(
                    packages=", ".join(absent)
                )
            )
        if dependencies.isSlicerInstalling():
            raise InputError(_("Slicer is installing other packages: wait until it is done, and click again."))
        source = dependencies.wheelhouse()
        self._setState(InstallationState.ASKING)
        try:
            agreed = slicer.util.confirmOkCancelDisplay(
                shown(dependencies.question(absent, source)), _("XAI-CLIP - install Python packages")
            )
        finally:
            self._setState(InstallationState.IDLE)
        if agreed:
            self._install(absent, source, proceed)

    def cancel(self) -> None:
        """End the installation; what pip has not finished is not installed.

        While PyTorch is installed by its extension, this takes effect after it.
        """
        if self.state is not InstallationState.INSTALLING:
            return
        self._setState(InstallationState.CANCELLING)
        if self._process is not None:
            self._process.kill()
        else:
            self.logged.emit(_("PyTorch is installed by its own extension: the rest is cancelled once that is done."))

    def stop(self) -> None:
        """End the installation without a word; before the module goes away."""
        self._proceed = lambda: None
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.waitForFinished(2000)
        if self.isBusy:
            self._close()

    # --- what is done ---

    def _install(self, absent: list[str], source: Path | None, proceed: Callable[[], None]) -> None:
        self._proceed, self._errors, self._rest = proceed, [], b""
        self._setState(InstallationState.INSTALLING)
        self._endWorker()
        self._folder = tempfile.TemporaryDirectory(prefix="XAICLIP-")
        constraints = Path(self._folder.name) / "constraints.txt"
        try:
            constraints.write_text("\n".join(dependencies.pins(absent)) + "\n", encoding="utf-8")
            torch = [requirement for requirement in absent if dependencies.nameOf(requirement) == "torch"]
            if torch and source is None:
                with _constrained(constraints), _readBy(self.logged.emit):
                    dependencies.installTorch(torch[0])
                absent = [requirement for requirement in absent if requirement not in torch]
            if self.state is not InstallationState.INSTALLING:
                self._fail(_("The installation was cancelled."))
            elif absent:
                self._startPip(absent, source, constraints)
            else:
                self._succeed()
        except InputError as error:
            self._fail(str(error))
        except OSError as error:
            self._fail(
                _("The temporary folder cannot be written ({reason}): free some space on that disk.").format(
                    reason=error.strerror or error
                )
            )

    def _startPip(self, absent: list[str], source: Path | None, constraints: Path) -> None:
        offline = ["--no-index", "--find-links", str(source)] if source else []
        arguments = ["-m", "pip", "install", *absent, "--constraint", str(constraints), *offline]
        arguments += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
        environment = qt.QProcessEnvironment()
        for name, value in interpreter.chosen().environment.items():
            environment.insert(name, value)
        process = qt.QProcess()
        process.setProcessEnvironment(environment)
        process.setProcessChannelMode(qt.QProcess.MergedChannels)
        # ``-m`` puts the working directory first on sys.path: one that holds nothing to be imported.
        process.setWorkingDirectory(str(constraints.parent))
        process.readyReadStandardOutput.connect(lambda: self._onOutput(process))
        process.finished.connect(lambda *_status: self._onFinished(process))
        process.errorOccurred.connect(lambda *_error: qt.QTimer.singleShot(0, lambda: self._onNeverStarted(process)))
        self._process = process
        process.start(interpreter.slicersPython(), arguments)

    def _onOutput(self, process: Any) -> None:
        *lines, self._rest = (self._rest + bytes(process.readAllStandardOutput().data())).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                if text.startswith("ERROR"):
                    self._errors.append(text)
                self.logged.emit(text)

    def _onNeverStarted(self, process: Any) -> None:
        """QProcess emits no ``finished`` for what could not be started."""
        if self._process is process and process.state() == qt.QProcess.NotRunning:
            self._onEnded(process, str(process.errorString()))

    def _onFinished(self, process: Any) -> None:
        if self._process is not process:
            return
        self._onOutput(process)
        failed = process.exitStatus() != qt.QProcess.NormalExit or process.exitCode() != 0
        self._onEnded(process, (self._errors or [str(process.errorString())])[0] if failed else "")

    def _onEnded(self, process: Any, reason: str) -> None:
        self._process = None
        qt.QTimer.singleShot(0, process.deleteLater)  # its signal is on the stack
        if self.state is InstallationState.CANCELLING:
            self._fail(_("The installation was cancelled."))
        elif reason:
            self._fail(
                _(
                    "The packages could not be installed ({reason}): check the network or the offline package folder; "
                    "the log under Device and installation says more."
                ).format(reason=reason)
            )
        else:
            self._succeed()

    def _succeed(self) -> None:
        absent = dependencies.missing()
        if absent:
            self._fail(
                _(
                    "These Python packages are still missing after the installation: {packages}. The log under Device "
                    "and installation says more."
                ).format(packages=", ".join(absent))
            )
            return
        self._close()
        self.ended.emit("")
        self._proceed()

    def _fail(self, sentence: str) -> None:
        self._close()
        self.ended.emit(sentence)

    def _close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        self._endWorker()
        self._setState(InstallationState.IDLE)

    def _setState(self, state: InstallationState) -> None:
        if state is not self.state:
            self.state = state
            self.stateChanged.emit(state)


@contextlib.contextmanager
def _constrained(constraints: Path) -> Iterator[None]:
    """Let every pip that is started meanwhile keep to the constraints, whoever starts it."""
    names = ("PIP_CONSTRAINT", "UV_CONSTRAINT")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(constraints)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _readBy(listener: Callable[[str], None]) -> Iterator[None]:
    """Let a listener read what is printed meanwhile, line by line: so Slicer hands on pip's output."""

    class Lines(io.TextIOBase):
        def write(self, text: str) -> int:
            for line in filter(None, (line.rstrip() for line in text.splitlines())):
                listener(line)
            return len(text)

    with contextlib.redirect_stdout(Lines()):
        yield
