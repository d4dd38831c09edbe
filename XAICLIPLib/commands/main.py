"""The command ``xaiclip``: explain a scan, list the models, look the installation over, run the demo."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import XAICLIPLib
from XAICLIPLib.commands import benchmark, tune_prompts
from XAICLIPLib.commands.models import add_commands
from XAICLIPLib.commands.terminal import Bars, Interrupt, drop_output, say, tell, tell_json
from XAICLIPLib.errors import Cancelled, InputError, first_line
from XAICLIPLib.explainers import methods
from XAICLIPLib.reporting import output_folder
from XAICLIPLib.scoring import options
from XAICLIPLib.system.displaytext import one_line
from XAICLIPLib.system.files import check_there
from XAICLIPLib.system.packages import packages_quiet

if TYPE_CHECKING:
    from XAICLIPLib.explanation import Explanation
    from XAICLIPLib.progress import Progress

LONGEST_NAME = 60
"""Characters of a prompt that a folder is named after: at most 240 bytes, and file systems take 255."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns its exit status: 0 done; 1 an input cannot be used, or something is missing; 130 interrupted, with a partial
    result where one is announced; 141 whoever read the output went away. A wrong option ends with 2, by argparse.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # no prompt or path is worth a crash of a plain terminal
    try:
        try:
            options = _parser().parse_args(arguments)
            with packages_quiet():
                return int(options.command(options))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a closed pipe or a full disk can still be told
    except InputError as error:
        say(f"xaiclip: {one_line(error)}")
        return 1
    except Cancelled:
        say("xaiclip: interrupted before there was a result, so nothing was written.")
        return 130
    except KeyboardInterrupt:
        say("xaiclip: interrupted.")
        return 130
    except BrokenPipeError:
        drop_output()
        return 141
    except ImportError as error:
        say(f"xaiclip: A package is missing or broken ({first_line(error)}): `xaiclip doctor` says what to install.")
        return 1
    except OSError as error:
        drop_output()
        say(f"xaiclip: {error.filename or 'The output'} cannot be read or written ({error.strerror or error}).")
        return 1
    except (MemoryError, RuntimeError) as error:
        from XAICLIPLib.segmentation.batching import out_of_memory

        if not out_of_memory(error):
            raise  # a mistake of ours, for whose report the traceback is needed
        say("xaiclip: There is not enough memory: crop the scan, lower --batch-size, or try --device cpu.")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xaiclip",
        description="Why did a segmentation network draw an organ where it did? Hides one small part of the scan after "
        "the other and shows where that changes what the network draws. Research software, not for diagnosis.",
        epilog='Start with: xaiclip explain scan.nii.gz --prompt "left kidney"',
    )
    parser.add_argument("--version", action="version", version=f"xaiclip {XAICLIPLib.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    explain = commands.add_parser(
        "explain",
        help="explain a scan",
        description="Explain why a segmentation network drew a structure where it did. Writes figure.png (look at it "
        "first), saliency.nrrd, region.nrrd, segmentation.nrrd and explanation.json. Nothing leaves this machine.",
        epilog="Once parts are hidden, Ctrl-C, SIGTERM and a lost terminal end with what is known so far, a second "
        "Ctrl-C at once. Exit status: 0 done, 1 an input cannot be used, 2 a wrong option, 130 interrupted.",
    )
    explain.add_argument(
        "volume",
        nargs="+",
        metavar="VOLUME",
        help="the scan: a NIfTI, NRRD or MetaImage file, or a folder or zip file with a DICOM series; several, in the "
        "network's order, where it takes several images of one patient at once",
    )
    explain.add_argument(
        "--prompt", required=True, type=_text, metavar="TEXT", help='what to explain, such as "liver" or "left kidney"'
    )
    _add_options(explain)
    explain.set_defaults(command=_explain)

    report = commands.add_parser(
        "report",
        help="write a saved explanation as a page for a reader",
        description="Write the explanation in a folder as one HTML file that needs nothing else, or as a PDF: what was "
        "explained, with what, whether to believe it, and how to read it. No names, dates or paths of the scan are "
        "written; the pictures show the anatomy.",
    )
    report.add_argument("folder", type=_folder, metavar="FOLDER", help="the folder that `xaiclip explain` wrote")
    report.add_argument(
        "--output", type=_folder, metavar="FILE", help="an .html or .pdf file; default: report.html in the folder"
    )
    report.add_argument("--pdf", action="store_true", help="write a PDF too, beside the HTML file")
    report.add_argument(
        "--volume",
        metavar="PATH",
        help="the scan, to show the slices with the largest effect: the folder does not hold it",
    )
    report.add_argument("--series", metavar="N|UID", help="which series of a DICOM folder, as for `xaiclip explain`")
    report.set_defaults(command=_report)

    add_commands(
        commands.add_parser(
            "models",
            help="list, download, add and remove models",
            description="Without a command, list the models that ship, can be downloaded, or were added.",
        )
    )

    doctor = commands.add_parser(
        "doctor",
        help="say what would run here, and what is missing",
        description="Look at the packages, the device and the models. Exit status: 0 when an explanation can run here "
        "(on a CPU too), 1 when something has to be mended first.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)

    demo = commands.add_parser(
        "demo",
        help="explain a synthetic torso, and a real CT where the test data are",
        description="Explain the liver of a synthetic torso, and of a real CT where the test data are. Replaces the "
        "results of an earlier demo in the same folder.",
    )
    demo.add_argument(
        "--output", type=_folder, default=Path("results"), metavar="FOLDER", help="where to write; default: results"
    )
    demo.add_argument(
        "--data",
        type=_folder,
        default=Path("../shared/data"),
        metavar="FOLDER",
        help="where the real volumes are, if anywhere; default: ../shared/data",
    )
    demo.set_defaults(command=_demo)

    tune_prompts.add_command(commands)
    benchmark.add_command(commands)
    return parser


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
        default=next(iter(methods.METHODS)),
        choices=list(methods.METHODS),
        metavar="|".join(methods.METHODS),
        help=f"how to explain; default: {next(iter(methods.METHODS))}. Below, each has its own options",
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
        "--baseline",
        default=options.BASELINES[0],
        choices=options.BASELINES,
        help="what stands in for a hidden part: air (the default), the mean of the region, a blurred copy, or what "
        "lies around it",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
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
    parser.add_argument(
        "--check",
        action="store_true",
        help="test the map when it is done: against maps that know nothing of the network, and with a little noise in "
        "the scan; takes about as long again",
    )
    parser.add_argument(
        "--output",
        type=_folder,
        metavar="FOLDER",
        help="where to write; an earlier explanation there is replaced, other files never are. Default: a new "
        "folder in results/, named after the prompt",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the contents of explanation.json on stdout, and nothing else there"
    )
    for name, about in methods.describe().items():
        if about["parameters"]:
            _add_parameters(parser.add_argument_group(f"--method {name}", about["summary"]), about["parameters"])


def _add_parameters(group: argparse._ArgumentGroup, parameters: list[dict[str, Any]]) -> None:
    """An option for each parameter of a method; where two methods share one, it stands with the first."""
    for parameter in parameters:
        option = f"--{parameter['name'].removesuffix('_mm').replace('_', '-')}"
        told: dict[str, Any] = {"dest": parameter["name"], "default": None, "help": parameter["help"]}
        if parameter["type"] == "flag":
            told["action"] = "store_true"
        elif parameter["type"] == "choice":
            told |= {"choices": parameter["choices"]}
        else:
            kinds = {"number": float, "integer": int, "text": str}
            told |= {
                "type": kinds[parameter["type"]],
                "metavar": parameter["unit"].upper() or parameter["name"].upper(),
            }
        if parameter["default"] not in (None, False):
            told["help"] += f"; default: {parameter['default']}"
        with contextlib.suppress(argparse.ArgumentError):
            group.add_argument(option, **told)


def _text(given: str) -> str:
    """Words of the user, without the bytes that are no text."""
    text = given.encode("utf-8", "replace").decode("utf-8")
    if not text.strip():
        raise argparse.ArgumentTypeError('it is empty; say what to explain, such as "liver"')
    return text


def _words(given: str) -> str:
    return re.sub("[-_ ]+", " ", given.strip().lower())


def _folder(given: str) -> Path:
    if not given.strip():
        raise argparse.ArgumentTypeError("it is empty; name a folder")
    return Path(given)


def _seed(given: str) -> int:
    if not given.isdecimal() or int(given) >= 2**63:
        raise argparse.ArgumentTypeError(f"{given} is no whole number from 0 to 2^63-1")
    return int(given)


def _explain(options: argparse.Namespace) -> int:
    for volume in options.volume:  # before packages and models are loaded, which takes a while
        with contextlib.suppress(OSError):  # reading it will say why
            check_there(volume)
    inputs = [*options.volume, options.region, options.target, options.prompts]
    with (
        Interrupt(at_once=True) as interrupt,
        _results(options.output, options.prompt, interrupt, inputs) as folder,
        _until_there_is_a_result(interrupt),
    ):
        explanation, written = _run(
            options.volume,
            options.prompt,
            folder,
            interrupt,
            region=options.region,
            model=options.model,
            localizer=options.localizer,
            prompts=options.prompts,
            method=options.method,
            target=options.target,
            score=options.score,
            baseline=options.baseline,
            threshold=options.threshold,
            modality=options.modality,
            series=options.series,
            device=options.device,
            precision=options.precision,
            batch_size=options.batch_size,
            seed=options.seed,
            trust=options.trust,
            check=options.check,
            **({} if options.margin_mm is None else {"margin_mm": options.margin_mm}),
            **{name: value for name in _parameter_names() if (value := getattr(options, name)) is not None},
        )
        if options.json:
            # Read back: the file has null where the numbers are not finite, which JSON could not hold.
            record = json.loads(written["explanation"].read_text(encoding="utf-8"))
            tell_json(record | {"files": {n: str(p.resolve()) for n, p in written.items()}})
        else:
            tell(summary(explanation))
            what = "Written" if explanation.complete else "Interrupted; the partial result was written"
            tell(f"{what} to {folder}: {', '.join(path.name for path in written.values())}")
    return 0 if explanation.complete else 130


def _parameter_names() -> set[str]:
    return {parameter["name"] for about in methods.describe().values() for parameter in about["parameters"]}


def _run(
    volume: str | Path | list[str], prompt: str, folder: Path, interrupt: Interrupt, **options: Any
) -> tuple[Explanation, dict[str, Path]]:
    """Explain and save, with progress bars on stderr and nothing on stdout, whatever the packages have to say."""
    import torch

    from XAICLIPLib.pipeline import explain

    interrupt.at_once = True  # nothing is lost before the scan is perturbed

    def show(progress: Progress) -> None:
        interrupt.at_once = interrupt.at_once and progress.stage != "explain"
        bars.show(progress)

    torch.set_flush_denormal(True)  # numbers next to zero would slow convolutions down
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(sys.stderr or nowhere),
    ):
        with Bars() as bars:
            explanation = explain(volume, prompt, on_progress=show, cancelled=interrupt, **options)
        written = explanation.save(folder)
    for warning in explanation.warnings:
        say(f"Warning: {one_line(warning)}")
    return explanation, written


@contextlib.contextmanager
def _until_there_is_a_result(interrupt: Interrupt) -> Iterator[None]:
    """Say of a signal that ended at once that nothing was written."""
    try:
        yield
    except KeyboardInterrupt:
        if not interrupt.at_once:
            raise
        raise Cancelled("Interrupted before there was a result.") from None


@contextlib.contextmanager
def _results(
    wanted: Path | None, prompt: str, interrupt: Interrupt | None = None, inputs: Sequence[object] = ()
) -> Iterator[Path]:
    """The output folder: made, tried and claimed before the work, not after it; gone where nothing came of it."""
    parent = wanted or Path("results")
    made: list[Path] = []
    try:
        made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        folder = wanted or new_folder(parent, prompt)
        if wanted is None:
            made.insert(0, folder)
    except OSError as error:
        _remove_empty(made)
        raise InputError(
            f"The results cannot be written to {parent} ({error.strerror or error}): choose another folder with "
            "--output."
        ) from error
    if interrupt is not None:
        interrupt.undo[:] = [lambda: output_folder.abandon(folder), lambda: _remove_empty(made)]
    try:
        with output_folder.claimed(folder, inputs):
            yield folder
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def new_folder(parent: Path, prompt: str) -> Path:
    """Make a folder that was not there, named after the prompt, so that no earlier result is replaced.

    The name has letters, digits and hyphens alone, of any script: no prompt leads out of the parent.
    """
    name = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", prompt).lower())
    name = name.strip("-")[:LONGEST_NAME].strip("-") or "explanation"
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()  # not asked first: another process may be quicker
            break
    return folder


def summary(explanation: Explanation) -> str:
    """An explanation in a few lines for a person."""
    found, region, name = explanation.measurements, explanation.region, one_line(explanation.target["name"])
    drawn = "the mask given" if explanation.target["voxels"] == "given" else "what the network drew"
    where = {
        "guided": "the region found for the prompt",
        "prediction box": "a box around what the network drew",
        "whole": "the whole scan",
        "prediction": "what the network drew, and a margin",
        "file": "the mask given",
    }[region.source]
    held = f", with {region.agreement.recall:.0%} of {drawn} inside" if region.agreement else ""
    lines = [
        f"Explained: {name}, {found['target_volume_ml']:.0f} ml ({drawn})",
    ]
    captions = methods.METHODS[explanation.record["parameters"]["method"]].captions
    if "structures" in found:
        lines += [
            f"Tried:     {len(found['structures'])} structures were removed whole, those in or across {where}",
            f"Effect:    of the score of {found['score_unperturbed']:.3f} up to "
            f"{max(0.0, found['largest_score_lost']):.3f} was lost ({captions.value})",
        ]
    elif captions.value:
        lines += [
            f"Tried:     {where}, {region.volume_ml:.0f} ml, {region.share_of_body:.0%} of the body{held}",
            f"Effect:    hiding a part of it lowers the score of {found['score_unperturbed']:.3f} by up to "
            f"{max(0.0, found['largest_score_lost']):.3f} ({captions.value})",
        ]
    else:
        lines.append("Tried:     nothing was hidden: gradients over all that the network sees around the target")
    for row in found.get("structures", [])[:5]:
        without = f"           without {one_line(row['structure'])}"
        lines.append(f"{without}: {row['score_lost']:+.3f} lost ({row['volume_ml']:.0f} ml)")
    if found.get("not_removed"):
        lines.append(f"           not removed, as they lie outside: {', '.join(map(one_line, found['not_removed']))}")
    if found["effect_inside_target"] is None:
        lines.append("           nothing made any difference")
    elif "structures" in found:
        lines.append(
            f"           {found['effect_inside_target']:.0%} of all that was lost went with {name} itself; were all "
            f"structures alike, {found['effect_inside_target_if_uniform']:.0%} would"
        )
    else:
        lines.append(
            f"           {found['effect_inside_target']:.0%} of the effect lies inside the structure; spread evenly, "
            f"{found['effect_inside_target_if_uniform']:.0%} would"
        )
    record = explanation.record
    if record.get("faithfulness") or record.get("stability"):
        lines += ["Checked:"] + [
            f"           {'passed' if not flag['raised'] else 'FAILED'}: {flag['sentence']}"
            for flag in record["reliability"]
            if flag["name"] in ("like the null", "no more than the outline", "unstable")
        ]
    work = f"{sum(record['timings_s'].values()):.0f} s on {record['parameters']['device']}"
    work += f", {found['perturbations']} {captions.counted}"
    full, computed = found["patches_full_inference_would_compute"], found["patches_computed"]
    if computed:
        work += f", {computed} network patches"
        if full > computed:
            work += f" instead of {full}" + (f" ({full / computed:.1f} times fewer)" if full > 1.1 * computed else "")
    return "\n".join([*lines, f"Work:      {work}"])


def _report(options: argparse.Namespace) -> int:
    from XAICLIPLib.reporting.report import save_report

    written = save_report(options.folder, options.output, volume=options.volume, series=options.series, pdf=options.pdf)
    for path in written.values():
        tell(f"Written: {path}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from XAICLIPLib.commands.doctor import examine

    checks = examine()
    broken = [check for check in checks if not check.ok and not check.optional]
    if options.json:
        tell_json([vars(check) for check in checks])
        return 1 if broken else 0
    for check in checks:
        mark = "-   " if not check.here else "ok  " if check.ok else "note" if check.optional else "NO  "
        tell(f"{mark} {check.name:<16} {check.found}")
        if not check.ok and check.remedy:
            tell(f"     {'':<16} -> {check.remedy}")
    if broken:
        tell(f"\nXAI-CLIP cannot run properly here. To mend: {', '.join(check.name for check in broken)}.")
    else:
        tell("\nAll that is needed is here.")
    return 1 if broken else 0


def _demo(options: argparse.Namespace) -> int:
    from XAICLIPLib.imaging.phantom import write_phantom

    with _results(options.output / "phantom", "") as folder:
        tell("Making a synthetic torso ...")
        scan, _ = write_phantom(folder)
    runs = [("the synthetic torso", scan, options.output / "phantom-liver")]
    real = options.data / "totalseg" / "example_ct.nii.gz"
    if real.is_file():
        runs.append(("a real CT", real, options.output / "ct-liver"))
    pictures = []
    with Interrupt(at_once=True) as interrupt:
        for what, volume, wanted in runs:
            tell(f"Explaining the liver of {what} ({volume}) ...")
            with _results(wanted, "liver", interrupt) as folder:
                explanation, written = _run(volume, "liver", folder, interrupt)
            tell(summary(explanation) + "\n")
            pictures.append(written["figure"])
            if interrupt.asked:
                break
    if len(runs) == 1:
        tell(f"A real CT would be explained too, were there one at {real}.")
    tell("Interrupted; what there is:" if interrupt.asked else "Done. Look at:")
    for picture in pictures:
        tell(f"  {picture}")
    command = sys.argv[0] if Path(sys.argv[0]).stem == "xaiclip" else "xaiclip"
    tell(f'Your own scan: {command} explain SCAN.nii.gz --prompt "left kidney"')
    return 130 if interrupt.asked else 0


if __name__ == "__main__":
    sys.exit(main())
