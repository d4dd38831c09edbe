"""A list of networks to choose from, one of the user's own among them, and what is not on this machine yet."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import qt
from slicer.i18n import tr as _

from XAICLIPModule.worker import catalogue
from XAICLIPModule.worker.catalogue import Model

FILES = "*.yaml *.yml *.ts *.pt *.pth *.safetensors *.zip"
"""A description, weights beside one, or an archive of either or of a folder."""


class ModelChoice:
    """The widgets of ``XAICLIP.ui`` whose names begin with ``model`` or ``localizer``.

    Parameters
    ----------
    prefix
        Of the widgets' names.
    ui
        The widgets by their names.
    parent
        For dialogs.
    onOwn
        Called with the path of a network of the user's own.
    onDownload
        Called with the name of a model that is to be downloaded.

    Attributes
    ----------
    models
        What is listed, the default first.
    known
        Whether a worker has said what is on this machine, or cannot say it.
    """

    def __init__(
        self,
        prefix: Literal["model", "localizer"],
        ui: Any,
        parent: Any,
        onOwn: Callable[[str], None],
        onDownload: Callable[[str], None],
    ) -> None:
        self._prefix, self._parent, self._onOwn = prefix, parent, onOwn
        self.combo = getattr(ui, f"{prefix}ComboBox")
        self.downloadButton = getattr(ui, f"{prefix}DownloadButton")
        self._downloadWidget = getattr(ui, f"{prefix}DownloadWidget")
        self._absenceLabel = getattr(ui, f"{prefix}AbsenceLabel")
        self.models = catalogue.shipped("segmenter" if prefix == "model" else "localizer")
        self.known = False
        self.downloadButton.connect("clicked(bool)", lambda *_clicked: onDownload(self.chosen().name))
        button = getattr(ui, f"{prefix}FolderButton")
        if prefix == "model":
            self._menu = qt.QMenu(button)
            self.folderAction = self._action(_("Folder…"), self._onFolder)
            self.fileAction = self._action(_("File…"), self._onFile)
            button.setMenu(self._menu)
            button.setPopupMode(qt.QToolButton.InstantPopup)
        else:
            button.connect("clicked(bool)", self._onFolder)
        self.fill()

    def _action(self, text: str, slot: Callable[..., None]) -> Any:
        action = qt.QAction(text, self._menu)
        action.connect("triggered(bool)", slot)
        self._menu.addAction(action)
        return action

    def fill(self) -> None:
        """List the models; the one that is chosen stays so."""
        combo, chosen = self.combo, self.combo.currentData
        combo.clear()
        for index, model in enumerate(self.models):
            combo.addItem(model.name, model.name)
            lines = [model.description(), model.absence() if self.known else ""]
            combo.setItemData(index, "\n".join(filter(None, lines)), qt.Qt.ToolTipRole)
        combo.setCurrentIndex(max(combo.findData(chosen), 0) if chosen else 0)

    def offer(self, name: str) -> None:
        """Let the list offer a model of the user's own."""
        if name and self.combo.findData(name) < 0:
            self.combo.addItem(Path(name).name or name, name)
            self.combo.setItemData(self.combo.count - 1, name, qt.Qt.ToolTipRole)

    def chosen(self) -> Model:
        """The chosen model; one of the user's own is known by its path alone."""
        name = self.combo.currentData or ""
        listed = next((model for model in self.models if model.name == name), None)
        # What is no path may be in the user's catalogue, or offered by a package: the worker knows. But an id of the
        # hub, which a scene may bring, would be downloaded unasked.
        here = os.path.exists(name) or (self.known and self._prefix == "model" and not name.startswith("hf-hub:"))
        own = Model(name, _("A network of your own: {folder}").format(folder=name), installed=here)
        return listed or own

    @property
    def isOwn(self) -> bool:
        """Whether the chosen one is in no list."""
        return self.chosen() not in self.models

    def missing(self) -> str:
        """Why the chosen one cannot be used yet, in a sentence; empty where it can."""
        model = self.chosen()
        if model.installed or model.source == "shipped":  # a damaged one: the worker says it better
            return ""
        if not self.known:
            return _("It is looked up whether {name} is on this machine.").format(name=model.name)
        if model.isDownloadable:
            if self._prefix == "model":
                return _("Download the network first.")
            return _("Download the localizer first, in the section Region.")
        if model.package:
            return _("Install the Python package {package} first.").format(package=model.package)
        return _("Choose another model: {name} is not on this machine.").format(name=model.name)

    def showAbsence(self, visible: bool = True) -> None:
        """Say what a download would bring, where the chosen one is not here."""
        model, missing = self.chosen(), self.missing()
        self._downloadWidget.setVisible(bool(missing) and visible)
        self._absenceLabel.setText((model.absence() if self.known else "") or missing)
        self.downloadButton.setVisible(self.known and model.isDownloadable)

    def _onFolder(self, *_triggered: Any) -> None:
        title = (
            _("Folder of a MONAI bundle, nnU-Net, SAM, MeshNet or a described network")
            if self._prefix == "model"
            else _("Folder of an open_clip model")
        )
        path = qt.QFileDialog.getExistingDirectory(self._parent, title)
        if path:
            self._onOwn(str(path))

    def _onFile(self, *_triggered: Any) -> None:
        kinds = _("Networks ({patterns})").format(patterns=FILES)
        path = qt.QFileDialog.getOpenFileName(
            self._parent, _("Description, weights or archive of a network"), "", kinds
        )
        if path:
            self._onOwn(str(path))
