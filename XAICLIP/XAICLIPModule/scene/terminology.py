"""Structures and their codes for the panel and for segments, read from the vocabulary that the library ships.

`XAICLIPLib.anatomy` understands free text, but needs packages that Slicer lacks. Names and codes are plain data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from XAICLIPLib.resources import resource_path

Code = tuple[str, str]
"""Value and meaning of a SNOMED CT code."""

ANATOMICAL: Code = ("123037004", "Anatomical Structure")
CONTEXTS = ("Segmentation category and type - 3D Slicer General Anatomy list", "Anatomic codes - DICOM master list")


@dataclass(frozen=True)
class Term:
    """Codes of one structure; None where there is none."""

    category: Code
    type: Code | None
    modifier: Code | None
    region: Code | None


@cache
def terms() -> Mapping[str, Term]:
    """The codes of every structure of the vocabulary, by its name."""
    data = json.loads(resource_path("anatomy.json").read_text(encoding="utf-8"))
    found = {}
    for line in data["structures"]:
        for name, side in _names(line):
            found[name] = Term(
                category=_code(data["categories"][line.get("category", "anatomical")]) or ANATOMICAL,
                type=_code(line.get("snomed")),
                modifier=_code(data["sides"].get(side)),
                region=_code(line.get("region")),
            )
    return MappingProxyType(found)


def structures() -> list[str]:
    """The names of all structures, in the vocabulary's order."""
    return list(terms())


def entry(name: str) -> str:
    """A segment's terminology entry, as vtkSegment keeps it; "" where the structure or its code is not known.

    The laterality belongs to the anatomic region where there is one, else to the type.
    """
    term = terms().get(name)
    if term is None or term.type is None:
        return ""
    sided = (None, term.modifier) if term.region else (term.modifier, None)
    fields = [CONTEXTS[0], _triple(term.category), _triple(term.type), _triple(sided[0])]
    fields += [CONTEXTS[1], _triple(term.region), _triple(sided[1])]
    return "~".join(fields)


def _names(line: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """What one line of the file stands for: a structure, or the left one, the right one and both."""
    name = line["name"]
    if "both" not in line:
        return [(name, line.get("modifier"))]
    sided = [(name.format(side=s) if "{" in name else f"{s} {name}", s) for s in ("left", "right")]
    return [*sided, (line["both"][0], "both")]


def _code(pair: list[str] | None) -> Code | None:
    return (pair[0], pair[1]) if pair else None


def _triple(code: Code | None) -> str:
    return f"SCT^{code[0]}^{code[1]}" if code else "^^"
