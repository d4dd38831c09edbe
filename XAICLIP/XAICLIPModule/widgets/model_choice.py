"""A list of networks to choose from, one of the user's own among them, and what is not on this machine yet."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, Literal

import qt
from slicer.i18n import tr as _

from XAICLIPLib.worker import protocol
from XAICLIPModule.panel.foreign_text import shown
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
    onRemove
        Called with the name of a model whose files are to be deleted.

    Attributes
    ----------
    models
        What is listed, the default first.
    known
        Whether a worker has said what is on this machine, or cannot say it.

    What is in no list and was not chosen here by the user came with a scene: a stranger's choice. Nothing on disk or on
    the network is touched for it (a path may name a server) before the user confirms it.
    """

    def __init__(
        self,
        prefix: Literal["model", "localizer"],
        ui: Any,
        parent: Any,
        onOwn: Callable[[str], None],
        onDownload: Callable[[str], None],
        onRemove: Callable[[str], None],
    ) -> None:
        self._prefix, self._parent, self._onOwn = prefix, parent, onOwn
        self.combo = getattr(ui, f"{prefix}ComboBox")
        self.downloadButton = getattr(ui, f"{prefix}DownloadButton")
        self._downloadWidget = getattr(ui, f"{prefix}DownloadWidget")
        self._absenceLabel = getattr(ui, f"{prefix}AbsenceLabel")
        self.models = catalogue.shipped("segmenter" if prefix == "model" else "localizer")
        self.known = False
        self._ownNames: list[str] = []
        self._described: dict[tuple[str, bool], protocol.Described | None] = {}
        self.sceneBox = getattr(ui, f"{prefix}FromSceneWidget")
        self._sceneLabel = getattr(ui, f"{prefix}FromSceneLabel")
        self.confirmButton = getattr(ui, f"{prefix}FromSceneButton")
        self.confirmButton.connect("clicked(bool)", lambda *_clicked: self._choose(self.combo.currentData))
        self.removeButton = getattr(ui, f"{prefix}RemoveButton")
        self.removeButton.connect("clicked(bool)", lambda *_clicked: onRemove(self.chosen().name))
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
            combo.setItemData(index, shown("\n".join(filter(None, lines))), qt.Qt.ToolTipRole)
        for name in self._ownNames:
            self.offer(name)
        combo.setCurrentIndex(max(combo.findData(chosen), 0) if chosen else 0)

    def offer(self, name: str) -> None:
        """Let the list offer a model of the user's own, or one that a scene names."""
        if name and self.combo.findData(name) < 0:
            self.combo.addItem(PurePath(name).name or name, name)
            self.combo.setItemData(self.combo.count - 1, shown(name), qt.Qt.ToolTipRole)

    def chosen(self) -> Model:
        """The chosen model; one of the user's own is known by its path alone."""
        name = self.combo.currentData or ""
        listed = next((model for model in self.models if model.name == name), None)
        # What is no path may be in the user's catalogue, or offered by a package: the worker knows. But an id of the
        # hub, which a scene may bring, would be downloaded unasked.
        if listed is not None:
            return listed
        if name not in self._ownNames:
            return Model(name, _("Named by the scene, and not looked at yet: {folder}").format(folder=name))
        here = os.path.exists(name) or (self.known and self._prefix == "model" and not name.startswith("hf-hub:"))
        told = self._described.get((name, True)) or self._described.get((name, False))
        return Model(
            name,
            _("A network of your own: {folder}").format(folder=name),
            structures=told.structures if told is not None else (),
            inputs=told.inputs or None if told is not None else None,
            installed=here,
        )

    @property
    def isOwn(self) -> bool:
        """Whether the chosen one is in no list, and the user's own choice."""
        return self.combo.currentData in self._ownNames

    @property
    def isFromScene(self) -> bool:
        """Whether the chosen one is in no list, and was not chosen here: a scene brought it."""
        name = self.combo.currentData or ""
        return bool(name) and name not in self._ownNames and all(model.name != name for model in self.models)

    def isDescribed(self, name: str, trusted: bool) -> bool:
        """Whether a worker was asked about a network of the user's own, with or without trust in its code."""
        return (name, trusted) in self._described

    def describe(self, name: str, trusted: bool, reply: protocol.Described | None) -> None:
        """Remember what a worker said of a network of the user's own."""
        self._described[name, trusted] = reply

    def take(self, name: str) -> None:
        """Take a model, by its path, for the user's own choice."""
        if name and name not in self._ownNames:
            self._ownNames.append(name)

    def _choose(self, name: str) -> None:
        self.take(name)
        self._onOwn(name)

    def missing(self) -> str:
        """Why the chosen one cannot be used yet, in a sentence; empty where it can."""
        model = self.chosen()
        if model.installed or model.source == "shipped":  # a damaged one: the worker says it better
            return ""
        if self.isFromScene and (self.known or _isPath(model.name)):
            return self._confirmation()
        if not self.known:
            return _("It is looked up whether {name} is on this machine.").format(name=model.name)
        if model.isDownloadable:
            if self._prefix == "model":
                return _("Download the network first.")
            return _("Download the localizer first, in the section Search area.")
        if model.package:
            return _("Install the Python package {package} first.").format(package=model.package)
        return _("Choose another model: {name} is not on this machine.").format(name=model.name)

    def showAbsence(self, needed: bool = True, sectionIsOpen: bool = True) -> None:
        """Say what a download would bring, where the chosen one is not here, and ask where a scene names it.

        Parameters
        ----------
        needed
            Whether a run would use it.
        sectionIsOpen
            Whether its row is on the screen; what is asked beside Apply does not depend on that.
        """
        model, missing = self.chosen(), self.missing()
        asks = missing == self._confirmation()
        self.sceneBox.setVisible(asks and needed)
        self._sceneLabel.setText(
            _(
                "This scene names {path} as the {kind}. It was not opened. Use it only if you know where it comes from."
            ).format(path=model.name, kind=self._kind())
        )
        self._downloadWidget.setVisible(bool(missing) and needed and sectionIsOpen and not asks)
        self._absenceLabel.setText((model.absence() if self.known else "") or missing)
        self.downloadButton.setVisible(self.known and model.isDownloadable)
        self.removeButton.setVisible(self.known and model.isRemovable)

    def _kind(self) -> str:
        return _("segmentation network") if self._prefix == "model" else _("localizer")

    def _confirmation(self) -> str:
        """What is missing where a scene names the model."""
        return _("Confirm the {kind} that the scene names, or choose another.").format(kind=self._kind())

    def _onFolder(self, *_triggered: Any) -> None:
        title = (
            _("Folder of a MONAI bundle, nnU-Net, SAM, MeshNet or a described network")
            if self._prefix == "model"
            else _("Folder of an open_clip model")
        )
        path = qt.QFileDialog.getExistingDirectory(self._parent, title)
        if path:
            self._choose(str(path))

    def _onFile(self, *_triggered: Any) -> None:
        kinds = _("Networks ({patterns})").format(patterns=FILES)
        path = qt.QFileDialog.getOpenFileName(
            self._parent, _("Description, weights or archive of a network"), "", kinds
        )
        if path:
            self._choose(str(path))


def _isPath(name: str) -> bool:
    """Whether it can be no name of a catalogue; nothing is looked up."""
    return any(mark in name for mark in "/\\:")
