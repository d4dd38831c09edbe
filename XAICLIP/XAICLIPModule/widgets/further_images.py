"""The images beside the scan, for networks that take several of one patient at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from XAICLIPModule.panel.foreign_text import shown, showPlain

MOST = 7
"""Further images that are offered."""


class FurtherImages:
    """One volume selector for each image after the first, in rows that are there only where they are needed.

    Parameters
    ----------
    layout
        QFormLayout that gets the rows, before its last one.
    changed
        Called after the user chose a volume.
    """

    def __init__(self, layout: Any, changed: Callable[[], None]) -> None:
        self._rows = [self._row(layout, changed, number) for number in range(1, MOST + 1)]
        self._shown = 0
        self.show([])

    @staticmethod
    def _row(layout: Any, changed: Callable[[], None], number: int) -> tuple[Any, Any]:
        selector = slicer.qMRMLNodeComboBox()
        selector.setObjectName(f"furtherImageSelector{number}")
        selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        selector.showChildNodeTypes = False
        selector.noneEnabled = True
        selector.addEnabled = selector.removeEnabled = False
        selector.setMRMLScene(slicer.mrmlScene)
        selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda *_node: changed())
        label = qt.QLabel()
        showPlain(label)
        label.setObjectName(f"furtherImageLabel{number}")
        label.setBuddy(selector)
        layout.insertRow(layout.rowCount() - 1, label, selector)
        return label, selector

    def show(self, names: Sequence[str]) -> None:
        """Show a selector for each of these images."""
        self._shown = min(len(names), MOST)
        for number, (label, selector) in enumerate(self._rows):
            if number < self._shown:
                label.setText(f"{names[number]}:")
                tip = _("{name}: an image of the same patient, registered to the scan.").format(name=names[number])
                selector.setToolTip(shown(tip))
            label.setVisible(number < self._shown)
            selector.setVisible(number < self._shown)

    def volumes(self) -> list[Any]:
        """What is chosen in the selectors that are shown; None where nothing is."""
        return [selector.currentNode() for _label, selector in self._rows[: self._shown]]

    def setVolumes(self, nodes: Sequence[Any]) -> None:
        """Choose volumes, from the first selector on."""
        for number, (_label, selector) in enumerate(self._rows):
            node = nodes[number] if number < len(nodes) else None
            if selector.currentNode() is not node:
                selector.setCurrentNode(node)

    def setEnabled(self, enabled: bool) -> None:
        """Let the user choose, or not."""
        for _label, selector in self._rows:
            selector.setEnabled(enabled)

    def selector(self, number: int) -> Any:
        """The selector of a further image, from 0."""
        return self._rows[number][1]


def missing(scan: Any, names: Sequence[str], volumes: Sequence[Any]) -> list[str]:
    """What is wrong with the chosen images, a sentence each.

    Parameters
    ----------
    scan
        The first image, or None.
    names, volumes
        Of the further ones.
    """
    found = [
        _("Choose a volume for {name}.").format(name=name)
        for name, volume in zip(names, volumes, strict=True)
        if volume is None
    ]
    seen = {scan.GetID()} if scan is not None else set()
    for volume in volumes:
        if volume is None:
            continue
        if volume.GetID() in seen:
            found.append(
                _("The volume {name} is chosen twice: choose another for each image.").format(name=volume.GetName())
            )
        seen.add(volume.GetID())
    return list(dict.fromkeys(found))
