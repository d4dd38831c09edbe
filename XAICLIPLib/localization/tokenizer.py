"""Texts to tokens by the plain files of a tokenizer: ``tokenizer.json``, or the words of a BERT in ``vocab.txt``.

transformers would create any class that a configuration names, with any keywords in it. Here the file of the tokenizers
library is read, which holds only data, and a few typed values of the configuration beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from XAICLIPLib.errors import InputError, reason
from XAICLIPLib.system.json_values import Validator, choice, flag, keys, optional, text
from XAICLIPLib.system.mappings import read_mapping

TOKENIZER_FILE, VOCABULARY_FILE, CONFIGURATION, SPECIAL_TOKENS_FILE = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
FILES = (TOKENIZER_FILE, VOCABULARY_FILE)
"""One of them is enough; the other files are optional additions."""

LARGEST_FILE = 64 << 20
"""Bytes: the tokenizer of a vocabulary of 250,000 pieces has 17 million."""

_PADDING = ("[PAD]", "<pad>", "<|endoftext|>")
"""Padding tokens to try where no file names one: that of BERT, of T5 and RoBERTa, and of CLIP."""


def _token(value: Any) -> str:
    """A special token: its text, or an object that holds it."""
    return text(value.get("content") if isinstance(value, Mapping) else value)


_SIDE = choice("left", "right")
_SPECIAL: dict[str, Validator] = {
    f"{name}_token": optional(_token) for name in ("pad", "sep", "cls", "unk", "mask", "bos", "eos")
}
_SETTINGS = keys(
    {
        **_SPECIAL,
        "padding_side": _SIDE,
        "truncation_side": _SIDE,
        "do_lower_case": flag,
        "strip_accents": optional(flag),
        "tokenize_chinese_chars": flag,
    },
    others="left out",
)


@dataclass(frozen=True)
class FileTokenizer:
    """A tokenizer with the interface that open_clip expects.

    Attributes
    ----------
    encoder
        An encoder of the library tokenizers, which cuts and pads to ``context_length``.
    context_length
        Tokens of each text.
    clean
        Applied to each text first.
    zeroed_token
        A token id that is replaced by 0, or None.
    """

    encoder: Any
    context_length: int
    clean: Callable[[str], str]
    zeroed_token: int | None = None

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        """Texts to token ids (N, context length), int64."""
        if context_length not in (None, self.context_length):
            raise ValueError(f"this tokenizer gives {self.context_length} tokens, not {context_length}")
        cleaned = [self.clean(words) for words in ([texts] if isinstance(texts, str) else texts)]
        ids = torch.tensor([encoding.ids for encoding in self.encoder.encode_batch(cleaned)], dtype=torch.int64)
        return ids if self.zeroed_token is None else torch.where(ids == self.zeroed_token, torch.zeros_like(ids), ids)


def read_tokenizer(
    files: Callable[[str], Path | None],
    context_length: int,
    clean: Callable[[str], str],
    strip_separator: bool = False,
    name: str = "the model",
) -> FileTokenizer:
    """Make a tokenizer from its files.

    Parameters
    ----------
    files
        Takes the name of a file and returns its path; None if there is no such file.
    context_length
        Tokens of each text: longer ones are cut, shorter ones padded.
    clean
        Applied to each text before it is cut into tokens.
    strip_separator
        Whether the token after a text is replaced by 0.
    name
        The model's name in messages.

    Raises
    ------
    InputError
        The files are missing or damaged, or the library tokenizers is not installed.
    """
    tokenizer_path, vocabulary_path = files(TOKENIZER_FILE), files(VOCABULARY_FILE)
    if tokenizer_path is None and vocabulary_path is None:
        raise InputError(
            f"The localizer {name} has no {TOKENIZER_FILE}: write it with transformers (AutoTokenizer.from_pretrained "
            "of a name that you trust, then save_pretrained), and put it beside open_clip_config.json."
        )
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(
            f"The tokenizer of the localizer {name} needs the package tokenizers ({reason(error)}): pip install "
            "tokenizers."
        ) from error
    try:
        settings = _read_settings(files)
        encoder = (
            _from_tokenizer_file(tokenizers, tokenizer_path)
            if tokenizer_path is not None
            else _from_vocabulary(tokenizers, vocabulary_path, settings)
        )
        _apply_settings(tokenizers, encoder, settings)
        names = [settings["pad_token"]] if settings.get("pad_token") else _PADDING
        padding_tokens = [
            (token, encoder.token_to_id(token)) for token in names if encoder.token_to_id(token) is not None
        ]
        if not padding_tokens:
            raise ValueError(f"no token that pads is among its words ({', '.join(names)[:100]})")
        encoder.enable_truncation(context_length, direction=settings.get("truncation_side", "right"))
        encoder.enable_padding(
            direction=settings.get("padding_side", "right"),
            pad_id=padding_tokens[0][1],
            pad_token=padding_tokens[0][0],
            length=context_length,
        )
        separator = encoder.token_to_id(settings.get("sep_token") or "[SEP]") if strip_separator else None
        if strip_separator and separator is None:  # if no separator is named, the token that ends a text
            separator = encoder.token_to_id(settings.get("eos_token") or "</s>")
        tokenizer = FileTokenizer(encoder, context_length, clean, separator)
        tokenizer([""])  # raises an error where something is missing
    except InputError:
        raise
    except BaseException as error:  # the library's panics are no subclass of Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(
            f"The tokenizer of the localizer {name} does not load ({reason(error)}): get its files again."
        ) from error
    return tokenizer


def _read_settings(files: Callable[[str], Path | None]) -> dict[str, Any]:
    """The typed values of the configuration, and the special tokens of their own file."""
    settings: dict[str, Any] = {}
    for name, validate in ((SPECIAL_TOKENS_FILE, keys(_SPECIAL, others="left out")), (CONFIGURATION, _SETTINGS)):
        path = files(name)
        if path is not None:
            try:
                settings |= validate(read_mapping(path, LARGEST_FILE))
            except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
                raise ValueError(f"{name} should have {reason(error)}") from error
    return settings


def _from_tokenizer_file(tokenizers: Any, path: Path) -> Any:
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path.name} is longer than {LARGEST_FILE >> 20} MB")
    _check_templates(read_mapping(path, LARGEST_FILE).get("post_processor"))
    return tokenizers.Tokenizer.from_file(str(path))


def _check_templates(processor: Any) -> None:
    """Refuse a template with a special token that the file does not define: the library would panic, and print."""
    if not isinstance(processor, Mapping):
        return
    for inner in processor.get("processors") or []:
        _check_templates(inner)
    pieces = [*(processor.get("single") or []), *(processor.get("pair") or [])]
    named = [piece.get("SpecialToken") for piece in pieces if isinstance(piece, Mapping)]
    known = processor.get("special_tokens") or {}
    if any(token.get("id") not in known for token in named if isinstance(token, Mapping)):
        raise ValueError(f"{TOKENIZER_FILE} begins or ends texts with a token that it does not explain")


def _from_vocabulary(tokenizers: Any, path: Path | None, settings: Mapping[str, Any]) -> Any:
    """BERT's tokenizer, from a file with one word per line."""
    assert path is not None
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path.name} is longer than {LARGEST_FILE >> 20} MB")
    lines = path.read_text(encoding="utf-8").split("\n")
    words = {word.rstrip("\r"): number for number, word in enumerate(lines) if word or number + 1 < len(lines)}
    special = {
        name: settings.get(f"{name}_token") or f"[{name.upper()}]" for name in ("unk", "sep", "cls", "pad", "mask")
    }
    encoder = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token=special["unk"]))
    encoder.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    encoder.add_special_tokens([token for token in special.values() if token in words])
    encoder.post_processor = tokenizers.processors.BertProcessing(
        *((special[name], words[special[name]]) for name in ("sep", "cls"))
    )
    return encoder


def _apply_settings(tokenizers: Any, encoder: Any, settings: Mapping[str, Any]) -> None:
    """Change BERT's tokenizer by its configuration, as transformers does; others need only their file."""
    normal = encoder.normalizer
    if isinstance(normal, tokenizers.normalizers.BertNormalizer):
        for ours, theirs in (
            ("do_lower_case", "lowercase"),
            ("strip_accents", "strip_accents"),
            ("tokenize_chinese_chars", "handle_chinese_chars"),
        ):
            if ours in settings:
                setattr(normal, theirs, settings[ours])
        encoder.normalizer = normal
