"""Text that others wrote (labels, names, licences, records), made fit for where it is shown.

A terminal obeys escape sequences, a spreadsheet computes what begins like a formula, matplotlib sets what stands
between dollars as mathematics. In HTML the templates of reports escape all that is put into them.
"""

from __future__ import annotations

import re
from typing import Any

from XAICLIPLib.errors import visible

_FORMULA = re.compile(r"[\s\"']*[=+\-@＝＋－＠]|[\t\r\n]")
"""What a spreadsheet takes for the beginning of a formula, behind what it skips."""


def for_terminal(text: object) -> str:
    """Text in which nothing commands the terminal: what is not to be seen is written as its escape, but line ends."""
    return visible(text)


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
