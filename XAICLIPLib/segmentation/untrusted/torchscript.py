"""TorchScript files: programs in PyTorch's own language, read before they are run.

TorchScript cannot start processes or import modules, but it can read and write files, and does so as soon as it is
loaded if its author wants it to. The text of the program is in the archive and is checked before PyTorch loads it. It
has the syntax of Python. PyTorch's functions may be called in it, but not assigned to other names.
"""

from __future__ import annotations

import io
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from XAICLIPLib.errors import TRUST, InputError, reason

LARGEST_PROGRAM = 64 << 20
"""Bytes of program text: that of a large network has some hundred kilobytes."""

_FILES = ("save", "load", "from_file")
"""Functions that read or write files, by whatever path they are reached."""

_NAMESPACES = ("prim", "aten", "quantized", "torchvision", "profiler")
"""Operators of PyTorch itself. What operators of other packages do cannot be known here."""


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; a checkpoint is a zip archive as well, but holds no program."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(n.endswith("/constants.pkl") or "/code/" in n for n in map(str.lower, archive.namelist()))
    except (OSError, zipfile.BadZipFile):
        return False


def read_torchscript(path: Path, device: torch.device, trust: bool = False) -> torch.jit.ScriptModule:
    """Load a network from TorchScript, in evaluation mode, without gradients of its weights.

    Parameters
    ----------
    path
        A file of ``torch.jit.save``.
    device
        Where it runs.
    trust
        Load a program that reads or writes files, or calls operators of other packages.

    Raises
    ------
    InputError
        The file is damaged, or its program is not trusted.
    """
    try:
        if not trust:
            _refuse_files(path)
        network = torch.jit.load(str(path), map_location=device)
    except InputError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise InputError(
            f"The TorchScript file {path} cannot be loaded ({reason(error)}): get the file again."
        ) from error
    for parameter in network.parameters():  # a script module has no requires_grad_
        parameter.requires_grad_(False)
    return network.eval()


def _refuse_files(path: Path) -> None:
    for program in _programs(path):
        try:
            call = _refused_call(program)
        except (tokenize.TokenError, SyntaxError, ValueError) as error:
            raise InputError(
                f"The program in {path} is not written as PyTorch writes it ({reason(error)}); if you trust it, "
                f"{TRUST}.",
                TRUST,
            ) from error
        if call:
            raise InputError(
                f"The program in {path} would call {call}, which is no computation of a network; read it, and if you "
                f"trust it, {TRUST}.",
                TRUST,
            )


def _programs(path: Path) -> Iterator[str]:
    """The texts of the program, as PyTorch's own reader gives them: it may see another archive than zipfile does."""

    def unusual_layout(why: str) -> InputError:
        return InputError(
            f"The TorchScript file {path} is not laid out as PyTorch does it ({why}); if you trust it, {TRUST}.",
            TRUST,
        )

    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # the list of another archive could stand before
            raise unusual_layout("it does not begin as a zip file")
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len({name.lower() for name in members}) < len(archive.infolist()):  # PyTorch takes either for the other
            raise unusual_layout("two of its files differ in capitals alone")
        top = next(iter(members), "").split("/")[0]
        reader = torch._C.PyTorchFileReader(str(path))
        if sorted(members) != sorted(f"{top}/{name}" for name in reader.get_all_records()):
            raise unusual_layout("it has files that PyTorch does not see, or the other way round")
        for name, member in members.items():
            if name.lower() == f"{top}/model.json".lower():  # the first layout, in which any file can be a program
                raise unusual_layout("it is of the first version of TorchScript")
            if "/code/" not in name.lower() or not name.lower().endswith(".py"):
                continue
            parts = name.split("/")
            if not name.startswith(f"{top}/code/") or not name.endswith(".py") or {"", ".", ".."} & set(parts):
                raise unusual_layout(f"a program is called {name[:100]!r}")
            if member.file_size > LARGEST_PROGRAM:
                raise InputError(f"The TorchScript file {path} holds a program of {member.file_size >> 20} MB.")
            program = archive.read(member)
            if program != reader.get_record(name[len(top) + 1 :]):
                raise unusual_layout(f"{name[:100]!r} has two contents")
            yield program.decode("ascii")  # PyTorch writes other letters as escapes


def _refused_call(program: str) -> str:
    """The first call in a program that is no computation, as messages name it; empty where there is none.

    Raises
    ------
    tokenize.TokenError, SyntaxError, ValueError
        Python would read the program differently than PyTorch.
    """
    # Where the two end a line at other letters, or take other text for strings, one of them would not see a call.
    if not all(letter == "\n" or " " <= letter <= "~" for letter in program):
        raise ValueError("it has control characters")
    words: list[str] = [""]
    first: list[bool] = [False]
    starts = True
    for token in tokenize.generate_tokens(io.StringIO(program).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "ERRORTOKEN" or kind.startswith(("FSTRING", "TSTRING")):
            raise ValueError(f"line {token.start[0]} has no word of TorchScript")
        if kind == "STRING" and token.string[0] not in "\"'":
            raise ValueError(f"line {token.start[0]} has a string with a prefix")
        if kind == "COMMENT" and "type:" in token.string:  # PyTorch reads on in it
            raise ValueError(f"line {token.start[0]} has a type in a comment")
        if kind in ("NEWLINE", "INDENT", "DEDENT"):
            starts = True
            words.append(";")
            first.append(False)
        elif kind not in ("NL", "COMMENT", "ENCODING"):
            words.append(token.string)
            first.append(starts)
            starts = False
    words.append("")
    for at, word in enumerate(words):
        if word not in ("torch", "ops") or words[at - 1] == ".":
            continue
        if first[at] and words[at + 1] == ":":  # a network's own attribute of that name is declared
            continue
        end = at + 1
        while end + 1 < len(words) and words[end] == ".":
            end += 2
        chain = words[at:end:2]
        if refused := _refused_name(chain, called=words[end] == "("):
            return refused
    return ""


def _refused_name(chain: list[str], called: bool) -> str:
    """The part of ``torch.a.b`` or ``ops.a.b``, split at the dots, that is refused; empty where none is."""
    for at, name in enumerate(chain):
        following = chain[at + 1 : at + 2]
        if at and name in _FILES:
            return ".".join(chain[: at + 1])
        if name == "ops" and following and following[0] not in _NAMESPACES:
            return ".".join(chain[: at + 3])
    if not called or len(chain) < (3 if chain[0] == "ops" else 2):
        return f"something through another name for {'.'.join(chain)}"
    return ""
