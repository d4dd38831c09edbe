"""The tests of `Testing/Slicer`, which are written for the real Slicer, on the test host."""

from __future__ import annotations

import ast
import importlib.util
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[1] / "Slicer" / "XAICLIPApplicationTest.py"
NAMES = [
    node.name
    for node in ast.walk(ast.parse(FILE.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]


@pytest.mark.parametrize("name", NAMES)
def test_application(name: str, same_modules: None, module_path: Path, load_module: Callable[[str], Any]) -> None:
    load_module("XAICLIP")
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = unittest.TestResult()
    module.XAICLIPApplicationTest(name).run(result)
    problems = [text for _test, text in (*result.errors, *result.failures)]
    assert not problems, problems[0]
    assert (result.testsRun, result.skipped) == (1, [])
