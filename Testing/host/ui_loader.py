"""Qt's loader of .ui files: makes the classes of `qt`, `ctk` and `slicer`, and refuses what the real one lets pass."""

from __future__ import annotations

import functools
import operator
import sys
import xml.etree.ElementTree as ET
from typing import Any

from PySide6 import QtCore, QtUiTools

from Testing.host import pythonqt
from Testing.host.pythonqt import connect, existing_signal, from_qt, members, to_qt


class _Loader(QtUiTools.QUiLoader):
    """Makes each object by the name of its class; what goes wrong is kept, because Qt swallows exceptions."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: Exception | None = None
        self.made: list[Any] = []

    def _make(self, class_name: str, parent: Any, name: str) -> Any:
        try:
            made = widget_class(class_name)(parent) if parent is not None else widget_class(class_name)()
        except Exception as error:
            self.failure = self.failure or error
            return None
        made.setObjectName(name)
        self.made.append(made)  # Qt knows no Python owner of what it was given
        return made

    def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> Any:
        return self._make(class_name, parent, name)

    def createLayout(self, class_name: str, parent: Any = None, name: str = "") -> Any:
        # A layout inside another has no parent until Qt adds it there.
        return self._make(class_name, parent if parent is not None and parent.isWidgetType() else None, name)

    def createAction(self, parent: Any = None, name: str = "") -> Any:
        return self._make("QAction", parent, name)


def widget_class(name: str) -> Any:
    """The class of a name in a .ui file.

    Raises
    ------
    AttributeError
        Where the host has no such class.
    """
    if name == "Line":  # Designer's name for a rule
        name = "QFrame"
    module = "ctk" if name.startswith("ctk") else "slicer" if name.startswith(("qMRML", "qSlicer")) else "qt"
    return getattr(sys.modules[module], name)


class QUiLoader:
    """`qt.QUiLoader`, as `slicer.util.loadUI` uses it."""

    def load(self, device: Any, parent: Any = None) -> Any:
        """The widget that a .ui file describes.

        Raises
        ------
        AttributeError
            For a class, a property, a signal or a slot that does not exist: Qt would only warn.
        """
        root = ET.fromstring(bytes(to_qt(device).readAll().data()))
        connections = root.find("connections")
        if connections is not None:
            root.remove(connections)
        for flags in root.iter("set"):
            _write_out_flags(flags)
        buffer = QtCore.QBuffer()
        buffer.setData(ET.tostring(root))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        loader = _Loader()
        pythonqt.loading_ui = True
        try:
            widget = loader.load(buffer, to_qt(parent))
        finally:
            pythonqt.loading_ui = False
        if loader.failure is not None:
            raise loader.failure
        if widget is None:
            raise RuntimeError(f"Qt could not load the .ui file: {loader.errorString()}")
        for made, described in zip((o for o in loader.made if o.isWidgetType()), root.iter("widget"), strict=True):
            _check_properties(made, described)
        for connection in connections if connections is not None else ():
            _connect(widget, connection)
        return from_qt(widget)


DESIGNERS_OWN = {"QLabel": {"buddy"}, "Line": {"orientation"}}
"""Properties of a .ui file that Qt's loader understands, though the class has none of that name."""


def _write_out_flags(flags: ET.Element) -> None:
    """Replace the names of CTK's flags by their number: Qt's loader knows those of Qt only."""
    names = [name.strip().split("::") for name in (flags.text or "").split("|")]
    if names[0][0].startswith("ctk"):
        value = functools.reduce(operator.or_, (getattr(widget_class(name[0]), name[-1]) for name in names))
        flags.tag, flags.text = "number", str(value)


def _check_properties(made: Any, described: ET.Element) -> None:
    """Every property named in the file exists on its widget, or is marked as a dynamic one."""
    for item in described.findall("property"):
        name = item.get("name")
        if name in DESIGNERS_OWN.get(described.get("class", ""), ()):
            continue
        if item.get("stdset") != "0" and name not in members(made)[0]:
            raise AttributeError(f"{described.get('class')} '{described.get('name')}' has no property '{name}'")


def _connect(root: Any, connection: ET.Element) -> None:
    """Make one of the connections of the file: its slots may be Python methods here."""
    ends = {end.tag: end.text or "" for end in connection if end.tag != "hints"}
    objects = [
        o for o in (root, *root.findChildren(QtCore.QObject)) if o.objectName in (ends["sender"], ends["receiver"])
    ]
    named = {o.objectName: o for o in objects}
    sender, receiver = named[ends["sender"]], named[ends["receiver"]]
    slot, _, _ = ends["slot"].partition("(")
    if existing_signal(to_qt(sender), ends["signal"]) is None:
        raise AttributeError(f"{sender.className()} '{ends['sender']}' has no signal {ends['signal']}")
    connect(to_qt(sender), ends["signal"], getattr(receiver, slot))
