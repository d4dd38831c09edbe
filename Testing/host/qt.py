"""Slicer's `qt` module: the classes of Qt under PythonQt's rules."""

from __future__ import annotations

import types
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtWidgets

from Testing.host.pythonqt import class_attribute, wrapped
from Testing.host.ui_loader import QUiLoader

MODULES = (QtCore, QtGui, QtWidgets)


class QtModule(types.ModuleType):
    """Finds Qt's classes by name when they are first asked for, and knows nothing else."""

    QUiLoader = QUiLoader
    Signal = QtCore.Signal

    def __getattr__(self, name: str) -> Any:
        if name == "Qt":
            found: Any = QtNamespace()
        else:
            classes = (getattr(module, name, None) for module in MODULES)
            pyside_class = next((cls for cls in classes if isinstance(cls, type)), None)
            if pyside_class is None or not name.startswith("Q") or not issubclass(pyside_class, shiboken6.Object):
                raise AttributeError(f"module 'qt' has no attribute '{name}'")
            found = wrapped(pyside_class)
        setattr(self, name, found)
        return found


class QtNamespace:
    """`qt.Qt`: its enumerations, and their members without naming the enumeration."""

    def __getattr__(self, name: str) -> Any:
        return class_attribute(getattr(QtCore.Qt, name))
