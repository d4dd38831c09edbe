"""Checking the configuration of an image-text model's two towers: only known keys with plain values are allowed.

open_clip, timm and transformers turn the names in a configuration into classes, functions and keyword arguments, some
of which download files or run code. So only the keys of these tables reach them, with values of the types that an
architecture needs: sizes, switches, and words of a short list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from XAICLIPLib.errors import InputError, reason
from XAICLIPLib.system.json_values import (
    Validator,
    choice,
    either,
    flag,
    keys,
    list_of,
    number,
    optional,
    text,
    whole_number,
)
from XAICLIPLib.system.mappings import read_mapping
from XAICLIPLib.system.torchvision_operators import import_without_operators

CONFIGURATION = "open_clip_config.json"

CLEANING = ("lower", "whitespace", "canonicalize")
"""open_clip's names for the ways to clean a text before it is cut into tokens."""

_REPOSITORY = re.compile(r"[A-Za-z0-9](?:[\w-]|\.(?!\.))*(?:/[A-Za-z0-9](?:[\w-]|\.(?!\.))*)?", re.ASCII)

_SIZE, _WIDTH, _LAYERS = whole_number(1, 1 << 13), whole_number(1, 1 << 14), whole_number(1, 256)
_TOKENS, _TOKEN = whole_number(1, 1 << 22), whole_number(-1, 1 << 22)
_RATIO, _SHARE = number(0, 64), number(0, 1)
_KEYWORDS_OF_NORM = optional(keys({"eps": number(0, 1)}))
_KEYWORDS_OF_ACTIVATION = optional(keys({"approximate": choice("none", "tanh")}))


def repository(value: Any) -> str:
    """The name of a repository of Hugging Face, ``OWNER/NAME`` or ``NAME``: never a path that leads elsewhere."""
    if not isinstance(value, str) or not _REPOSITORY.fullmatch(value) or len(value) > 200:
        raise ValueError("the name of a repository, OWNER/NAME")
    return value


def _architecture_of_timm(value: Any) -> str:
    """The name of an architecture that is part of timm, without an address to download it from."""
    if not isinstance(value, str) or not re.fullmatch(r"\w+(?:\.\w+)?", value, re.ASCII):
        raise ValueError("the name of an architecture of timm")
    if not import_without_operators("timm").is_model(value):
        raise ValueError("the name of an architecture that this timm has")
    return value


_BLOCKS: dict[str, Validator] = {
    "block_type": optional(choice("default", "custom")),
    **dict.fromkeys(
        ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), flag
    ),
}

_VISION: dict[str, Validator] = {
    "layers": either(_LAYERS, list_of(_LAYERS, 4, 4)),
    "width": _WIDTH,
    "head_width": _WIDTH,
    "mlp_ratio": _RATIO,
    "patch_size": optional(_SIZE),
    "image_size": either(_SIZE, list_of(_SIZE, 2, 2)),
    "ls_init_value": optional(number(0, 100)),
    "patch_dropout": _SHARE,
    "attentional_pool": either(flag, choice("cascade", "parallel")),
    "attn_pooler_queries": _SIZE,
    "attn_pooler_heads": _SIZE,
    "no_ln_pre": flag,
    "pos_embed_type": choice("learnable", "sin_cos_2d", "none"),
    "final_ln_after_pool": flag,
    "pool_type": choice("tok", "avg", "none"),
    "output_tokens": flag,
    "act_kwargs": _KEYWORDS_OF_ACTIVATION,
    "norm_kwargs": _KEYWORDS_OF_NORM,
    **_BLOCKS,
    "timm_model_name": optional(_architecture_of_timm),
    "timm_model_pretrained": flag,
    "timm_pool": choice("", "avg", "max", "avgmax", "catavgmax", "map", "token", "abs_attn", "rot_attn"),
    "timm_proj": optional(choice("", "linear", "mlp", "none")),
    "timm_proj_bias": flag,
    "timm_drop": _SHARE,
    "timm_drop_path": optional(_SHARE),
}

_TOKENIZER = keys(
    {
        "clean": choice(*CLEANING),
        "strip_sep_token": flag,
        "additional_special_tokens": optional(list_of(text, 0, 1000)),
    }
)

_TEXT: dict[str, Validator] = {
    "context_length": whole_number(3, 1 << 13),
    "vocab_size": _TOKENS,
    "hf_tokenizer_name": optional(either(choice(""), repository)),
    "tokenizer_mode": optional(choice("")),
    "tokenizer_kwargs": optional(_TOKENIZER),
    "width": _WIDTH,
    "heads": _SIZE,
    "layers": _LAYERS,
    "mlp_ratio": _RATIO,
    "ls_init_value": optional(number(0, 100)),
    "embed_cls": flag,
    "pad_id": _TOKEN,
    "eos_id": _TOKEN,
    "no_causal_mask": flag,
    "final_ln_after_pool": flag,
    "pool_type": choice("first", "last", "argmax", "eos", "none"),
    "proj_bias": flag,
    "proj_type": optional(choice("linear", "none")),
    "output_tokens": flag,
    "act_kwargs": _KEYWORDS_OF_ACTIVATION,
    "norm_kwargs": _KEYWORDS_OF_NORM,
    **_BLOCKS,
    "hf_model_name": optional(repository),
    "hf_model_pretrained": flag,
    "hf_proj_type": optional(choice("linear", "mlp")),
    "hf_pooler_type": optional(choice("mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler")),
}

_DECODER = {**_TEXT, "dim_head": _SIZE, "n_queries": _SIZE, "attn_pooler_heads": _SIZE}

_MODEL = keys(
    {
        "embed_dim": _WIDTH,
        "vision_cfg": keys(_VISION),
        "text_cfg": keys(_TEXT),
        "multimodal_cfg": keys(_DECODER),
        "quick_gelu": flag,
        "custom_text": flag,
        "init_logit_scale": number(-100, 100),
        "init_logit_bias": optional(number(-1000, 1000)),
        "nonscalar_logit_scale": flag,
    }
)

_COLOUR = list_of(number(-1000, 1000), 1, 3)
_PREPROCESSING = keys({"mean": _COLOUR, "std": _COLOUR}, others="left out")

_ACTIVATION = choice(
    *("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh")
)
_TEXT_TOWER = keys(
    {
        "model_type": choice("bert", "roberta", "xlm-roberta", "mt5", "m2m_100"),  # those that open_clip can use
        "vocab_size": _TOKENS,
        "type_vocab_size": _SIZE,
        **dict.fromkeys(("hidden_size", "intermediate_size", "d_model", "d_kv", "d_ff"), _WIDTH),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), _WIDTH),
        **dict.fromkeys(("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers"), _LAYERS),
        "num_decoder_layers": optional(_LAYERS),
        **dict.fromkeys(("num_attention_heads", "num_heads"), _SIZE),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), _SIZE),
        "max_position_embeddings": _WIDTH,
        "relative_attention_num_buckets": _SIZE,
        "relative_attention_max_distance": _SIZE,
        **dict.fromkeys(("hidden_act", "activation_function"), _ACTIVATION),
        "feed_forward_proj": choice("relu", "gelu", "silu", "gated-gelu", "gated-silu"),
        "position_embedding_type": choice("absolute", "relative_key", "relative_key_query"),
        **dict.fromkeys(("layer_norm_eps", "layer_norm_epsilon"), number(0, 1)),
        **dict.fromkeys(("is_encoder_decoder", "scale_embedding"), flag),
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), optional(_TOKEN)),
    },
    others="left out",  # keys about training, other tasks, the version of transformers
)


def read_configuration(path: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The architecture of an image-text model and the normalisation of its images, from ``open_clip_config.json``.

    Parameters
    ----------
    path
        The file.
    name
        The model's name in messages.

    Returns
    -------
    tuple
        ``model_cfg``, and ``mean`` and ``std`` of ``preprocess_cfg``.

    Raises
    ------
    InputError
        It is missing or damaged, or has an unknown key or a value of a wrong type.
    """
    try:
        content = read_mapping(path)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is no open_clip model: {CONFIGURATION} is missing or damaged.") from error
    if not isinstance(content.get("model_cfg"), dict):
        raise InputError(f"{name} is no open_clip model: {CONFIGURATION} has no model_cfg.")
    model, preprocessing = content["model_cfg"], content.get("preprocess_cfg") or {}
    if not all(isinstance(model.get(part), dict) for part in ("vision_cfg", "text_cfg")):
        raise InputError(f"The localizer {name} does not load: {CONFIGURATION} does not describe its two towers.")
    return checked_model(model, name), checked_preprocessing(preprocessing, name)


def checked_model(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The ``model_cfg`` of a configuration, checked: it has only known keys with plain values.

    Raises
    ------
    InputError
        Names the first key or value that is not allowed.
    """
    trunk = (model.get("vision_cfg") or {}).get("timm_model_name")
    if isinstance(trunk, str) and ":" in trunk:  # timm would fetch the architecture from there
        raise InputError(f"The localizer {name} names {trunk[:80]} as its image tower: name an architecture of timm.")
    try:
        checked: dict[str, Any] = _MODEL(model)
    except (ValueError, RecursionError) as error:
        raise _loading_error(name, CONFIGURATION, error) from None
    # All weights come from the model's own file.
    checked["vision_cfg"]["timm_model_pretrained"] = checked["text_cfg"]["hf_model_pretrained"] = False
    return checked


def checked_preprocessing(preprocessing: Any, name: str) -> dict[str, Any]:
    """``mean`` and ``std`` of a ``preprocess_cfg``, as far as it has them.

    Raises
    ------
    InputError
        They are no numbers.
    """
    try:
        kept: dict[str, Any] = _PREPROCESSING(preprocessing)
    except (ValueError, RecursionError) as error:
        raise _loading_error(name, CONFIGURATION, error) from None
    return kept


def read_text_tower(path: Path, name: str, file_label: str) -> dict[str, Any]:
    """The architecture of a text tower of transformers, from its ``config.json``.

    Parameters
    ----------
    path
        The file.
    name, file_label
        Names of the model and of the file in messages.

    Raises
    ------
    InputError
        It is damaged, names code or a kind of network that open_clip has no use for, or holds a value of a wrong type.
    """
    refuse_code(path, file_label)
    try:
        content = read_mapping(path)
        if "model_type" not in content:
            raise ValueError("under model_type the kind of the network")
        tower: dict[str, Any] = _TEXT_TOWER(content)
    except (OSError, ValueError, RecursionError) as error:
        raise _loading_error(name, path.name, error) from None
    return tower


_LEADS_TO_CODE = ("auto_map", "configuration_files")
"""Keys by which `transformers` finds code, or another configuration that could name code."""


def refuse_code(path: Path, file_label: str) -> None:
    """Refuse a configuration that names code. The code would not be run here, but the model may not work without it.

    Raises
    ------
    InputError
        The configuration names code.
    """
    try:
        content = read_mapping(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return  # the reader of this file will say what is wrong with it
    if key := next((key for key in _LEADS_TO_CODE if key in content), None):
        raise InputError(
            f"The localizer's {file_label} has {key}, which leads to code of its own, and none is run: choose a "
            "localizer without, or remove that key where the model needs no code."
        )


def _loading_error(name: str, file: str, error: Exception) -> InputError:
    return InputError(
        f"The localizer {name} does not load: its {file} should have {reason(error)}; choose another localizer, or get "
        "its files again."
    )
