"""The record of a run as a scene holds it: of an older version, or a stranger's, until it was looked at."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def parse(text: str | None) -> dict[str, Any]:
    """The record in a text, all of it of the types that are relied on; empty where it is none.

    What may be missing is left out where it is wrong; a record that lacks the rest says nothing.
    """
    record = _object(text)
    needed = (
        _isText(record.get("prompt")),
        _isText(_mapping(record.get("target")).get("name")),
        _isText(_mapping(record.get("region")).get("source")),
        bool(_mapping(record.get("measurements"))),
        bool(_mapping(record.get("parameters"))),
    )
    if not all(needed):
        return {}
    parsed = {
        **record,
        "region": _numbers(record["region"], "share_of_body", "volume_ml"),
        "measurements": _measurements(record["measurements"]),
        "models": {name: model for name, model in _mapping(record.get("models")).items() if isinstance(model, dict)},
        "warnings": [text for text in _list(record.get("warnings")) if isinstance(text, str)],
        "reliability": [flag for flag in _list(record.get("reliability")) if isinstance(flag, dict)],
        "complete": record.get("complete") is not False,
    }
    agreement = _mapping(record["region"].get("agreement_with_prediction"))
    parsed["region"]["agreement_with_prediction"] = _numbers(agreement, "dice", "recall", "centroid_mm")
    return {name: value for name, value in parsed.items() if name in record}


def parseParameters(text: str | None) -> dict[str, dict[str, Any]]:
    """The parameters of each method, by its name; what is no such thing is left out."""
    return {name: values for name, values in _object(text).items() if isinstance(values, dict)}


def isObject(text: str) -> bool:
    """Whether a text is a JSON object of objects, whatever these hold."""
    held = _object(text)
    return bool(held) and all(isinstance(value, dict) for value in held.values())


def _object(text: str | None) -> dict[str, Any]:
    try:
        return _mapping(json.loads(text or "{}", parse_constant=lambda _name: None))
    except (ValueError, RecursionError):  # no JSON, or nested without end
        return {}


def _measurements(measured: Mapping[str, Any]) -> dict[str, Any]:
    names = [
        name for name, value in measured.items() if not isinstance(value, bool) and isinstance(value, (int, float))
    ]
    kept = _numbers(measured, *names)
    if "structures" in measured:
        rows = [row for row in _list(measured["structures"]) if isinstance(row, dict) and "structure" in row]
        kept["structures"] = [_numbers(row, "volume_ml", "score_lost", "share") for row in rows]
    return kept


def _numbers(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Values without those of these names that are no finite number."""
    return {name: value for name, value in values.items() if name not in names or _isNumber(value)}


def _isNumber(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # a whole number larger than any float
        return False


def _isText(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
