"""A text of several lines of which two are shown until the user wants them all."""

from __future__ import annotations

from typing import Any

import qt
from slicer.i18n import tr as _

LINES = 2
UNLIMITED = 16777215
"""Qt's QWIDGETSIZE_MAX."""


class FoldedText:
    """A label that is cut after `LINES`, and the button that unfolds it.

    Parameters
    ----------
    label
        A QLabel with word wrap.
    button
        A QToolButton, checked while all is shown.
    """

    def __init__(self, label: Any, button: Any) -> None:
        self.label, self.button = label, button
        label.setAlignment(qt.Qt.AlignTop | qt.Qt.AlignLeft)
        label.setMargin(0)
        button.setCheckable(True)
        button.connect("toggled(bool)", self._onToggled)
        self._onToggled(False)

    def setText(self, text: str) -> None:
        """Show a text; one that has no more lines needs no button."""
        self.label.setText(text)
        self.button.setVisible(len(text.splitlines()) > LINES)

    def _onToggled(self, unfolded: bool) -> None:
        height = UNLIMITED if unfolded else LINES * self.label.fontMetrics().lineSpacing() + 2
        self.label.setMaximumHeight(height)
        self.button.setArrowType(qt.Qt.DownArrow if unfolded else qt.Qt.RightArrow)
        self.button.setToolTip(_("Show less.") if unfolded else _("Show all that is known of it."))
