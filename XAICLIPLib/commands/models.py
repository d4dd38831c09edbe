"""The command ``xaiclip models``: list them, describe one, download, add and remove."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from XAICLIPLib.commands.explain import add_labels_option
from XAICLIPLib.commands.terminal import Interrupt, print_json, print_message, print_output
from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.system.displaytext import one_line

if TYPE_CHECKING:
    from XAICLIPLib.models.entry import Entry

LISTED_STRUCTURES = 24
"""Structures of a model that are named in the list of all models; the others are only counted."""

LINE_EVERY_S = 5.0

NOT_HERE = "not on this machine"
"""Of a model: here, and in what `xaiclip doctor` says."""


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add its subcommands to the parser of ``xaiclip models``; without a subcommand, it lists the models."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_list)
    commands = parser.add_subparsers(metavar="COMMAND")

    listing = commands.add_parser("list", help="list the models; the default")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_list)

    info = commands.add_parser("info", help="all about one model")
    info.add_argument("name", metavar="NAME|PATH", help="a model of the list, or the folder or file of one of yours")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(command=_info)

    download = commands.add_parser(
        "download",
        help="download a model",
        description="Download a model, or install it from files that are here. What was cut off goes on where it was.",
    )
    download.add_argument("name", metavar="NAME")
    download.add_argument(
        "--from",
        type=Path,
        dest="local_path",
        metavar="FILE",
        help="use this archive, folder or file instead of the network; its checksum is compared all the same",
    )
    download.set_defaults(command=_download)

    remove = commands.add_parser(
        "remove",
        help="delete what was downloaded of a model, and forget one of your own",
        description="Delete what was downloaded of a model. One of your own is forgotten, and its files stay.",
    )
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(command=_remove)

    add = commands.add_parser(
        "add",
        help="add a model of your own, or a catalogue of models",
        description="Add the folder or file of a model, which stays where it is, or all entries of a catalogue (.json; "
        "its form is in Resources/models.schema.json).",
    )
    add.add_argument("path", type=Path, metavar="PATH")
    add.add_argument("--name", metavar="NAME", help="what to call it; default: as its folder or file")
    add.add_argument(
        "--trust",
        action="store_true",
        help="believe the catalogue where it says that the code of a model was reviewed and may run; of a model, run "
        "its code now to see what it draws",
    )
    add_labels_option(add)
    add.set_defaults(command=_add)


def described(entry: Any, default: bool) -> dict[str, Any]:
    """An entry of the catalogue for programs."""
    keys = ("name", "kind", "format", "title", "modality", "structures", "licence", "citation", "size_mb", "trust")
    described_keys = {key: getattr(entry, key) for key in keys}
    return described_keys | {"source": entry.origin, "installed": entry.installed, "default": default}


def _list(options: argparse.Namespace) -> int:
    from XAICLIPLib.models.catalogue import entries

    listed = entries()
    defaults = {entry.kind: entry.name for entry in reversed(listed)}
    if options.json:
        print_json([described(entry, defaults[entry.kind] == entry.name) for entry in listed])
        return 0
    for kind, heading, own in (
        ("segmenter", "Segmentation networks (--model)", "its folder, or the zip file of a MONAI bundle"),
        ("localizer", "Localizers, which find the prompt in the scan (--localizer)", "any open_clip model"),
    ):
        print_output(heading)
        for entry in listed:
            if entry.kind == kind:
                print_output(f"\n  {entry.name}{' (default)' if defaults[kind] == entry.name else ''}")
                _print_lines(entry, LISTED_STRUCTURES)
        print_output(f"\n  or a model of your own: {own}\n")
    return 0


def _info(options: argparse.Namespace) -> int:
    from XAICLIPLib.models.catalogue import entries, find

    try:
        entry = find(options.name)
    except InputError:
        if not Path(options.name).exists():
            raise
        return _info_of_path(Path(options.name).absolute(), options.json)
    default = next(other for other in entries() if other.kind == entry.kind).name == entry.name
    if options.json:
        place = entry.folder
        more = {"folder": None if place is None else str(place), "files": dict(entry.files)}
        print_json(described(entry, default) | more)
        return 0
    print_output(f"{entry.name}{' (default)' if default else ''}")
    _print_lines(entry, None)
    if entry.citation:
        _print_wrapped(f"Cite: {entry.citation}")
    if entry.folder is not None:
        print_output(f"    Files: {entry.folder}")
    if entry.trust:
        _print_wrapped("Its code was reviewed and runs without --trust, so long as its files are unchanged.")
    return 0


def _info_of_path(path: Path, as_json: bool) -> int:
    """Tell what can be read quickly from a model's files, without loading it or running anything of it."""
    from XAICLIPLib.models.user_entries import entry_for_path
    from XAICLIPLib.segmentation.bundles import metadata

    _check_known(path)
    entry = entry_for_path(path, path.name)
    content = metadata.read_metadata(path) if entry.format == "bundle" else {}
    task, packages = metadata.other_task(content), metadata.needed_packages(content)
    if as_json:
        print_json(described(entry, False) | {"folder": str(path), "segments": task is None, "packages": packages})
        return 0
    print_output(str(path))
    _print_lines(entry, None)
    if task is not None:
        _print_wrapped(f"It is {task}, and draws no structures that could be explained.")
    if packages:
        _print_wrapped(
            f"It asks for the Python packages {metadata.named_packages(packages)}; nothing is installed by XAI-CLIP."
        )
    return 0


def _print_lines(entry: Any, most: int | None) -> None:
    """Print what is known of an entry, in a few lines."""
    _print_wrapped(entry.title)
    modality = "any modality" if entry.modality == "any" else entry.modality
    size = "" if entry.size_mb is None else f"; {entry.size_mb:,.3g} MB"
    _print_wrapped(f"{modality}; licence {entry.licence}{size}; {_source(entry)}")
    if entry.structures:
        names = list(entry.structures[:most])
        rest = len(entry.structures) - len(names)
        knows = f"{'Draws' if entry.kind == 'segmenter' else 'Trained on'}: {', '.join(names)}"
        _print_wrapped(knows + (f" and {rest} more, see `xaiclip models info {entry.name}`" if rest else ""), "  ")


def _source(entry: Any) -> str:
    if entry.source == "shipped":
        return "ships with XAI-CLIP"
    if isinstance(entry.source, Path):
        return f"yours, at {entry.source}" if entry.installed else f"yours, not at {entry.source} any more"
    if entry.installed:
        return f"on this machine, from {entry.origin}"
    if entry.fetched_as("package"):
        return f"{NOT_HERE}; `xaiclip models download {entry.name}` says how to install it, from {entry.origin}"
    if entry.kind == "localizer" and (entry.fetched_as("hf-hub") or entry.fetched_as("open_clip")):
        return f"{NOT_HERE}; downloaded from {entry.origin} on first use"
    return f"{NOT_HERE}; `xaiclip models download {entry.name}` gets it from {entry.origin}"


def _print_wrapped(text: str, hanging: str = "") -> None:
    width = min(max(shutil.get_terminal_size().columns, 60), 100)
    lines = textwrap.wrap(text, width - 4, subsequent_indent=hanging, break_on_hyphens=False, break_long_words=False)
    print_output(textwrap.indent("\n".join(lines), " " * 4))


def _download(options: argparse.Namespace) -> int:
    from XAICLIPLib.models import acquisition
    from XAICLIPLib.models.catalogue import find

    entry = find(options.name)
    if options.local_path is not None:
        print_output(f"Installed in {acquisition.install(entry, options.local_path)}")
        return 0
    if entry.installed:
        entry.check()
        print_output(f"The model {entry.name} is on this machine already.")
        return 0
    try:
        with (
            Interrupt("Stopping; what came so far is kept. Ctrl-C again ends at once.") as interrupt,
            _DownloadBar() as bar,
        ):
            place = acquisition.download(entry, bar.show, interrupt)
    except Cancelled as error:
        print_message(f"xaiclip: {error}")
        return 130
    print_output(f"Installed in {place}. Licence: {one_line(entry.licence)}.")
    return 0


def _remove(options: argparse.Namespace) -> int:
    from XAICLIPLib.models.catalogue import find
    from XAICLIPLib.models.user_entries import remove

    deleted = remove(find(options.name))
    print_output(f"Deleted {', '.join(map(str, deleted))}." if deleted else f"The model {options.name} is forgotten.")
    return 0


def _add(options: argparse.Namespace) -> int:
    from XAICLIPLib.models.catalogue import shipped_entries
    from XAICLIPLib.models.user_entries import add

    if not options.path.name.lower().endswith(".json"):
        _check_known(options.path)
    status = 0
    for entry in add(
        options.path, shipped_entries(), options.name, options.trust, tuple((options.labels or {}).values())
    ):
        option = "--localizer" if entry.kind == "localizer" else "--model"
        if entry.kind == "segmenter" and isinstance(entry.source, Path) and not _try(entry, options.trust):
            status = 1
            print_message(f"It is listed as {entry.name}, and is tried again whenever it is named.")
        else:
            print_output(f"Added. To use it: {option} {entry.name}")
    return status


def _check_known(path: Path) -> None:
    """Refuse a path that is no model, before it is added."""
    from XAICLIPLib.models.archives import is_archive
    from XAICLIPLib.segmentation.networks import formats

    known = not path.exists() or is_archive(path) or (path / "open_clip_config.json").is_file()
    if not known and formats.recognise_format(path) is None:
        raise InputError(
            f"{path} is no model that is known: give {formats.accepted_formats()}; the zip file of one of these; or "
            "the folder of an open_clip model (it has open_clip_config.json)."
        )


def _try(entry: Entry, trust: bool) -> bool:
    """Load a user's network once, and record the structures that it draws; if it does not load, print why.

    Returns
    -------
    bool
        Whether it loads.

    Raises
    ------
    InputError
        It will never do: an archive without a network, a detector. Its entry is removed again.
    """
    import torch

    from XAICLIPLib.models.catalogue import NoNetworkError, load_segmenter
    from XAICLIPLib.models.user_entries import listed_modality, remove, update
    from XAICLIPLib.segmentation.bundles.metadata import NoSegmentationError
    from XAICLIPLib.segmentation.segmenter import class_names

    try:
        network = load_segmenter(entry.name, torch.device("cpu"), trust)
    except (NoNetworkError, NoSegmentationError):
        remove(entry)
        raise
    except InputError as error:
        print_message(f"It does not load as it is: {error}")
        return False
    modality = listed_modality(network.modality)
    listed = replace(entry, structures=class_names(network), modality=modality, inputs=tuple(network.inputs))
    try:
        update(listed)
    except InputError:  # names that a catalogue cannot hold, such as two inputs that are both called CT
        print_message("Its inputs or structures have names that the list cannot show; it can be used all the same.")
        return True
    _print_lines(listed, LISTED_STRUCTURES)
    return True


class _DownloadBar:
    """Shows the progress of a download: by a bar on a terminal, otherwise by a line every few seconds."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._name = ""
        self._last_printed = time.monotonic()

    def __enter__(self) -> _DownloadBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, name: str, done: int, total: int | None) -> None:
        """Show how many bytes of a file have arrived."""
        if sys.stderr is None:
            return
        if sys.stderr.isatty():
            from tqdm import tqdm

            if name != self._name:
                self.__exit__()
                self._bar = tqdm(desc=name, file=sys.stderr, unit="B", unit_scale=True, ncols=80)
            self._bar.total = total
            self._bar.update(done - self._bar.n)
        elif time.monotonic() >= self._last_printed + LINE_EVERY_S:
            self._last_printed = time.monotonic()
            print_message(f"{name}: {done / 1e6:,.1f}{'' if total is None else f' of {total / 1e6:,.1f}'} MB")
        self._name = name
