"""The command ``xaiclip report``: a saved explanation as a page for a reader."""

from __future__ import annotations

import argparse
from typing import Any

from XAICLIPLib.commands.results_folder import folder_argument
from XAICLIPLib.commands.terminal import print_output


def add_command(commands: Any) -> None:
    """Add ``xaiclip report``."""
    report = commands.add_parser(
        "report",
        help="write a saved explanation as a page for a reader",
        description="Write the explanation in a folder as one HTML file that needs nothing else, or as a PDF: what was "
        "explained, with what, whether to believe it, and how to read it. No names, dates or paths of the scan are "
        "written; the pictures show the anatomy.",
    )
    report.add_argument(
        "folder", type=folder_argument, metavar="FOLDER", help="the folder that `xaiclip explain` wrote"
    )
    report.add_argument(
        "--output",
        type=folder_argument,
        metavar="FILE",
        help="an .html or .pdf file; default: report.html in the folder",
    )
    report.add_argument("--pdf", action="store_true", help="write a PDF too, beside the HTML file")
    report.add_argument(
        "--volume",
        metavar="PATH",
        help="the scan, to show the slices with the largest effect: the folder does not hold it",
    )
    report.add_argument("--series", metavar="N|UID", help="which series of a DICOM folder, as for `xaiclip explain`")
    report.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> int:
    from XAICLIPLib.reporting.report import save_report

    written = save_report(options.folder, options.output, volume=options.volume, series=options.series, pdf=options.pdf)
    for path in written.values():
        print_output(f"Written: {path}")
    return 0
