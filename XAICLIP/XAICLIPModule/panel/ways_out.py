"""What the panel says where the library names a way out for the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from slicer.i18n import tr as _


def sentence(message: str, ways: Iterable[Mapping[str, Any]] | None) -> str:
    """The message of an error, with the panel's words for each way out.

    Parameters
    ----------
    message
        As the library says it.
    ways
        As in `XAICLIPLib.worker.protocol.Error`; what is not known here stays as it was said.
    """
    for way in ways or ():
        words, mine = way.get("words"), _words(str(way.get("kind")), str(way.get("subject")))
        if isinstance(words, str) and words and mine:
            message = message.replace(f"run `{words}`", mine).replace(f'run "{words}"', mine).replace(words, mine)
    return message


def _words(kind: str, subject: str) -> str:
    known = {
        "trust": _('check "Run the code in its configuration" below the network'),
        "download": _("choose {subject} and click Download"),
        "remove": _("choose {subject} and click Remove"),
        "install": _("install {subject} in the Python that computes (see Device and installation)"),
        "target": _("choose another structure in the section What to explain, or draw a segment there"),
        "crop": _("crop the scan along the body, for instance with Crop Volume"),
        "device": _("choose cpu under Device and installation"),
    }
    return known.get(kind, "").format(subject=subject)
