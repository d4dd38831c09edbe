"""Models that other libraries download, each in a separate process that can be ended at any time.

huggingface_hub, MONAI and open_clip have no common way to report progress, and cannot be stopped. Progress is therefore
measured by the files on the disk, and cancelling ends the process.
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
"""Files of a Hugging Face repository that are not needed here."""

FAILURE, PLACE = "failure.txt", "place.txt"
"""Files by which the process reports its end: a line with the kind of error and then the error, or the model's path in
the folder."""


def from_hub(repository: str, folder: Path) -> Path:
    """Download a repository of Hugging Face, and keep its weights in one format."""
    from huggingface_hub import snapshot_download

    target = folder / "hub"
    snapshot_download(repository, local_dir=target, ignore_patterns=list(NOT_WEIGHTS))
    shutil.rmtree(target / ".cache", ignore_errors=True)
    weights = {path.suffix for path in target.rglob("*")}
    if ".safetensors" in weights:  # the same weights again, in a format that can hold code
        for path in [p for p in target.rglob("*") if p.suffix in (".bin", ".pth", ".pt")]:
            path.unlink()
    return target


def from_model_zoo(bundle: str, folder: Path) -> Path:
    """Download ``NAME@VERSION`` of MONAI's Model Zoo."""
    from monai.bundle import download

    name, _, version = bundle.partition("@")
    download(name=name, version=version, bundle_dir=str(folder), source="monaihosting", progress=False)
    shutil.rmtree(folder / name / ".cache", ignore_errors=True)
    return folder / name


def into_cache(name: str, folder: Path) -> Path:
    """Let open_clip download a localizer of the catalogue, tokenizer included, into Hugging Face's cache."""
    import torch

    from XAICLIPLib.models.catalogue import load_localizer

    load_localizer(name, torch.device("cpu"))
    return folder


DOWNLOADERS: dict[str, Callable[[str, Path], Path]] = {
    "hf-hub": from_hub,
    "monai": from_model_zoo,
    "open_clip": into_cache,
}


def fetch(
    library: str,
    model: str,
    folder: Path,
    on_size: Callable[[int], None] = lambda size: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Path:
    """Let a library download into a folder.

    Parameters
    ----------
    library
        A key of `DOWNLOADERS`.
    model
        What the library calls the model.
    folder
        An existing folder.
    on_size
        Called with the bytes written to the folder so far.
    cancelled
        Asked repeatedly whether to stop. What was downloaded is then left for the caller to remove.

    Returns
    -------
    Path
        The model's path in the folder.

    Raises
    ------
    ImportError
        The library is missing.
    OSError
        The download failed; the message is the library's.
    Cancelled
        ``cancelled`` said so.
    """
    # Run in an empty folder: neither the user's working folder nor the one with the untrusted files.
    working_folder = tempfile.TemporaryDirectory(prefix="xaiclip-download-", ignore_cleanup_errors=True)
    process = subprocess.Popen(
        [
            sys.executable or "python3",
            *isolation.arguments("XAICLIPLib.models.libraries", library, model, str(folder.resolve())),
        ],
        env=isolation.environment(os.environ),
        cwd=working_folder.name,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            if cancelled():
                raise Cancelled(f"Cancelled while {model} was downloaded.")
            on_size(_folder_size(folder))
            time.sleep(LOOK_EVERY_S)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        working_folder.cleanup()
    if process.returncode == 0:
        return folder / (folder / PLACE).read_text(encoding="utf-8")
    kind, _, message = ("", "", "")
    with suppress(OSError):
        kind, _, message = (folder / FAILURE).read_text(encoding="utf-8").partition("\n")
    if kind == "import":
        raise ImportError(message)
    raise OSError(message or f"the download ended with status {process.returncode}")


def _folder_size(folder: Path) -> int:
    """Bytes of all files in a folder; files may disappear while they are counted."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            size += path.stat().st_size if path.is_file() else 0
    return size


def main(library: str, model: str, folder: Path) -> int:
    """Entry point of the process: download, and write down the model's path or what went wrong."""
    try:
        path = DOWNLOADERS[library](model, folder)
    except Exception as error:  # huggingface_hub, MONAI, urllib and open_clip each raise their own
        kind = "import" if isinstance(error, ImportError) else "error"
        (folder / FAILURE).write_text(f"{kind}\n{str(error).strip() or type(error).__name__}", encoding="utf-8")
        return 1
    (folder / PLACE).write_text(path.relative_to(folder).as_posix(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
