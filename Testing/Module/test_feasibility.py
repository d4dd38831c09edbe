"""What the chosen network cannot explain keeps Apply disabled, and is not offered."""

# ruff: noqa: F811

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import wait
from .test_panel import pick, plain, ready, ui  # noqa: F401

ABDOMEN = ("liver", "right kidney", "left kidney")


@pytest.mark.parametrize(
    ("words", "structures", "said"),
    [
        ("liver", ABDOMEN, ""),
        ("hepar", ABDOMEN, ""),
        ("left kindey", ABDOMEN, ""),
        ("kidneys", ABDOMEN, ""),
        ("my_lesion", ("background thing", "My-Lesion"), ""),
        ("anything", (), ""),
        ("", ABDOMEN, ""),
        ("qwertz", ABDOMEN, '"qwertz" names no structure that is known: choose another network, or one of its'),
        (
            "vertebra L5",
            ABDOMEN,
            "The network net does not draw the L5 vertebra: choose another network, or one of its",
        ),
        ("spleen", tuple(f"part {n}" for n in range(30)), "part 11 and 18 more)"),
    ],
)
def test_what_a_network_does_not_draw_is_said_with_the_way_out(
    module_path: Path, slicer_host: Any, words: str, structures: tuple[str, ...], said: str
) -> None:
    from XAICLIPModule.panel.feasibility import objection

    told = objection(words, "net", structures)
    assert said in told and bool(said) == bool(told)


def completions(choices: Any) -> list[str]:
    model = choices._completer.model()
    return [model.data(model.index(row, 0)) for row in range(model.rowCount())]


def test_apply_waits_for_words_that_the_network_draws(ready: Any, session: Any) -> None:
    for words in ("qwertz", "vertebrae L5"):
        ready.promptLineEdit.setText(words)
        assert not ready.applyButton.isEnabled() and "choose another network" in plain(ready.applyButton.toolTip)
        ready.promptLineEdit.returnPressed()
    assert session.requests == []
    pick(ready.modelComboBox, "wholebody-ct")
    session.installed = {"wholebody-ct"}
    wait(lambda: session.hello is not None)
    session.refresh()
    assert ready.applyButton.isEnabled(), plain(ready.applyButton.toolTip)


def test_free_words_are_a_place_to_look_where_the_structure_is_chosen(ready: Any) -> None:
    ready.promptLineEdit.setText("the big bright thing")
    assert not ready.applyButton.isEnabled()
    assert ready.showRegionButton.isEnabled(), "a localizer takes any words"
    ready.targetCollapsibleButton.collapsed = False
    pick(ready.targetSourceComboBox, "structure")
    assert ready.applyButton.isEnabled()


def test_completion_follows_the_network_also_one_of_the_users_own(
    panel: Any, ready: Any, session: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    import qt

    choices = panel.panel.choices
    assert "spleen" in completions(choices) and "white matter" not in completions(choices)
    pick(ready.modelComboBox, "brainchop-tissue")
    assert completions(choices) == ["white matter", "grey matter"]
    pick(ready.modelComboBox, "sam-vit-base")
    assert {"spleen", "white matter"} <= set(completions(choices)), "it draws what it is pointed at"
    session.descriptions[str(tmp_path)] = ("lesion", "rim")
    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_arguments: str(tmp_path))
    choices.models.folderAction.trigger()
    wait(lambda: completions(choices) == ["lesion", "rim"])
    assert "choose another network" in plain(ready.applyButton.toolTip)
    ready.promptLineEdit.setText("Rim")
    assert ready.applyButton.isEnabled() and "Knows: lesion, rim." in ready.modelDescriptionLabel.text


def test_a_network_that_does_not_load_yet_is_asked_again_with_trust(
    panel: Any, ready: Any, session: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    import qt

    choices = panel.panel.choices
    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_arguments: str(tmp_path))
    choices.models.folderAction.trigger()
    wait(lambda: choices.toDescribe() is None)
    assert ready.applyButton.isEnabled(), "what it draws is not known"
    session.descriptions[str(tmp_path)] = ("lesion",)
    ready.trustCheckBox.setChecked(True)
    wait(lambda: completions(choices) == ["lesion"])


def test_of_several_structures_those_that_can_be_explained_are(module_path: Path, slicer_host: Any) -> None:
    from XAICLIPModule.panel.feasibility import objection

    classes = ("liver", "left kidney")
    assert objection("liver and left kidney", "net", classes) == ""
    assert objection("liver and spleen", "net", classes) == ""
    assert "does not draw the pancreas" in objection("pancreas, spleen", "net", classes)
    assert '"toenail" names no structure' in objection("liver, toenail", "net", classes)
