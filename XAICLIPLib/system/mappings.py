"""Reading JSON and YAML files that a stranger may have written. They must be small, also once they are read.

By aliases a YAML file of a few hundred bytes can expand to billions of values, or to a value that contains itself.
So aliases are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

LARGEST_FILE = 16 << 20
"""Bytes: a configuration has some kilobytes."""

UNREADABLE = (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError)
"""What reading a damaged or hostile file raises."""


class _Plain(yaml.SafeLoader):
    """YAML of plain values, without anchors and aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if getattr(self.peek_event(), "anchor", None) is not None:  # an alias has the anchor that it refers to
            raise ValueError("it has anchors (&) or aliases (*): write out what they stand for")
        return super().compose_node(parent, index)


def read_mapping(path: Path, largest: int = LARGEST_FILE) -> dict[str, Any]:
    """Read a JSON or YAML file whose top is a mapping.

    Parameters
    ----------
    path
        JSON where its name ends so, YAML otherwise.
    largest
        Bytes; a longer file is not read.

    Raises
    ------
    OSError, ValueError, RecursionError, yaml.YAMLError
        The file cannot be read, is too long, has anchors or aliases, or holds no mapping.
    """
    if path.stat().st_size > largest:
        raise ValueError(f"it is longer than {largest >> 20} MB, far too long for what it is")
    text = path.read_text(encoding="utf-8-sig")
    content = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_Plain)
    if not isinstance(content, dict):
        raise ValueError("it holds no keys and values")
    return content
