"""The errors that a user can mend."""

from __future__ import annotations

import re
import unicodedata

_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
"""Unicode's categories of what is no visible character: controls, marks of direction, halves of characters, private
ones, breaks of lines."""

_JOINERS = "\u200c\u200d"
"""Of the category of marks, but parts of words in some scripts, and harmless."""


class InputError(ValueError):
    """An input that cannot be used: its message is one sentence that names it and the way out.

    Names and values in it may be a stranger's: whatever they hold, it stays one line that commands no terminal.
    """

    def __init__(self, message: str) -> None:
        super().__init__(in_line(message))


class Cancelled(RuntimeError):
    """The user ended a computation before there was anything to return."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error: BaseException, most: int = 200) -> str:
    """All that an error says, on one line of ``most`` characters; its class where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[:most] + "…"


def visible(text: object) -> str:
    """Text in which all can be seen but ends of lines and tabs: what else is hidden is written as its escape."""
    return "".join(c if c in "\n\t" or not _hidden(c) else _escape(c) for c in str(text))


def in_line(text: object) -> str:
    """The same with no end of line; the blanks in it stay, for they may be those of a path."""
    return visible(re.sub(r"[\n\t\r]+", " ", str(text)))


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN and character not in _JOINERS


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
