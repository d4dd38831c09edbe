"""The command ``xaiclip``: what all its commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import XAICLIPLib
from XAICLIPLib.commands import benchmark, demo, doctor, explain, models, report, tune_prompts
from XAICLIPLib.commands.parser import Parser
from XAICLIPLib.commands.terminal import drop_output, print_message
from XAICLIPLib.errors import Cancelled, InputError, first_line
from XAICLIPLib.system.displaytext import one_line
from XAICLIPLib.system.packages import packages_quiet


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns its exit status: 0 done; 1 an input cannot be used, or something is missing; 3 one of several structures was
    not explained; 130 interrupted, with a partial result where one is announced; 141 whoever read the output went away.
    A wrong option ends with 2, by argparse.
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
        print_message(f"xaiclip: {one_line(error)}")
        return 1
    except Cancelled:
        print_message("xaiclip: interrupted before there was a result, so nothing was written.")
        return 130
    except KeyboardInterrupt:
        print_message("xaiclip: interrupted.")
        return 130
    except BrokenPipeError:
        drop_output()
        return 141
    except ImportError as error:
        print_message(
            f"xaiclip: A package is missing or broken ({first_line(error)}): `xaiclip doctor` says what to install."
        )
        return 1
    except OSError as error:
        drop_output()
        print_message(
            f"xaiclip: {error.filename or 'The output'} cannot be read or written ({error.strerror or error})."
        )
        return 1
    except (MemoryError, RuntimeError) as error:
        from XAICLIPLib.system.memory import out_of_memory, ran_out

        if not out_of_memory(error):
            raise  # a mistake of ours, for whose report the traceback is needed
        print_message(f"xaiclip: {ran_out(error)}")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="xaiclip",
        description="Why did a segmentation network draw an organ where it did? Takes the scan away and brings it "
        "back, part by part, and shows what the network leaned on, in the organ and around it. Research software, not "
        "for diagnosis.",
        epilog='Start with: xaiclip explain scan.nii.gz --prompt "left kidney"',
    )
    parser.add_argument("--version", action="version", version=f"xaiclip {XAICLIPLib.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    explain.add_command(commands)
    report.add_command(commands)
    models.add_commands(
        commands.add_parser(
            "models",
            help="list, download, add and remove models",
            description="Without a command, list the models that ship, can be downloaded, or were added.",
        )
    )
    doctor.add_command(commands)
    demo.add_command(commands)
    tune_prompts.add_command(commands)
    benchmark.add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
