"""The command ``xaiclip benchmark``: the paper's experiment on a labelled dataset, with controls."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from XAICLIPLib.commands.terminal import Interrupt, print_message, print_output
from XAICLIPLib.errors import InputError
from XAICLIPLib.explainers import methods
from XAICLIPLib.scoring import options
from XAICLIPLib.system.files import atomic_file

if TYPE_CHECKING:
    from XAICLIPLib.experiment.benchmark import Outcome, Plan
    from XAICLIPLib.experiment.datasets.published import Dataset

KINDS = ("flare22", "chaos", "btcv", "msd", "nnunet", "folder", "manifest")
"""The same as `XAICLIPLib.experiment.datasets.published.Kind`, which would be slow to import for a help text."""

PAPERS_METHODS = "occlusion,rise,lime"


def add_command(commands: Any) -> None:
    """Add the command to those of an argument parser."""
    parser = commands.add_parser(
        "benchmark",
        help="compare guided and unguided explanations on a labelled dataset",
        description="Explain every structure of every case with every method, guided by the localizer and unguided, "
        "and compare what they cost and are worth, beside controls that know nothing of the network. Writes "
        "report.md, results.csv and figure.png, without the names of cases. Unguided maps take long on a CPU.",
        epilog="A run that was ended (Ctrl-C) goes on where it was when it is started again with the same --output. "
        "Which case has which number is written to cases.json, and why one was left out to problems.txt: they may "
        "name patients, do not pass them on.",
    )
    parser.add_argument("--dataset", required=True, choices=KINDS, help="how the dataset is laid out")
    parser.add_argument("--root", required=True, type=Path, metavar="FOLDER|FILE", help="where it lies")
    parser.add_argument(
        "--structures", required=True, type=_names, metavar="NAME,NAME", help='such as "liver,left kidney"'
    )
    parser.add_argument(
        "--methods",
        type=_names,
        default=_names(PAPERS_METHODS),
        metavar="NAME,NAME",
        help=f"of {', '.join(methods.METHODS)}; default: {PAPERS_METHODS}, the paper's",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="where to write")
    parser.add_argument(
        "--cases",
        type=_names,
        default=(),
        metavar="NAME,NAME",
        help='cases by the names that the dataset gives them, or patterns ("abdomen_2*"); default: all',
    )
    parser.add_argument("--model", metavar="NAME|PATH", help="the segmentation network, as for `xaiclip explain`")
    parser.add_argument("--localizer", metavar="NAME|FOLDER|hf-hub:ID", help="likewise, what finds the prompt")
    parser.add_argument(
        "--window",
        type=float,
        metavar="MM",
        dest="window_mm",
        help="edge of occlusion's windows, RISE's cells and LIME's supervoxels, guided and unguided alike; default: by "
        "the size of the structure",
    )
    parser.add_argument(
        "--stride", type=float, metavar="MM", dest="stride_mm", help="of occlusion's windows; default: half of one"
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="patterns of RISE and sets of LIME, guided and unguided alike (LIME takes at least two for each "
        "supervoxel of the whole scan); default: the methods' own",
    )
    parser.add_argument(
        "--paper-like",
        action="store_true",
        help="parameters that are told of the paper at second hand, in mm; they are not known to be the paper's",
    )
    parser.add_argument(
        "--score",
        default=options.SCORES[0],
        type=lambda text: text.replace("-", " "),
        choices=options.SCORES,
        metavar="|".join(score.replace(" ", "-") for score in options.SCORES),
        help="by which maps are made; default: soft-dice",
    )
    parser.add_argument("--baseline", default=options.BASELINES[0], choices=options.BASELINES, help="of hidden parts")
    parser.add_argument(
        "--points", type=int, default=8, metavar="N", help="of deletion and insertion curves; default: 8"
    )
    parser.add_argument(
        "--random-orders", type=int, default=2, metavar="N", help="that chance is estimated from; default: 2"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is random; default: 0")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps", help="default: auto, a GPU if any")
    parser.add_argument("--trust", action="store_true", help="run the code that the --model brings")
    parser.set_defaults(command=_benchmark)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("it is empty; give names with commas between them")
    return names


def _benchmark(options: argparse.Namespace) -> int:
    import torch

    from XAICLIPLib.experiment.benchmark import Plan, benchmark
    from XAICLIPLib.experiment.datasets.published import read_dataset

    torch.set_flush_denormal(True)  # numbers next to zero would slow convolutions down
    plan = Plan(
        structures=options.structures,
        methods=options.methods,
        cases=options.cases,
        window_mm=options.window_mm,
        stride_mm=options.stride_mm,
        samples=options.samples,
        paper_like=options.paper_like,
        score=options.score,
        baseline=options.baseline,
        seed=options.seed,
        points=options.points,
        random_orders=options.random_orders,
    )
    plan.check()
    dataset = read_dataset(options.dataset, options.root)
    for problem in dataset.problems:
        print_message(f"Left out: {problem}")
    with Interrupt() as interrupt:
        outcome = benchmark(
            dataset,
            plan,
            options.output,
            kind=options.dataset,
            model=options.model,
            localizer=options.localizer,
            device=options.device,
            trust=options.trust,
            tell=print_message,
            cancelled=interrupt,
        )
    write(outcome, plan, dataset, options.output)
    print_output((options.output / "report.md").read_text(encoding="utf-8"))
    if not outcome.complete:
        print_message("Interrupted; what was measured is kept. The same command goes on.")
        return 130
    return 0 if outcome.rows else 1


def write(outcome: Outcome, plan: Plan, dataset: Dataset, folder: Path) -> None:
    """Write the report, the table and the picture, and two separate files that may name patients.

    Raises
    ------
    InputError
        The folder cannot be written.
    """
    from XAICLIPLib.experiment.figure import save_figure
    from XAICLIPLib.experiment.report import write_csv, write_report

    try:
        write_csv(outcome.rows, folder / "results.csv")
        if outcome.rows:
            save_figure(outcome.rows, plan.methods, folder / "figure.png")
        write_report(outcome, plan, folder / "report.md", "figure.png" if outcome.rows else None)
        names = {number: case.identifier for number, case in enumerate(dataset, 1)}
        _write(folder / "cases.json", json.dumps(names, indent=1))
        _write(folder / "problems.txt", "".join(f"{line}\n" for line in (*dataset.problems, *outcome.problems)))
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): choose another --output.") from error


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
