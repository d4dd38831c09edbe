"""What strangers wrote is shown letter by letter: no pictures are loaded, no links made."""

# ruff: noqa: F811

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from .conftest import wait
from .test_panel import pick, plain, ready, ui  # noqa: F401

EVIL = "<h1>x</h1><img src='file://attacker/x.png'><a href='http://evil'>update</a>"
MODULE = Path(__file__).resolve().parents[2] / "XAICLIP" / "XAICLIPModule"


def isRich(text: str) -> bool:
    """Whether Qt would show markup of the stranger's in a tool tip or a dialog."""
    return "<img" in text or "<a " in text or "<h1" in text


def test_tool_tips_and_dialogs_show_markup_and_leave_other_text_alone(module_path: Path, slicer_host: Any) -> None:
    from PySide6.QtGui import Qt

    from XAICLIPModule.panel.foreign_text import shown

    assert shown("a & b > c\nd") == "a & b > c\nd" and not Qt.mightBeRichText("a & b > c\nd")
    assert shown("p < 0.05\n" + EVIL).startswith("<p>p &lt; 0.05<br>&lt;h1&gt;x") and not isRich(shown(EVIL))


def test_no_label_of_the_panel_takes_rich_text(panel: Any, ready: Any, session: Any) -> None:
    import qt

    labels = panel.parent.findChildren(qt.QLabel)
    own = [label for label in labels if label.objectName != "qt_spinbox_lineedit"]
    assert len(own) > 40
    assert [label.objectName for label in own if label.textFormat != qt.Qt.PlainText] == []


def test_a_strangers_network_record_and_error_are_shown_letter_by_letter(
    panel: Any, ready: Any, session: Any, volume: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    import qt
    import slicer

    dialogs: list[str] = []
    monkeypatch.setattr(slicer.util, "errorDisplay", lambda text, **_more: dialogs.append(text))
    session.descriptions[str(tmp_path)] = ("liver", EVIL)
    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_arguments: str(tmp_path))
    panel.panel.choices.models.folderAction.trigger()
    wait(lambda: EVIL in ready.modelDescriptionLabel.text)
    ready.promptLineEdit.setText("spleen")
    assert "&lt;img" in ready.applyButton.toolTip and not isRich(ready.applyButton.toolTip)
    panel.logic.getParameterNode().model = EVIL
    tip = ready.modelComboBox.itemData(ready.modelComboBox.currentIndex, qt.Qt.ToolTipRole)
    assert not isRich(tip) and EVIL in ready.modelFromSceneLabel.text
    pick(ready.modelComboBox, "abdomen-ct")
    ready.promptLineEdit.setText("liver")
    ready.applyButton.click()
    session.answer("error", kind="input", message=EVIL)
    assert EVIL in ready.statusLabel.text and len(dialogs) == 1 and not isRich(dialogs[0])


def test_a_strangers_name_is_no_formula_in_a_saved_table(
    panel: Any, ready: Any, session: Any, volume: Any, tmp_path: Path
) -> None:
    ready.applyButton.click()
    structures = [{"structure": "=cmd|'/c calc'!A1", "volume_ml": 1.0, "score_lost": -0.2, "share": 0.5}]
    session.explain(
        volume,
        measurements={"score_unperturbed": 0.9, "structures": structures},
        target={"name": "=1+1", "label": 6, "voxels": "predicted"},
    )
    (tmp_path / "out").mkdir()
    panel.panel.results.saveTo(tmp_path / "out")
    tables = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("*.csv")}
    assert "Structure,'=1+1" in tables["measurements.csv"]
    assert "'=cmd|" in tables["structures.csv"] and ",-0.2," in tables["structures.csv"]


def unguarded(source: str) -> list[str]:
    """Texts that become tool tips or dialogs without `shown`, though they are no sentences of ours."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        place = {"setToolTip": 0, "setItemData": 1, "errorDisplay": 0, "infoDisplay": 0, "confirmOkCancelDisplay": 0}
        if node.func.attr in place and not _isOurs(node.args[place[node.func.attr]]):
            found.append(ast.unparse(node))
    return found


def _isOurs(text: ast.expr) -> bool:
    if isinstance(text, ast.IfExp):
        return _isOurs(text.body) and _isOurs(text.orelse)
    if isinstance(text, ast.BoolOp):
        return all(_isOurs(value) for value in text.values)
    calls = isinstance(text, ast.Call) and isinstance(text.func, ast.Name)
    return calls and text.func.id in ("_", "shown")  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", sorted(MODULE.rglob("*.py")), ids=lambda path: path.name)
def test_every_tool_tip_and_dialog_takes_this_way(path: Path) -> None:
    allowed = {"widget.setToolTip(own if enabled else why)"}  # of results_panel: sentences of ours, given to a function
    assert set(unguarded(path.read_text(encoding="utf-8"))) <= allowed


def test_the_search_for_unguarded_texts_finds_them() -> None:
    assert unguarded("widget.setToolTip(model.name)") and unguarded("slicer.util.errorDisplay(str(error))")
    assert not unguarded("a.setToolTip(shown(x) or _('y')); a.setToolTip(_('x') if b else _('y'))")
