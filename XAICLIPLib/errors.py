"""The errors that a user can mend."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
"""Unicode's categories of invisible characters: controls, marks of direction, halves of characters, private characters,
line breaks."""

_JOINERS = "\u200c\u200d"
"""Invisible characters that are part of words in some scripts, and harmless."""

WayKind = Literal["trust", "download", "remove", "install", "target", "device", "crop"]
"""What a way out is: to trust a network's code, to download or remove a model, to install a Python package, to choose
another target or device, or to give less of the scan."""


@dataclass(frozen=True)
class WayOut:
    """What a user can do about an error, of which each place where it is shown has words of its own.

    Attributes
    ----------
    kind
        What it is.
    words
        As the command line says it: a part of the error's message, which others replace.
    subject
        The model or package that it is about.
    """

    kind: WayKind
    words: str
    subject: str = ""

    def __str__(self) -> str:
        return self.words


TRUST = WayOut("trust", "say so with --trust")
OTHER_TARGET = WayOut("target", "choose another structure with --target or give a mask")
SAY_TARGET = WayOut("target", "say with --target")
CPU = WayOut("device", "choose --device cpu")
FEWER_SLICES = WayOut("crop", "give a part of the scan with fewer slices")


def downloading(model: str) -> WayOut:
    """The way out of a model that is not on this machine."""
    return WayOut("download", f"run `xaiclip models download {model}`", model)


def removing(model: str) -> WayOut:
    """The way out of a model whose files are not those that were downloaded."""
    return WayOut("remove", f"run `xaiclip models remove {model}`", model)


def installing(package: str) -> WayOut:
    """The way out of a Python package that is not there."""
    return WayOut("install", f"pip install {package}", package)


class InputError(ValueError):
    """An input that cannot be used. Its message is one sentence that names the input and says what to do.

    Names and values in it may come from a stranger's file: the message stays one line, and controls no terminal.

    Parameters
    ----------
    message
        The sentence, as the command line says it.
    *ways
        The ways out whose words stand in it.
    """

    def __init__(self, message: str, *ways: WayOut) -> None:
        super().__init__(single_line(message))
        self.ways = ways


class MethodUnsuited(InputError):
    """A method of explaining that cannot work on this network, or with this baseline; another one may.

    Attributes
    ----------
    reason
        Why, as a clause: "the network cannot be differentiated".
    """

    def __init__(self, reason: str, way_out: str) -> None:
        super().__init__(f"{reason[:1].upper()}{reason[1:]}: {way_out}")
        self.reason = single_line(reason)


class NotEnoughMemory(InputError):
    """What was asked does not fit into the memory of this machine, or of its GPU."""


class Cancelled(RuntimeError):
    """The user ended a computation before there was anything to return."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class where the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error: BaseException, most: int = 200) -> str:
    """An error's whole message, on one line of at most ``most`` characters; its class where the message is empty."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[:most] + "…"


def visible(text: object) -> str:
    """Text without invisible characters: each is written as its escape, except for line ends and tabs."""
    return "".join(c if c in "\n\t" or not _is_hidden(c) else _escape(c) for c in str(text))


def single_line(text: object) -> str:
    """As `visible`, and on one line. Blanks stay as they are, because they may belong to a path."""
    return visible(re.sub(r"[\n\t\r]+", " ", str(text)))


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE and character not in _JOINERS


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
