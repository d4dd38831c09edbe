"""The widgets of CTK that Slicer's panels use, with the properties, signals and methods that CTK gives them."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtWidgets

from Testing.host.pythonqt import wrapped

Property, Signal = QtCore.Property, QtCore.Signal
QWidget = wrapped(QtWidgets.QWidget)


def stored(kind: Any, default: Any, changed: str = "") -> Any:
    """A property that only remembers its value; `changed` names the signal that tells of a new one."""

    class Stored:
        key = ""

    def get(self: Any) -> Any:
        return self.__dict__.get(Stored.key, default)

    def set_(self: Any, value: Any) -> None:
        if value != get(self):
            self.__dict__[Stored.key] = value
            if changed:
                getattr(self, changed).emit(value)

    Stored.key = f"_stored_{id(Stored)}"
    return Property(kind, get, set_)


def forwarded(kind: Any, inner: str, name: str) -> Any:
    """A property of an inner widget, such as the suffix of a slider's spin box."""
    return Property(
        kind,
        lambda self: getattr(getattr(self, inner), name),
        lambda self, value: setattr(getattr(self, inner), name, value),
    )


class ctkCollapsibleButton(wrapped(QtWidgets.QAbstractButton)):
    """A titled section; checked means open."""

    cpp_class = True
    contentsCollapsed = Signal(bool)
    collapsedHeight = stored(int, 10)
    contentsFrameShape = stored(int, 0)
    contentsFrameShadow = stored(int, 16)
    contentsLineWidth = stored(int, 1)
    contentsMidLineWidth = stored(int, 0)

    def __init__(self, *arguments: Any) -> None:
        text = arguments[0] if arguments and isinstance(arguments[0], str) else ""
        super().__init__(*arguments[1 if text else 0 :])
        self.setText(text)
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Preferred)
        self.toggled.connect(self._show)

    def _header(self) -> int:
        return int(self.fontMetrics().height()) + 12

    def _show(self, opened: bool) -> None:
        for child in self.children():
            if child.isWidgetType() and not child.isWindow():
                child.setVisible(opened)
        self.setMaximumHeight(16777215 if opened else self._header())
        self.updateGeometry()
        self.contentsCollapsed(not opened)

    collapsed = Property(bool, lambda self: not self.checked, lambda self, value: self.setChecked(not value))

    def sizeHint(self) -> QtCore.QSize:
        return self.minimumSizeHint()

    def minimumSizeHint(self) -> QtCore.QSize:
        layout = self.layout()
        content = layout.sizeHint() if self.checked and layout is not None else QtCore.QSize(0, 0)
        return QtCore.QSize(max(content.width(), 100), content.height() + self._header())

    def event(self, event: Any) -> bool:
        if event.type() == QtCore.QEvent.Type.LayoutRequest or event.type() == QtCore.QEvent.Type.Polish:
            self.setContentsMargins(0, self._header(), 0, 0)
        return bool(QtWidgets.QAbstractButton.event(self, event))

    def paintEvent(self, event: Any) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width, self._header())
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, option)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(6, (self._header() - 10) // 2, 10, 10)
        down = QtWidgets.QStyle.PrimitiveElement.PE_IndicatorArrowDown
        right = QtWidgets.QStyle.PrimitiveElement.PE_IndicatorArrowRight
        painter.drawPrimitive(down if self.checked else right, arrow)
        painter.drawText(option.rect.adjusted(24, 0, 0, 0), QtCore.Qt.AlignmentFlag.AlignVCenter, self.text)


class ctkSliderWidget(QWidget):
    """A slider with a spin box, for floating point numbers."""

    cpp_class = True
    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    tracking = stored(bool, True)
    tickInterval = stored(float, 0.0)
    minimum = forwarded(float, "_box", "minimum")
    maximum = forwarded(float, "_box", "maximum")
    decimals = forwarded(int, "_box", "decimals")
    prefix = forwarded(str, "_box", "prefix")
    suffix = forwarded(str, "_box", "suffix")
    singleStep = forwarded(float, "_box", "singleStep")
    pageStep = stored(float, 10.0)
    value = forwarded(float, "_box", "value")
    _steps = 10000

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._slider = wrapped(QtWidgets.QSlider)(QtCore.Qt.Orientation.Horizontal)
        self._slider.setRange(0, self._steps)
        self._slider.setObjectName("Slider")
        self._box = wrapped(QtWidgets.QDoubleSpinBox)()
        self._box.setObjectName("SpinBox")
        layout = wrapped(QtWidgets.QHBoxLayout)(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._box)
        self._box.setMaximum(100.0)
        self._box.valueChanged.connect(self._followBox)
        self._slider.valueChanged.connect(self._followSlider)

    def _followBox(self, value: float) -> None:
        span = self._box.maximum - self._box.minimum
        self._slider.blockSignals(True)
        self._slider.setValue(round((value - self._box.minimum) / span * self._steps) if span > 0 else 0)
        self._slider.blockSignals(False)
        self.valueIsChanging(value)
        self.valueChanged(value)

    def _followSlider(self, position: int) -> None:
        self._box.setValue(self._box.minimum + position / self._steps * (self._box.maximum - self._box.minimum))

    def setValue(self, value: float) -> None:
        self._box.setValue(value)

    def setRange(self, minimum: float, maximum: float) -> None:
        self._box.setRange(minimum, maximum)

    def setMinimum(self, minimum: float) -> None:
        self._box.setMinimum(minimum)

    def setMaximum(self, maximum: float) -> None:
        self._box.setMaximum(maximum)

    def setDecimals(self, decimals: int) -> None:
        self._box.setDecimals(decimals)

    def setSuffix(self, suffix: str) -> None:
        self._box.setSuffix(suffix)

    def isTracking(self) -> bool:
        return bool(self.tracking)

    def reset(self) -> None:
        self._box.setValue(self._box.minimum)


class ctkRangeWidget(QWidget):
    """Two numbers, the second at least the first."""

    cpp_class = True
    valuesChanged = Signal(float, float)
    minimumValueChanged = Signal(float)
    maximumValueChanged = Signal(float)
    rangeChanged = Signal(float, float)
    tracking = stored(bool, True)
    decimals = forwarded(int, "_low", "decimals")
    minimumValue = forwarded(float, "_low", "value")
    maximumValue = forwarded(float, "_high", "value")

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._low, self._high = (wrapped(QtWidgets.QDoubleSpinBox)() for _ in range(2))
        self._low.setObjectName("MinimumSpinBox")
        self._high.setObjectName("MaximumSpinBox")
        layout = wrapped(QtWidgets.QHBoxLayout)(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._low)
        layout.addWidget(self._high)
        self.setRange(0.0, 99.0)
        self.setValues(33.0, 66.0)
        self._low.valueChanged.connect(self._lowChanged)
        self._high.valueChanged.connect(self._highChanged)

    def _lowChanged(self, value: float) -> None:
        self._high.setValue(max(self._high.value, value))
        self.minimumValueChanged(value)
        self.valuesChanged(value, self._high.value)

    def _highChanged(self, value: float) -> None:
        self._low.setValue(min(self._low.value, value))
        self.maximumValueChanged(value)
        self.valuesChanged(self._low.value, value)

    def setValues(self, minimum: float, maximum: float) -> None:
        self._high.setValue(maximum)
        self._low.setValue(minimum)

    def setMinimumValue(self, value: float) -> None:
        self._low.setValue(value)

    def setMaximumValue(self, value: float) -> None:
        self._high.setValue(value)

    def setRange(self, minimum: float, maximum: float) -> None:
        for box in (self._low, self._high):
            box.setRange(minimum, maximum)
        self.rangeChanged(minimum, maximum)

    def _setMinimum(self, value: float) -> None:
        self.setRange(value, self._high.maximum)

    def _setMaximum(self, value: float) -> None:
        self.setRange(self._low.minimum, value)

    def _setForBoth(name: str) -> Any:
        def set_(self: Any, value: Any) -> None:
            setattr(self._low, name, value)
            setattr(self._high, name, value)

        return set_

    minimum = Property(float, lambda self: self._low.minimum, _setMinimum)
    maximum = Property(float, lambda self: self._high.maximum, _setMaximum)
    singleStep = Property(float, lambda self: self._low.singleStep, _setForBoth("singleStep"))
    suffix = Property(str, lambda self: self._low.suffix, _setForBoth("suffix"))
    prefix = Property(str, lambda self: self._low.prefix, _setForBoth("prefix"))


class ctkPathLineEdit(QWidget):
    """A path with a button that opens a file dialog."""

    cpp_class = True
    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)
    label = stored(str, "")
    nameFilters = stored("QStringList", [])
    settingKey = stored(str, "")
    showBrowseButton = stored(bool, True)
    showHistoryButton = stored(bool, True)
    # What a path may be: the values of QDir.
    Dirs, Files, Drives, NoSymLinks, Readable, Writable, Executable = (1 << bit for bit in range(7))
    Hidden, System, NoDot, NoDotDot = 0x100, 0x200, 0x2000, 0x4000
    filters = stored(int, Dirs | Files)
    options = stored(int, 0)
    currentPath = forwarded(str, "_edit", "text")

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._edit = wrapped(QtWidgets.QLineEdit)()
        self._button = wrapped(QtWidgets.QToolButton)()
        self._button.setText("...")
        layout = wrapped(QtWidgets.QHBoxLayout)(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._edit)
        layout.addWidget(self._button)
        self._edit.textChanged.connect(self.currentPathChanged)

    def setCurrentPath(self, path: str) -> None:
        self._edit.setText(path)

    def addCurrentPathToHistory(self) -> None:
        if self.settingKey:
            settings = QtCore.QSettings()
            key = f"{self.settingKey}"
            known = settings.value(key) or []
            known = [known] if isinstance(known, str) else list(known)
            settings.setValue(key, [self._edit.text, *(path for path in known if path != self._edit.text)])

    def clear(self) -> None:
        self._edit.clear()


class ctkDirectoryButton(wrapped(QtWidgets.QPushButton)):
    """A button that shows and chooses a folder."""

    cpp_class = True
    directoryChanged = Signal(str)
    directory = stored(str, ".", "directoryChanged")
    caption = stored(str, "")


class ctkComboBox(wrapped(QtWidgets.QComboBox)):
    """A combo box that says something where nothing is chosen."""

    cpp_class = True
    defaultText = forwarded(str, "_self", "placeholderText")
    forceDefault = stored(bool, False)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._self = self


class ctkMessageBox(wrapped(QtWidgets.QMessageBox)):
    """A message box that can be told not to come again."""

    cpp_class = True
    dontShowAgain = stored(bool, False)
    dontShowAgainSettingsKey = stored(str, "")
    dontShowAgainVisible = stored(bool, False)
