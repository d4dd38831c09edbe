"""Patch embeddings: the value path against the towers' own forward pass with the attention masked to the diagonal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from XAICLIPLib.localization.dense import dense_embeddings, has_patch_tokens
from XAICLIPLib.localization.openclip import import_open_clip

TEXT = {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1}
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
CUSTOM = {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}
TIMM = {"timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear", "image_size": 160}

TOWERS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "open_clip": (VIT, (4, 4)),
    "open_clip, not square": (VIT | {"image_size": (32, 48)}, (4, 6)),
    "open_clip, layer scale": (VIT | {"ls_init_value": 0.3}, (4, 4)),
    "open_clip, mean of the patches": (VIT | {"pool_type": "avg", "final_ln_after_pool": True}, (4, 4)),
    "open_clip, custom block": (VIT | CUSTOM, (4, 4)),
    "timm, as in BiomedCLIP": (TIMM | {"timm_model_name": "test_vit"}, (10, 10)),
    "timm, mean and two-layer head": (
        TIMM | {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "mlp"},
        (10, 10),
    ),
    "timm, projected by the trunk": (
        TIMM | {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None},
        (10, 10),
    ),
    "timm, mean in place of a pooling block": (TIMM | {"timm_model_name": "test_vit3", "timm_pool": "avg"}, (10, 10)),
    "timm, register tokens": (TIMM | {"timm_model_name": "test_vit", "registers": 3}, (10, 10)),
}


def model_of(vision: dict[str, Any]) -> Any:
    """A tiny model whose every parameter is random: a new one has zeros and ones that hide what was left out."""
    torch.manual_seed(0)
    kind = "CustomTextCLIP" if "timm_model_name" in vision else "CLIP"
    vision_cfg = {key: value for key, value in vision.items() if key != "registers"}
    model = getattr(import_open_clip(), kind)(embed_dim=12, vision_cfg=vision_cfg, text_cfg=dict(TEXT)).eval()
    if "registers" in vision:  # timm's small ones have none
        shape = {"img_size": 160, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}
        model.visual.trunk = type(model.visual.trunk)(**shape, num_classes=0, reg_tokens=vision["registers"]).eval()
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=TOWERS)
def tower(request: pytest.FixtureRequest) -> tuple[Any, Tensor, tuple[int, int]]:
    vision, grid = TOWERS[request.param]
    return model_of(vision), images_of(2, vision["image_size"]), grid


def images_of(count: int, size: int | tuple[int, int]) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def last_block(visual: Any) -> nn.Module:
    blocks = visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks
    assert isinstance(blocks[-1], nn.Module)
    return blocks[-1]


def by_masked_attention(visual: Any, images: Tensor) -> Tensor:
    """(N, L, D) of unit length from the tower's own forward pass: in the last block a token sees but itself."""

    def alone(_module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        count = inputs[0].shape[1]
        mask = torch.full((count, count), -torch.inf).fill_diagonal_(0.0)
        return inputs, named | {"attn_mask": mask}

    leaving: list[Tensor] = []
    block = last_block(visual)
    handles = [
        block.register_forward_pre_hook(alone, with_kwargs=True),
        block.register_forward_hook(lambda _module, _inputs, output: leaving.append(output)),
    ]
    visual(images)
    for handle in handles:
        handle.remove()
    tokens = leaving[0]
    if hasattr(visual, "trunk"):
        trunk = visual.trunk
        each = [visual.head(trunk.head(trunk.fc_norm(trunk.norm(t)))) for t in tokens[:, trunk.num_prefix_tokens :]]
        projected = torch.stack(each)
    else:
        projected = visual.ln_post(tokens)[:, 1:] @ visual.proj
    return projected / projected.norm(dim=-1, keepdim=True)


@torch.inference_mode()
def test_patches_are_unit_vectors_on_the_grid_of_patches(tower: tuple[Any, Tensor, tuple[int, int]]) -> None:
    model, images, grid = tower
    assert has_patch_tokens(model.visual)
    patches = dense_embeddings(model.visual, images)[1]
    assert patches.shape == (2, *grid, 12)
    torch.testing.assert_close(patches.norm(dim=-1), torch.ones(2, *grid))


@torch.inference_mode()
def test_the_pooled_embedding_is_what_encode_image_gives(tower: tuple[Any, Tensor, tuple[int, int]]) -> None:
    model, images, _ = tower
    torch.testing.assert_close(dense_embeddings(model.visual, images)[0], model.encode_image(images))


@torch.inference_mode()
def test_the_value_path_is_the_block_with_the_identity_as_attention(
    tower: tuple[Any, Tensor, tuple[int, int]],
) -> None:
    model, images, _ = tower
    expected = by_masked_attention(model.visual, images)
    found = dense_embeddings(model.visual, images)[1].flatten(1, 2)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@torch.inference_mode()
def test_an_image_gives_the_same_alone_as_in_a_batch(tower: tuple[Any, Tensor, tuple[int, int]]) -> None:
    model, images, _ = tower
    together = dense_embeddings(model.visual, images)[1]
    alone = dense_embeddings(model.visual, images[1:])[1]
    torch.testing.assert_close(alone, together[1:], atol=2e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("layers", [1, 2])
def test_of_a_single_layer_a_patch_embedding_depends_on_its_own_patch_alone(layers: int) -> None:
    visual = model_of(VIT | {"layers": layers}).visual
    images = images_of(1, 32)
    changed = images.clone()
    changed[..., 8:16, 24:32] += 1.0  # the patch in row 1, column 3
    moved = (dense_embeddings(visual, changed)[1] - dense_embeddings(visual, images)[1]).abs().amax(-1)[0] > 1e-5
    own = torch.zeros(4, 4, dtype=torch.bool)
    own[1, 3] = True
    assert moved[1, 3]
    assert torch.equal(moved, own) == (layers == 1)


@torch.inference_mode()
def test_tokens_beside_the_pooled_embedding_change_nothing() -> None:
    plain, images = model_of(VIT).visual, images_of(2, 32)
    telling = model_of(VIT | {"output_tokens": True}).visual
    assert isinstance(telling(images), tuple)
    for found, expected in zip(dense_embeddings(telling, images), dense_embeddings(plain, images), strict=True):
        torch.testing.assert_close(found, expected)


@torch.inference_mode()
def test_the_order_of_batch_and_tokens_inside_the_transformer_changes_nothing() -> None:
    first, second, images = model_of(VIT).visual, model_of(VIT).visual, images_of(3, 32)
    kind = type(second.transformer)
    transformer = kind(width=32, layers=2, heads=2, mlp_ratio=4.0, batch_first=False).eval()
    transformer.load_state_dict(second.transformer.state_dict())
    second.transformer = transformer
    assert first.transformer.batch_first and not second.transformer.batch_first
    for found, expected in zip(dense_embeddings(second, images), dense_embeddings(first, images), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@torch.inference_mode()
def test_no_hook_is_left_behind_even_after_a_failure() -> None:
    visual = model_of(VIT).visual
    dense_embeddings(visual, images_of(1, 32))
    with pytest.raises(RuntimeError):
        dense_embeddings(visual, images_of(1, 40))
    assert not last_block(visual)._forward_pre_hooks


@pytest.mark.parametrize(
    "vision",
    [
        VIT | {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
        {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "head_width": 8},
        TIMM | {"timm_model_name": "test_resnet"},
        TIMM | {"timm_model_name": "test_vit3", "timm_pool": "map"},
    ],
    ids=["attention pooling", "ResNet", "timm ResNet", "timm attention pooling"],
)
def test_other_towers_say_that_they_give_no_patch_tokens(vision: dict[str, Any]) -> None:
    visual = model_of(vision).visual
    assert not has_patch_tokens(visual)
    with pytest.raises(TypeError, match="no patch tokens"):
        dense_embeddings(visual, images_of(1, vision["image_size"]))


@pytest.mark.parametrize("change", ["other attention", "gate", "narrow", "no layer scale"])
def test_a_timm_block_that_is_not_the_plain_one_gives_no_patch_tokens(change: str) -> None:
    visual = model_of(TIMM | {"timm_model_name": "test_vit"}).visual
    block: Any = last_block(visual)
    if change == "other attention":
        block.attn = type("AttentionRope", (type(block.attn),), {})(64, 2)
    elif change == "gate":
        block.attn.gate = nn.Linear(64, 64)
    elif change == "narrow":
        block.attn.qkv = nn.Linear(64, 64 + 2 * 32)
    else:
        del block.ls1
    assert not has_patch_tokens(visual)
