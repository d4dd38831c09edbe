"""PySide6 that behaves as PythonQt does, so that code written for 3D Slicer meets the same rules here.

PythonQt wraps Qt for Slicer's Python, and differs from PySide6 in what a module's author trips over: properties are
attributes and not calls, unknown names raise on reading *and* on writing, signals are connected by their C++ signature,
keyword arguments are refused, enumerators are integers. No class is wrapped by hand: every PySide6 class is given a
subclass whose attribute access asks Qt's own meta-object what the name is, a property, a signal or a method.

Objects that Qt makes itself (the line edit inside a combo box) are PySide6's own and cannot change class; they are
handed out behind a `Proxy` that follows the same rules.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import re
import types
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import shiboken6
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.support import signature as shiboken_signature

ShibokenMeta = type(QtCore.QObject)
_enums: dict[type, type[enum.IntEnum]] = {}  # PySide6's enumeration -> integers of the same names
_pyside_enums: dict[type, type] = {}  # and back


# -- values ------------------------------------------------------------------------------------------------------------


def integers(pyside_enum: type[enum.Enum]) -> type[enum.IntEnum]:
    """The enumeration as PythonQt shows it: members are integers, and `a | b` is a plain int."""
    if pyside_enum not in _enums:
        _enums[pyside_enum] = enum.IntEnum(
            pyside_enum.__name__, {n: int(m.value) for n, m in pyside_enum.__members__.items()}
        )
        _pyside_enums[_enums[pyside_enum]] = pyside_enum
    return _enums[pyside_enum]


def from_qt(value: Any) -> Any:
    """What PythonQt would hand to Python for a value that PySide6 returned."""
    if isinstance(value, enum.Flag):
        return int(value.value)
    if type(value) in _enums or (isinstance(value, enum.Enum) and type(value).__module__.startswith("PySide6")):
        return integers(type(value))(int(value.value))
    if isinstance(value, (list, tuple)):
        return tuple(from_qt(item) for item in value)
    if isinstance(value, shiboken6.Object) and not isinstance(type(value), PythonQtMeta):
        # Values are copied into the class that stands for theirs; objects have an identity to keep.
        return wrapped(type(value))(value) if hasattr(value, "__copy__") else Proxy.of(value)
    return value


def to_qt(value: Any) -> Any:
    """What PySide6 takes for a value that PythonQt would take."""
    if isinstance(value, Proxy):
        return object.__getattribute__(value, "_object")
    if type(value) in _pyside_enums:
        return _pyside_enums[type(value)](int(value))
    if isinstance(value, PythonQtMeta):
        return value.pyside_class_of() or value
    if isinstance(value, (list, tuple)):
        return type(value)(to_qt(item) for item in value)
    return value


def call(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Call a function of PySide6, or of a widget of the host, under PythonQt's rules.

    Raises
    ------
    ValueError
        For keyword arguments, and for arguments that no overload takes.
    """
    name = getattr(function, "__name__", str(function))
    if keywords:
        raise ValueError(f"{name}() takes no keyword arguments: PythonQt refuses {', '.join(keywords)}.")
    descriptor = getattr(_pyside_class(type(getattr(function, "__self__", None))), name, function)
    return from_qt(_call(function, tuple(to_qt(argument) for argument in arguments), descriptor))


def _pyside_class(cls: type) -> type:
    """The nearest class of PySide6 among the bases of a class; the class itself where it has no face."""
    return next((base for base in cls.__mro__ if not isinstance(base, PythonQtMeta)), cls)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], signed: Any) -> Any:
    """Call a function; where it takes no integers, again with the enumerations that `signed` has in its signatures."""
    try:
        return function(*arguments)
    except TypeError as error:
        if isinstance(function, (types.FunctionType, types.MethodType)):
            raise
        signatures = shiboken_signature.get_signature(signed)
        for signature in signatures if isinstance(signatures, list) else [signatures]:
            candidate = _with_enums(arguments, signature) if signature is not None else arguments
            if list(map(type, candidate)) != list(map(type, arguments)):
                with contextlib.suppress(TypeError):
                    return function(*candidate)
        raise ValueError(
            f"Called {getattr(function, '__name__', function)}() with wrong arguments: {arguments}"
        ) from error


def _with_enums(arguments: tuple[Any, ...], signature: inspect.Signature) -> tuple[Any, ...]:
    """The arguments with plain integers turned into the enumerations that a signature asks for."""
    wanted: list[Any] = [p.annotation for name, p in signature.parameters.items() if name != "self"]
    return tuple(
        annotation(argument) if type(argument) is int and isinstance(annotation, enum.EnumMeta) else argument
        for argument, annotation in zip(arguments, wanted + [None] * len(arguments), strict=False)
    )


# -- signals -----------------------------------------------------------------------------------------------------------

# The connections made from Python to each object: signature, function, connection.
_connections: weakref.WeakKeyDictionary[Any, list[tuple[str, Any, Any]]] = weakref.WeakKeyDictionary()


def _slot(function: Callable[..., Any]) -> Callable[..., None]:
    """A slot that drops the arguments which a Python function does not take; any other callable gets all of them."""
    plain = function.__func__ if inspect.ismethod(function) else function
    accepted = None
    if isinstance(plain, types.FunctionType) and not plain.__code__.co_flags & inspect.CO_VARARGS:
        accepted = plain.__code__.co_argcount - inspect.ismethod(function)

    def slot(*arguments: Any) -> None:
        function(*(from_qt(argument) for argument in arguments[:accepted]))

    return slot


def _normalised(signature: str) -> str:
    return bytes(QtCore.QMetaObject.normalizedSignature(signature).data()).decode()


def existing_signal(sender: QtCore.QObject, signature: str) -> str | None:
    """The signature under which Qt knows a signal given by its C++ signature; None where there is no such signal."""
    if signature in getattr(type(sender), "cpp_signals", ()):
        # MRML nodes travel as Python objects here.
        signature = re.sub(r"vtk\w+\*", "PyObject", signature)
    return signature if sender.metaObject().indexOfSignal(signature) >= 0 else None


def connect(sender: QtCore.QObject, signature: str, function: Callable[..., Any]) -> bool:
    """Connect a signal; False, as in PythonQt, where the object has no such signal."""
    existing = existing_signal(sender, _normalised(signature))
    if existing is None:
        return False
    if not callable(function):
        raise ValueError(f"Connecting '{signature}' needs something that can be called, not {function!r}.")
    connection = QtCore.QObject.connect(sender, QtCore.SIGNAL(existing), _slot(function))
    _connections.setdefault(sender, []).append((existing, function, connection))
    return True


def disconnect(sender: QtCore.QObject, signature: str, function: Callable[..., Any] | None = None) -> bool:
    """Take back the connections of a signal, or only those to one function; False where there was none."""
    existing = existing_signal(sender, _normalised(signature))
    made = _connections.get(sender, [])
    taken = [entry for entry in made if entry[0] == existing and (function is None or entry[1] == function)]
    for entry in taken:
        QtCore.QObject.disconnect(entry[2])
        made.remove(entry)
    return bool(taken)


class Signal:
    """A signal as an attribute of its object: `button.clicked.connect(f)`; calling it emits."""

    def __init__(self, sender: QtCore.QObject, signature: str, bound: Any) -> None:
        self._sender, self._signature, self._bound = sender, signature, bound

    def connect(self, function: Callable[..., Any]) -> bool:
        return connect(self._sender, self._signature, function)

    def disconnect(self, function: Callable[..., Any] | None = None) -> bool:
        return disconnect(self._sender, self._signature, function)

    def emit(self, *arguments: Any) -> None:
        self._bound.emit(*(to_qt(argument) for argument in arguments))

    __call__ = emit


# -- attributes --------------------------------------------------------------------------------------------------------


def class_name(item: Any) -> str:
    """The name of an object's C++ class."""
    for cls in type(item).__mro__:
        if isinstance(cls, PythonQtMeta) and (cls.pyside_class_of() or cls.is_cpp()):
            return cls.__name__
    alive = isinstance(item, QtCore.QObject) and shiboken6.isValid(item)
    return item.metaObject().className() if alive else type(item).__name__


def _raw(item: Any, name: str) -> Any:
    """An attribute as PySide6 has it, by the class's own look-up: some methods exist with and without an instance."""
    return _pyside_class(type(item)).__getattribute__(item, name)


_known_members: dict[tuple[type, str], tuple[frozenset[str], dict[str, str]]] = {}


def members(item: QtCore.QObject) -> tuple[frozenset[str], dict[str, str]]:
    """The properties of an object, and its signals: of several signatures the first, which has all arguments."""
    meta = _raw(item, "metaObject")()
    key = (type(item), meta.className())
    if key in _known_members:
        return _known_members[key]
    properties = frozenset(meta.property(index).name() for index in range(meta.propertyCount()))
    signals: dict[str, str] = {}
    for method in (meta.method(index) for index in range(meta.methodCount())):
        if method.methodType() == QtCore.QMetaMethod.MethodType.Signal:
            signals.setdefault(bytes(method.name().data()).decode(), bytes(method.methodSignature().data()).decode())
    return _known_members.setdefault(key, (properties, signals))


def _property_name(item: Any, name: str) -> str | None:
    """The Qt property, static or dynamic, that an attribute stands for; `name` is short for `objectName`."""
    if not isinstance(item, QtCore.QObject):
        return None
    if name in members(item)[0] or _raw(item, "property")(name) is not None:
        return name
    return "objectName" if name == "name" else None


def read(item: Any, name: str) -> Any:
    """An attribute of a Qt object as PythonQt gives it.

    Raises
    ------
    AttributeError
        Where there is none of that name.
    ValueError
        Where Qt has destroyed the object.
    """
    if not shiboken6.isValid(item):
        raise ValueError(f"Trying to read '{name}' from a destroyed {class_name(item)} object")
    property_name = _property_name(item, name)
    if property_name is not None:
        return _read_property(item, property_name)
    if isinstance(item, QtCore.QObject):
        if name in _OBJECT_METHODS:
            return functools.partial(_OBJECT_METHODS[name], item)
        signature = members(item)[1].get(name)
        if signature is not None:
            return Signal(item, signature, _raw(item, name))
    try:
        value = _raw(item, "exec" if name == "exec_" else name)
    except AttributeError:
        raise AttributeError(f"{class_name(item)} has no attribute named '{name}'") from None
    if callable(value) and not isinstance(value, type):
        return lambda *arguments, **keywords: call(value, arguments, keywords)
    return from_qt(value)


def _read_property(item: Any, name: str) -> Any:
    # A size hint is also a virtual method: called as such it does not ask for itself again through C++.
    value = from_qt(_raw(item, name)() if name in _VIRTUAL_PROPERTIES else _raw(item, "property")(name))
    # Slicer has tool tips wrapped (ctkToolTipTrapper), so that what was set is not what is read.
    if name == "toolTip" and value and isinstance(item, QtWidgets.QWidget) and not QtGui.Qt.mightBeRichText(value):
        value = QtGui.Qt.convertFromPlainText(value, QtCore.Qt.WhiteSpaceMode.WhiteSpaceNormal)
    return value


_NUMBERS = {"bool": bool, "int": int, "uint": int, "double": float, "float": float}


def write(item: Any, name: str, value: Any) -> None:
    """Set a property; anything else is refused with PythonQt's words.

    Raises
    ------
    AttributeError
        For a name that is no property, a property that cannot be written, a value of the wrong kind, and where Qt has
        destroyed the object.
    """
    if not shiboken6.isValid(item):
        raise AttributeError(f"Trying to set '{name}' on a destroyed {class_name(item)} object")
    property_name = _property_name(item, name)
    if property_name is None:
        if hasattr(type(item), name):
            raise AttributeError(f"Slot '{name}' can not be overwritten on {class_name(item)} object")
        raise AttributeError(
            f"'{name}' does not exist on {class_name(item)} and creating new attributes on C++ objects is not allowed"
        )
    meta = _raw(item, "metaObject")()
    described = meta.property(meta.indexOfProperty(property_name)) if meta.indexOfProperty(property_name) >= 0 else None
    if described is not None and not described.isWritable():
        raise AttributeError(f"Property '{name}' of {class_name(item)} object is not writable")
    kind = described.typeName() if described is not None else ""
    refused = f"Property '{name}' of type '{kind}' does not accept an object of type {type(value).__name__} ({value!r})"
    if kind in _NUMBERS and not isinstance(value, (bool, int, float)):
        raise AttributeError(refused)
    if kind == "QStringList" and isinstance(value, str):
        raise AttributeError(refused)
    converted = _NUMBERS[kind](value) if kind in _NUMBERS else str(value) if kind == "QString" else to_qt(value)
    if isinstance(converted, tuple):
        converted = list(converted)
    if isinstance(type(converted), PythonQtMeta) and not isinstance(converted, QtCore.QObject):
        # A QVariant takes a QIcon, and no class derived from it.
        converted = _pyside_class(type(converted))(converted)
    if not _raw(item, "setProperty")(property_name, converted) and described is not None:
        raise AttributeError(refused)


def _find_children(item: QtCore.QObject, kind: Any = QtCore.QObject, name: str = "") -> tuple[Any, ...]:
    """Children by class, or by the name of one, and by object name."""
    by_name = isinstance(kind, str)
    found = _raw(item, "findChildren")(QtCore.QObject if by_name else to_qt(kind), name or None)
    return tuple(from_qt(child) for child in found if not by_name or child.inherits(kind))


_VIRTUAL_PROPERTIES = {"sizeHint", "minimumSizeHint"}
_OBJECT_METHODS: dict[str, Callable[..., Any]] = {
    "connect": connect,
    "disconnect": disconnect,
    "className": class_name,
    "findChildren": _find_children,
    "delete": shiboken6.delete,
}


# -- classes -----------------------------------------------------------------------------------------------------------


def class_attribute(value: Any) -> Any:
    """An attribute of a class or of the namespace Qt: enumerations become integers, functions follow the rules."""
    if isinstance(value, enum.EnumMeta):
        return integers(value)
    if isinstance(value, enum.Enum) and value.name is not None:
        return integers(type(value))[value.name]
    if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType)):
        return lambda *arguments, **keywords: call(value, arguments, keywords)
    return value


class PythonQtMeta(ShibokenMeta):  # type: ignore[misc, valid-type]
    """The class of PythonQt's classes: stands for the PySide6 class in `isinstance`; its enumerators are integers."""

    def pyside_class_of(cls) -> type | None:
        """The PySide6 class that this one is the face of; None for classes written in Python."""
        return type.__getattribute__(cls, "__dict__").get("pyside_class")

    def is_cpp(cls) -> bool:
        """Whether the class is written in Python here but in C++ in Slicer, so that it takes no new attributes."""
        return bool(type.__getattribute__(cls, "__dict__").get("cpp_class"))

    def __instancecheck__(cls, instance: Any) -> bool:
        pyside_class = cls.pyside_class_of()
        return isinstance(to_qt(instance), pyside_class) if pyside_class else type.__instancecheck__(cls, instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        pyside_class = cls.pyside_class_of()
        return type.__subclasscheck__(pyside_class or cls, subclass)

    def __getattribute__(cls, name: str) -> Any:
        value = super().__getattribute__("exec" if name == "exec_" else name)
        return value if name.startswith("__") else class_attribute(value)


def _owned_by_python(item: Any, name: str) -> bool:
    """Whether a Python class or instance, not Qt, says what an attribute is."""
    if name.startswith("_"):
        return True
    own = object.__getattribute__(item, "__dict__").get(name)
    if own is not None:
        return not isinstance(
            own, QtCore.SignalInstance
        )  # PySide6 keeps the signals that were used among the attributes
    for cls in type(item).__mro__:
        if not isinstance(cls, PythonQtMeta):
            return name in cls.__dict__ and cls.__module__.split(".")[0] not in ("PySide6", "Shiboken", "builtins")
        if cls.pyside_class_of():
            return False
        member = type.__getattribute__(cls, "__dict__").get(name)
        if member is not None:
            # Of a class that is C++ in Slicer only the overrides of virtual methods are Python's: C++ looks here.
            return hasattr(member, "is_override") or not (
                cls.is_cpp() or isinstance(member, (QtCore.Signal, QtCore.Property))
            )
    return False


def _getattribute(self: Any, name: str) -> Any:
    return _raw(self, name) if _owned_by_python(self, name) else read(self, name)


# While a .ui file is loaded PySide6 hangs its widgets on the top one as attributes, which PythonQt does not.
loading_ui = False


def _setattr(self: Any, name: str, value: Any) -> None:
    cls = type(self)
    if loading_ui and isinstance(value, QtCore.QObject) and not name.startswith("_"):
        return
    python_class = not (cls.pyside_class_of() or cls.is_cpp())
    private = name.startswith("_") and not cls.pyside_class_of()
    if private or (python_class and _property_name(self, name) is None):
        _pyside_class(cls).__setattr__(self, name, value)
    else:
        write(self, name, value)


def _guarded(override: Callable[..., Any]) -> Callable[..., Any]:
    """A Python override of a virtual method, called with PythonQt's values."""

    @functools.wraps(override)
    def guarded(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return to_qt(override(self, *(from_qt(argument) for argument in arguments), **keywords))

    return guarded


@functools.cache
def wrapped(pyside_class: type) -> type:
    """The class that stands for a PySide6 class."""

    def init(self: Any, *arguments: Any, **keywords: Any) -> None:
        if keywords:
            raise ValueError(
                f"{pyside_class.__name__}() takes no keyword arguments: PythonQt refuses {', '.join(keywords)}."
            )
        arguments = tuple(to_qt(argument) for argument in arguments)
        _call(functools.partial(pyside_class.__init__, self), arguments, pyside_class)

    def init_subclass(cls: type) -> None:
        ctk_class = next((base for base in cls.__mro__[1:] if isinstance(base, PythonQtMeta) and base.is_cpp()), None)
        for name, override in list(type.__getattribute__(cls, "__dict__").items()):
            virtual = not name.startswith("_") and hasattr(pyside_class, name)
            if virtual and isinstance(override, types.FunctionType):
                if ctk_class is not None and not cls.is_cpp():
                    raise TypeError(f"{ctk_class.__name__}.{name} cannot be overridden in Python: PythonQt ignores it")
                # The host's own widgets are written for PySide6.
                method = override if cls.is_cpp() else _guarded(override)
                method.is_override = True
                setattr(cls, name, method)

    attributes = {
        "pyside_class": pyside_class,
        "__module__": "qt",
        "__init__": init,
        "__init_subclass__": classmethod(init_subclass),
        "__getattribute__": _getattribute,
        "__setattr__": _setattr,
    }
    return PythonQtMeta(pyside_class.__name__, (pyside_class,), attributes)


class Proxy:
    """An object that Qt made itself, with PythonQt's attributes."""

    __slots__ = ("__weakref__", "_object")
    _of: ClassVar[weakref.WeakValueDictionary[int, Proxy]] = weakref.WeakValueDictionary()

    def __init__(self, item: Any) -> None:
        object.__setattr__(self, "_object", item)

    @classmethod
    def of(cls, item: Any) -> Proxy:
        """The one proxy of an object, so that `is` holds."""
        known = cls._of.get(id(item))
        if known is None or object.__getattribute__(known, "_object") is not item:
            known = cls._of[id(item)] = cls(item)
        return known

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        return read(object.__getattribute__(self, "_object"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        write(object.__getattribute__(self, "_object"), name, value)

    def __eq__(self, other: object) -> bool:
        return bool(object.__getattribute__(self, "_object") == to_qt(other))

    def __hash__(self) -> int:
        return hash(object.__getattribute__(self, "_object"))

    def __repr__(self) -> str:
        return repr(object.__getattribute__(self, "_object"))
