"""Whether a network can answer what is typed: found here, before a worker is asked and packages are loaded."""

from __future__ import annotations

from functools import lru_cache

from slicer.i18n import tr as _

from XAICLIPLib import anatomy

MOST_NAMED = 12
"""Structures that a sentence lists."""


@lru_cache(maxsize=256)
def objection(words: str, network: str, structures: tuple[str, ...]) -> str:
    """Why a network cannot explain what is asked, in a sentence with the way out; empty where it can.

    Parameters
    ----------
    words
        What the user typed.
    network
        Its name.
    structures
        The names of its classes; empty where they are not known, or where it draws whatever it is pointed at.
    """
    if not words.strip() or not structures:
        return ""
    pieces = anatomy.prompts_in(words)
    if len(pieces) > 1 and not any(_plain(name) == _plain(words) for name in structures):
        objections = [objection(piece, network, structures) for piece in pieces]
        unknown = [said for piece, said in zip(pieces, objections, strict=True) if said and not anatomy.resolve(piece)]
        return next(iter(unknown), objections[0] if all(objections) else "")  # what can be explained will be
    classes = dict(enumerate(structures))
    if any(_plain(name) == _plain(words) for name in structures):
        return ""
    meant = anatomy.resolve(words)
    if meant is not None and anatomy.match_label(meant, classes):
        return ""
    if meant is None:
        said = _('"{words}" names no structure that is known').format(words=words.strip())
    else:
        said = _("The network {network} does not draw the {structure}").format(network=network, structure=meant.name)
    return _("{reason}: choose another network, or one of its structures ({structures}).").format(
        reason=said, structures=_listed(structures)
    )


def _plain(name: str) -> str:
    """A name without what only spells it, as the library compares them."""
    return " ".join(name.replace("_", " ").replace("-", " ").split()).lower()


def _listed(structures: tuple[str, ...]) -> str:
    named = ", ".join(structures[:MOST_NAMED])
    rest = len(structures) - MOST_NAMED
    return named if rest <= 0 else _("{structures} and {count} more").format(structures=named, count=rest)
