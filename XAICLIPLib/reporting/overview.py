"""The overview of several explanations: one page with the picture and the summary of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from XAICLIPLib.errors import InputError
from XAICLIPLib.system.files import write_atomically

NAME = "overview.html"
BEGINS = "<!doctype html><!-- XAI-CLIP overview 1 -->"
"""How such a page begins, by which an earlier one is recognised: no other file is ever replaced."""

STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}img{max-width:100%}pre{overflow:auto}"
)


@dataclass(frozen=True)
class Part:
    """One explanation: the name of the structure, its summary in a few lines, and the path of its picture."""

    name: str
    summary: str
    figure: Path


def check_place(folder: Path) -> None:
    """Refuse a folder in which a page of this name is not ours, before the work begins.

    Raises
    ------
    InputError
        With the way out.
    """
    path = folder / NAME
    try:
        ours = not path.exists() or path.read_text(encoding="utf-8", errors="replace").startswith(BEGINS)
    except OSError:
        ours = False
    if not ours:
        raise InputError(f"{path} was not written by XAI-CLIP and would be lost: choose another folder, or move it.")


def write(folder: Path, prompt: str, parts: Sequence[Part], missing: Mapping[str, str]) -> Path:
    """Write the page into the folder that holds the folders of the explanations; returns its path.

    Parameters
    ----------
    folder
        Where.
    prompt
        What was asked.
    parts
        The explanations, in their order.
    missing
        What of the prompt was not explained, and why.
    """
    lines = [BEGINS, f'<meta charset="utf-8"><title>{escape(prompt)}</title><style>{STYLE}</style>']
    lines.append(f"<h1>{escape(prompt)}</h1>")
    lines += [f"<p>The {escape(name)} was not explained: {escape(reason)}.</p>" for name, reason in missing.items()]
    for part in parts:
        place = quote(part.figure.relative_to(folder).as_posix())
        lines.append(f'<h2>{escape(part.name)}</h2><a href="{place}"><img alt="{escape(part.name)}" src="{place}"></a>')
        lines.append(f"<pre>{escape(part.summary)}</pre>")
    lines.append("<p>Research software, not for diagnosis. The volumes and all numbers are in the folders.</p>")
    check_place(folder)
    path = folder / NAME
    try:
        write_atomically(path, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}): free some space there.") from error
    return path
