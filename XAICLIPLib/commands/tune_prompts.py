"""The command ``xaiclip tune-prompts``: learned prompts for a localizer, from a few labelled scans."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from XAICLIPLib.commands.terminal import print_message, print_output
from XAICLIPLib.errors import InputError
from XAICLIPLib.system.files import ensure_writable_folder

if TYPE_CHECKING:
    from XAICLIPLib.training.pairs import Pair


def add_command(commands: Any) -> None:
    """Add the command to those of an argument parser."""
    parser = commands.add_parser(
        "tune-prompts",
        help="learn a localizer's prompts from a few labelled scans",
        description="Learn what to say before a structure's name (CoOp), so that a localizer finds the structures of "
        "your scans better. The model itself is not changed. Prints how the regions overlap the labels of scans that "
        "were held out, before and after.",
        epilog='Example: xaiclip tune-prompts --images scans --labels labels --structures "1=spleen,2=right kidney"',
    )
    parser.add_argument(
        "--images", nargs="+", type=Path, required=True, metavar="FOLDER|FILE", help="the scans (NIfTI, NRRD, MHA)"
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        type=Path,
        required=True,
        metavar="FOLDER|FILE",
        help="their label maps, which have the scans' names: case_03_image and case_03_label, or the same in a folder "
        "of their own",
    )
    names = parser.add_mutually_exclusive_group(required=True)
    names.add_argument("--structures", metavar="1=NAME,2=NAME", help="which value of the labels is which structure")
    names.add_argument("--names", type=Path, metavar="FILE", help='the same as a JSON file: {"1": "spleen"}')
    parser.add_argument("--localizer", metavar="NAME|FOLDER|hf-hub:ID", help="as in `xaiclip explain`")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("prompts.safetensors"),
        metavar="FILE",
        help="where to write; default: prompts.safetensors. In the localizer's folder, under that name, they are used "
        "without being asked for; elsewhere with `xaiclip explain --prompts FILE`",
    )
    parser.add_argument(
        "--validation",
        metavar="N|FOLDER",
        help="the scans to choose the best prompts by: the last N by name, or a folder with scans and labels; default: "
        "a fifth of the scans",
    )
    parser.add_argument(
        "--context", type=_positive_integer, default=8, metavar="M", help="vectors of each structure; default: 8"
    )
    parser.add_argument(
        "--steps", type=_positive_integer, default=200, metavar="N", help="at most so many; default: 200"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="equal seeds give equal prompts; default: 0")
    parser.add_argument("--modality", choices=["CT", "MR"], help="default: guessed from the intensities")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps", help="default: auto, a GPU if any")
    parser.set_defaults(command=_tune)


def _positive_integer(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 10**6:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1")
    return int(text)


def _tune(options: argparse.Namespace) -> int:
    import torch

    from XAICLIPLib.localization import learned_prompts
    from XAICLIPLib.localization.localizer import ClipLocalizer
    from XAICLIPLib.models import catalogue
    from XAICLIPLib.system.devices import choose_device
    from XAICLIPLib.training import pairs, prompts

    torch.set_flush_denormal(True)
    names = pairs.parse_names(options.structures) if options.structures else pairs.read_names(options.names)
    labels = pairs.named_labels(names)
    training, validation = _split(pairs.find_pairs(options.images, options.labels), options.validation)
    try:
        ensure_writable_folder(options.output.parent)
    except OSError as error:
        raise InputError(f"{options.output} cannot be written ({error.strerror or error}): choose another.") from error
    localizer = catalogue.load_localizer(options.localizer, choose_device(options.device))
    if not isinstance(localizer, ClipLocalizer):
        raise InputError(f"The localizer {localizer.name} has no prompts to tune: choose an image-text model.")
    tuned = prompts.tune(
        localizer,
        training,
        validation,
        labels,
        length=options.context,
        steps=options.steps,
        seed=options.seed,
        modality=options.modality,
        tell=print_message,
    )
    written = learned_prompts.save(tuned.prompts, localizer.model, options.output)
    print_output(f"Regions and labels of {len(validation)} held-out scans, without the margin:\n")
    print_output(prompts.table(tuned.before, tuned.after))
    if tuned.absent:
        print_message(f"Warning: No training label has the {', '.join(tuned.absent)}: nothing was learned for them.")
    if not tuned.better:
        print_message("Warning: On the held-out scans these prompts are no better than the hand-written ones.")
    print_output(f"\nWritten to {written}, the best of all after {tuned.step} steps.")
    return 0


def _split(pairs: list[Pair], validation: str | None) -> tuple[list[Pair], list[Pair]]:
    """The training pairs, and the validation pairs that are held out."""
    from XAICLIPLib.training.pairs import find_pairs

    if validation is not None and not validation.isdecimal():
        held_out = find_pairs([Path(validation)], [Path(validation)])
        shared = {pair.image.resolve() for pair in held_out} & {pair.image.resolve() for pair in pairs}
        if shared:
            raise InputError(f"{min(shared)} is to be learned from and to validate on: leave it out of one of them.")
        return pairs, held_out
    count = max(1, len(pairs) // 5) if validation is None else int(validation)
    if not 0 < count < len(pairs):
        raise InputError(
            f"Of {len(pairs)} labelled scans {count} cannot be held out: at least one is needed to learn from, and one "
            "to validate on."
        )
    return pairs[:-count], pairs[-count:]
