"""Loading open_clip, and image-text models from a folder, a Hugging Face id or a name."""

from __future__ import annotations

import json
import logging
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from XAICLIPLib.errors import InputError, reason
from XAICLIPLib.localization import PROMPTS_FILE
from XAICLIPLib.localization.tokenizer import CONFIGURATION as TOKENIZER_CONFIGURATION
from XAICLIPLib.localization.tokenizer import FILES, read_tokenizer
from XAICLIPLib.localization.towers import (
    CONFIGURATION,
    checked_model,
    checked_preprocessing,
    read_configuration,
    read_text_tower,
    refuse_code,
    repository,
)
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.system.torchvision_operators import import_without_operators
from XAICLIPLib.system.weights import read_plain

HUB = "hf-hub:"
"""Before the id of a model that is downloaded from the Hugging Face hub on first use."""


def import_open_clip() -> ModuleType:
    """Import open_clip, also where torchvision's compiled operators do not match torch."""
    return import_without_operators("open_clip")


@dataclass(frozen=True)
class ImageTextModel:
    """A CLIP model, ready for use.

    Attributes
    ----------
    name
        The name that the user gave, or the folder's name.
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
        The folder that it was read from; None where it was not a folder.
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
        """Factor for cosine similarities before a softmax."""
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
        The device that it runs on.

    Raises
    ------
    InputError
        The model does not exist, has no weights, or does not load.
    """
    open_clip = import_open_clip()
    text = name = str(source)
    folder: Path | None = None
    if text.startswith("local-dir:") or (Path(text).is_dir() and not text.startswith(HUB)):
        folder = Path(text.removeprefix("local-dir:"))
        name, files = folder.resolve().name, _in_folder(folder)
    else:
        with _offline_if_hub_unreachable():
            files = _from_hub(open_clip, text) if text.startswith(HUB) else _from_list(open_clip, text)
    try:
        with _logging_muted(), nullcontext() if folder else _offline_if_hub_unreachable():
            model = _build(open_clip, files).to(device)
            _load_weights(open_clip, model, files.weights)
            tokenize = _tokenizer(open_clip, files)
        side, mean, std = _preprocessing(model, files.preprocessing)
    except InputError:
        raise
    except Exception as error:  # open_clip, huggingface_hub, safetensors and timm each raise their own
        raise InputError(f"The localizer {text} does not load: {_failure_reason(error, files.weights)}") from error
    return ImageTextModel(
        name=name,
        model=model.eval(),
        tokenize=tokenize,
        side=side,
        mean=mean,
        std=std,
        device=device,
        checksum=sha256(files.weights) if folder is not None else "",
        folder=folder,
    )


def hub_repository(name: str) -> str:
    """The Hugging Face repository of a ``NAME:TAG`` of open_clip's own list; empty where it has none."""
    model, _, tag = name.partition(":")
    configuration = import_open_clip().get_pretrained_cfg(model, tag) or {}
    # With a file after it where the repository has several: OWNER/NAME/FILE.
    return "/".join(str(configuration.get("hf_hub") or "").split("/")[:2])


@contextmanager
def _logging_muted() -> Iterator[None]:
    """Mute open_clip's log: it warns of random weights before they are loaded, and logs errors that it also raises."""

    def not_from_open_clip(record: logging.LogRecord) -> bool:
        return "open_clip" not in Path(record.pathname).parts

    root = logging.getLogger()  # open_clip has no logger of its own
    root.addFilter(not_from_open_clip)
    try:
        yield
    finally:
        root.removeFilter(not_from_open_clip)


def _failure_reason(error: Exception, weights: Path) -> str:
    """Why a model does not load, and what to do where its file is not safe to load."""
    if isinstance(error, pickle.UnpicklingError):  # PyTorch's own advice is to trust the file
        return f"{weights.name} is damaged or holds more than tensors; convert it to .safetensors."
    return reason(error, 300)


# --- the files of a model


@dataclass(frozen=True)
class _ModelFiles:
    """The files of a model, which come from a folder, from the hub or from open_clip's list.

    Attributes
    ----------
    label
        Its name in messages.
    model, preprocessing
        Its configuration, checked.
    weights
        The file.
    find_file
        Takes the name of a repository and of a file in it, and returns the file's path; None if there is no such file.
    in_folder
        Whether all files must be in one folder of this machine.
    """

    label: str
    model: dict[str, Any]
    preprocessing: dict[str, Any]
    weights: Path
    find_file: Callable[[str, str], Path | None]
    in_folder: bool = False

    def name_of(self, repository: str, place: Path) -> str:
        """A file's name in messages: its path, unless it lies in the hub's cache, which a user does not know."""
        return str(place) if self.in_folder else f"{place.name} of {repository}"


def _in_folder(folder: Path) -> _ModelFiles:
    """The files of a model in a folder."""
    model, preprocessing = read_configuration(folder / CONFIGURATION, str(folder))
    weights = _weights(folder)
    if weights is None:
        raise InputError(
            f"The localizer {folder} has no weights: put a .safetensors, .bin or .pth file beside {CONFIGURATION}."
        )

    def find_file(repository: str, file: str) -> Path | None:
        # In a subfolder of that name, or in the model's folder itself.
        return next((place / file for place in (folder / repository, folder) if (place / file).is_file()), None)

    return _ModelFiles(str(folder), model, preprocessing, weights, find_file, in_folder=True)


def _from_hub(open_clip: ModuleType, text: str) -> _ModelFiles:
    """A model of the Hugging Face hub."""
    try:
        identifier = repository(text.removeprefix(HUB))
    except ValueError:
        raise InputError(f"There is no localizer {text}: give {HUB}OWNER/NAME.") from None
    place = _downloaded(
        lambda: open_clip.pretrained.download_pretrained_from_hf(identifier, filename=CONFIGURATION), text
    )
    model, preprocessing = read_configuration(place, text)
    weights = _downloaded(lambda: open_clip.pretrained.download_pretrained_from_hf(identifier), text)
    return _ModelFiles(text, model, preprocessing, weights, partial(_find_on_hub, text))


def _from_list(open_clip: ModuleType, text: str) -> _ModelFiles:
    """A pair of open_clip's own list, ``NAME:TAG``."""
    name, _, tag = text.partition(":")
    if name not in open_clip.list_models():
        raise InputError(
            f"There is no localizer {text}: give a folder with {CONFIGURATION} and its weights, "
            f"{HUB}OWNER/NAME, or a name of `xaiclip models`."
        )
    known = ", ".join(open_clip.list_pretrained_tags_by_model(name))
    if not known:
        raise InputError(f"open_clip has no weights for {name}: choose another localizer.")
    listed = open_clip.get_pretrained_cfg(name, tag) if tag else None
    if not listed:
        raise InputError(f"The localizer {name} needs the name of its weights after a colon, one of: {known}.")
    model = checked_model(open_clip.get_model_config(name), text)
    preprocessing = checked_preprocessing({key: listed[key] for key in ("mean", "std") if listed.get(key)}, text)
    weights = _downloaded(lambda: open_clip.pretrained.download_pretrained(listed), text)
    return _ModelFiles(text, model, preprocessing, weights, partial(_find_on_hub, text))


HUB_PATIENCE_S = 5.0
"""Seconds after which a hub that does not answer counts as unreachable."""


@contextmanager
def _offline_if_hub_unreachable() -> Iterator[None]:
    """Use only files that were downloaded before, if the hub cannot be reached.

    huggingface_hub would try each file six times, for half a minute, and log each attempt.
    """
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        if not before:
            get_session().head(constants.ENDPOINT, timeout=HUB_PATIENCE_S)  # any answer is enough
    except Exception:  # of requests or httpx, by version
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _downloaded(fetch: Callable[[], Any], text: str) -> Path:
    """A file that a library downloads on first use."""
    try:
        with _logging_muted():
            return Path(fetch())
    except Exception as error:  # each library raises its own
        raise _unavailable(text) from error


def _unavailable(text: str) -> InputError:
    return InputError(
        f"The localizer {text} does not load: its files are not on this machine and cannot be downloaded. Check the "
        f"name and the connection, or give a folder with {CONFIGURATION} and weights."
    )


def _find_on_hub(text: str, repository: str, file: str) -> Path | None:
    """A file of a repository of the hub; None where that has none of this name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file))
    except EntryNotFoundError:  # not on the hub, or not on this machine while the hub is unreachable
        return None
    except Exception as error:  # no such repository, or no right to read it
        raise _unavailable(text) from error


# --- the model from its files


def _build(open_clip: ModuleType, files: _ModelFiles) -> Any:
    """The network, still with random weights."""
    model = deepcopy(files.model)  # open_clip takes it apart
    text = model["text_cfg"]
    of_transformers = "hf_model_name" in text
    custom = model.pop("custom_text", False) or of_transformers
    kind = open_clip.CLIP if not custom else open_clip.CoCa if "multimodal_cfg" in model else open_clip.CustomTextCLIP
    if not text.get("hf_model_name"):
        return kind(**model)
    place = files.find_file(text["hf_model_name"], "config.json")
    if place is None:
        raise _missing_file(files, "architecture of its text", text["hf_model_name"], "config.json")
    with tempfile.TemporaryDirectory(prefix="xaiclip-tower-") as temporary:
        # A folder with only the checked configuration: transformers, which gets it, would read other files too.
        tower = read_text_tower(place, files.label, files.name_of(text["hf_model_name"], place))
        (Path(temporary) / "config.json").write_text(json.dumps(tower), encoding="utf-8")
        text["hf_model_name"] = temporary
        return kind(**model)


def _load_weights(open_clip: ModuleType, model: Any, path: Path) -> None:
    """Give a network the weights of a file, as open_clip's ``load_checkpoint`` does, but read by `read_plain`."""
    state = read_plain(path)
    if isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path.name} holds no weights.")
    state = {str(name).removeprefix("module."): value for name, value in state.items()}
    factory = open_clip.factory
    state = factory.convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = factory.convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        parameter = getattr(model, name, None)
        if name in state and parameter is not None:
            state[name] = state[name].reshape(parameter.shape)
    if "logit_bias" not in state and getattr(model, "logit_bias", None) is not None:
        state["logit_bias"] = torch.zeros_like(model.logit_bias)
    state.pop("text.transformer.embeddings.position_ids", None)  # from an older version of transformers
    factory.resize_pos_embed(state, model)
    factory.resize_text_pos_embed(state, model)
    model.load_state_dict(state, strict=True)


def _tokenizer(open_clip: ModuleType, files: _ModelFiles) -> Callable[[list[str]], Tensor]:
    """The tokenizer, from data files only, which hold no code."""
    text = files.model["text_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    repository = text.get("hf_tokenizer_name")
    if not repository:
        if "strip_sep_token" in options:
            raise ValueError(f"{CONFIGURATION} gives its tokenizer strip_sep_token, which it does not know.")
        tokenize: Callable[[list[str]], Tensor] = open_clip.tokenizer.SimpleTokenizer(context_length=length, **options)
        return tokenize
    if "additional_special_tokens" in options:
        raise ValueError(f"{CONFIGURATION} gives its tokenizer additional_special_tokens, which it does not know.")

    def file(name: str) -> Path | None:
        place = files.find_file(repository, name)
        if place is not None and name == TOKENIZER_CONFIGURATION:
            refuse_code(place, files.name_of(repository, place))
        return place

    if all(file(name) is None for name in FILES):
        raise _missing_file(files, "tokenizer", repository, FILES[0])
    clean = open_clip.tokenizer.get_clean_fn(options.get("clean", "whitespace"))
    return read_tokenizer(file, length, clean, options.get("strip_sep_token", False), files.label)


def _missing_file(files: _ModelFiles, what: str, repository: str, file: str) -> InputError:
    if not files.in_folder:
        return _unavailable(f"{files.label} ({what}: {repository})")
    return InputError(
        f"The localizer {files.label} lacks the {what} ({repository}): put its {file} beside {CONFIGURATION}."
    )


def _preprocessing(
    model: Any, configuration: Mapping[str, Any]
) -> tuple[int, tuple[float, float, float], tuple[float, float, float]]:
    """Side of the images in pixels, mean and standard deviation of their three channels."""
    size = model.visual.image_size
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"it takes images of {size[0]} x {size[1]} pixels, only square ones are used here.")
    constants = import_open_clip()
    mean = configuration.get("mean", constants.OPENAI_DATASET_MEAN)
    std = configuration.get("std", constants.OPENAI_DATASET_STD)
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
    """The file of weights in a folder: one of open_clip's names, else the safest format."""
    named = [folder / name for name in _NAMES if (folder / name).is_file()]
    other = [p for pattern in ("*.safetensors", "*.bin", "*.pth") for p in sorted(folder.glob(pattern))]
    other = [path for path in other if path.name != PROMPTS_FILE]
    return next(iter([*named, *other]), None)
