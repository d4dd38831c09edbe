"""`slicer.parameterNodeWrapper`: typed parameters kept in a MRML node, and their widgets.

The subset that a module with plain parameters uses: numbers, text, choices, paths, enumerations, nodes, lists of nodes.
Other types are refused. A list is to be set as a whole: Slicer's writes its changes to the node, this one does not.
"""

from __future__ import annotations

import enum
import pathlib
import sys
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import slicer
import vtk
from PySide6 import QtWidgets

from Testing.host import ctk, qmrml
from Testing.host.pythonqt import wrapped

PROPERTY = "SlicerParameterName"


# -- annotations -------------------------------------------------------------------------------------------------------


@dataclass
class Default:
    """The value of a parameter that was never set."""

    value: Any


@dataclass
class Decimals:
    """The decimals that a spin box or slider shows."""

    value: int


@dataclass
class SingleStep:
    """The step of a spin box or slider."""

    value: float


class Validator(ABC):
    """Refuses values that a parameter may not have."""

    @abstractmethod
    def validate(self, value: Any) -> None: ...


@dataclass
class Minimum(Validator):
    minimum: float

    def validate(self, value: Any) -> None:
        if value < self.minimum:
            raise ValueError(f"{value} is below {self.minimum}")


@dataclass
class Maximum(Validator):
    maximum: float

    def validate(self, value: Any) -> None:
        if value > self.maximum:
            raise ValueError(f"{value} is above {self.maximum}")


@dataclass
class WithinRange(Validator):
    minimum: float
    maximum: float

    def validate(self, value: Any) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is not within {self.minimum} and {self.maximum}")


@dataclass
class Choice(Validator):
    choices: typing.Sequence[Any]

    def validate(self, value: Any) -> None:
        if value not in self.choices:
            raise ValueError(f"{value!r} is none of {list(self.choices)}")


# -- values in the node ------------------------------------------------------------------------------------------------


def _is_node(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)


def _node_of_list(kind: Any) -> Any:
    """The class of the nodes of ``list[vtkMRML...Node]``; None for other types."""
    arguments = typing.get_args(kind) if typing.get_origin(kind) is list else ()
    return arguments[0] if len(arguments) == 1 and _is_node(arguments[0]) else None


@dataclass(frozen=True)
class Parameter:
    """One parameter: its type, its annotations, and how its value stands in a node."""

    name: str
    kind: Any
    annotations: tuple[Any, ...]
    default: Any

    def find(self, cls: type) -> Any:
        """The first annotation of a class, or None."""
        return next((item for item in self.annotations if isinstance(item, cls)), None)

    def validate(self, value: Any) -> None:
        """Refuse a value of the wrong type or outside what the annotations allow.

        Raises
        ------
        TypeError, ValueError
            Where it does not fit.
        """
        if (element := _node_of_list(self.kind)) is not None:
            for item in value:
                if item is not None and not isinstance(item, element):
                    raise TypeError(f"{self.name} must hold {element.__name__}, not {type(item).__name__}")
            return
        if value is None and not _is_node(self.kind):
            raise ValueError(f"{self.name} must not be None")
        accepted = (int, float) if self.kind is float else self.kind
        if value is not None and not isinstance(value, accepted):
            raise TypeError(f"{self.name} must be a {self.kind.__name__}, not {type(value).__name__} ({value!r})")
        for validator in self.annotations:
            if isinstance(validator, Validator):
                validator.validate(value)

    def write(self, node: Any, value: Any) -> None:
        """Put a value into the node."""
        self.validate(value)
        if _node_of_list(self.kind) is not None:
            self._write_list(node, list(value))
        elif _is_node(self.kind):
            node.SetParameter(self.name, "")  # says that it was set, also where it was set to no node
            node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
        else:
            node.SetParameter(self.name, value.name if isinstance(value, enum.Enum) else str(value))

    def _write_list(self, node: Any, values: list[Any]) -> None:
        """As Slicer lays it out: the length, and each element under a name of its own."""
        length = f"{self.name}.len"
        before = int(node.GetParameter(length) or 0)
        with slicer.util.NodeModify(node):
            for index, value in enumerate(values):
                node.SetParameter(f"{self.name}.{index}", "")
                node.SetNodeReferenceID(f"{self.name}.{index}", value.GetID() if value is not None else None)
            node.SetParameter(length, str(len(values)))
            for index in range(len(values), before):
                node.UnsetParameter(f"{self.name}.{index}")
                node.RemoveNodeReferenceIDs(f"{self.name}.{index}")

    def read(self, node: Any) -> Any:
        """The value in the node; the default is put there where there is none."""
        is_list = _node_of_list(self.kind) is not None
        if not node.HasParameter(f"{self.name}.len" if is_list else self.name):
            self.write(node, self.default)
        if is_list:
            return [
                node.GetNodeReference(f"{self.name}.{index}")
                for index in range(int(node.GetParameter(f"{self.name}.len")))
            ]
        if _is_node(self.kind):
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        if self.kind is bool:
            return text == "True"
        return self.kind[text] if issubclass(self.kind, enum.Enum) else self.kind(text)


def _parameter(cls: type, name: str, hint: Any) -> Parameter:
    kind, annotations = hint, ()
    if typing.get_origin(hint) is typing.Annotated:
        kind, *rest = typing.get_args(hint)
        annotations = tuple(rest)
    plain = isinstance(kind, type) and (
        kind in (bool, int, float, str) or issubclass(kind, (enum.Enum, pathlib.PurePath))
    )
    if not plain and not _is_node(kind) and _node_of_list(kind) is None:
        raise AttributeError(f"The test host keeps no parameter of type {kind} ({cls.__name__}.{name}).")
    declared = next((item for item in annotations if isinstance(item, Default)), None)
    if hasattr(cls, name):
        default = getattr(cls, name)
    elif declared is not None:
        default = declared.value
    elif _is_node(kind):
        default = None
    elif _node_of_list(kind) is not None:
        default = []
    else:
        default = next(iter(kind)) if issubclass(kind, enum.Enum) else kind()
    return Parameter(name, kind, annotations, default)


# -- widgets -----------------------------------------------------------------------------------------------------------


def _qt(name: str) -> type:
    return wrapped(getattr(QtWidgets, name))


@dataclass
class Connector:
    """How the value of a widget is read, written, and listened to."""

    widget: Any
    signal: str
    read: Callable[[], Any]
    write: Callable[[Any], None]
    listener: Callable[..., None] | None = None


def _of_property(widget: Any, name: str, signal: str) -> Connector:
    return Connector(widget, signal, lambda: getattr(widget, name), lambda value: setattr(widget, name, value))


def _of_choices(widget: Any, choices: list[tuple[str, Any]]) -> Connector:
    values = [value for _, value in choices]
    widget.clear()
    widget.addItems([label for label, _ in choices])
    return Connector(
        widget,
        "currentIndexChanged",
        lambda: values[widget.currentIndex],
        lambda value: setattr(widget, "currentIndex", values.index(value)),
    )


def _of_number(widget: Any, parameter: Parameter) -> Connector:
    bounds = parameter.find(WithinRange)
    low = bounds.minimum if bounds else getattr(parameter.find(Minimum), "minimum", None)
    high = bounds.maximum if bounds else getattr(parameter.find(Maximum), "maximum", None)
    if type(widget) in (_qt("QSlider"), ctk.ctkSliderWidget) and None in (low, high):
        raise RuntimeError(f"A slider needs a parameter with bounds, and '{parameter.name}' has none")
    largest = 2**31 - 1 if parameter.kind is int else sys.float_info.max
    for name, annotation in (("decimals", Decimals), ("singleStep", SingleStep)):
        if parameter.find(annotation) is not None:
            setattr(widget, name, parameter.find(annotation).value)
    widget.minimum = -largest if low is None else low
    widget.maximum = largest if high is None else high
    return _of_property(widget, "value", "valueChanged")


def _of_node(widget: Any, parameter: Parameter) -> Connector:
    widget.nodeTypes = [parameter.kind.__name__]
    return Connector(widget, "currentNodeChanged", widget.currentNode, widget.setCurrentNode)


def connector(widget: Any, parameter: Parameter) -> Connector:
    """The connector for a widget, which is matched by exact type, as Slicer does.

    Raises
    ------
    RuntimeError
        Where a widget of this type cannot show a parameter of that one.
    """
    cls, kind = type(widget), parameter.kind
    if kind is bool and cls is _qt("QCheckBox"):
        return _of_property(widget, "checked", "stateChanged")
    if kind is bool and cls is _qt("QPushButton"):
        widget.checkable = True
        return _of_property(widget, "checked", "toggled")
    numbers = {int: (_qt("QSlider"), _qt("QSpinBox")), float: (_qt("QDoubleSpinBox"), ctk.ctkSliderWidget)}
    if cls in numbers.get(kind, ()):
        return _of_number(widget, parameter)
    if cls is _qt("QComboBox") and kind in (int, float, str, bool):
        choice = parameter.find(Choice)
        if choice is None:
            raise RuntimeError(f"A QComboBox needs a parameter with Choice, and '{parameter.name}' has none")
        return _of_choices(widget, [(str(value), value) for value in choice.choices])
    if cls is _qt("QComboBox") and issubclass(kind, enum.Enum):
        label = getattr(kind, "label", lambda member: member.name)
        return _of_choices(widget, [(label(member), member) for member in kind])
    if kind is str and cls is _qt("QLineEdit"):
        return _of_property(widget, "text", "textChanged")
    if kind is str and cls is _qt("QTextEdit"):
        return Connector(widget, "textChanged", widget.toPlainText, widget.setPlainText)
    paths = {ctk.ctkPathLineEdit: "currentPath", ctk.ctkDirectoryButton: "directory"}
    if cls in paths and issubclass(kind, pathlib.PurePath):
        inner = _of_property(widget, paths[cls], f"{paths[cls]}Changed")
        return Connector(widget, inner.signal, lambda: kind(inner.read()), lambda value: inner.write(str(value)))
    if cls is qmrml.qMRMLNodeComboBox and _is_node(kind):
        return _of_node(widget, parameter)
    raise RuntimeError(f"Unable to create GUI connector from datatype '{kind}' to widget type '{cls}'")


# -- the wrapper -------------------------------------------------------------------------------------------------------


class _Wrapper:
    """What the decorator adds to a class of parameters."""

    allParameters: typing.ClassVar[dict[str, Parameter]]

    def __init__(self, parameterNode: Any) -> None:
        self.parameterNode = parameterNode
        self._guis: dict[int, dict[str, Connector]] = {}
        self._nextTag = 0
        self._updating = False
        self._writing: set[str] = set()
        self._values = {name: parameter.read(parameterNode) for name, parameter in self.allParameters.items()}
        parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, self._read)

    def _read(self, _caller: Any, _event: str) -> None:
        """Only now: as in Slicer, a reference that could not be resolved when it was read stays None until then."""
        for name, parameter in self.allParameters.items():
            if name not in self._writing:
                self._values[name] = parameter.read(self.parameterNode)

    @classmethod
    def _known(cls, name: str) -> Parameter:
        if name not in cls.allParameters:
            raise ValueError(
                f"Cannot find a param with the given name: {name}; there are {', '.join(cls.allParameters)}"
            )
        return cls.allParameters[name]

    @classmethod
    def dataType(cls, name: str) -> Any:
        return cls._known(name).kind

    def default(self, name: str) -> Default:
        return Default(self._known(name).default)

    def isCached(self, name: str) -> bool:
        """All types that are kept here are cached in Slicer, which is right for every one of them."""
        return self._known(name).name in self._values

    def getValue(self, name: str) -> Any:
        value = self._values[self._known(name).name]
        return list(value) if isinstance(value, list) else value

    def setValue(self, name: str, value: Any) -> None:
        parameter = self._known(name)
        self._writing.add(name)
        try:
            with slicer.util.NodeModify(self.parameterNode):  # whoever hears of it reads the new value
                parameter.write(self.parameterNode, value)
                self._values[name] = parameter.read(self.parameterNode)
        finally:
            self._writing.discard(name)

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        connectors = {name: connector(widget, self._known(name)) for name, widget in mapping.items()}
        tag, self._nextTag = self._nextTag, self._nextTag + 1
        self._guis[tag] = connectors
        for name, connected in connectors.items():
            connected.write(self.getValue(name))
            connected.listener = self._listener(name, connected)
            getattr(connected.widget, connected.signal).connect(connected.listener)
        self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: self._updateGuis())
        return tag

    def connectGui(self, gui: Any) -> None:
        """Connect all widgets that name a parameter. As in Slicer's source, it gives no tag to disconnect them by."""
        if getattr(gui, "isWidgetType", lambda: False)():
            widgets = gui.findChildren(_qt("QWidget"))
        else:
            widgets = tuple(vars(gui).values())
        named = {widget.property(PROPERTY): widget for widget in widgets if widget.property(PROPERTY)}
        self.connectParametersToGui(named)

    def disconnectGui(self, tag: int | None) -> None:
        for connected in self._guis.pop(tag, {}).values():  # type: ignore[arg-type]
            getattr(connected.widget, connected.signal).disconnect(connected.listener)

    def _listener(self, name: str, connected: Connector) -> Callable[[], None]:
        def changed() -> None:
            if not self._updating:
                with slicer.util.NodeModify(self):
                    self.setValue(name, connected.read())

        return changed

    def _updateGuis(self) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            with slicer.util.NodeModify(self):
                for connectors in self._guis.values():
                    for name, connected in connectors.items():
                        connected.write(self.getValue(name))
        finally:
            self._updating = False

    def StartModify(self) -> Any:
        return self.parameterNode.StartModify()

    def EndModify(self, wasModified: Any) -> Any:
        return self.parameterNode.EndModify(wasModified)

    def AddObserver(self, event: Any, callback: Any, priority: float = 0.0) -> int:
        return int(self.parameterNode.AddObserver(event, callback, priority))

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()


def parameterNodeWrapper(classtype: type | None = None) -> Any:
    """The decorator that turns a class of annotations into typed access to a parameter node."""
    if classtype is None:
        return parameterNodeWrapper
    hints = typing.get_type_hints(classtype, include_extras=True)
    parameters = {name: _parameter(classtype, name, hint) for name, hint in hints.items()}
    attributes: dict[str, Any] = {
        name: property(
            lambda self, name=name: self.getValue(name),
            lambda self, value, name=name: self.setValue(name, value),
        )
        for name in parameters
    }
    reserved = set(parameters) & set(dir(_Wrapper)) - {"__init__"}
    if reserved:
        raise ValueError(f"Cannot use reserved name '{reserved.pop()}' in a parameterNodeWrapper")
    for name, attribute in attributes.items():
        setattr(classtype, name, attribute)
    classtype.allParameters = parameters  # type: ignore[attr-defined]
    classtype._is_parameter_node_wrapper = True  # type: ignore[attr-defined]
    return type(
        classtype.__name__, (_Wrapper, classtype), {"__doc__": classtype.__doc__, "__module__": classtype.__module__}
    )


def isParameterNodeWrapper(item: Any) -> bool:
    """Whether a class or an object came out of the decorator."""
    return bool(getattr(item, "_is_parameter_node_wrapper", False))


def module() -> types.ModuleType:
    """`slicer.parameterNodeWrapper`."""
    made = types.ModuleType("slicer.parameterNodeWrapper")
    for item in (
        parameterNodeWrapper,
        isParameterNodeWrapper,
        *(Default, Decimals, SingleStep),
        *(Validator, Minimum, Maximum, WithinRange, Choice),
    ):
        setattr(made, item.__name__, item)
    return made
