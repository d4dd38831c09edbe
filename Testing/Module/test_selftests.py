"""The self-tests of the module, which also run in the real Slicer, on the test host."""

from __future__ import annotations

import ast
import unittest
from pathlib import Path
from typing import Any

import pytest

MODULE = Path(__file__).resolve().parents[2] / "XAICLIP"


def names() -> list[str]:
    """The self-tests by name, read from the source: the module can be imported only on the host."""
    tree = ast.parse((MODULE / "XAICLIPModule" / "testing" / "selftests.py").read_text(encoding="utf-8"))
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


@pytest.mark.parametrize("name", names())
def test_self_test(name: str, scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(MODULE))
    from XAICLIPModule.testing.selftests import XAICLIPTest

    result = unittest.TestResult()
    XAICLIPTest(name).run(result)
    assert result.testsRun == 1
    problems = [text for _test, text in (*result.errors, *result.failures)]
    assert not problems, problems[0]
    assert not result.skipped, result.skipped[0][1]
