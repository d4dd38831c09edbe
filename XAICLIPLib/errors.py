"""The errors that a user can mend."""

from __future__ import annotations

from XAICLIPLib.displaytext import in_line


class InputError(ValueError):
    """An input that cannot be used: its message is one sentence that names it and the way out.

    Names and values in it may be a stranger's: whatever they hold, it stays one line that commands no terminal.
    """

    def __init__(self, message: str) -> None:
        super().__init__(in_line(message))


class Cancelled(RuntimeError):
    """The user ended a computation before there was anything to return."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error: BaseException, most: int = 200) -> str:
    """All that an error says, on one line of ``most`` characters; its class where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[:most] + "…"
