"""Expressions in a bundle's configuration that compute something harmless, evaluated without Python's ``eval``.

What follows a ``$`` is read as a syntax tree. A tree of literals, references, arithmetic, comparisons, choices,
indexing and the few calls that the configurations of MONAI's Model Zoo are full of is computed here, node by node.
Every other tree is code, and is refused before any part of it is computed: no attributes, methods or names are allowed
except those listed below. Numbers, texts and lists stay small, so that no expression takes long.

References
----------
MONAI bundle configuration, https://docs.monai.io/en/stable/config_syntax.html
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from monai.bundle import ReferenceResolver
from monai.utils import CommonKeys
from numpy.typing import NDArray

from XAICLIPLib.errors import InputError

LONGEST, DEEPEST, LARGEST, WIDEST = 1000, 40, 10_000, 64
"""Bounds: characters of an expression, nesting of its tree, characters and items of a value, bits of an integer."""

_MARK = "reference_of_the_bundle_"
_SCALARS = (type(None), bool, int, float, str)
_NUMBERS = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
_TYPES: dict[str, Any] = {
    f"{alias}.{name}": getattr(package, f"{name}_" if name == "bool" and package is np else name)
    for alias, package in (("numpy", np), ("np", np), ("torch", torch))
    for name in _NUMBERS
}
_CONSTANTS = {f"monai.utils.CommonKeys.{key.name}": str(key.value) for key in CommonKeys}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (str, int, float, len, list, tuple, sorted, min, max)
}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_SIGNS: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_FORMAT = re.compile(r"0?\d{0,2}(\.\d{1,2})?[defgs]?")
"""Two digits: a width of a billion would fill the memory."""

_Thunk = Callable[[], Any]
Construct = Callable[[str, list[Any], dict[str, Any]], Any]
"""Takes the dotted name of something that is called, its arguments by position and those by name, and gives the plan of
what would be built; raises `CodeError` where that may not be called."""


class CodeError(Exception):
    """An expression that is refused as code."""


class ExpressionError(Exception):
    """A harmless expression that fails, such as a division by zero."""


def _refuse_calls(name: str, arguments: list[Any], named: dict[str, Any]) -> Any:
    raise CodeError


def evaluate(
    text: str,
    find: Callable[[str], Any],
    load: Callable[[str], Any],
    construct: Construct = _refuse_calls,
    constructs: Callable[[str], bool] = lambda name: False,
) -> Any:
    """Compute a harmless expression.

    Values that are no plain data, such as networks yet to be built, are passed on unchanged: ``.to(device)`` returns
    the value itself, and every ``torch.device`` is the CPU, because the bundle does not decide where a network runs.

    Parameters
    ----------
    text
        The expression, without the ``$``.
    find
        Function from the name of a reference, ``a::b``, to its value. It is called for each reference of the text.
    load
        Function from a path to the content of the file, for ``torch.load``.
    construct, constructs
        How a call such as ``monai.networks.nets.UNet(...)`` is planned, and for which dotted names.

    Raises
    ------
    CodeError
        The expression is not harmless. If its form shows that, ``find`` and ``load`` were not called; if only a value
        does, such as its size, everything computed so far was harmless.
    ExpressionError
        The expression fails.
    """
    text = ReferenceResolver.normalize_id(text).strip()
    if len(text) > LONGEST or _MARK in text:
        raise CodeError
    names: dict[str, str] = {}

    def mark(match: re.Match[str]) -> str:
        return f" {names.setdefault(match[0][1:], f'{_MARK}{len(names)}')} "

    marked = ReferenceResolver.id_matcher.sub(mark, text).strip()
    try:
        tree = ast.parse(marked, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # statements and decorators among them
        raise CodeError from error
    # Compiled twice: an expression that is refused by its form alone never calls find or load.
    _Compiler(dict.fromkeys(names.values()), load, construct, constructs).thunk(tree)
    values = {marker: find(name) for name, marker in names.items()}
    try:
        value = _Compiler(values, load, construct, constructs).thunk(tree)()
    except InputError:  # of a file
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ExpressionError(" ".join(str(error).split()) or type(error).__name__) from error
    _refuse_large(value)
    return value


class _Compiler:
    """Compiles a tree into a function without arguments, completely before any part is called.

    Parameters
    ----------
    values
        The value of each reference, by the name that replaced it in the text.
    load, construct, constructs
        As for `evaluate`.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        load: Callable[[str], Any],
        construct: Construct,
        constructs: Callable[[str], bool],
    ) -> None:
        self._values = values
        self._load = load
        self._construct, self._constructs = construct, constructs

    def thunk(self, node: ast.AST | None, depth: int = 0) -> _Thunk:
        """The function that computes a node."""
        if depth > DEEPEST:
            raise CodeError

        def inner(part: ast.AST | None) -> _Thunk:
            return self.thunk(part, depth + 1)

        match node:
            case ast.Constant(value=value) if isinstance(value, _SCALARS) and _MARK not in str(value):
                _small_value(value)
                return lambda: value
            case ast.Name(id=name) if name in self._values:
                return lambda: self._values[name]
            case ast.List(elts=elements):
                items = [inner(e) for e in elements]
                return lambda: [item() for item in items]
            case ast.Tuple(elts=elements):
                items = [inner(e) for e in elements]
                return lambda: tuple(item() for item in items)
            case ast.Dict(keys=keys, values=values):
                pairs = [(inner(k), inner(v)) for k, v in zip(keys, values, strict=True)]  # ** has no key: refused
                return lambda: {k(): v() for k, v in pairs}
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _ARITHMETIC:
                return _arithmetic(type(sign), inner(left), inner(right))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                denied = inner(operand)
                return lambda: not _truth(denied())
            case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
                signed, apply = inner(operand), _SIGNS[type(sign)]
                return lambda: apply(_number(signed()))
            case ast.BoolOp(op=sign, values=operands):
                return _boolean_operation(isinstance(sign, ast.Or), [inner(o) for o in operands])
            case ast.Compare(left=left, ops=signs, comparators=others) if all(type(s) in _COMPARISONS for s in signs):
                return _comparison([_COMPARISONS[type(s)] for s in signs], [inner(o) for o in (left, *others)])
            case ast.IfExp(test=test, body=body, orelse=other):
                condition, then, otherwise = inner(test), inner(body), inner(other)
                return lambda: then() if _truth(condition()) else otherwise()
            case ast.Subscript(value=whole, slice=ast.Slice(lower=lower, upper=upper, step=step)):
                of, ends = inner(whole), [(lambda: None) if e is None else inner(e) for e in (lower, upper, step)]
                return lambda: _sequence(of())[slice(*(end() for end in ends))]
            case ast.Subscript(value=whole, slice=key):
                of, at = inner(whole), inner(key)
                return lambda: _container(of())[_scalar(at())]
            case ast.JoinedStr(values=parts) if not any(isinstance(n, ast.Call) for n in ast.walk(node)):
                written = [self._formatted(part, depth + 1) for part in parts]
                return lambda: _small_value("".join(part() for part in written))
            case ast.Attribute() if (dotted := _dotted(node) or "") in _TYPES:
                return lambda: _TYPES[dotted]
            case ast.Attribute() if (constant := _dotted(node) or "") in _CONSTANTS:
                return lambda: _CONSTANTS[constant]
            case ast.Call(func=function, args=arguments, keywords=keywords):
                keyword_arguments = {k.arg: inner(k.value) for k in keywords}
                return self._call(function, [inner(a) for a in arguments], keyword_arguments, depth + 1)
        raise CodeError

    def _formatted(self, part: ast.AST, depth: int) -> _Thunk:
        """A part of an f-string."""
        if not isinstance(part, ast.FormattedValue):
            return self.thunk(part, depth)
        spec = "".join(
            p.value if isinstance(p, ast.Constant) and isinstance(p.value, str) else "{}"
            for p in getattr(part.format_spec, "values", ())
        )
        if not _FORMAT.fullmatch(spec):
            raise CodeError
        conversions: dict[int, Callable[[Any], Any]] = {-1: lambda v: v, ord("s"): str, ord("r"): repr}
        if part.conversion not in conversions:
            raise CodeError
        value, convert = self.thunk(part.value, depth), conversions[part.conversion]
        return lambda: format(convert(_plain(value())), spec)

    def _call(
        self, function: ast.AST, arguments: list[_Thunk], named: Mapping[str | None, _Thunk], depth: int
    ) -> _Thunk:
        """One of the few harmless calls."""
        name, count = _dotted(function), len(arguments)
        if name == "torch.load" and count == 1 and set(named) <= {"map_location", "weights_only"}:
            return lambda: self._load(_text(arguments[0]()))
        if name is not None and self._constructs(name):
            # A starred argument or ** has no thunk of its own, or no name: both were refused before.
            by_name = {key: value for key, value in named.items() if key is not None}
            if len(by_name) < len(named):
                raise CodeError
            return lambda: self._construct(name, [a() for a in arguments], {k: v() for k, v in by_name.items()})
        if named:
            raise CodeError
        if name == "torch.cuda.is_available" and count == 0:
            return torch.cuda.is_available
        if name == "torch.device" and count == 1:
            return lambda: (_text(arguments[0]()), torch.device("cpu"))[1]
        if name == "torch.from_numpy" and count == 1:
            return lambda: torch.from_numpy(_array(arguments[0]()))
        if name in _FUNCTIONS:
            called = _FUNCTIONS[name]
            return lambda: _small_value(called(*(_plain(g()) for g in arguments)))
        match function:
            case ast.Attribute(value=owner, attr="to") if count == 1:
                whole = self.thunk(owner, depth)
                return lambda: _on_device(whole(), arguments[0]())
        raise CodeError


def _dotted(node: ast.AST) -> str | None:
    """``a.b.c`` as a text, where a node is just that; otherwise None."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=owner, attr=name):
            before = _dotted(owner)
            return before and f"{before}.{name}"
    return None


def _arithmetic(sign: type, left: _Thunk, right: _Thunk) -> _Thunk:
    def compute() -> Any:
        a, b = left(), right()
        if sign is ast.Mult and isinstance(a, int) and isinstance(b, (str, list, tuple)):
            a, b = b, a
        numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
        joined = sign is ast.Add and isinstance(a, (str, list, tuple)) and type(a) is type(b)
        repeated = sign is ast.Mult and isinstance(a, (str, list, tuple)) and isinstance(b, int)
        if not (numbers or joined or repeated):  # "%99999999d" % 1 among them
            raise CodeError
        # The size of the result is checked before it is computed.
        if repeated and len(a) * b > LARGEST:
            raise CodeError
        if sign is ast.Pow and isinstance(a, int) and isinstance(b, int) and a.bit_length() * b > WIDEST:
            raise CodeError
        return _small_value(_ARITHMETIC[sign](a, b))

    return compute


def _boolean_operation(either: bool, operands: list[_Thunk]) -> _Thunk:
    """``or`` where ``either``, ``and`` otherwise: the value that decides, as in Python."""

    def compute() -> Any:
        value = None
        for operand in operands:
            value = operand()
            if operand is not operands[-1] and _truth(value) is either:
                break
        return value

    return compute


def _comparison(signs: list[Callable[[Any, Any], Any]], operands: list[_Thunk]) -> _Thunk:
    def compute() -> bool:
        left = _plain(operands[0]())
        for sign, operand in zip(signs, operands[1:], strict=True):
            right = _plain(operand())
            if not sign(left, right):
                return False
            left = right
        return True

    return compute


# Checks of values. A text in place of a number is a mistake of the bundle (TypeError); anything but plain data is code.


def _refuse_large(value: Any, left: int = LARGEST) -> int:
    """Refuse a value with too many parts, and return how many more are allowed. Shared parts count each time."""
    left -= len(value) if isinstance(value, str) else 1
    if isinstance(value, (list, tuple, dict)):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            left = _refuse_large(item, left)
    if left < 0:
        raise CodeError
    return left


def _small_value(value: Any) -> Any:
    """The value, if it is small and plain."""
    if isinstance(value, int) and value.bit_length() > WIDEST:
        raise CodeError
    if isinstance(value, (str, list, tuple)):
        if len(value) > LARGEST:
            raise CodeError
    elif not isinstance(value, _SCALARS):  # such as a complex number
        raise CodeError
    return value


def _plain(value: Any) -> Any:
    """The value, if it is plain data at all depths, on which any operator is harmless."""
    _refuse_large(value)

    def check(part: Any) -> None:
        if isinstance(part, (list, tuple, dict)):
            for item in (*part, *part.values()) if isinstance(part, dict) else part:
                check(item)
        elif not isinstance(part, _SCALARS):
            raise CodeError

    check(value)
    return value


def _truth(value: Any) -> bool:
    return bool(_plain(value))


def _scalar(value: Any) -> Any:
    return _require(value, *_SCALARS)


def _number(value: Any) -> Any:
    return _require(value, bool, int, float)


def _text(value: Any) -> str:
    return str(_require(value, str))


def _sequence(value: Any) -> Any:
    return _require(value, str, list, tuple)


def _container(value: Any) -> Any:
    return _require(value, str, list, tuple, dict)


def _require(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        if not isinstance(value, (*_SCALARS, list, tuple, dict)):
            raise CodeError
        raise TypeError(f"{type(value).__name__} where {' or '.join(k.__name__ for k in kinds)} is wanted")
    return value


def _array(value: Any) -> NDArray[Any]:
    if not isinstance(value, np.ndarray):
        raise CodeError
    return value


def _on_device(value: Any, device: Any) -> Any:
    """A network whose device is set by an expression: unchanged, as it is moved later."""
    if isinstance(value, (*_SCALARS, list, tuple, dict)) or not isinstance(device, (str, torch.device)):
        raise CodeError
    return value
