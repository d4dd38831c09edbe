"""Loading open_clip, and image-text models from a folder, a Hugging Face id or a name."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from XAICLIPLib.errors import InputError
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.system.torchvision_operators import import_without_operators

PROMPTS_FILE = "prompts.safetensors"
"""In a localizer's folder: its learned prompts, which are then used without being asked for."""


def import_open_clip() -> ModuleType:
    """Import open_clip, also where torchvision's compiled operators do not match torch."""
    return import_without_operators("open_clip")


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
        return float(self.model.logit_scale.detach().exp())


def load_model(source: str | Path, device: torch.device) -> ImageTextModel:
    """Load an image-text model for inference.

    Parameters
    ----------
    source
        A folder (also as ``local-dir:FOLDER``) with ``open_clip_config.json`` and ``open_clip_model.safetensors`` (or
        ``.bin``, ``.pth``, of which only tensors are read), read without any network; ``hf-hub:OWNER/NAME``, downloaded
        by open_clip on first use; or ``NAME:TAG``, a pair of open_clip's own list such as
        ``ViT-B-32:laion2b_s34b_b79k``.
    device
        Where it runs.

    Raises
    ------
    InputError
        The model is not there, has no weights, or does not load.
    """
    open_clip = import_open_clip()
    text = name = str(source)
    tag: str | None = None
    folder: Path | None = None
    weights: Path | None = None
    config: dict[str, Any] = {}
    if text.startswith("hf-hub:"):
        identifier = text
    elif text.startswith("local-dir:") or Path(text).is_dir():
        folder = Path(text.removeprefix("local-dir:"))
        name, identifier = folder.resolve().name, f"local-dir:{folder}"
        config, weights = _check_folder(folder)
    else:
        identifier, _, tag = text.partition(":")
        if identifier not in open_clip.list_models():
            raise InputError(
                f"There is no localizer {text}: give a folder with open_clip_config.json and its weights, "
                "hf-hub:OWNER/NAME, or a name of `xaiclip models`."
            )
        if tag not in open_clip.list_pretrained_tags_by_model(identifier):
            known = ", ".join(open_clip.list_pretrained_tags_by_model(identifier))
            if not known:
                raise InputError(f"open_clip has no weights for {identifier}: choose another localizer.")
            raise InputError(
                f"The localizer {identifier} needs the name of its weights after a colon, one of: {known}."
            )
    try:
        with _quiet():
            if weights is None:
                _refuse_code_of_hub(open_clip, identifier)
                model = open_clip.create_model(identifier, pretrained=tag, device=device, require_pretrained=True)
            else:
                # In two steps, so that it is this file that is loaded (and its checksum that is recorded).
                assert folder is not None
                model = open_clip.create_model(
                    identifier,
                    device=device,
                    load_weights=False,
                    pretrained_text=False,
                    text_cfg=local_text_config(folder, config),
                )
                open_clip.load_checkpoint(model, str(weights), strict=True, weights_only=True)
            tokenize = (
                _tokenizer(open_clip, identifier) if folder is None else _local_tokenizer(open_clip, folder, config)
            )
        side, mean, std = _preprocessing(model)
    except InputError:
        raise
    except Exception as error:  # open_clip, huggingface_hub, safetensors and timm each raise their own
        raise InputError(f"The localizer {text} does not load: {_reason(error, weights)}") from error
    return ImageTextModel(
        name=name,
        model=model.eval(),
        tokenize=tokenize,
        side=side,
        mean=mean,
        std=std,
        device=device,
        checksum=sha256(weights) if weights else "",
        folder=folder,
    )


def hub_repository(name: str) -> str:
    """The Hugging Face repository of a ``NAME:TAG`` of open_clip's own list; empty where it has none."""
    model, _, tag = name.partition(":")
    configuration = import_open_clip().get_pretrained_cfg(model, tag) or {}
    # With a file after it where the repository has several: OWNER/NAME/FILE.
    return "/".join(str(configuration.get("hf_hub") or "").split("/")[:2])


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what open_clip logs: random weights, before they are loaded, and errors that it raises as well."""

    def other(record: logging.LogRecord) -> bool:
        return "open_clip" not in Path(record.pathname).parts

    root = logging.getLogger()  # open_clip has no logger of its own
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)


def _reason(error: Exception, weights: Path | None) -> str:
    """Why a model does not load, and the way out where it is the network or a file that is not to be trusted."""
    told = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, pickle.UnpicklingError) and weights:  # PyTorch's own advice is to trust the file
        return f"{weights.name} is damaged or holds more than tensors; convert it to .safetensors."
    if "Failed to download" in told or "Required pretrained weights" in told:
        return (
            "its files are not on this machine and cannot be downloaded. Check the name and the connection, or give a "
            "folder with open_clip_config.json and weights."
        )
    return f"{told[:300]}{'...' if len(told) > 300 else ''}"


def _tokenizer(open_clip: ModuleType, identifier: str) -> Callable[[list[str]], Tensor]:
    """The model's tokenizer, without any code that its configuration asks `transformers` to trust."""
    config = open_clip.get_model_config(identifier) or {}
    from_hub = bool(config.get("text_cfg", {}).get("hf_tokenizer_name"))
    kwargs = {"trust_remote_code": False} if from_hub else {}
    tokenize: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(identifier, **kwargs)
    return tokenize


def _preprocessing(model: Any) -> tuple[int, tuple[float, float, float], tuple[float, float, float]]:
    """Side of the images in pixels, mean and standard deviation of their three channels."""
    preprocess = model.visual.preprocess_cfg
    size = preprocess["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"it takes images of {size[0]} x {size[1]} pixels, only square ones are used here.")
    mean, std = ([float(value) for value in preprocess[key]] for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"its mean {mean} and std {std} are not of three channels.")
    return int(sides.pop()), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""Names of weights that open_clip knows, in its order."""


def _weights(folder: Path) -> Path | None:
    """The file of a folder's weights: of open_clip's own names, else the safest kind."""
    named = [folder / name for name in _NAMES if (folder / name).is_file()]
    other = [p for pattern in ("*.safetensors", "*.bin", "*.pth") for p in sorted(folder.glob(pattern))]
    other = [path for path in other if path.name != PROMPTS_FILE]
    return next(iter([*named, *other]), None)


def local_text_config(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The ``text_cfg`` of a model's folder with the names of Hugging Face replaced by folders on this machine.

    open_clip would ask the hub for the architecture of the text tower even where all lies in the folder.

    Raises
    ------
    InputError
        The folder does not hold what the names stand for.
    """
    _refuse_code(folder)
    text = dict(config["text_cfg"])
    if text.get("hf_model_name"):
        # All weights come from the model's own file: of the tower only the architecture is needed.
        text["hf_model_name"] = str(_local(folder, text["hf_model_name"], ("config.json",), "architecture of its text"))
        text["hf_model_pretrained"] = False
    if text.get("hf_tokenizer_name"):
        text["hf_tokenizer_name"] = str(_local(folder, text["hf_tokenizer_name"], TOKENIZER_FILES, "tokenizer"))
    return text


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "tokenizer.model")


def _local(folder: Path, name: Any, files: tuple[str, ...], what: str) -> Path:
    """Where files lie that a configuration names: in a folder of that name, or in the model's own."""
    for place in (folder / str(name), folder):
        if any((place / file).is_file() for file in files):
            _refuse_code(place)
            return place.resolve()
    raise InputError(
        f"The localizer {folder} lacks the {what} ({name}): put its {files[0]} beside open_clip_config.json."
    )


_LEADS_TO_CODE = ("auto_map", "configuration_files")
"""Keys of a configuration by which `transformers` finds code, or another configuration, which could name code."""


def _refuse_code(place: Path) -> None:
    """Refuse configurations that name code: `transformers` would ask on the terminal whether to run it."""
    # Whatever the case of the name, which some file systems do not tell apart.
    for path in sorted(p for p in place.iterdir() if "config" in p.name.lower() and p.name.lower().endswith(".json")):
        _refuse_code_in(path, str(path))


def _refuse_code_of_hub(open_clip: ModuleType, identifier: str) -> None:
    """The same for the text tower of a model that is downloaded; its tokenizer is told not to trust any code."""
    config = open_clip.get_model_config(identifier) or {}
    if name := (config.get("text_cfg") or {}).get("hf_model_name"):
        hub = import_without_operators("transformers.utils.hub")
        _refuse_code_in(Path(hub.cached_file(name, "config.json")), f"config.json of {name}")


def _refuse_code_in(path: Path, called: str) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # transformers says what is wrong with it, if it is needed
    if isinstance(content, dict) and (key := next((key for key in _LEADS_TO_CODE if key in content), None)):
        raise InputError(
            f"The localizer's {called} has {key}, which leads to code of its own, and none is run: choose a localizer "
            "without, or remove that key where the model needs no code."
        )


def _local_tokenizer(open_clip: ModuleType, folder: Path, config: dict[str, Any]) -> Callable[[list[str]], Tensor]:
    """The tokenizer of a model's folder, from files on this machine alone and without code that they bring."""
    text = local_text_config(folder, config)
    length = {"context_length": text["context_length"]} if "context_length" in text else {}
    named = {**(text.get("tokenizer_kwargs") or {}), **length}
    tokenize: Callable[[list[str]], Tensor]
    if not text.get("hf_tokenizer_name"):
        tokenize = open_clip.tokenizer.SimpleTokenizer(**named)
        return tokenize
    named |= {"tokenizer_mode": text.get("tokenizer_mode"), "local_files_only": True, "trust_remote_code": False}
    tokenize = open_clip.tokenizer.HFTokenizer(text["hf_tokenizer_name"], **named)
    return tokenize


def _check_folder(folder: Path) -> tuple[dict[str, Any], Path]:
    """Configuration and weights of a folder; refuses what open_clip fills at random, downloads or fails on."""
    path = folder / "open_clip_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no open_clip model: {path.name} is missing or damaged.") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise InputError(f"{folder} is no open_clip model: {path.name} has no model_cfg.")
    model = config["model_cfg"]
    if not all(isinstance(model.get(part), dict) for part in ("vision_cfg", "text_cfg")):
        raise InputError(f"The localizer {folder} does not load: {path.name} does not describe its two towers.")
    trunk = str(model["vision_cfg"].get("timm_model_name", ""))
    if ":" in trunk:  # timm would fetch the architecture from there
        raise InputError(f"The localizer {folder} names {trunk} as its image tower: name an architecture of timm.")
    weights = _weights(folder)
    if weights is None:
        raise InputError(
            f"The localizer {folder} has no weights: put a .safetensors, .bin or .pth file beside {path.name}."
        )
    return model, weights
