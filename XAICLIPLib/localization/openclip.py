"""Loading open_clip, and image-text models from a folder, a Hugging Face id or a name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from XAICLIPLib.checksums import sha256
from XAICLIPLib.errors import InputError

_kept_alive: list[Any] = []


def import_open_clip() -> ModuleType:
    """Import open_clip, also where torchvision's compiled operators do not match torch.

    A torchvision built for CUDA beside a CPU torch (a frequent accident in Slicer) fails to import because its
    operators are not registered. open_clip uses none of them, so declaring their schemas is enough; it is done only
    after that very error.
    """
    for operator in ("nms", "qnms"):
        try:
            return importlib.import_module("open_clip")
        except RuntimeError as error:
            if f"torchvision::{operator}" not in str(error):
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _kept_alive.append(library)
    return importlib.import_module("open_clip")


@dataclass(frozen=True)
class ImageTextModel:
    """A CLIP model, ready for use.

    Attributes
    ----------
    name
        What the user called it, or the folder's name.
    model
        The open_clip model, in evaluation mode on ``device``.
    tokenize
        Texts to token ids (N, context length).
    side
        Pixels along each side of the images it takes.
    mean, std
        Normalisation of its three channels.
    checksum
        SHA-256 of the weights where they are a local file, else empty.
    folder
        Where it was read from, if that was a folder.
    """

    name: str
    model: Any
    tokenize: Callable[[list[str]], Tensor]
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device
    checksum: str = ""
    folder: Path | None = None

    @property
    def scale(self) -> float:
        """What cosine similarities are multiplied by before a softmax."""
        return float(self.model.logit_scale.exp())


def load_model(source: str | Path, device: torch.device) -> ImageTextModel:
    """Load an image-text model for inference.

    Parameters
    ----------
    source
        A folder with ``open_clip_config.json`` and ``open_clip_model.safetensors`` (or ``.bin``, ``.pth``), read
        without any network; ``hf-hub:OWNER/NAME``, downloaded by open_clip on first use; or ``NAME:TAG``, a pair of
        open_clip's own list such as ``ViT-B-32:laion2b_s34b_b79k``.
    device
        Where it runs.

    Raises
    ------
    InputError
        The model is not there, has no weights, or does not load.
    """
    open_clip = import_open_clip()
    text = str(source)
    if text.startswith("hf-hub:"):
        name, identifier, tag, folder = text, text, None, None
    elif Path(text).is_dir():
        folder = Path(text)
        name, identifier, tag = folder.name, f"local-dir:{folder}", None
        _check_folder(folder)
    else:
        identifier, _, tag = text.partition(":")
        name, folder = text, None
        if identifier not in open_clip.list_models():
            raise InputError(
                f"There is no localizer {text}: give a folder with open_clip_config.json and its weights, "
                "hf-hub:OWNER/NAME, or a name of `xaiclip models`."
            )
        if tag not in open_clip.list_pretrained_tags_by_model(identifier):
            known = ", ".join(open_clip.list_pretrained_tags_by_model(identifier))
            raise InputError(
                f"The localizer {identifier} needs the name of its weights after a colon, one of: {known}."
            )
    try:
        model = open_clip.create_model(identifier, pretrained=tag, device=device, require_pretrained=True)
        tokenize = open_clip.get_tokenizer(identifier)
    except Exception as error:  # open_clip, huggingface_hub, safetensors and timm each raise their own
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"The localizer {text} does not load ({first}).") from error
    preprocess = model.visual.preprocess_cfg
    size = preprocess["size"]
    return ImageTextModel(
        name=name,
        model=model.eval(),
        tokenize=tokenize,
        side=int(size if isinstance(size, int) else size[-1]),
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        device=device,
        checksum=sha256(_weights(folder)[0]) if folder else "",
        folder=folder,
    )


def _weights(folder: Path) -> list[Path]:
    """Files that open_clip would take for weights, the safest kind first."""
    return [p for pattern in ("*.safetensors", "*.bin", "*.pth") for p in sorted(folder.glob(pattern))]


def _check_folder(folder: Path) -> None:
    """Refuse a folder that open_clip would fill with random weights or fail on obscurely."""
    path = folder / "open_clip_config.json"
    try:
        complete = "model_cfg" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no open_clip model: {path.name} is missing or damaged.") from error
    if not complete:
        raise InputError(f"{folder} is no open_clip model: {path.name} has no model_cfg.")
    if not _weights(folder):
        raise InputError(
            f"The localizer {folder} has no weights: put a .safetensors, .bin or .pth file beside {path.name}."
        )
