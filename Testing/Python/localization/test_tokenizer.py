"""Tokenizers read as data: the tokens are those of transformers, and damaged files end in a sentence."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from XAICLIPLib.errors import InputError
from XAICLIPLib.localization.openclip import import_open_clip
from XAICLIPLib.localization.tokenizer import FileTokenizer, read_tokenizer

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("tokenizers", reason="tokenizers is not installed")
import_open_clip()  # first: it knows what torchvision needs
transformers: Any = importlib.import_module("transformers")
tokenizers: Any = importlib.import_module("tokenizers")

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a the liver left right kidney , . ##s ct Ct é e".split()
TEXTS = ["the liver", "The left kidneys, and a CT.", "é", "", "a " * 60, "kidney [SEP] liver 肝"]


def in_folder(folder: Path) -> Callable[[str], Path | None]:
    return lambda name: folder / name if (folder / name).is_file() else None


UNEXPLAINED = (
    '{"model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "[UNK]": 1}, "unk_token": "[UNK]"}, '
    '"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], '
    '"pair": [], "special_tokens": {}}}'
)
"""Of which the library tokenizers panics."""


def read(folder: Path, length: int = 16, **named: Any) -> FileTokenizer:
    return read_tokenizer(in_folder(folder), length, lambda words: words, name="test", **named)


def official(tokenizer: Any, length: int = 16) -> torch.Tensor:
    """The tokens of transformers, as open_clip asks for them."""
    asked = {"max_length": length, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids: torch.Tensor = tokenizer(TEXTS, **asked).input_ids
    return ids


def bert(folder: Path, **named: Any) -> Path:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    transformers.BertTokenizerFast.from_pretrained(folder, **named).save_pretrained(folder)
    return folder


def unigram(folder: Path, padding: str = "<pad>", **configuration: Any) -> Path:
    """As T5, SigLIP and Gemma have it: pieces with their scores, and an end but no start."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<bos>", 0.0), ("▁", -2.0)]
    pieces += [(piece, -3.0) for piece in ("▁the", "▁liver", "▁left", "▁a", "kidney", "s", "l", "e", "a", "t")]
    encoder = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    encoder.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    said = {"pad_token": padding, "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<bos>"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=encoder, **said, **configuration)
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("lost", ["nothing", "tokenizer.json", "vocab.txt"])
def test_tokens_of_bert_are_those_of_transformers(tmp_path: Path, lower: bool, lost: str) -> None:
    bert(tmp_path, do_lower_case=lower)
    expected = official(transformers.BertTokenizerFast.from_pretrained(tmp_path))
    (tmp_path / lost).unlink(missing_ok=True)
    found = read(tmp_path)(TEXTS)
    assert found.dtype == torch.int64 and found.shape == (len(TEXTS), 16)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("padding", ["<pad>", "</s>"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_of_pieces_are_those_of_transformers(tmp_path: Path, padding: str, side: str) -> None:
    """SigLIP pads with the end itself."""
    unigram(tmp_path, padding, padding_side=side)
    expected = official(transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path))
    assert torch.equal(read(tmp_path)(TEXTS), expected)


@pytest.mark.parametrize("first", [True, False])
def test_the_file_says_what_begins_and_ends_a_text(tmp_path: Path, first: bool) -> None:
    """As with SigLIP 2, whose tokenizer is Gemma's and was saved with an end and without a start."""
    unigram(tmp_path, add_bos_token=first, add_eos_token=True)
    expected = official(transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path))
    assert torch.equal(read(tmp_path)(TEXTS), expected)


def test_the_separator_can_be_cleared_as_open_clip_does_it(tmp_path: Path) -> None:
    bert(tmp_path)
    expected = import_open_clip().tokenizer.HFTokenizer(str(tmp_path), context_length=16, strip_sep_token=True)
    assert torch.equal(read(tmp_path, strip_separator=True)(TEXTS[:3]), expected(TEXTS[:3]))


def test_a_text_alone_is_a_batch_of_one_and_another_length_is_refused(tmp_path: Path) -> None:
    tokenizer = read(bert(tmp_path))
    assert torch.equal(tokenizer("the liver"), tokenizer(["the liver"], 16))
    with pytest.raises(ValueError, match="16 tokens, not 8"):
        tokenizer("the liver", 8)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[" * 100_000),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}'),
        ("tokenizer.json", '{"version": "1.0", "added_tokens": [], "model": {"type": "Evil"}}'),
        ("tokenizer.json", UNEXPLAINED),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"pad_token": 3}'),
        ("tokenizer_config.json", '{"pad_token": "nowhere"}'),
        ("tokenizer_config.json", '{"padding_side": "os.system"}'),
        ("special_tokens_map.json", '{"pad_token": {"content": []}}'),
    ],
)
def test_damaged_files_end_in_a_sentence(
    tmp_path: Path, file: str, content: str, capfd: pytest.CaptureFixture[str]
) -> None:
    bert(tmp_path)
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="The tokenizer of the localizer test does not load") as told:
        read(tmp_path)
    assert "\n" not in str(told.value) and capfd.readouterr() == ("", "")


def test_pieces_of_sentencepiece_alone_are_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(b"x")
    with pytest.raises(InputError, match=r"has no tokenizer\.json: write it with transformers"):
        read(tmp_path)
