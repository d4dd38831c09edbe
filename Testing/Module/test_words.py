"""Words of the panel: all can be translated, and each can be reached by the keyboard."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from XAICLIPLib.explainers import methods

MODULE = Path(__file__).resolve().parents[2] / "XAICLIP"
UI = MODULE / "Resources" / "UI" / "XAICLIP.ui"
ONE_DOOR = "method_words.py"  # looks the library's sentences up, which stand there as literals too


def calls(path: Path) -> list[ast.Call]:
    """The calls of ``_`` in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_"
    ]


def test_lupdate_finds_every_string_that_is_translated() -> None:
    found = 0
    for path in MODULE.rglob("*.py"):
        for call in calls(path):
            literal = len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and not call.keywords
            assert literal or path.name == ONE_DOOR, f"{path.name}, line {call.lineno}: {ast.unparse(call)}"
            found += literal
    assert found > 200


def test_what_the_library_says_of_its_methods_can_be_translated(module_path: Path, slicer_host: Any) -> None:
    from XAICLIPModule.widgets import method_form, method_words

    arguments = [call.args[0] for call in calls(MODULE / "XAICLIPModule" / "widgets" / ONE_DOOR)]
    literals = {argument.value for argument in arguments if isinstance(argument, ast.Constant)}
    assert set(method_words.sentences()) <= literals
    for name, description in methods.describe().items():
        assert method_words.name(name) in literals, name
        said = [description["summary"]]
        for parameter in description["parameters"]:
            said += [method_form._title(parameter).rstrip(":"), method_form._sentence(parameter["help"])]
        assert not set(said) - set(method_words.sentences()), name


def properties() -> list[tuple[str, str, dict[str, str]]]:
    """Class, name and properties of every widget of the panel."""
    return [
        (
            str(widget.get("class")),
            str(widget.get("name")),
            {str(p.get("name")): "".join(p.itertext()).strip() for p in widget.findall("property")},
        )
        for widget in ElementTree.parse(UI).iter("widget")
    ]


def test_mnemonics_are_unique() -> None:
    texts = {name: values.get("text", "") for _class, name, values in properties()}
    letters = Counter(c.lower() for text in texts.values() for c in re.findall(r"&(\w)", text.replace("&&", "")))
    assert letters and max(letters.values()) == 1, letters


def test_every_label_of_a_widget_has_it_as_its_buddy() -> None:
    widgets = {name for _class, name, _values in properties()}
    for kind, name, values in properties():
        if kind == "QLabel" and (values.get("text", "").endswith(":") or "buddy" in values):
            assert values.get("buddy") in widgets, name
