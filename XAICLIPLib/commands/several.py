"""Several structures in one prompt of ``xaiclip explain``: a folder for each, and a page of all."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from XAICLIPLib import anatomy
from XAICLIPLib.commands.summary import for_programs, summary, where_written
from XAICLIPLib.commands.terminal import (
    INTERRUPTED,
    Bars,
    Interrupt,
    output_to_stderr,
    print_json,
    print_message,
    print_output,
)
from XAICLIPLib.reporting import output_folder, overview
from XAICLIPLib.system.displaytext import one_line
from XAICLIPLib.system.files import folder_name

if TYPE_CHECKING:
    from XAICLIPLib.explanation import Explanation

NOT_ALL = 3
"""Exit status where some of the structures were explained and others could not be."""


def explain_several(
    volume: list[str],
    prompt: str,
    folder: Path,
    interrupt: Interrupt,
    inputs: Sequence[object],
    as_json: bool,
    options: dict[str, Any],
) -> int:
    """Explain the structures that a prompt names into folders of their own; returns the exit status.

    Where the network draws all of them as one, there is one explanation, in the folder itself.
    """
    import torch

    from XAICLIPLib.several.explain_each import explain_each

    torch.set_flush_denormal(True)  # numbers next to zero would slow convolutions down
    overview.check_place(folder)
    interrupt.at_once = True  # nothing is lost before the scan is perturbed
    bars = Bars(interrupt)
    pages, records, complete = [], [], True
    with _Places(folder, interrupt, inputs) as places:
        explanations = explain_each(
            volume,
            prompt,
            on_structures=places.claim,
            on_missing=places.note_missing,
            on_progress=bars.show,
            on_warning=bars.warn_early,
            cancelled=interrupt,
            **options,
        )
        with bars:
            explanation = next(explanations, None)
        while explanation is not None:
            with output_to_stderr():
                written = explanation.save(places.place_of(explanation))
            for warning in explanation.warnings:
                bars.warn(warning)
            records.append(for_programs(written))
            complete = complete and explanation.complete
            if not as_json:
                print_output(summary(explanation))
                print_output(where_written(explanation, written) + "\n")
            pages.append(overview.Part(explanation.target["name"], summary(explanation), written["figure"]))
            with bars:
                explanation = next(explanations, None)
        missing = places.missing
        if len(places.folders) > 1:
            path = overview.write(folder, prompt, pages, missing)
            if not as_json:
                print_output(f"An overview of all: {path}")
        if as_json:
            print_json({"explanations": records, "not_explained": missing})
        for name, reason in missing.items():
            print_message(f"xaiclip: The {one_line(name)} was not explained: {one_line(reason)}.")
    if not complete or interrupt.asked:
        return INTERRUPTED
    return NOT_ALL if missing else 0


@dataclass
class _Places:
    """The folders of the explanations: claimed before the work, and removed again where nothing was written.

    Attributes
    ----------
    folder
        Of all, which is claimed already.
    folders
        Of each structure, by its name.
    missing
        What was not explained, and why.
    """

    folder: Path
    interrupt: Interrupt
    inputs: Sequence[object]
    folders: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    _claims: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> _Places:
        return self

    def __exit__(self, *error: Any) -> None:
        self._claims.__exit__(*error)

    def claim(self, names: Sequence[str]) -> None:
        """Make and lock a folder for each structure."""
        own: dict[str, Path] = {}
        for name in names:  # two names may have the same letters ("T1+", "T1-"), or so many in common
            called, taken = folder_name(name, "structure"), set(own.values())
            others = (self.folder / f"{called}-{number}" for number in itertools.count(2))
            own[name] = next(place for place in itertools.chain([self.folder / called], others) if place not in taken)
        self.folders = own if len(names) > 1 else dict.fromkeys(names, self.folder)
        for place in self.folders.values():
            if place != self.folder:
                self._claims.callback(_remove_if_empty, place)
                self.interrupt.undo[:0] = [partial(output_folder.abandon, place), partial(_remove_if_empty, place)]
                self._claims.enter_context(output_folder.claimed(place, self.inputs))

    def note_missing(self, name: str, reason: str) -> None:
        """Note a structure that is not explained."""
        self.missing[name] = reason

    def place_of(self, explanation: Explanation) -> Path:
        """Where an explanation is written."""
        return self.folders[anatomy.name_of(explanation.record["prompt"])]


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
