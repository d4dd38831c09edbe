"""The folder of the user's models, and the checksums recorded of their files.

The folder has ``catalogue.json`` (the user's own entries), ``models/NAME/`` (what was downloaded), ``downloads/``
(unfinished downloads), ``unpacked/SHA256/`` (archives given as ``--model``) and ``locks/NAME.json``: the checksums of
a model for which the catalogue has none, taken when it was first downloaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from XAICLIPLib.errors import InputError, removing
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.system.files import atomic_file

VARIABLE = "XAICLIP_MODELS"
"""Environment variable that names another folder."""


def models_folder() -> Path:
    """The folder of the user's models: the one that `VARIABLE` names, else the system's place for a user's data."""
    named = os.environ.get(VARIABLE, "").strip()
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return platformdirs.user_data_path("xaiclip", appauthor=False)


def user_catalogue() -> Path:
    """The file with the user's own entries; it need not exist."""
    return models_folder() / "catalogue.json"


def download_folder(name: str) -> Path:
    """The folder of a downloaded model of this name; it need not exist."""
    return models_folder() / "models" / name


@dataclass(frozen=True)
class Lock:
    """The checksums of a model, as they were when it was first downloaded.

    Attributes
    ----------
    source
        Where it came from.
    files
        SHA-256 by path within the model's folder.
    repository
        The Hugging Face repository in whose cache the files lie; empty where they lie in the models folder.
    """

    source: str
    files: Mapping[str, str]
    repository: str = ""


def read_lock(name: str) -> Lock | None:
    """The recorded checksums of a model; None where there are none.

    Raises
    ------
    InputError
        The lock is damaged: with it, a change of the model would go unnoticed.
    """
    path = _lock(name)
    try:
        return Lock(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"The checksums of the model {name} in {path} cannot be read: {removing(name)} and download it again.",
            removing(name),
        ) from error


def write_lock(name: str, source: str, folder: Path, repository: str = "") -> Lock:
    """Record the checksums of all files of a model.

    Raises
    ------
    OSError
        A file cannot be read, or the lock cannot be written.
    """
    lock = Lock(source, file_checksums(folder), repository)
    with atomic_file(_lock(name)) as path:
        path.write_text(json.dumps(vars(lock), indent=2) + "\n", encoding="utf-8")
    return lock


def remove_lock(name: str) -> None:
    """Delete the recorded checksums of a model."""
    _lock(name).unlink(missing_ok=True)


def file_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 by path of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def hub_snapshot(repository: str, *names: str) -> Path | None:
    """The folder in Hugging Face's cache with any of these files of a repository; None where none is cached."""
    try:
        from huggingface_hub import try_to_load_from_cache

        cached: list[Any] = [try_to_load_from_cache(repository, name) for name in names]
    except (ImportError, ValueError):  # ValueError: not the name of a repository
        return None
    return next((Path(path).parent for path in cached if isinstance(path, str)), None)


def _lock(name: str) -> Path:
    return models_folder() / "locks" / f"{name}.json"
