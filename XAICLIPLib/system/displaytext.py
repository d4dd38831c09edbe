"""Text from outside (labels, names, licences, records), escaped for the place where it is shown.

A terminal obeys escape sequences, a spreadsheet computes text that begins like a formula, and matplotlib sets text
between dollar signs as mathematics. For HTML, the templates of reports escape everything that is put into them.
"""

from __future__ import annotations

import re
from typing import Any

from XAICLIPLib.errors import visible

_FORMULA = re.compile(r"[\s\"']*[=+\-@＝＋－＠]|[\t\r\n]")
"""What a spreadsheet takes for the beginning of a formula, after the characters that it skips."""


def for_terminal(text: object) -> str:
    """Text that cannot control a terminal: invisible characters, except for line ends, are written as their escapes."""
    return visible(text)


def one_line(text: object) -> str:
    """As `for_terminal`, and on one line: for a name or a sentence within a line of our own."""
    return for_terminal(" ".join(str(text).split()))


def for_csv(value: Any) -> Any:
    """A cell that a spreadsheet shows unchanged: text that it would take for a formula gets an apostrophe before it.

    Numbers stay as they are, also those that are written as text.
    """
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def for_matplotlib(text: object) -> str:
    r"""Text that matplotlib does not read as mathematics: each ``$`` becomes ``\$``.

    Not for text that is drawn with ``parse_math=False``, which needs no escapes.
    """
    return one_line(text).replace("$", r"\$")
