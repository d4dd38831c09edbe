"""Learned prompts: context vectors before a structure's name, which replace hand-written sentences.

A text such as "X X X X liver" is given to the model's own tokenizer and text tower. There the embeddings of the
placeholders are replaced by vectors that were learned for this structure ("class-specific context"). The model's code
and weights do not change, so that every text tower of open_clip can be used, also those of Hugging Face.

References
----------
K. Zhou, J. Yang, C. C. Loy, Z. Liu. "Learning to Prompt for Vision-Language Models" (CoOp), IJCV 2022.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from XAICLIPLib import anatomy
from XAICLIPLib.errors import InputError
from XAICLIPLib.localization.openclip import ImageTextModel
from XAICLIPLib.localization.slices import Modality
from XAICLIPLib.system.checksums import sha256
from XAICLIPLib.system.files import atomic_file

BACKGROUND = "background"
"""Name of the class of everything around the structures."""

PLACEHOLDER = "X"


@dataclass(frozen=True)
class LearnedPrompts:
    """The learned prompts of a model.

    Attributes
    ----------
    vectors
        (M, width) by structure name, or `BACKGROUND`; float32.
    modality
        The modality that they were tuned on, and are used for; None for any.
    file
        Name of the file that they were read from; empty where there is none.
    checksum
        SHA-256 of that file; empty where there is none.
    """

    vectors: Mapping[str, Tensor]
    modality: Modality | None = None
    file: str = ""
    checksum: str = ""

    @property
    def provenance(self) -> dict[str, Any]:
        """File, checksum, modality and structures, for the record of an explanation."""
        return {
            "file": self.file,
            "sha256": self.checksum,
            "modality": self.modality,
            "structures": sorted(self.vectors),
        }

    def fits(self, modality: Modality | None) -> bool:
        """Whether they can be used for volumes of this modality."""
        return self.modality in (None, modality)


def token_embedding(model: Any) -> nn.Module:
    """The module of an open_clip model that gives token ids (N, L) their embeddings (N, L, width).

    Raises
    ------
    InputError
        The text tower has no known token embedding.
    """
    text = getattr(model, "text", model)
    embedding = getattr(text, "token_embedding", None)
    if embedding is None and hasattr(text, "transformer") and hasattr(text.transformer, "get_input_embeddings"):
        embedding = text.transformer.get_input_embeddings()  # a text tower of Hugging Face
    if not isinstance(embedding, nn.Module) or not isinstance(getattr(embedding, "weight", None), Tensor):
        raise InputError(
            "This localizer's text tower has no token embedding that prompts could be learned for: choose another one."
        )
    return embedding


def embed(model: ImageTextModel, vectors: Mapping[str, Tensor]) -> Tensor:
    """Text embeddings with learned prompts, (N, D) of unit length; gradients reach the vectors.

    Parameters
    ----------
    model
        The model that the vectors are for.
    vectors
        (M, width) by name, all of one shape.

    Raises
    ------
    InputError
        A name does not fit into the model's texts after so many placeholders.
    """
    stacked = torch.stack(list(vectors.values())).to(model.device)
    length = stacked.shape[1]
    tokens, start = _tokens(model, list(vectors), length)

    def insert_vectors(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
        return torch.cat([embedded[:, :start], stacked.to(embedded.dtype), embedded[:, start + length :]], 1)

    handle = token_embedding(model.model).register_forward_hook(insert_vectors)
    try:
        embeddings = model.model.encode_text(tokens.to(model.device))
    finally:
        handle.remove()
    embeddings = embeddings[0] if isinstance(embeddings, tuple) else embeddings
    return functional.normalize(embeddings.float(), dim=-1)


def _tokens(model: ImageTextModel, names: list[str], length: int) -> tuple[Tensor, int]:
    """Token ids (N, L) of placeholders and names, and the position of the first placeholder."""
    start, placeholder = _first_token(model)
    tokens = model.tokenize([f"{PLACEHOLDER} " * length + name for name in names])
    name_tokens = model.tokenize(names)
    for name, row, name_row in zip(names, tokens.tolist(), name_tokens.tolist(), strict=True):
        n_name_tokens = len(row) - length
        # After the placeholders the name must have the same tokens as it has alone, and none may be cut off.
        whole = row[start + length :] == name_row[start:n_name_tokens] and set(name_row[n_name_tokens:]) <= {
            name_row[-1]
        }
        if row[start : start + length] != [placeholder] * length or not whole:
            raise InputError(
                f'{length} context vectors and the name "{name}" do not fit into the texts of the localizer '
                f"{model.name}: give fewer with --context."
            )
    return tokens, start


def _first_token(model: ImageTextModel) -> tuple[int, int]:
    """The position of the first word of a text, and the token of a placeholder."""
    word, nothing = model.tokenize([PLACEHOLDER, ""]).tolist()
    start = next((n for n, (a, b) in enumerate(zip(word, nothing, strict=True)) if a != b), None)
    if start is None:
        raise InputError(f"The tokenizer of the localizer {model.name} has no token for a placeholder: choose another.")
    return start, word[start]


@torch.no_grad()
def initial_vectors(model: ImageTextModel, length: int, modality: Modality | None) -> Tensor:
    """Context vectors (length, width) to start from: the words of a hand-written sentence, repeated as needed."""
    start, _ = _first_token(model)
    words = anatomy.templates(modality)[1].partition("{}")[0].strip()
    sentence, nothing = model.tokenize([words, ""]).tolist()
    ends = sentence.index(nothing[start], start) if nothing[start] in sentence[start:] else len(sentence)
    ids = sentence[start:ends]
    repeated = (ids * (length // len(ids) + 1))[-length:]
    table = token_embedding(model.model).weight
    assert isinstance(table, Tensor)
    return table.detach()[torch.tensor(repeated, device=table.device)].float().clone()


def save(prompts: LearnedPrompts, model: ImageTextModel, path: Path) -> Path:
    """Write learned prompts as safetensors, completely or not at all; equal prompts give equal files.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    shape = next(iter(prompts.vectors.values())).shape
    description = {
        "format": "XAI-CLIP prompts 1",
        "model": fingerprint(model),
        "context": shape[0],
        "width": shape[1],
        "modality": prompts.modality,
        "structures": sorted(prompts.vectors),
    }
    tensors = {name: vectors.detach().cpu().float().contiguous() for name, vectors in prompts.vectors.items()}
    try:
        with atomic_file(path) as temporary:
            # A single entry, because safetensors writes several in no fixed order.
            save_file(tensors, temporary, metadata={"xaiclip": json.dumps(description, sort_keys=True)})
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}): choose another file.") from error
    return path


def load(path: str | Path, model: ImageTextModel) -> LearnedPrompts:
    """Read learned prompts, and check that they belong to this model.

    Raises
    ------
    InputError
        The file is missing, damaged, no file of prompts, or of another model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file of prompts {path}: make one with `xaiclip tune-prompts`.")
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get("xaiclip", "null"))
            vectors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path} is no file of prompts, or damaged: make one with `xaiclip tune-prompts`.") from error
    modality = description.get("modality") if isinstance(description, dict) else None
    if not isinstance(description, dict) or not vectors or modality not in (None, *get_args(Modality)):
        raise InputError(f"{path} holds no prompts: give a file that `xaiclip tune-prompts` wrote.")
    model_fingerprint = fingerprint(model)
    if description.get("model") != model_fingerprint:
        raise InputError(
            f"The prompts {path} were tuned for another model (SHA-256 {str(description.get('model'))[:12]}…, while "
            f"{model.name} has {model_fingerprint[:12]}…): tune them for this one with `xaiclip tune-prompts`."
        )
    width = _width(model)
    for name, value in vectors.items():
        if value.ndim != 2 or value.shape[1] != width or not bool(value.isfinite().all()):
            raise InputError(
                f'The prompts {path} do not fit the model {model.name}: "{name}" is no finite vectors of {width} '
                "numbers; tune them again."
            )
        if name != BACKGROUND:
            anatomy.structure(name)
    if len({value.shape for value in vectors.values()}) != 1:
        raise InputError(f"The prompts {path} are not all of one length: tune them again.")
    _tokens(model, list(vectors), len(next(iter(vectors.values()))))
    return LearnedPrompts(vectors, modality, path.name, sha256(path))


def _width(model: ImageTextModel) -> int:
    weight = token_embedding(model.model).weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[1])


def fingerprint(model: ImageTextModel) -> str:
    """SHA-256 of a model's weights: of their file, or of the tensors where there is no local file."""
    if model.checksum:
        return model.checksum
    digest = hashlib.sha256()
    for name, value in sorted(model.model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
