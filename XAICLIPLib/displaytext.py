"""Text that others wrote (labels, names, licences, records), made fit for where it is shown.

A terminal obeys escape sequences, a spreadsheet computes what begins like a formula, matplotlib sets what stands
between dollars as mathematics. In HTML the templates of reports escape all that is put into them.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
"""Unicode's categories of what is no visible character: controls, marks of direction, halves of characters, private
ones, breaks of lines."""

_JOINERS = "\u200c\u200d"
"""Of the category of marks, but parts of words in some scripts, and harmless."""

_FORMULA = re.compile(r"[\s\"']*[=+\-@＝＋－＠]|[\t\r\n]")
"""What a spreadsheet takes for the beginning of a formula, behind what it skips."""


def for_terminal(text: object) -> str:
    """Text in which nothing commands the terminal: what is not to be seen is written as its escape, but line ends."""
    return "".join(c if c in "\n\t" or not _hidden(c) else _escape(c) for c in str(text))


def in_line(text: object) -> str:
    """The same with no end of line; the blanks in it stay, for they may be those of a path."""
    return for_terminal(re.sub(r"[\n\t\r]+", " ", str(text)))


def one_line(text: object) -> str:
    """The same on one line, for a name or a sentence that stands within a line of ours."""
    return for_terminal(" ".join(str(text).split()))


def for_csv(value: Any) -> Any:
    """A cell that a spreadsheet shows as it is: a text that it would compute gets an apostrophe before it.

    Numbers, also those that are texts already, stay as they are.
    """
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def for_matplotlib(text: object) -> str:
    r"""Text that matplotlib draws letter by letter where it would read mathematics: each ``$`` becomes ``\$``.

    Not for what is drawn with ``parse_math=False``, which needs no help.
    """
    return one_line(text).replace("$", r"\$")


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN and character not in _JOINERS


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
