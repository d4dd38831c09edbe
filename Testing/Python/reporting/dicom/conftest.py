"""Without highdicom there are no objects to test."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("highdicom") is None:
    collect_ignore_glob = ["test_*.py"]
