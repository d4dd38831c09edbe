"""Errors name ways out that exist where they are read; licences are agreed to, and models go as they came."""

# ruff: noqa: F811

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from XAICLIPLib import errors
from XAICLIPLib.errors import InputError

from .conftest import wait
from .test_panel import pick, ready, ui  # noqa: F401


@pytest.mark.parametrize(
    "way",
    [
        errors.TRUST,
        errors.OTHER_TARGET,
        errors.SAY_TARGET,
        errors.CPU,
        errors.FEWER_SLICES,
        errors.downloading("net"),
        errors.removing("net"),
        errors.installing("captum"),
    ],
)
def test_every_way_out_has_words_of_the_panel(way: errors.WayOut, module_path: Path, slicer_host: Any) -> None:
    from XAICLIPModule.panel.ways_out import sentence

    said = sentence(f"Something is wrong; {way}.", [asdict(way)])
    assert said.startswith("Something is wrong; ") and str(way) not in said and way.subject in said
    for words in ("--", "xaiclip", "pip install", "`"):
        assert words not in said


def test_what_is_not_known_stays_as_it_was_said(module_path: Path, slicer_host: Any) -> None:
    from XAICLIPModule.panel.ways_out import sentence

    assert sentence("Do x.", [{"kind": "new", "words": "Do x"}, {}, {"kind": "trust", "words": 3}]) == "Do x."
    assert sentence("Do x.", None) == "Do x."


def test_the_panel_says_where_to_click_and_python_what_the_command_line_says(ready: Any, session: Any) -> None:
    error = InputError(f"The bundle would run code; if you trust it, {errors.TRUST}.", errors.TRUST)
    assert str(error) == "The bundle would run code; if you trust it, say so with --trust."
    ready.applyButton.click()
    session.answer("error", kind="input", message=str(error), ways=[asdict(way) for way in error.ways])
    assert ready.statusLabel.text == (
        'The bundle would run code; if you trust it, check "Run the code in its configuration" below the network.'
    )


# Licences, and removing


def test_a_licence_that_limits_the_use_is_agreed_to_before_a_download(
    ui: Any, session: Any, volume: Any, slicer_host: Any, monkeypatch: Any
) -> None:
    asked: list[str] = []
    answers = [False, True]
    monkeypatch.setattr(
        slicer_host.util, "confirmOkCancelDisplay", lambda text, *_more: asked.append(text) or answers.pop(0)
    )
    pick(ui.modelComboBox, "multi-organ-ct")
    wait(lambda: session.hello is not None)
    ui.modelDownloadButton.click()
    assert "Non-Commercial" in asked[0] and "agree" in asked[0] and session.requests == []
    assert "not agreed to" in ui.statusLabel.text
    ui.modelDownloadButton.click()
    assert session.requests[0].name == "multi-organ-ct"
    session.answer("error", kind="cancelled", message="Cancelled.")
    pick(ui.modelComboBox, "brainchop-tissue")
    ui.modelDownloadButton.click()
    assert session.requests[1].name == "brainchop-tissue" and len(asked) == 2, "MIT asks for nothing"


@pytest.mark.parametrize(
    ("licence", "free"),
    [
        ("Apache-2.0", True),
        ("MIT AND CC-BY-4.0", True),
        ("CC-BY-NC-4.0", False),
        ("Apache-2.0 AND CC-BY-NC-SA-4.0", False),
        ("research only", False),
        ("", False),
    ],
)
def test_which_licences_are_asked_about(module_path: Path, slicer_host: Any, licence: str, free: bool) -> None:
    from XAICLIPModule.worker.catalogue import Model

    assert bool(Model("net", licence=licence).restriction) != free


def test_a_downloaded_model_is_removed_after_a_question(
    ui: Any, session: Any, volume: Any, slicer_host: Any, monkeypatch: Any
) -> None:
    answers = [False, True]
    monkeypatch.setattr(slicer_host.util, "confirmOkCancelDisplay", lambda *_text: answers.pop(0))
    shown = ui.inputsCollapsibleButton
    session.installed = {"brainchop-tissue"}
    pick(ui.modelComboBox, "brainchop-tissue")
    wait(lambda: session.hello is not None)
    assert ui.modelRemoveButton.isVisibleTo(shown)
    ui.modelRemoveButton.click()
    assert session.requests == []
    ui.modelRemoveButton.click()
    (asked,) = session.requests
    assert (asked.type, asked.name) == ("remove", "brainchop-tissue")
    session.installed = set()
    session.answer("removed", name="brainchop-tissue", installed=False)
    assert ui.statusLabel.text == "brainchop-tissue was removed from this machine."
    assert not ui.modelRemoveButton.isVisibleTo(shown) and ui.modelDownloadButton.isVisibleTo(shown)
    pick(ui.modelComboBox, "abdomen-ct")
    assert not ui.modelRemoveButton.isVisibleTo(shown), "what ships stays"
