"""The command ``xaiclip demo``: explain a synthetic torso, and a real CT where there is one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from XAICLIPLib.commands.explain import explain_and_save
from XAICLIPLib.commands.results_folder import folder_argument, results_folder
from XAICLIPLib.commands.summary import summary
from XAICLIPLib.commands.terminal import Interrupt, print_output


def add_command(commands: Any) -> None:
    """Add ``xaiclip demo``."""
    demo = commands.add_parser(
        "demo",
        help="explain a synthetic torso, and a real CT where the test data are",
        description="Explain the liver of a synthetic torso, and of a real CT where the test data are. Replaces the "
        "results of an earlier demo in the same folder.",
    )
    demo.add_argument(
        "--output",
        type=folder_argument,
        default=Path("results"),
        metavar="FOLDER",
        help="where to write; default: results",
    )
    demo.add_argument(
        "--data",
        type=folder_argument,
        default=Path("../shared/data"),
        metavar="FOLDER",
        help="where the real volumes are, if anywhere; default: ../shared/data",
    )
    demo.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    from XAICLIPLib.imaging.phantom import write_phantom

    with results_folder(options.output / "phantom", "") as folder:
        print_output("Making a synthetic torso ...")
        scan, _ = write_phantom(folder)
    runs = [("the synthetic torso", scan, options.output / "phantom-liver")]
    real = options.data / "totalseg" / "example_ct.nii.gz"
    if real.is_file():
        runs.append(("a real CT", real, options.output / "ct-liver"))
    pictures = []
    with Interrupt(at_once=True) as interrupt:
        for what, volume, output in runs:
            print_output(f"Explaining the liver of {what} ({volume}) ...")
            with results_folder(output, "liver", interrupt) as folder:
                explanation, written = explain_and_save(volume, "liver", folder, interrupt)
            print_output(summary(explanation) + "\n")
            pictures.append(written["figure"])
            if interrupt.asked:
                break
    if len(runs) == 1:
        print_output(f"A real CT would be explained too, were there one at {real}.")
    print_output("Interrupted; what there is:" if interrupt.asked else "Done. Look at:")
    for picture in pictures:
        print_output(f"  {picture}")
    command = sys.argv[0] if Path(sys.argv[0]).stem == "xaiclip" else "xaiclip"
    print_output(f'Your own scan: {command} explain SCAN.nii.gz --prompt "left kidney"')
    return 130 if interrupt.asked else 0
