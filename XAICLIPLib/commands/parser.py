"""The parser of the command line: what is said of a wrong option is short, and names the one that was meant."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from XAICLIPLib.errors import single_line

SIMILAR = 0.6
"""From 0 to 1: how similar a word must be for another to be suggested; "--modle" and "--model" are at 0.86."""


class Parser(argparse.ArgumentParser):
    """An argument parser that says in two lines what is wrong, and suggests what may have been meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As `argparse.ArgumentParser`; what a command does not know is refused by the command itself."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """End with exit status 2, after a short usage and what is wrong."""
        text = single_line(message) + self._meant(message)
        self.exit(2, f"usage: {self._short_usage()}\n{self.prog}: error: {text}\n")

    def _short_usage(self) -> str:
        """The command with what it cannot do without."""
        formatter = self._get_formatter()
        needed = [action for action in self._actions if action.required or not action.option_strings]
        words = []
        for action in sorted(needed, key=lambda action: bool(action.option_strings)):
            value = formatter._format_args(action, str(action.metavar or action.dest.upper()))
            words.append(" ".join([*action.option_strings[:1], value]))
        return f"{' '.join([self.prog, *words])} [options]; `{self.prog} --help` lists them"

    def _meant(self, message: str) -> str:
        """What may have been meant, as the end of the message; empty where nothing is similar."""
        unknown = re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL)
        if unknown:
            wrong = next((word for word in unknown[1].split() if word.startswith("-")), "").partition("=")[0]
            return _suggestion(wrong, self._option_string_actions)
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message, re.DOTALL)
        if choice:
            return _suggestion(choice[1], re.findall(r"[\w.-]+(?: [\w.-]+)*", choice[2]))
        return ""


def _suggestion(wrong: str, known: Iterable[str]) -> str:
    names: Sequence[str] = list(known)
    near = difflib.get_close_matches(wrong, names, 1, SIMILAR) if wrong.strip("-") else []
    return f" (did you mean {near[0]}?)" if near else ""
