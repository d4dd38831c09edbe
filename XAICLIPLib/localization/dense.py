"""Patch embeddings in the joint image-text space of an open_clip model.

The pooled embedding of a CLIP image tower tells what is in the image, but not at which place. The values of the last
attention layer are separate for each patch, and after the usual projection lie in the joint space: so every patch can
be compared with a text.

References
----------
C. Zhou, C. C. Loy, B. Dai. "Extract Free Dense Labels from CLIP" (MaskCLIP), ECCV 2022.
Y. Li et al. "CLIP Surgery for Better Explainability with Enhancement in Open-Vocabulary Tasks", 2023.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def has_patch_tokens(visual: nn.Module) -> bool:
    """Whether `dense_embeddings` can read patch tokens from this image tower (else: multi-scale crops)."""
    return _blocks(visual) is not None


def _blocks(visual: Any) -> nn.ModuleList | nn.Sequential | None:
    """The transformer blocks of an open_clip ``VisionTransformer`` or of a timm ViT trunk; None for other towers."""
    if hasattr(visual, "transformer") and getattr(visual, "attn_pool", None) is None and hasattr(visual, "ln_post"):
        return visual.transformer.resblocks
    trunk = getattr(visual, "trunk", None)
    if trunk is None or getattr(trunk, "attn_pool", None) is not None or not hasattr(trunk, "num_prefix_tokens"):
        return None
    blocks = getattr(trunk, "blocks", None)
    return blocks if blocks and _is_plain(blocks[-1]) else None


def _is_plain(block: Any) -> bool:
    """Whether a timm block is a plain ViT block: others (EVA, BEiT, differential attention) contain further steps."""
    attention: Any = getattr(block, "attn", None)
    return (
        type(attention).__name__ == "Attention"
        and isinstance(getattr(attention, "qkv", None), nn.Linear)
        and attention.qkv.out_features == 3 * attention.proj.in_features
        and getattr(attention, "gate", None) is None
        and all(hasattr(block, part) for part in ("norm1", "ls1", "norm2", "mlp", "ls2"))
    )


def _value_path(block: Any, tokens: Tensor) -> Tensor:
    """Run a transformer block with the identity as its attention matrix: each token attends to itself alone."""
    if hasattr(block, "ln_1"):  # open_clip
        attention = block.attn
        width = tokens.shape[-1]
        bias = None if attention.in_proj_bias is None else attention.in_proj_bias[2 * width :]
        value = functional.linear(block.ln_1(tokens), attention.in_proj_weight[2 * width :], bias)
        # The next three belong to open_clip's custom block (``qk_norm``, ``scale_heads``, ... in its configuration).
        scale = getattr(attention, "head_scale", None)
        if scale is not None:
            value = value * scale.flatten().repeat_interleave(width // len(scale))
        value = attention.out_proj(getattr(attention, "ln_inner", nn.Identity())(value))
        value = getattr(block, "ln_attn", nn.Identity())(value)
        tokens = tokens + block.ls_1(value)
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
    attention = block.attn  # timm
    value = attention.qkv(block.norm1(tokens)).chunk(3, dim=-1)[2]
    value = attention.proj(getattr(attention, "norm", nn.Identity())(value))
    tokens = tokens + block.ls1(value)
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))


def _project(visual: Any, tokens: Tensor) -> Tensor:
    """Project patch tokens (N, L, width) into the joint space (N, L, D), as the tower does with its pooled token."""
    if hasattr(visual, "trunk"):
        trunk = visual.trunk
        tokens = trunk.norm(tokens)
        tokens = getattr(trunk, "fc_norm", nn.Identity())(tokens)
        return visual.head(getattr(trunk, "head", nn.Identity())(tokens))
    tokens = visual.ln_post(tokens)
    return tokens if visual.proj is None else tokens @ visual.proj


def dense_embeddings(visual: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled and patch embeddings of a batch of preprocessed images.

    Parameters
    ----------
    visual
        ``model.visual`` of an open_clip model for which `has_patch_tokens` holds.
    images
        (N, 3, H, W), with the model's normalisation.

    Returns
    -------
    pooled
        (N, D), not normalised: what ``visual(images)`` gives.
    patches
        (N, h, w, D), each patch embedding of unit length.
    """
    blocks = _blocks(visual)
    if blocks is None:
        raise TypeError(f"{type(visual).__name__} gives no patch tokens")
    block_inputs: list[Tensor] = []
    handle = blocks[-1].register_forward_pre_hook(lambda _module, inputs: block_inputs.append(inputs[0]))
    try:
        pooled = visual(images)
    finally:
        handle.remove()
    pooled = pooled[0] if isinstance(pooled, tuple) else pooled
    tokens = block_inputs[0]
    if not getattr(getattr(visual, "transformer", None), "batch_first", True):
        tokens = tokens.transpose(0, 1)
    prefix = visual.trunk.num_prefix_tokens if hasattr(visual, "trunk") else 1
    patches = _project(visual, _value_path(blocks[-1], tokens)[:, prefix:])
    height, width = _grid(visual, images, patches.shape[1])
    patches = functional.normalize(patches, dim=-1)
    return pooled, patches.reshape(len(images), height, width, -1)


def _grid(visual: Any, images: Tensor, count: int) -> tuple[int, int]:
    """Rows and columns of patches."""
    patch = visual.trunk.patch_embed.patch_size if hasattr(visual, "trunk") else visual.patch_size
    rows, columns = (int(side) // int(step) for side, step in zip(images.shape[-2:], patch, strict=True))
    edge = math.isqrt(count)
    if rows * columns != count and images.shape[-2] == images.shape[-1] and edge**2 == count:
        return edge, edge  # after a convolutional stem, the patch size does not give their number
    if rows * columns != count:
        raise ValueError(f"{count} patch tokens do not fill a grid of {rows} x {columns}")
    return rows, columns
