"""The self-tests of the module, which also run in the real Slicer, on the test host."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any

import pytest


def names() -> list[str]:
    """The self-tests by name, read from the source: the module can be imported only on the host."""
    import ast
    from pathlib import Path

    source = Path(__file__).resolve().parents[2] / "XAICLIP" / "XAICLIPModule" / "selftests.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


@pytest.mark.parametrize("name", names())
def test_self_test(name: str, load_module: Callable[[str], Any]) -> None:
    load_module("XAICLIP")
    from XAICLIP import XAICLIPTest

    result = unittest.TestResult()
    XAICLIPTest(name).run(result)
    assert result.testsRun == 1
    problems = [text for _test, text in (*result.errors, *result.failures)]
    assert not problems, problems[0]
    assert not result.skipped, result.skipped[0][1]
