"""The parameters of a method as widgets, made from the library's own description of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qt
from slicer.i18n import tr as _

from XAICLIPModule.panel.foreign_text import shown, showPlain
from XAICLIPModule.widgets.method_words import translated

AUTOMATIC = -1.0
"""What a spin box holds, and shows as "automatic", where the method works a parameter out: no parameter is negative."""


class MethodForm:
    """Widgets for the parameters of one method at a time.

    Parameters
    ----------
    parent
        QWidget that gets the rows.
    changed
        Called after the user changed a value.
    """

    def __init__(self, parent: Any, changed: Callable[[], None]) -> None:
        self._layout = qt.QFormLayout(parent)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._changed = changed
        self._widgets: dict[str, tuple[Mapping[str, Any], Any]] = {}

    def show(self, description: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Show the parameters of a method, as the library describes it, with their values."""
        while self._layout.rowCount():
            self._layout.removeRow(0)
        self._widgets.clear()
        for parameter in description["parameters"]:
            widget = self._widgetFor(parameter, values.get(parameter["name"], parameter["default"]))
            widget.setToolTip(shown(_sentence(parameter["help"])))
            widget.setObjectName(f"methodParameter_{parameter['name']}")
            label = qt.QLabel(_title(parameter) if parameter["type"] != "flag" else "")
            showPlain(label)
            label.setToolTip(shown(_sentence(parameter["help"])))
            label.setBuddy(widget)
            self._layout.addRow(label, widget)
            self._widgets[parameter["name"]] = (parameter, widget)

    def values(self) -> dict[str, Any]:
        """What the user changed: parameters whose value is not the default."""
        found = {}
        for name, (parameter, widget) in self._widgets.items():
            value = _read(parameter, widget)
            if value != parameter["default"]:
                found[name] = value
        return found

    def widget(self, name: str) -> Any:
        """The widget of a parameter."""
        return self._widgets[name][1]

    def _widgetFor(self, parameter: Mapping[str, Any], value: Any) -> Any:
        kind = parameter["type"]
        if kind == "flag":
            widget = qt.QCheckBox(_title(parameter))
            widget.setChecked(bool(value))
            widget.connect("toggled(bool)", self._onChanged)
        elif kind == "choice":
            widget = qt.QComboBox()
            for choice in parameter["choices"]:
                widget.addItem(choice, choice)
            widget.setCurrentIndex(max(widget.findData(value), 0))
            widget.connect("currentIndexChanged(int)", self._onChanged)
        elif kind == "text":
            widget = qt.QLineEdit("" if value is None else str(value))
            widget.setPlaceholderText(_("automatic"))
            widget.connect("editingFinished()", self._onChanged)
        else:
            widget = self._spinBox(parameter, value)
        return widget

    def _spinBox(self, parameter: Mapping[str, Any], value: Any) -> Any:
        whole = parameter["type"] == "integer"
        widget = qt.QSpinBox() if whole else qt.QDoubleSpinBox()
        number = int if whole else float
        if not whole:
            widget.setDecimals(3 if parameter["most"] <= 1 else 1)
        widget.setMaximum(number(parameter["most"]))
        if parameter["default"] is None:
            widget.setMinimum(number(AUTOMATIC))
            widget.setSpecialValueText(_("automatic"))
        else:
            widget.setMinimum(number(parameter["least"]))
        if parameter["unit"]:
            widget.setSuffix(" " + parameter["unit"])
        if not whole and parameter["most"] <= 1:
            widget.setSingleStep(0.05)
        widget.setValue(number(AUTOMATIC if value is None else value))
        widget.connect("valueChanged(int)" if whole else "valueChanged(double)", self._onChanged)
        return widget

    def _onChanged(self, *_value: Any) -> None:
        self._changed()


def _read(parameter: Mapping[str, Any], widget: Any) -> Any:
    kind = parameter["type"]
    if kind == "flag":
        return bool(widget.checked)
    if kind == "choice":
        return widget.currentText
    if kind == "text":
        return widget.text.strip() or None
    if parameter["default"] is None and widget.value < parameter["least"]:
        return None
    return widget.value


def _title(parameter: Mapping[str, Any]) -> str:
    name = parameter["name"].removesuffix("_mm").replace("_", " ")
    return translated(f"{name[:1].upper()}{name[1:]}") + ("" if parameter["type"] == "flag" else ":")


def _sentence(text: str) -> str:
    return translated(f"{text[:1].upper()}{text[1:]}.")
