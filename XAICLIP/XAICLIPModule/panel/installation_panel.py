"""The section Device and installation: what belongs to the machine, kept in the settings."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from XAICLIPLib.errors import InputError
from XAICLIPLib.worker import protocol
from XAICLIPModule.installation import dependencies, interpreter
from XAICLIPModule.installation.package_installation import InstallationState, PackageInstallation
from XAICLIPModule.panel.foreign_text import shown
from XAICLIPModule.worker import worker_session
from XAICLIPModule.worker.worker_session import Session

DEVICE_SETTING, PRECISION_SETTING = "XAICLIP/Device", "XAICLIP/Precision"


class InstallationPanel:
    """Device, Python, wheels, and whether all of it works.

    Parameters
    ----------
    ui
        The widgets by their names.
    session
        The worker, which is stopped where another Python is chosen.
    """

    def __init__(self, ui: Any, session: Session) -> None:
        self.ui, self.session = ui, session
        self.packages = PackageInstallation(session.stop)
        self._examination = dependencies.Examination(self._onExamined)
        settings = qt.QSettings()
        ui.pythonPathLineEdit.currentPath = str(settings.value(interpreter.SETTING) or "")
        ui.wheelhousePathLineEdit.currentPath = str(settings.value(dependencies.WHEELHOUSE_SETTING) or "")
        self._device = str(settings.value(DEVICE_SETTING) or "")
        self._fillDevices(["cpu"], {})
        for text, precision in (
            (_("Automatic"), "auto"),
            (_("Full"), "full"),
            (_("Reduced"), "reduced"),
        ):
            ui.precisionComboBox.addItem(text, precision)
        ui.precisionComboBox.setCurrentIndex(max(ui.precisionComboBox.findData(settings.value(PRECISION_SETTING)), 0))
        ui.precisionComboBox.connect("currentIndexChanged(int)", self._onPrecision)
        ui.idleSpinBox.setValue(worker_session.idleMinutes())
        ui.idleSpinBox.connect("valueChanged(int)", self._onIdleMinutes)
        ui.deviceComboBox.connect("currentIndexChanged(int)", self._onDevice)
        ui.pythonPathLineEdit.connect("currentPathChanged(QString)", self._onPython)
        ui.wheelhousePathLineEdit.connect("currentPathChanged(QString)", self._onWheelhouse)
        ui.checkInstallationButton.connect("clicked(bool)", self.onCheckInstallation)
        ui.installButton.connect("clicked(bool)", self.onInstall)
        ui.stopWorkerButton.connect("clicked(bool)", self._onStopWorker)
        session.greeted.connect(self._onGreeted)
        session.stopped.connect(self._onStopped)
        session.logged.connect(self._log)
        self.packages.logged.connect(self._log)
        self.packages.stateChanged.connect(self._onPackages)
        self._showButtons()

    @property
    def device(self) -> str | None:
        """The chosen device; None for the worker's choice."""
        return self._device or None

    @property
    def precision(self) -> str | None:
        """The chosen precision; None for the worker's choice."""
        chosen = self.ui.precisionComboBox.currentData
        return None if chosen == "auto" else chosen

    def close(self) -> None:
        """Let go of the session."""
        self._examination.stop()
        self.packages.stop()
        self.session.greeted.disconnect(self._onGreeted)
        self.session.stopped.disconnect(self._onStopped)
        self.session.logged.disconnect(self._log)

    def onCheckInstallation(self, *_clicked: Any) -> None:
        """Run the library's doctor in the Python that computes."""
        try:
            self._examination.start()
        except InputError as error:
            self._log(str(error))
            return
        self._log(_("Looking at packages, device and models …"))
        self._showButtons()

    def onInstall(self, *_clicked: Any) -> None:
        """Install what is missing into Slicer's Python, after asking; again, to cancel that."""
        if self.packages.isBusy:
            self.packages.cancel()
            return
        try:
            if self.session.isBusy:
                raise InputError(_("A computation is going on: wait for it, or cancel it first."))
            self.packages.ensure(self._onPackagesThere)
        except InputError as error:
            self._log(str(error))
            slicer.util.errorDisplay(shown(error), windowTitle=_("XAI-CLIP"))

    def _onPackagesThere(self) -> None:
        self._log(_("All packages that XAI-CLIP needs are installed."))

    def _onPackages(self, state: InstallationState) -> None:
        if state is InstallationState.INSTALLING:
            self.ui.installationCollapsibleButton.collapsed = False  # the log is here
        self._showButtons()

    def _onExamined(self, findings: list[dependencies.Finding], problem: str) -> None:
        self.ui.checkInstallationButton.setEnabled(not self.packages.isBusy)
        for line in [*map(str, findings), problem]:
            if line:
                self._log(line)
        broken = [finding.name for finding in findings if not finding.ok and not finding.optional]
        if broken:
            self._log(_("XAI-CLIP cannot run here yet. To mend: {names}.").format(names=", ".join(broken)))
        elif findings:
            self._log(_("All that is needed is here."))

    def _onDevice(self, *_index: Any) -> None:
        device = self.ui.deviceComboBox.currentData or ""
        if device != self._device:
            self._device = device
            qt.QSettings().setValue(DEVICE_SETTING, device)
        self._warnOfProcessor()

    def _onPrecision(self, *_index: Any) -> None:
        qt.QSettings().setValue(PRECISION_SETTING, self.ui.precisionComboBox.currentData)

    def _warnOfProcessor(self) -> None:
        """Say that the processor is slow, once the worker has told what there is."""
        hello = self.session.hello
        devices = hello.devices if hello is not None else ()
        slow = bool(devices) and (self._device == "cpu" or (not self._device and set(devices) == {"cpu"}))
        self.ui.deviceWarningLabel.setVisible(slow)

    def _onPython(self, path: str) -> None:
        settings = qt.QSettings()
        if path.strip() != str(settings.value(interpreter.SETTING) or ""):
            settings.setValue(interpreter.SETTING, path.strip())
            self.session.stop()
        self._showButtons()

    def _onWheelhouse(self, path: str) -> None:
        qt.QSettings().setValue(dependencies.WHEELHOUSE_SETTING, path.strip())

    def _onIdleMinutes(self, minutes: int) -> None:
        qt.QSettings().setValue(worker_session.IDLE_SETTING, minutes)

    def _onStopWorker(self, *_clicked: Any) -> None:
        self.session.stop()

    def _onGreeted(self, hello: protocol.Greeting) -> None:
        self._fillDevices(list(hello.devices) or ["cpu"], dict(hello.device_names))
        self._showButtons()

    def _onStopped(self, message: str) -> None:
        if message:
            self._log(message)
        self._showButtons()

    def _fillDevices(self, devices: list[str], names: dict[str, str]) -> None:
        """Offer the devices that the worker found; the one in the settings stays chosen, also where it is not there."""
        combo, chosen = self.ui.deviceComboBox, self._device
        blocked = combo.blockSignals(True)
        combo.clear()
        combo.addItem(_("Automatic (graphics card, if any)"), "")
        for device in devices:
            combo.addItem(f"{device}: {names[device]}" if names.get(device) else device, device)
        if chosen and combo.findData(chosen) < 0:
            combo.addItem(chosen, chosen)
        combo.setCurrentIndex(max(combo.findData(chosen), 0) if chosen else 0)
        combo.blockSignals(blocked)

    def _showButtons(self) -> None:
        ui = self.ui
        own = bool(str(qt.QSettings().value(interpreter.SETTING) or ""))
        installing = self.packages.isBusy
        ui.installButton.setText(_("Cancel installation") if installing else _("Install packages…"))
        ui.installButton.setEnabled(installing or not own)
        for widget in (ui.pythonPathLineEdit, ui.wheelhousePathLineEdit, ui.checkInstallationButton):
            widget.setEnabled(
                not installing and (widget is not ui.checkInstallationButton or not self._examination.isRunning)
            )
        ui.installButton.setToolTip(
            _("End the installation; what is not finished is not installed.")
            if installing
            else _("Install the packages with pip into the Python that you named; Slicer changes nothing there.")
            if own
            else _("Install what is missing into Slicer's own Python.")
        )
        running = self.session.hello is not None
        self._warnOfProcessor()
        ui.stopWorkerButton.setEnabled(running)
        ui.stopWorkerButton.setToolTip(
            _("End the process that computes, and free its memory; the next Apply starts it again.")
            if running
            else _("No worker is running.")
        )

    def _log(self, line: str) -> None:
        self.ui.logTextEdit.appendPlainText(line)
