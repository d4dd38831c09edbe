"""Importing past a torchvision that does not match torch: what is missing is declared, and nothing else is hidden."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from XAICLIPLib.system import torchvision_operators
from XAICLIPLib.system.torchvision_operators import import_without_operators


def failing(messages: list[str]) -> Callable[[str], Any]:
    """An ``import_module`` that fails with these, one a call, then gives this module."""

    def import_module(name: str) -> Any:
        assert name == "package"
        if messages:
            raise RuntimeError(messages.pop(0))
        return sys.modules[__name__]

    return import_module


def test_missing_operators_of_torchvision_are_declared_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    declared: list[str] = []

    class Library:
        def __init__(self, namespace: str, kind: str) -> None:
            assert (namespace, kind) == ("torchvision", "FRAGMENT")

        def define(self, schema: str) -> None:
            declared.append(schema.partition("(")[0])

    monkeypatch.setattr(torch.library, "Library", Library)
    monkeypatch.setattr(torchvision_operators, "_kept_alive", [])
    messages = ["operator torchvision::nms does not exist", "operator torchvision::qnms does not exist"]
    monkeypatch.setattr(importlib, "import_module", failing(messages))
    assert import_without_operators("package") is sys.modules[__name__]
    assert declared == ["nms", "qnms"]


@pytest.mark.parametrize("told", ["CUDA out of memory", "operator torchvision::roi_align does not exist"])
def test_other_errors_of_the_import_are_raised(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", failing([told]))
    with pytest.raises(RuntimeError, match=told):
        import_without_operators("package")
