"""The one place where text that others wrote becomes text on the screen.

Names of models and files, licences, labels, records and messages may be a stranger's. Qt takes what looks like HTML for
rich text, in labels, tool tips and dialogs, and would load the pictures and follow the links that it names.
"""

from __future__ import annotations

import html
from typing import Any

import qt


def shown(text: object) -> str:
    """Text that a tool tip or a dialog shows letter by letter."""
    plain = str(text)
    if "<" not in plain:  # without it Qt takes nothing for rich text, and shows an ampersand as it is
        return plain
    return "<p>" + html.escape(plain, quote=False).replace("\n", "<br>") + "</p>"


def showPlain(widget: Any) -> None:
    """Let all labels of a widget, and those it may be, show their text letter by letter."""
    labels = [*widget.findChildren(qt.QLabel), *([widget] if isinstance(widget, qt.QLabel) else [])]
    for label in labels:
        label.setTextFormat(qt.Qt.PlainText)
