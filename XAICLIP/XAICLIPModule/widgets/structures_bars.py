"""How much a target leans on each structure, as bars with their names.

A plot view of Slicer cannot do that: its bars stand on 0, 1, 2, and names are tool tips only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import qt
from slicer.i18n import tr as _

from XAICLIPModule.panel.foreign_text import shown

LONGEST = 1000
"""Value of the longest bar."""

COLOURS = {True: "#c8502d", False: "#3b6fb6"}
"""Whether removing the structure cost something; else it helped."""


def show(table: Any, structures: Sequence[Mapping[str, Any]]) -> None:
    """Fill a table of two columns with a row for each structure: its name, and a bar with the score lost.

    Parameters
    ----------
    table
        QTableWidget.
    structures
        As the record has them: ``structure``, ``score_lost``, and perhaps ``volume_ml`` and ``share``.
    """
    lost = [float(structure["score_lost"]) for structure in structures]
    largest = max(map(abs, lost), default=0) or 1
    table.setRowCount(len(lost))
    for row, (structure, score) in enumerate(zip(structures, lost, strict=True)):
        name = qt.QTableWidgetItem(str(structure["structure"]))
        name.setToolTip(shown(_("{volume:.0f} ml").format(volume=float(structure.get("volume_ml") or 0))))
        table.setItem(row, 0, name)
        bar = qt.QProgressBar()
        bar.setRange(0, LONGEST)
        bar.setValue(round(LONGEST * abs(score) / largest))
        bar.setFormat(f"{score:.3f}")
        bar.setStyleSheet(
            "QProgressBar {border: none; background: transparent; text-align: right; padding-right: 4px}"
            f" QProgressBar::chunk {{background: {COLOURS[score >= 0]}}}"
        )
        table.setCellWidget(row, 1, bar)
    table.resizeColumnToContents(0)
