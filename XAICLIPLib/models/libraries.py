"""Models that other libraries download: they do it in a process of their own, which can be ended at any time.

huggingface_hub, MONAI and open_clip tell neither how far they are in a way that all share, nor do they stop when asked.
What they have written so far is seen on the disk, and a process can be ended.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from XAICLIPLib.errors import Cancelled
from XAICLIPLib.system import isolation

LOOK_EVERY_S = 0.2

NOT_WEIGHTS = ("*.onnx", "*.msgpack", "*.h5", "*.tflite", "*.ot", "*.mlpackage/*", "*.gguf", "onnx/*", "*.md", ".*")
"""What a Hugging Face repository may hold beside what is used here."""

FAILURE, PLACE = "failure.txt", "place.txt"
"""How the process ended: the kind of error on one line and the error after it, or where in the folder it lies."""


def from_hub(repository: str, folder: Path) -> Path:
    """A repository of Hugging Face, with its weights in one format."""
    from huggingface_hub import snapshot_download

    place = folder / "hub"
    snapshot_download(repository, local_dir=place, ignore_patterns=list(NOT_WEIGHTS))
    shutil.rmtree(place / ".cache", ignore_errors=True)
    weights = {path.suffix for path in place.rglob("*")}
    if ".safetensors" in weights:  # the same weights once more, in a format that could hold code
        for path in [p for p in place.rglob("*") if p.suffix in (".bin", ".pth", ".pt")]:
            path.unlink()
    return place


def from_zoo(bundle: str, folder: Path) -> Path:
    """``NAME@VERSION`` of MONAI's Model Zoo."""
    from monai.bundle import download

    name, _, version = bundle.partition("@")
    download(name=name, version=version, bundle_dir=str(folder), source="monaihosting", progress=False)
    shutil.rmtree(folder / name / ".cache", ignore_errors=True)
    return folder / name


def into_cache(name: str, folder: Path) -> Path:
    """A localizer of the catalogue that open_clip keeps in Hugging Face's cache, tokenizer included."""
    import torch

    from XAICLIPLib.models.catalogue import load_localizer

    load_localizer(name, torch.device("cpu"))
    return folder


WAYS: dict[str, Callable[[str, Path], Path]] = {"hf-hub": from_hub, "monai": from_zoo, "open_clip": into_cache}


def fetch(
    way: str,
    what: str,
    folder: Path,
    on_size: Callable[[int], None] = lambda size: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Path:
    """Let a library download into a folder.

    Parameters
    ----------
    way
        One of `WAYS`.
    what
        What it is to download.
    folder
        An existing folder.
    on_size
        Gets the bytes that lie in the folder so far.
    cancelled
        Asked again and again; what came is then the caller's to remove.

    Returns
    -------
    Path
        Where in the folder it lies.

    Raises
    ------
    ImportError
        The library is missing.
    OSError
        It failed, with its own words.
    Cancelled
        As asked.
    """
    # In an empty folder of its own: neither the user's nor the one that fills with a stranger's files.
    own = tempfile.TemporaryDirectory(prefix="xaiclip-download-", ignore_cleanup_errors=True)
    process = subprocess.Popen(
        [
            sys.executable or "python3",
            *isolation.arguments("XAICLIPLib.models.libraries", way, what, str(folder.resolve())),
        ],
        env=isolation.environment(os.environ),
        cwd=own.name,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            if cancelled():
                raise Cancelled(f"Cancelled while {what} was downloaded.")
            on_size(_size(folder))
            time.sleep(LOOK_EVERY_S)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        own.cleanup()
    if process.returncode == 0:
        return folder / (folder / PLACE).read_text(encoding="utf-8")
    kind, _, told = ("", "", "")
    with suppress(OSError):
        kind, _, told = (folder / FAILURE).read_text(encoding="utf-8").partition("\n")
    if kind == "import":
        raise ImportError(told)
    raise OSError(told or f"the download ended with status {process.returncode}")


def _size(folder: Path) -> int:
    """Bytes of all files in a folder, some of which may go while they are counted."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            size += path.stat().st_size if path.is_file() else 0
    return size


def main(way: str, what: str, folder: Path) -> int:
    """What the process does: download, and leave word of where it lies, or of what went wrong."""
    try:
        place = WAYS[way](what, folder)
    except Exception as error:  # huggingface_hub, MONAI, urllib and open_clip each raise their own
        kind = "import" if isinstance(error, ImportError) else "error"
        (folder / FAILURE).write_text(f"{kind}\n{str(error).strip() or type(error).__name__}", encoding="utf-8")
        return 1
    (folder / PLACE).write_text(place.relative_to(folder).as_posix(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
