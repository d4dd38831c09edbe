"""The errors that a user can mend."""

from __future__ import annotations


class InputError(ValueError):
    """An input that cannot be used: its message is one sentence that names it and the way out."""


class Cancelled(RuntimeError):
    """The user ended a computation before there was anything to return."""
