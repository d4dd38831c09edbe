"""The command ``xaiclip explain``: explain a scan."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from XAICLIPLib import anatomy
from XAICLIPLib.commands.results_folder import dicom_folder, folder_argument, results_folder
from XAICLIPLib.commands.several import explain_several
from XAICLIPLib.commands.summary import for_programs, summary, where_written
from XAICLIPLib.commands.terminal import (
    Bars,
    Interrupt,
    output_to_stderr,
    print_json,
    print_message,
    print_output,
)
from XAICLIPLib.errors import Cancelled, InputError
from XAICLIPLib.explainers import methods
from XAICLIPLib.scoring import options
from XAICLIPLib.system.files import check_exists

if TYPE_CHECKING:
    from XAICLIPLib.explanation import Explanation
    from XAICLIPLib.imaging.dicom.source import DicomSource


PASSED_ON = tuple(
    "region model localizer prompts method target score effect baseline threshold modality series device precision "
    "batch_size seed trust labels check".split()
)
"""Options that are passed to `XAICLIPLib.explain` unchanged, under the same name."""


def add_command(commands: Any) -> None:
    """Add ``xaiclip explain``."""
    explain = commands.add_parser(
        "explain",
        help="explain a scan",
        description="Explain why a segmentation network drew a structure where it did. Writes figure.png (look at it "
        "first), saliency.nrrd (the map), probed.nrrd (where something was tried), standard_error.nrrd (of methods "
        "with chance in them), region.nrrd, segmentation.nrrd, target.nrrd (where a mask or a box was given for it), "
        "sufficient.nrrd and necessary.nrrd (with --check), explanation.json (all numbers) and, beside the folders of "
        "several structures, overview.html. Nothing leaves this machine.",
        epilog="Once parts are hidden, Ctrl-C, SIGTERM and a lost terminal end with what is known so far, a second "
        "Ctrl-C at once. Exit status: 0 done, 1 an input cannot be used, 2 a wrong option, 3 one of several structures "
        "was not explained, 130 interrupted.",
    )
    explain.add_argument(
        "volume",
        nargs="+",
        metavar="VOLUME",
        help="the scan: a NIfTI, NRRD or MetaImage file, or a folder or zip file with a DICOM series; several, in the "
        "network's order, where it takes several images of one patient at once",
    )
    explain.add_argument(
        "--prompt",
        required=True,
        type=_text,
        metavar="TEXT",
        help='what to explain, such as "left kidney"; several structures ("liver, spleen and kidneys") are explained '
        "one by one, each in a folder of its own, unless --target says what to explain",
    )
    _add_options(explain)
    explain.set_defaults(command=_explain)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME|PATH",
        help="the segmentation network: a name from `xaiclip models`, or the path of a network of your own (README)",
    )
    parser.add_argument(
        "--localizer",
        metavar="NAME|FOLDER|hf-hub:ID",
        help="the image-text model that finds the prompt in the scan: a name from `xaiclip models`, or an open_clip "
        "model by its folder or Hugging Face id (which is downloaded on first use), or an installed plugin by its name",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="learned prompts for the --localizer, from `xaiclip tune-prompts`; default: those in its folder, if any",
    )
    parser.add_argument(
        "--method",
        choices=list(methods.METHODS),
        metavar="|".join(methods.METHODS),
        help=f"how to explain; default: {methods.default()}, and {methods.FALLBACK} where the network has no "
        "gradients. Below, each has its own options",
    )
    parser.add_argument(
        "--region",
        default="guided",
        metavar="guided|whole|prediction|FILE|box:R,R,A,A,S,S",
        help="which part of the scan to try: where the prompt is found (guided, the default), all of it (whole, slow), "
        "what the network itself draws and a margin (prediction), where a mask of yours is not 0, or a box (from and "
        "to along right, anterior and superior, in mm)",
    )
    parser.add_argument(
        "--target",
        metavar="STRUCTURE|FILE|box:R,R,A,A,S,S",
        help="what of the network's output to explain, where that is not all that the prompt says: another of its "
        "structures by name, a mask of the voxels in question, or what it draws in a box",
    )
    parser.add_argument(
        "--score",
        default=options.SCORES[0],
        type=_words,
        choices=options.SCORES,
        metavar="|".join(score.replace(" ", "-") for score in options.SCORES),
        help="how to measure that the network still draws the same; default: soft-dice, the overlap of its "
        "probabilities with what it drew on the whole scan",
    )
    parser.add_argument(
        "--effect",
        choices=options.PARTS,
        default="total",
        help="for methods that hide places, of the score lost: all of it (total, the default), what was lost elsewhere "
        "(remote: what did the network need this place for?), or what was lost there (local). With remote or local "
        f"and no --method, the method is {methods.FALLBACK}",
    )
    parser.add_argument(
        "--baseline",
        default=options.BASELINES[0],
        choices=options.BASELINES,
        help="what stands in for a hidden part: air (the default), the mean of the region, a blurred copy, or what "
        "lies around it",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="0..1",
        help="probability from which a place belongs to the guided region; default: the localizer's own",
    )
    parser.add_argument(
        "--margin",
        type=float,
        metavar="MM",
        help="added around the guided region, or the prediction, in mm; default: 8",
        dest="margin_mm",
    )
    parser.add_argument(
        "--modality", choices=["CT", "MR"], help="default: what a DICOM header says, or guessed from the intensities"
    )
    parser.add_argument(
        "--series",
        metavar="N|UID",
        help="which series of a DICOM folder that holds several: its number in the list that is given without this, or "
        "its SeriesInstanceUID",
    )
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps", help="default: auto, a GPU if any")
    parser.add_argument(
        "--precision",
        default=options.PRECISIONS[0],
        choices=options.PRECISIONS,
        help="auto (the default): half precision on a CUDA GPU where that was checked to give the same",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="patches computed together: more is faster on a GPU and takes more memory; default: as many as fit",
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="equal seeds give equal results; default: 0")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run the code that the --model folder brings in its configuration; only for a bundle that you trust",
    )
    add_labels_option(parser)
    parser.add_argument(
        "--check",
        action="store_true",
        help="test the map when it is done: against maps that know nothing of the network, and with a little noise in "
        "the scan; takes about three times as long in all",
    )
    parser.add_argument(
        "--output",
        type=folder_argument,
        metavar="FOLDER",
        help="where to write; an earlier explanation there is replaced, other files never are. Default: a new "
        "folder in results/, named after the prompt",
    )
    parser.add_argument(
        "--dicom",
        type=folder_argument,
        metavar="FOLDER",
        help="write DICOM objects of the scan's own study as well, into a folder of their own: maps, segments, "
        "structured report, PDF and picture; for a scan that is DICOM. They name the patient as the scan does",
    )
    parser.add_argument(
        "--anonymous",
        action="store_true",
        help="leave patient, study and scanner out of the --dicom objects; UIDs stay, by which they refer to the scan",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the contents of explanation.json on stdout, and nothing else there"
    )
    for name, about in methods.describe().items():
        if about["parameters"]:
            _add_parameters(parser.add_argument_group(f"--method {name}", about["summary"]), about["parameters"])


def add_labels_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--labels``, the names of a bundle's output channels."""
    parser.add_argument(
        "--labels",
        type=_labels,
        metavar="NAME,NAME,...",
        help="what a MONAI bundle draws that does not name it: the names of its output channels in order, background "
        'first where it has one ("background,liver,spleen"); or by number ("0=background,1=liver")',
    )


def _labels(argument: str) -> dict[int, str]:
    parts = [part.strip() for part in argument.split(",")]
    numbered = [re.fullmatch(r"(\d{1,4})\s*=\s*(.+)", part) for part in parts]
    labels = {int(m[1]): m[2].strip() for m in numbered if m} if all(numbered) else dict(enumerate(parts))
    if not all(labels.values()) or sorted(labels) != list(range(len(parts))):
        raise argparse.ArgumentTypeError(
            f'{argument} names not every channel once from 0 on; write such as "background,liver,spleen"'
        )
    return dict(sorted(labels.items()))


def _add_parameters(group: argparse._ArgumentGroup, parameters: list[dict[str, Any]]) -> None:
    """Add an option for each parameter of a method; a parameter of two methods is listed with the first."""
    for parameter in parameters:
        option = f"--{parameter['name'].removesuffix('_mm').replace('_', '-')}"
        settings: dict[str, Any] = {"dest": parameter["name"], "default": None, "help": parameter["help"]}
        if parameter["type"] == "flag":
            settings["action"] = "store_true"
        elif parameter["type"] == "choice":
            settings |= {"choices": parameter["choices"]}
        else:
            kinds = {"number": float, "integer": int, "text": str}
            settings |= {"type": kinds[parameter["type"]], "metavar": _metavar(parameter)}
        if parameter["default"] not in (None, False):
            settings["help"] += f"; default: {parameter['default']}"
        with contextlib.suppress(argparse.ArgumentError):
            group.add_argument(option, **settings)


def _metavar(parameter: dict[str, Any]) -> str:
    """What stands for the value of an option in the help: its unit, or what it may be."""
    if parameter["unit"]:
        return str(parameter["unit"]).upper()
    if parameter["type"] == "text":
        return "NAME"
    return "N" if parameter["type"] == "integer" else f"{parameter['least']:g}..{parameter['most']:g}"


def _text(argument: str) -> str:
    """A text from the command line, in which bytes that are no valid text are replaced."""
    text = argument.encode("utf-8", "replace").decode("utf-8")
    if not text.strip():
        raise argparse.ArgumentTypeError('it is empty; say what to explain, such as "liver"')
    return text


def _words(argument: str) -> str:
    return re.sub("[-_ ]+", " ", argument.strip().lower())


def _seed(argument: str) -> int:
    if not argument.isdecimal() or int(argument) >= 2**63:
        raise argparse.ArgumentTypeError(f"{argument} is no whole number from 0 to 2^63-1")
    return int(argument)


def _explain(options: argparse.Namespace) -> int:
    for volume in options.volume:  # before packages and models are loaded, which takes a while
        with contextlib.suppress(OSError):  # reading it will say why
            check_exists(volume)
    inputs = [*options.volume, options.region, options.target, options.prompts]
    source = _dicom_source(options)
    with (
        Interrupt(at_once=True) as interrupt,
        results_folder(options.output, options.prompt, interrupt, inputs) as folder,
        dicom_folder(options.dicom, folder, source, interrupt),
        _nothing_written_yet(interrupt),
        _words_of_options(),
    ):
        passed_on = {name: getattr(options, name) for name in PASSED_ON}
        passed_on |= {} if options.margin_mm is None else {"margin_mm": options.margin_mm}
        passed_on |= {name: value for name in _parameter_names() if (value := getattr(options, name)) is not None}
        if options.target is None and anatomy.names_several(options.prompt):
            return explain_several(options.volume, options.prompt, folder, interrupt, inputs, options.json, passed_on)
        explanation, written = explain_and_save(options.volume, options.prompt, folder, interrupt, **passed_on)
        objects: dict[str, Path] = {}
        if options.dicom is not None:
            print_message("Writing the DICOM objects …")
            objects = explanation.save_dicom(options.dicom, anonymous=options.anonymous)
        if options.json:
            dicom = {"dicom": {n: str(p.resolve()) for n, p in objects.items()}} if objects else {}
            print_json(for_programs(written) | dicom)
        else:
            print_output(summary(explanation))
            print_output(where_written(explanation, written))
            if objects:
                print_output(f"DICOM objects to {options.dicom}: {', '.join(path.name for path in objects.values())}")
    return 0 if explanation.complete else 130


def _dicom_source(options: argparse.Namespace) -> DicomSource | None:
    """Where the scan comes from, if DICOM objects are asked for; refused before the work if there can be none."""
    if options.dicom is None:
        if options.anonymous:
            raise InputError(
                "--anonymous is for DICOM objects, and nothing else names the patient: add --dicom FOLDER."
            )
        return None
    if options.target is None and anatomy.names_several(options.prompt):
        raise InputError(
            "--dicom writes the objects of one explanation, and the prompt names several structures: ask for one at a "
            "time, or leave --dicom out."
        )
    from XAICLIPLib import imaging
    from XAICLIPLib.reporting.dicom import saving

    saving.require_highdicom()
    return imaging.read_dicom_source(options.volume[0], options.series)


def _parameter_names() -> set[str]:
    return {parameter["name"] for about in methods.describe().values() for parameter in about["parameters"]}


def explain_and_save(
    volume: str | Path | list[str], prompt: str, folder: Path, interrupt: Interrupt, **options: Any
) -> tuple[Explanation, dict[str, Path]]:
    """Explain and save, with progress bars on stderr. Output of packages goes to stderr too, so that stdout is free."""
    import torch

    from XAICLIPLib.pipeline import explain

    torch.set_flush_denormal(True)  # numbers next to zero would slow convolutions down
    interrupt.at_once = True  # nothing is lost before the scan is perturbed
    with Bars(interrupt) as bars:
        explanation = explain(
            volume, prompt, on_progress=bars.show, on_warning=bars.warn_early, cancelled=interrupt, **options
        )
    with output_to_stderr():
        written = explanation.save(folder)
    for warning in explanation.warnings:
        bars.warn(warning)
    return explanation, written


@contextlib.contextmanager
def _words_of_options() -> Iterator[None]:
    """Let an error name the options that the user typed, and not the parameters of the library."""
    try:
        yield
    except InputError as error:
        raise InputError(with_options(str(error)), *error.ways) from error


def with_options(message: str) -> str:
    """A message of the library with ``--window`` for ``window_mm``, as of an error about a parameter."""
    names = {*_parameter_names(), "batch_size", "margin_mm", "threshold", "seed"}
    option = {name: f"--{name.removesuffix('_mm').replace('_', '-')}" for name in names}
    any_of = "|".join(sorted(names, key=len, reverse=True))
    of_the_library = "|".join(name for name in names if "_" in name)  # no other words look so
    message = re.sub(rf"\b(?:{of_the_library})\b", lambda m: option[m[0]], message)
    message = re.sub(rf"^({any_of})(?= is )", lambda m: option[m[1]], message)
    about = re.fullmatch(r"(The method \S+ has no parameter )(.*)", message)
    if about:
        message = about[1] + re.sub(rf"(?<!-)\b(?:{any_of})\b(?!-)", lambda m: option[m[0]], about[2])
        message = message.replace("parameter", "option", 1)
    return message


@contextlib.contextmanager
def _nothing_written_yet(interrupt: Interrupt) -> Iterator[None]:
    """Turn an interrupt before there was a result into a message that says so."""
    try:
        yield
    except KeyboardInterrupt:
        if not interrupt.at_once:
            raise
        raise Cancelled("Interrupted before there was a result.") from None
