"""Every kind of image tower in open_clip: the split tower equals the public `forward`, or is refused."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import resize_pos_embed
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ovseg.models import CLIPAdapter, MaskPromptedViT
from ovseg.models.clip.grid import Block, Grid
from ovseg.models.clip.towers import split_tower
from ovseg.structures import InputError
from tests import tiny

SMALL = {"embed_dim": 64, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8}
MAP = {"attn_pool_num_heads": 2}


def timm_tower(base: str, vision: dict[str, Any], **small: Any) -> dict[str, Any]:
    """Register a small variant of timm's `base` and return the config that open_clip needs to build it."""

    def entry(**settings: Any) -> torch.nn.Module:
        return timm.create_model(base, **small, **settings)

    entry.__name__ = f"tiny_{base}"
    timm.models.register_model(entry)
    return {"image_size": 32, "timm_model_name": entry.__name__, "timm_model_pretrained": False, **vision}


OWN = tiny.CLIP["vision_cfg"] | {"layers": 3}
TEXT = tiny.CLIP["text_cfg"] | {"vocab_size": 49408}
CLS = {"timm_pool": "token", "timm_proj": None}
TOWERS: dict[str, dict[str, Any]] = {
    "OpenAI": {"vision_cfg": OWN},
    "LayerScale": {"vision_cfg": OWN | {"ls_init_value": 0.1}},
    "CLIPA": {"vision_cfg": OWN | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}},
    "CoCa": {
        "vision_cfg": OWN | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 16, "width": 64, "heads": 2, "layers": 1, "mlp_ratio": 2},
    },
    "SigLIP": {
        "vision_cfg": timm_tower("vit_base_patch16_siglip_224", {"timm_pool": "map", "timm_proj": "none"}, **SMALL),
        "init_logit_bias": -10.0,
    },
    "EVA01": {"vision_cfg": timm_tower("eva_giant_patch14_clip_224", CLS, **SMALL)},
    "EVA02": {"vision_cfg": timm_tower("eva02_base_patch16_clip_224", CLS, **SMALL)},
    "PE-Core": {
        "vision_cfg": timm_tower("vit_pe_core_tiny_patch16_384", {"timm_pool": "map", "timm_proj": None}, **SMALL | MAP)
    },
    "GAP": {"vision_cfg": timm_tower("vit_medium_patch16_gap_256", {"timm_pool": "", "timm_proj": "linear"}, **SMALL)},
    "registers": {"vision_cfg": timm_tower("vit_base_patch16_reg4_gap_256", {"timm_pool": ""}, **SMALL)},
    "ViTamin": {"vision_cfg": timm_tower("vitamin_small_224", {"timm_pool": ""}, img_size=32, depth=3)},
}


@pytest.fixture(params=TOWERS)
def config(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Register a tiny model with open_clip under the name `tower`."""
    config = {"embed_dim": 32, "text_cfg": TEXT, "custom_text": True} | TOWERS[request.param]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tower", config)
    return config


def random_tower(config: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    """Build the model with open_clip and randomise parameters that are initially zero or one."""
    torch.manual_seed(seed)
    visual: torch.nn.Module = open_clip.model._build_vision_tower(32, dict(config["vision_cfg"]), False)
    for parameter in visual.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return visual.eval()


def public(visual: torch.nn.Module, images: Tensor) -> Tensor:
    features: Tensor | tuple[Tensor, Tensor] = visual(images)
    return features[0] if isinstance(features, tuple) else features


def images(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))


def half(side: int = 32) -> Tensor:
    masks = torch.zeros(2, side, side, dtype=torch.bool)
    masks[0, : side // 2], masks[1, 3, 5] = True, True
    return masks


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
def test_full_or_no_masks_equal_the_public_forward(config: dict[str, Any], shared: bool) -> None:
    model = MaskPromptedViT(random_tower(config), 3, shared).eval()
    expected = public(model.visual, images())
    for masks in (None, torch.ones(2, 32, 32, dtype=torch.bool)):
        torch.testing.assert_close(model(images(), masks), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(images(), half()), expected, rtol=1e-2, atol=1e-2)


@torch.no_grad()
@pytest.mark.usefixtures("config")
def test_the_adapter_equals_open_clip() -> None:
    torch.manual_seed(0)
    adapter = CLIPAdapter("tower").eval()
    torch.manual_seed(0)
    plain: Any = open_clip.create_model("tower").eval()
    mean, std = adapter.mean, adapter.std
    features = plain.encode_image(images(), normalize=True)
    torch.testing.assert_close(adapter.encode_regions(images() * std + mean, half()), features, rtol=1e-4, atol=1e-4)
    texts = ["a cat", "two red sofas"]
    expected = plain.encode_text(open_clip.get_tokenizer("tower")(texts), normalize=True)
    torch.testing.assert_close(adapter.encode_text(texts), expected)
    assert (adapter.image_size, adapter.dim) == (32, 32)


@torch.no_grad()
def test_prompts_replace_blank_patches_only(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = MaskPromptedViT(random_tower(config), 3).eval()
    assert model.prompt is not None
    inputs: list[Tensor] = []  # of each block
    outputs: list[Tensor] = []  # of each block
    blocks = type(model.tower).blocks

    def recorded(block: Block, tokens: Tensor) -> Tensor:
        inputs.append(tokens)
        outputs.append(block(tokens))
        return outputs[-1]

    def record(tower: Any, grid: Grid) -> list[Block]:
        return [partial(recorded, block) for block in blocks(tower, grid)]

    monkeypatch.setattr(type(model.tower), "blocks", record)
    prefix, patch = model.tower.prefix, model.patch_size
    blank = ~half().view(2, 32 // patch, patch, 32 // patch, patch).any(4).any(2).flatten(1)
    blank = torch.cat([torch.zeros(2, prefix, dtype=torch.bool), blank], dim=1)  # (N, prefix + L)
    model(images())
    plain = inputs.copy()
    inputs.clear()
    outputs.clear()
    model(images(), half())
    assert torch.equal((inputs[0] != plain[0]).any(-1), blank)
    for layer in (1, 2):
        assert torch.equal(inputs[layer][~blank], outputs[layer - 1][~blank])
        prompts = model.prompt.mask_embedding[layer].expand(2, -1, -1)
        assert torch.equal(inputs[layer][:, prefix:][blank[:, prefix:]], prompts[blank[:, prefix:]])


@torch.no_grad()
def test_other_resolutions_equal_a_resized_tower(config: dict[str, Any]) -> None:
    """Resized by the functions of open_clip and timm."""
    model = MaskPromptedViT(random_tower(config), 3).eval()
    before = public(model.visual, images())
    if hasattr(model.visual, "trunk"):
        resized = copy.deepcopy(model.visual)
        resized.trunk.set_input_size(64)
    else:
        resized = random_tower({"vision_cfg": config["vision_cfg"] | {"image_size": 64}})
        state = {f"visual.{key}": value for key, value in model.visual.state_dict().items()}
        resize_pos_embed(state, torch.nn.ModuleDict({"visual": resized}))
        resized.load_state_dict({key.removeprefix("visual."): value for key, value in state.items()})
    expected = public(resized, images(64))
    torch.testing.assert_close(model(images(64)), expected, rtol=1e-4, atol=1e-4)
    full = torch.ones(2, 64, 64)
    torch.testing.assert_close(model(images(64), full), expected, rtol=1e-4, atol=1e-4)
    assert bool(model(images(64), half(64)).isfinite().all())
    torch.testing.assert_close(public(model.visual, images()), before)  # the tower itself is unchanged


def test_recomputed_parts_give_the_same_gradients(config: dict[str, Any]) -> None:
    """As `AdapterTask` computes them with `regions_per_batch`."""
    model = MaskPromptedViT(random_tower(config), 3)
    assert model.prompt is not None
    parts = zip(images().split(1), half().split(1), strict=True)
    again = torch.cat([checkpoint(model, *part, use_reentrant=False) for part in parts])
    whole, recomputed = (
        torch.autograd.grad(features.square().sum(), model.prompt.mask_embedding)[0]
        for features in (model(images(), half()), again)
    )
    torch.testing.assert_close(recomputed, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))
    assert all(bool((layer != 0).any()) for layer in whole)


@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        (
            {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
            "ModifiedResNet, which has no patch tokens, .*; choose",
        ),
        ({"timm_model_name": "convnext_atto", "timm_pool": ""}, "ConvNeXt, which has no patch tokens, .*; choose"),
        ({"timm_model_name": "swin_tiny_patch4_window7_224", "timm_pool": ""}, "SwinTransformer, which has no patch"),
        (OWN | {"pool_type": "none"}, "VisionTransformer, does not pool its tokens"),
        (OWN | {"attentional_pool": "parallel", "attn_pooler_heads": 2}, "does not pool its tokens"),
        (OWN | {"patch_dropout": 0.5}, "drops patches in training.*set patch_dropout: 0"),
        (TOWERS["SigLIP"]["vision_cfg"] | {"patch_dropout": 0.5}, "drops patches in training"),
        (
            timm_tower("vit_small_patch16_rope_mixed_224", {"timm_pool": "token", "timm_proj": None}, **SMALL),
            "rotary position embeddings",
        ),
    ],
)
def test_towers_without_patch_tokens_are_refused(vision: dict[str, Any], reason: str) -> None:
    with torch.device("meta"):
        visual = open_clip.model._build_vision_tower(32, dict(vision), False)
    with pytest.raises(InputError, match=reason) as caught:
        split_tower(visual)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=reason):
        MaskPromptedViT(visual, 1)
    if "pool its tokens" in reason:  # refused without prompts as well
        with pytest.raises(InputError, match=reason):
            MaskPromptedViT(visual, 0)


@torch.no_grad()
@pytest.mark.parametrize(
    "vision",
    [
        tiny.RN,
        {"image_size": 32, "timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear"},
        OWN | {"patch_dropout": 0.5},
    ],
)
def test_a_tower_without_prompts_is_called_as_a_whole(vision: dict[str, Any]) -> None:
    visual = random_tower({"vision_cfg": vision})
    assert torch.equal(MaskPromptedViT(visual, 0).eval()(images(), half()), public(visual, images()))


@pytest.mark.parametrize(("kind", "kept"), [("OpenAI", 1), ("LayerScale", 1), ("CLIPA", 17), ("CoCa", 17)])
@torch.no_grad()
def test_the_last_block_returns_only_the_tokens_that_are_pooled(kind: str, kept: int) -> None:
    visual = random_tower({"embed_dim": 32, "text_cfg": TEXT} | TOWERS[kind]).eval()
    tower, tokens = split_tower(visual), torch.randn(2, 17, visual.conv1.out_channels)  # type: ignore[union-attr]
    output = tower.blocks(tower.grid)[-1](tokens)
    expected = visual.transformer.resblocks[-1](tokens)  # type: ignore[union-attr, index, operator]
    torch.testing.assert_close(output, expected[:, :kept], atol=1e-5, rtol=0)
