"""Building objects from a MONAI bundle's configuration without running code that the bundle brings.

MONAI's own parser evaluates strings that begin with ``$``, imports whatever an import expression anywhere in the file
names, loads the files that ``%`` names, and calls whatever ``_target_`` names, builtins and functions of other packages
included. Here nothing is imported by name and no code is evaluated. A section is planned first, with everything that it
refers to. A plan can hold only classes of MONAI and torch that are networks, transforms or inferers, plain data, and
the values of harmless expressions (`XAICLIPLib.segmentation.untrusted.expressions`).

References
----------
MONAI bundle configuration, https://docs.monai.io/en/stable/config_syntax.html
"""

from __future__ import annotations

import inspect
import io
import reprlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets.vista3d import vista3d132
from monai.transforms import EnsureChannelFirstd, LoadImaged, Transform
from torch.nn import Module

from XAICLIPLib.errors import TRUST, InputError
from XAICLIPLib.segmentation.untrusted.expressions import CodeError, ExpressionError, evaluate

_SEARCHED_PACKAGES = (
    "monai.networks.nets",
    "monai.networks.blocks",
    "monai.networks.layers",
    "monai.transforms",
    "monai.inferers",
)
"""Packages in which a name without a dot is searched."""
_REACHABLE = ("monai.networks", "monai.transforms", "monai.inferers", "torch.nn")
_DEFINING_PACKAGES = (*(f"{package}." for package in _SEARCHED_PACKAGES), "torch.nn.modules.")
"""Packages in which an allowed class must be defined, by whatever path the bundle names it."""
_REFUSED_MODULES = (
    "monai.transforms.io.",  # read and write files, and call a reader or writer named by a string
    "monai.networks.nets.cell_sam_wrapper",  # loads a file, through another package
    "monai.networks.nets.hovernet",  # these download when they are made
    "monai.networks.nets.milmodel",
    "monai.networks.nets.torchvision_fc",
    "monai.networks.nets.transchex",
)
_REFUSED_WORDS = (
    *("TorchVision", "TorchIO", "CuCIM"),  # call other packages by name
    *("SaveClassification", "DataStats", "SimulateDelay"),  # write files, print, sleep
)

_FACTORIES: dict[str, Callable[..., Module]] = {
    f"monai.networks.nets.{path}": vista3d132 for path in ("vista3d132", "vista3d.vista3d132")
}
"""Functions of MONAI that build a network and do nothing else, by their path."""

READING_STEPS = (LoadImaged, EnsureChannelFirstd)
"""Steps of a preprocessing that read an image. They are left out: the image is in memory, channel first."""
_READING_NAMES = frozenset(kind.__name__.lower() for kind in READING_STEPS)
_IGNORED_INFERER_ARGUMENTS = ("device", "sw_device", "progress", "buffer_steps", "buffer_dim")
"""Arguments of an inferer for its device and progress display, which are decided here."""
_REMOVED_ARGUMENTS = {"SwinUNETR": ("img_size",)}
"""Arguments that MONAI has removed, and that never changed what the network computes."""

MOST_PARTS = 100_000
"""Most parts of a section after all its references, and theirs, are resolved."""


@dataclass(frozen=True, eq=False)
class _Component:
    """A class, or a function that builds a network, to be called, and its arguments."""

    at: str
    kind: Callable[..., Any]
    arguments: dict[str, Any]


class _Omitted:
    """Stands for a component that is disabled or not needed."""


_OMITTED = _Omitted()


class Configuration:
    """A bundle's configuration, of which only harmless sections can be built.

    Parameters
    ----------
    content
        The configuration as read from its file.
    bundle
        The bundle's name for messages.
    load
        Function from the path of a file of the bundle to its content, for the expression ``torch.load``. Without it,
        that expression counts as code.
    """

    def __init__(self, content: Mapping[str, Any], bundle: str, load: Callable[[str], Any] | None = None) -> None:
        self._content = content
        self._bundle = bundle
        self._load = load or _load_nothing
        self._built_parts = 0
        self._planned = 0
        self._plans: dict[str, Any] = {}
        self._built: dict[_Component, Any] = {}

    def refuse_code(self, key: str) -> None:
        """Check a section and everything that it refers to, without building anything.

        Raises
        ------
        InputError
            It holds code or a macro, names something that is no network, transform or inferer of MONAI or torch,
            or has a reference to itself or to a missing part.
        """
        self._planned = 0
        try:
            self._plan_of(key, ())
        except RecursionError as error:
            raise InputError(f"The configuration of the bundle {self._bundle} is nested too deeply.") from error

    def build(self, key: str) -> Any:
        """Build the objects of a section, each once; None where it holds nothing that is needed.

        Raises
        ------
        InputError
            As in `refuse_code`; whatever the classes themselves raise passes through.
        """
        self.refuse_code(key)
        self._built_parts = 0
        return self._make(self._plans[key])

    def value(self, part: Any) -> Any:
        """The value of a reference or a harmless expression, any other part unchanged; None where it needs code."""
        self._planned = 0
        try:
            return self._plan(part, "", ()) if isinstance(part, str) else part
        except (InputError, RecursionError):
            return None

    def mappings(self, key: str) -> Iterator[Mapping[str, Any]]:
        """Every mapping of a section and of what it refers to, as written and in order, without the disabled ones."""
        waiting: list[Any] = [f"@{key}"]
        followed: set[str] = set()
        seen: set[int] = set()
        while waiting:
            part = waiting.pop()
            if isinstance(part, (Mapping, list)):
                if id(part) in seen:  # YAML can put a list into itself
                    continue
                seen.add(id(part))
            if isinstance(part, str):
                for reference in reversed(_references(part)):
                    if reference not in followed:
                        followed.add(reference)
                        waiting.append(self._find(reference))
            elif isinstance(part, Mapping) and not _is_true(self.value(part.get("_disabled_"))):
                yield part
                waiting.extend(reversed(list(part.values())))
            elif isinstance(part, list):
                waiting.extend(reversed(part))

    def read_keys(self, key: str) -> list[str]:
        """The keys of the data that the reading steps of a section read, in order."""
        keys: list[str] = []
        for part in self.mappings(key):
            if is_reading_step(part):
                named = self.value(part.get("keys"))
                values = named if isinstance(named, list) else [named]
                keys += [str(text) for value in values if isinstance(text := self.value(value), str)]
        return list(dict.fromkeys(keys))

    def _find(self, key: str) -> Any:
        """The raw part at ``a::b::0``; None where there is none."""
        part: Any = self._content
        for name in key.split("::"):
            if isinstance(part, Mapping) and name in part:
                part = part[name]
            elif isinstance(part, list) and name.isdecimal() and len(name) < 10 and int(name) < len(part):
                part = part[int(name)]
            else:
                return None
        return part

    def _plan_of(self, key: str, trail: tuple[str, ...]) -> Any:
        """The plan of the part that a reference names."""
        if key in trail:
            raise InputError(f"The configuration of the bundle {self._bundle} refers to itself ({_short('@' + key)}).")
        if key not in self._plans:
            part = self._find(key)
            if part is None:
                raise InputError(
                    f"The configuration of the bundle {self._bundle} lacks what it refers to ({_short('@' + key)})."
                )
            self._plans[key] = self._plan(part, key, (*trail, key))
        return self._plans[key]

    def _plan(self, part: Any, at: str, trail: tuple[str, ...]) -> Any:
        self._planned += 1
        if self._planned > MOST_PARTS:
            raise self._too_many()
        if isinstance(part, str):
            try:
                text = ConfigParser.resolve_relative_ids(at, part)
            except ValueError as error:
                lacking = f"lacks what it refers to ({_short(part)})"
                raise InputError(f"The configuration of the bundle {self._bundle} {lacking}.") from error
            if text.startswith("$"):
                return self._evaluate(text[1:], part, at, trail)
            if text.startswith("%"):
                raise InputError(self._code(part, at), TRUST)
            reference = _reference(text)
            return part if reference is None else self._plan_of(reference, trail)
        if isinstance(part, Mapping):
            if "_target_" in part:
                return self._component(part, at, trail)
            plans = {name: self._plan(value, f"{at}::{name}", trail) for name, value in part.items()}
            return {name: plan for name, plan in plans.items() if plan is not _OMITTED}
        if isinstance(part, list):
            listed = [self._plan(value, f"{at}::{number}", trail) for number, value in enumerate(part)]
            return [plan for plan in listed if plan is not _OMITTED]
        return part

    def _evaluate(self, text: str, part: str, at: str, trail: tuple[str, ...]) -> Any:
        try:
            return evaluate(
                text,
                lambda reference: self._plan_of(reference, trail),
                self._load,
                lambda name, values, named: self._construction(name, values, named, at),
                lambda name: "." in name and _callable_named(name) is not None,
            )
        except CodeError as error:
            raise InputError(self._code(part, at), TRUST) from error
        except ExpressionError as error:
            raise InputError(
                f"The configuration of the bundle {self._bundle} does not compute ({at}: {_short(part)}: {error})."
            ) from error

    def _component(self, part: Mapping[str, Any], at: str, trail: tuple[str, ...]) -> _Component | _Omitted:
        kind = _callable_named(part["_target_"])
        if kind is None:
            target = _short(part["_target_"])
            raise InputError(
                self._refusal(f"call {target} ({at}), which is no network, transform or inferer of MONAI or torch"),
                TRUST,
            )
        if part.get("_mode_", "default") != "default" or "_debug_" in part:
            raise InputError(self._refusal(f"call {part['_target_']} ({at}) in another way than to build it"), TRUST)
        # Reading steps are left out before their arguments count: a reader may be any callable, named by a string.
        if _is_subclass(kind, READING_STEPS):
            return _OMITTED
        if _is_subclass(kind, SlidingWindowInferer):
            part = {name: value for name, value in part.items() if name not in _IGNORED_INFERER_ARGUMENTS}
        arguments = {name: self._plan(value, f"{at}::{name}", trail) for name, value in part.items()}
        if _is_true(arguments.get("_disabled_")):
            return _OMITTED
        special = ("_target_", "_mode_", "_disabled_", "_requires_", "_desc_")
        arguments = {n: plan for n, plan in arguments.items() if n not in special and plan is not _OMITTED}
        return _Component(at, kind, _adapted(kind, arguments))

    def _construction(self, name: str, values: list[Any], named: dict[str, Any], at: str) -> _Component | _Omitted:
        """The plan of ``monai.networks.nets.UNet(...)``, written as an expression."""
        kind = _callable_named(name)
        if kind is None:
            raise CodeError
        if _is_subclass(kind, READING_STEPS):
            return _OMITTED
        bound = inspect.signature(kind).bind_partial(*values, **named)  # a TypeError is the bundle's mistake
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if any(bound.signature.parameters[key].kind is variadic[0] for key in bound.arguments):
            raise CodeError
        arguments: dict[str, Any] = {}
        for key, value in bound.arguments.items():
            arguments |= value if bound.signature.parameters[key].kind is variadic[1] else {key: value}
        return _Component(at, kind, _adapted(kind, arguments))

    def _make(self, plan: Any) -> Any:
        self._built_parts += 1
        if self._built_parts > MOST_PARTS:
            raise self._too_many()
        if isinstance(plan, _Component):
            if plan not in self._built:
                arguments = {name: self._make(value) for name, value in plan.arguments.items()}
                with _silence():
                    self._built[plan] = plan.kind(**arguments)
            return self._built[plan]
        if isinstance(plan, dict):
            return {name: self._make(value) for name, value in plan.items()}
        if isinstance(plan, (list, tuple)):
            return type(plan)(self._make(value) for value in plan)
        return None if plan is _OMITTED else plan

    def _too_many(self) -> InputError:
        return InputError(f"The configuration of the bundle {self._bundle} unfolds into too many parts.")

    def _code(self, part: str, at: str) -> str:
        return self._refusal(f"run code from its configuration ({at}: {_short(part)})")

    def _refusal(self, what: str) -> str:
        return f"The bundle {self._bundle} would {what}; read it, and if you trust it, {TRUST}."


def is_reading_step(part: Any) -> bool:
    """Whether a part of a configuration reads an image, by the name of its class: see `READING_STEPS`."""
    target = part.get("_target_") if isinstance(part, Mapping) else None
    return isinstance(target, str) and target.rpartition(".")[2].removesuffix("ict").lower() in _READING_NAMES


def _load_nothing(path: str) -> Any:
    raise CodeError


@contextmanager
def _silence() -> Iterator[None]:
    """Drop what some classes print, and warn of, when they are built: it tells the user nothing."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _adapted(kind: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as this version of MONAI takes them, and so that nothing is downloaded."""
    known = inspect.signature(kind).parameters
    removed = [name for name in _REMOVED_ARGUMENTS.get(kind.__name__, ()) if name not in known]
    kept = {name: plan for name, plan in arguments.items() if name not in removed}
    return kept | ({"pretrained": False} if "pretrained" in known else {})  # the weights are the bundle's


def _is_subclass(kind: Callable[..., Any], of: type | tuple[type, ...]) -> bool:
    return isinstance(kind, type) and issubclass(kind, of)


def _short(value: Any) -> str:
    """The beginning of a text, or of any value's repr, on one line."""
    text = " ".join((value[:1000] if isinstance(value, str) else reprlib.repr(value)).split())
    return text if len(text) <= 60 else text[:60] + "…"


def _reference(text: str) -> str | None:
    """The name that a string refers to; None where the whole string is not a reference."""
    text = ReferenceResolver.normalize_id(text)
    return text[1:] if ReferenceResolver.id_matcher.fullmatch(text) else None


def _references(text: str) -> list[str]:
    """The names that a string refers to, as a whole or within an expression."""
    whole = _reference(text)
    if whole is not None:
        return [whole]
    text = ReferenceResolver.normalize_id(text)
    return [name[1:] for name in ReferenceResolver.id_matcher.findall(text)] if text.startswith("$") else []


def _is_true(flag: Any) -> bool:
    return flag.strip().lower() == "true" if isinstance(flag, str) else bool(flag)


def _callable_named(name: Any) -> Callable[..., Any] | None:
    """The class, or the function that builds a network, of this name; None where it may not be used."""
    return _FACTORIES.get(name) if isinstance(name, str) and name in _FACTORIES else _class_named(name)


def _class_named(name: Any) -> type | None:
    """The class that ``_target_`` names, None where it may not be used. Imports nothing and calls nothing."""
    if not isinstance(name, str):
        return None
    path, _, last = name.rpartition(".")
    if path and not any(path == root or path.startswith(f"{root}.") for root in _REACHABLE):
        return None
    for module in (path,) if path else _SEARCHED_PACKAGES:
        # vars, not getattr: a module may have a __getattr__ that imports. Only modules are walked, so that no path
        # leads through one module's import of another ("monai.networks.nets.torch.load").
        candidate = vars(sys.modules[module]).get(last) if module in sys.modules else None
        if isinstance(candidate, type) and _allowed(candidate):
            return candidate
    return None


def _allowed(kind: type) -> bool:
    if issubclass(kind, READING_STEPS):
        return True  # never made
    module = kind.__module__
    if not module.startswith(_DEFINING_PACKAGES) or module.startswith(_REFUSED_MODULES):
        return False
    if any(word in kind.__name__ for word in _REFUSED_WORDS):
        return False
    return issubclass(kind, (Module, Transform, SimpleInferer, SlidingWindowInferer))
