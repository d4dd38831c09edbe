"""Building objects from a MONAI bundle's configuration without running code that the bundle brings.

MONAI's own parser evaluates strings that begin with ``$``, imports whatever an import expression anywhere in the file
names, loads the files that ``%`` names, and calls whatever ``_target_`` names, builtins and functions of other packages
included. Here nothing is looked up by import and no code is evaluated: a section is planned first, with all that it
refers to, and only classes of MONAI and torch that are networks, transforms or inferers find a place in a plan, and
what harmless expressions (`XAICLIPLib.segmentation.untrusted.expressions`) come to.

References
----------
MONAI bundle configuration, https://docs.monai.io/en/stable/config_syntax.html
"""

from __future__ import annotations

import inspect
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms import EnsureChannelFirstd, LoadImaged, Transform
from torch.nn import Module

from XAICLIPLib.errors import TRUST, InputError
from XAICLIPLib.segmentation.untrusted.expressions import CodeError, ExpressionError, evaluate

_SHORT = (
    "monai.networks.nets",
    "monai.networks.blocks",
    "monai.networks.layers",
    "monai.transforms",
    "monai.inferers",
)
"""Where a name without a dot is looked up."""
_REACHABLE = ("monai.networks", "monai.transforms", "monai.inferers", "torch.nn")
_HOMES = (*(f"{package}." for package in _SHORT), "torch.nn.modules.")
"""Where an allowed class is defined, whatever path the bundle names it by."""
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

READING = (LoadImaged, EnsureChannelFirstd)
"""Steps of a preprocessing that bring an image into memory: it is there already, its channel first."""
_PLACEMENT = ("device", "sw_device", "progress", "buffer_steps", "buffer_dim")
"""Arguments of an inferer that say where it runs and what it shows: that is decided here."""
_REMOVED = {"SwinUNETR": ("img_size",)}
"""Arguments that MONAI has removed since, and that never changed what the network computes."""

LARGEST = 100_000
"""Parts that a section may have once all that it refers to, again and again, is in its place."""


@dataclass(frozen=True, eq=False)
class _Component:
    """A class that will be called, and with what."""

    at: str
    kind: type
    arguments: dict[str, Any]


class _Left:
    """The place of a component that is disabled or not needed."""


_LEFT = _Left()


class Configuration:
    """A bundle's configuration, of which only harmless sections can be built.

    Parameters
    ----------
    content
        The configuration as read from its file.
    bundle
        The bundle's name for messages.
    load
        The content of a file of the bundle, for the expression ``torch.load``, which is code where this is left out.
    """

    def __init__(self, content: Mapping[str, Any], bundle: str, load: Callable[[str], Any] | None = None) -> None:
        self._content = content
        self._bundle = bundle
        self._load = load or _load_nothing
        self._made = 0
        self._planned = 0
        self._plans: dict[str, Any] = {}
        self._built: dict[_Component, Any] = {}

    def refuse_code(self, key: str) -> None:
        """Go through a section and all that it refers to, and build nothing.

        Raises
        ------
        InputError
            It holds code or a macro, names what is no network, transform or inferer of MONAI or torch, or
            refers to nothing or to itself.
        """
        self._planned = 0
        try:
            self._plan_of(key, ())
        except RecursionError as error:
            raise InputError(f"The configuration of the bundle {self._bundle} is nested too deeply.") from error

    def build(self, key: str) -> Any:
        """Make the objects of a section, once each; None where it holds nothing that is needed.

        Raises
        ------
        InputError
            As in `refuse_code`; whatever the classes themselves raise passes through.
        """
        self.refuse_code(key)
        self._made = 0
        return self._make(self._plans[key])

    def value(self, part: Any) -> Any:
        """What a reference or a harmless expression comes to, any other part as it is; None where it needs code."""
        self._planned = 0
        try:
            return self._plan(part, "", ()) if isinstance(part, str) else part
        except (InputError, RecursionError):
            return None

    def mappings(self, key: str) -> Iterator[Mapping[str, Any]]:
        """Every mapping of a section, as written, with all that the section refers to; disabled ones left out."""
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
                reference = _reference(part)
                if reference is not None and reference not in followed:
                    followed.add(reference)
                    waiting.append(self._find(reference))
            elif isinstance(part, Mapping) and not _true(self.value(part.get("_disabled_"))):
                yield part
                waiting.extend(part.values())
            elif isinstance(part, list):
                waiting.extend(part)

    def _find(self, key: str) -> Any:
        """The raw part at ``a::b::0``; None where there is none."""
        part: Any = self._content
        for name in key.split("::"):
            if isinstance(part, Mapping) and name in part:
                part = part[name]
            elif isinstance(part, list) and name.isdecimal() and int(name) < len(part):
                part = part[int(name)]
            else:
                return None
        return part

    def _plan_of(self, key: str, trail: tuple[str, ...]) -> Any:
        """The plan of the part that a reference names."""
        if key in trail:
            raise InputError(f"The configuration of the bundle {self._bundle} refers to itself (@{key}).")
        if key not in self._plans:
            part = self._find(key)
            if part is None:
                raise InputError(f"The configuration of the bundle {self._bundle} lacks what it refers to (@{key}).")
            self._plans[key] = self._plan(part, key, (*trail, key))
        return self._plans[key]

    def _plan(self, part: Any, at: str, trail: tuple[str, ...]) -> Any:
        self._planned += 1
        if self._planned > LARGEST:
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
            return {name: plan for name, plan in plans.items() if plan is not _LEFT}
        if isinstance(part, list):
            listed = [self._plan(value, f"{at}::{number}", trail) for number, value in enumerate(part)]
            return [plan for plan in listed if plan is not _LEFT]
        return part

    def _evaluate(self, text: str, part: str, at: str, trail: tuple[str, ...]) -> Any:
        try:
            return evaluate(text, lambda reference: self._plan_of(reference, trail), self._load)
        except CodeError as error:
            raise InputError(self._code(part, at), TRUST) from error
        except ExpressionError as error:
            raise InputError(
                f"The configuration of the bundle {self._bundle} does not compute ({at}: {_short(part)}: {error})."
            ) from error

    def _component(self, part: Mapping[str, Any], at: str, trail: tuple[str, ...]) -> _Component | _Left:
        kind = _class_named(part["_target_"])
        if kind is None:
            target = _short(part["_target_"])
            raise InputError(
                self._refusal(f"call {target} ({at}), which is no network, transform or inferer of MONAI or torch"),
                TRUST,
            )
        if part.get("_mode_", "default") != "default" or "_debug_" in part:
            raise InputError(self._refusal(f"call {part['_target_']} ({at}) in another way than to build it"), TRUST)
        # Reading steps are left out before their arguments count: a reader may be any callable, named by a string.
        if issubclass(kind, READING):
            return _LEFT
        if issubclass(kind, SlidingWindowInferer):
            part = {name: value for name, value in part.items() if name not in _PLACEMENT}
        arguments = {name: self._plan(value, f"{at}::{name}", trail) for name, value in part.items()}
        if _true(arguments.get("_disabled_")):
            return _LEFT
        special = ("_target_", "_mode_", "_disabled_", "_requires_", "_desc_")
        arguments = {n: plan for n, plan in arguments.items() if n not in special and plan is not _LEFT}
        known = inspect.signature(kind).parameters
        for name in _REMOVED.get(kind.__name__, ()):
            if name not in known:
                arguments.pop(name, None)
        if "pretrained" in known:  # the weights are the bundle's: nothing is downloaded
            arguments["pretrained"] = False
        return _Component(at, kind, arguments)

    def _make(self, plan: Any) -> Any:
        self._made += 1
        if self._made > LARGEST:
            raise self._too_many()
        if isinstance(plan, _Component):
            if plan not in self._built:
                arguments = {name: self._make(value) for name, value in plan.arguments.items()}
                with redirect_stdout(sys.stderr):  # some print as they are made: stdout is for results
                    self._built[plan] = plan.kind(**arguments)
            return self._built[plan]
        if isinstance(plan, dict):
            return {name: self._make(value) for name, value in plan.items()}
        if isinstance(plan, (list, tuple)):
            return type(plan)(self._make(value) for value in plan)
        return None if plan is _LEFT else plan

    def _too_many(self) -> InputError:
        return InputError(f"The configuration of the bundle {self._bundle} unfolds into too many parts.")

    def _code(self, part: str, at: str) -> str:
        return self._refusal(f"run code from its configuration ({at}: {_short(part)})")

    def _refusal(self, what: str) -> str:
        return f"The bundle {self._bundle} would {what}; read it, and if you trust it, {TRUST}."


def _load_nothing(path: str) -> Any:
    raise CodeError


def _short(given: Any) -> str:
    """The beginning of a text, on one line; of anything else, however large, as little."""
    text = " ".join((given[:1000] if isinstance(given, str) else reprlib.repr(given)).split())
    return text if len(text) <= 60 else text[:60] + "…"


def _reference(text: str) -> str | None:
    """What a string refers to; None where it is only a string. A part of a string is no reference."""
    text = ReferenceResolver.normalize_id(text)
    return text[1:] if ReferenceResolver.id_matcher.fullmatch(text) else None


def _true(flag: Any) -> bool:
    return flag.strip().lower() == "true" if isinstance(flag, str) else bool(flag)


def _class_named(name: Any) -> type | None:
    """The class that ``_target_`` names, None where it may not be used. Imports nothing and calls nothing."""
    if not isinstance(name, str):
        return None
    path, _, last = name.rpartition(".")
    if path and not any(path == root or path.startswith(f"{root}.") for root in _REACHABLE):
        return None
    for module in (path,) if path else _SHORT:
        # vars, not getattr: a module may have a __getattr__ that imports. Only modules are walked, so that no path
        # leads through one module's import of another ("monai.networks.nets.torch.load").
        found = vars(sys.modules[module]).get(last) if module in sys.modules else None
        if isinstance(found, type) and _allowed(found):
            return found
    return None


def _allowed(kind: type) -> bool:
    if issubclass(kind, READING):
        return True  # never made
    home = kind.__module__
    if not home.startswith(_HOMES) or home.startswith(_REFUSED_MODULES):
        return False
    if any(word in kind.__name__ for word in _REFUSED_WORDS):
        return False
    return issubclass(kind, (Module, Transform, SimpleInferer, SlidingWindowInferer))
