"""The licence of a bundle: what its metadata say, else what its licence file is, by the file's opening words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from XAICLIPLib.system.files import is_inside

UNKNOWN = "unknown"

_FILES = ("LICENSE", "LICENCE", "LICENSE.txt", "LICENCE.txt", "LICENSE.md", "license.txt", "COPYING")
_FOLDERS = ("", "docs")
_OPENING, _LONGEST_FILE, _LONGEST_TITLE, _LONGEST_STATED = 1500, 200_000, 80, 500
"""Characters: of a licence's beginning that are looked at, of a file, of a title that is passed on as it is, and of
what the metadata say."""

_REFERS = re.compile(r"\b(see|refer|licen[cs]e\.(txt|md))\b", re.IGNORECASE)
"""A "licence" in the metadata that only points at a file."""

_WEIGHTS = re.compile(r"^.{0,20}\bmodel weights license\b.*$|^this license applies to model weights\b.*$", re.I | re.M)
"""Begins the part on the weights of a file with two licences, as NVIDIA writes them."""

_OPENINGS = (
    ("Apache-2.0", r"apache license,?\s+version 2\.0"),
    ("MIT", r"\bmit license\b|permission is hereby granted, free of charge"),
    ("BSD-3-Clause", r"\bbsd 3-clause\b|redistribution and use in source.*neither the name"),
    ("BSD-2-Clause", r"\bbsd 2-clause\b|redistribution and use in source and binary forms"),
    ("AGPL-3.0", r"gnu affero general public license\s+version 3"),
    ("LGPL-3.0", r"gnu lesser general public license\s+version 3"),
    ("GPL-3.0", r"gnu general public license\s+version 3"),
    ("GPL-2.0", r"gnu general public license\s+version 2"),
    ("MPL-2.0", r"mozilla public license,?\s+version 2\.0"),
    ("CC0-1.0", r"\bcc0 1\.0\b"),
)
_CREATIVE_COMMONS = re.compile(
    r"\battribution(-noncommercial)?(-sharealike|-noderivatives)?\s+(\d\.\d)\b|\bcc[ -]by(-nc)?(-sa|-nd)?[ -](\d\.\d)\b"
)


def licence_of(folder: Path, metadata: Mapping[str, Any]) -> str:
    """The licence of a bundle, as an SPDX identifier where it is a well-known one.

    Parameters
    ----------
    folder
        The bundle.
    metadata
        Its metadata, which come first, unless they only point at a file.

    Returns
    -------
    str
        "unknown" where nothing says it; the first line of a licence file that is none of the well-known ones. Of a
        file to which a link leads out of the folder, as in the caches of downloads, no line is passed on: it could be
        any file of the user's.
    """
    stated = str(metadata.get("license") or metadata.get("licence") or "").strip()
    if len(stated) > _LONGEST_STATED:  # the text of the licence itself
        return named_licence(stated)
    if stated and not _REFERS.search(stated):
        return stated
    for file in (folder / inside / name for inside in _FOLDERS for name in _FILES):
        try:
            if not file.is_file() or file.stat().st_size > _LONGEST_FILE:
                continue
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if text.strip():
            return named_licence(text, titles=is_inside(file, folder))
    return stated or UNKNOWN


def named_licence(text: str, titles: bool = True) -> str:
    """The licence of a text by its opening words; where the weights have one of their own, both.

    Without ``titles``, what is not well known is "unknown", and never the first line of the text.
    """
    weights = _WEIGHTS.search(text)
    if weights is None:
        return _recognised(text, titles)
    code, rest = text[: weights.start()], text[weights.end() :]
    while (again := _WEIGHTS.match(rest.lstrip())) is not None:
        rest = rest.lstrip()[again.end() :]
    return f"{_recognised(code, titles)} (code), {_recognised(rest, titles)} (weights)"


def _recognised(text: str, titles: bool) -> str:
    """The well-known licence that a text begins with, else its first line."""
    opening = " ".join(text[:_OPENING].lower().split())
    if (creative := _CREATIVE_COMMONS.search(opening)) is not None:
        parts = creative.groups()
        noncommercial, other, version = parts[:3] if parts[2] else parts[3:]
        suffix = {None: "", "-sharealike": "-SA", "-sa": "-SA", "-noderivatives": "-ND", "-nd": "-ND"}[other]
        return f"CC-BY{'-NC' if noncommercial else ''}{suffix}-{version}"
    for name, words in _OPENINGS:
        if re.search(words, opening):
            return name
    if not titles:
        return UNKNOWN
    first = next((line.strip(" #*\t") for line in text.splitlines() if line.strip(" #*\t")), UNKNOWN)
    return first if len(first) <= _LONGEST_TITLE else first[:_LONGEST_TITLE] + "…"
