"""Where the files that ship with the library lie."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource_path(*parts: str) -> Path:
    """Path of a shipped resource, such as ``resource_path("models", "models.json")``.

    Installed (wheel or Slicer package) the resources lie inside the package as ``XAICLIPLib/Resources``;
    in a checkout they lie beside it.
    """
    installed = _PACKAGE / "Resources"
    root = installed if installed.is_dir() else _PACKAGE.parent / "Resources"
    return root.joinpath(*parts)
