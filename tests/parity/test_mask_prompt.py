"""The mask-prompted ViT compared with the released implementation (golden g1)."""

from __future__ import annotations

import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from ovseg.models.clip.mask_prompt import MaskPromptedViT
from ovseg.ops import patch_coverage
from tests.parity import goldens

G1 = goldens.arrays("g1_vit_mask_prompt")


def tower(depth: int, shared: bool = False) -> MaskPromptedViT:
    torch.manual_seed(0)
    visual = VisionTransformer(48, 8, 64, 3, 4, 4.0, output_dim=32, act_layer=open_clip.transformer.QuickGELU)
    weights = goldens.state("g1_vit_state")
    prompts = weights.pop("mask_embedding")
    visual.load_state_dict(weights)
    model = MaskPromptedViT(visual, depth, shared).eval()
    if model.prompt is not None:
        model.prompt.mask_embedding.data.copy_(prompts[:depth, :1] if shared else prompts[:depth])
    return model


def close(actual: Tensor, expected: Tensor) -> None:
    goldens.close("mask prompts", actual, expected)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("masks", "suffix"), [("soft", ""), ("bool", "_bool")])
def test_features_equal_the_release(depth: int, masks: str, suffix: str) -> None:
    region_masks = G1["masks"][:, 0] if masks == "soft" else G1["masks"][:, 0] > 0.5
    close(tower(depth)(G1["regions"], region_masks), G1[f"feat{suffix}_depth{depth}"])


@torch.no_grad()
@pytest.mark.parametrize("depth", [0, 2])
def test_without_masks_equals_the_release(depth: int) -> None:
    close(tower(depth)(G1["regions"]), G1["feat_nomask"])


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_layer_equals_the_release(depth: int) -> None:
    model = tower(depth)
    blocks: list[Tensor] = []
    pre_ln: list[Tensor] = []
    for block in model.visual.transformer.resblocks:
        block.register_forward_hook(lambda _module, _args, output: blocks.append(output[:2]))
    model.visual.ln_pre.register_forward_hook(lambda _module, args, _output: pre_ln.append(args[0][:2]))
    model(G1["regions"], G1["masks"][:, 0])
    close(pre_ln[0], G1[f"pre_ln_depth{depth}"])
    for index, block_output in enumerate(blocks):
        close(block_output, G1[f"block{index}_out_depth{depth}"])


def test_coverage_equals_the_release_exactly() -> None:
    assert torch.equal(patch_coverage(G1["masks"][:, 0], 8), G1["token_masks"])


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
def test_full_masks_equal_the_public_forward(shared: bool) -> None:
    model = tower(3, shared)
    full = torch.ones(6, 48, 48, dtype=torch.bool)
    torch.testing.assert_close(model(G1["regions"], full), model.visual(G1["regions"]), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_empty_mask_hides_the_pixels() -> None:
    empty = torch.zeros(6, 48, 48, dtype=torch.bool)
    features = tower(1)(G1["regions"], empty)
    torch.testing.assert_close(features, features[:1].expand_as(features))


@torch.no_grad()
def test_shared_prompt_is_the_same_token_everywhere() -> None:
    shared, each = tower(3, shared=True), tower(3)
    assert shared.prompt is not None and each.prompt is not None
    each.prompt.mask_embedding.data.copy_(shared.prompt.mask_embedding.data.expand(3, 36, 64))
    masks = G1["masks"][:, 0] > 0.5
    close(shared(G1["regions"], masks), each(G1["regions"], masks))


@torch.no_grad()
def test_depth_beyond_the_blocks_has_no_effect() -> None:
    model = tower(3)
    deep = MaskPromptedViT(model.visual, 5).eval()
    assert deep.prompt is not None and model.prompt is not None
    deep.prompt.mask_embedding.data[:3] = model.prompt.mask_embedding.data
    masks = G1["masks"][:, 0]
    assert torch.equal(deep(G1["regions"], masks), model(G1["regions"], masks))


@torch.no_grad()
def test_other_resolutions_interpolate_positions_and_prompts() -> None:
    model = tower(2)
    regions = torch.nn.functional.interpolate(G1["regions"], (96, 96), mode="bicubic", align_corners=False)
    masks = torch.nn.functional.interpolate((G1["masks"] > 0.5).float(), (96, 96))[:, 0]
    small, large = model(G1["regions"], G1["masks"][:, 0] > 0.5), model(regions, masks)
    assert large.shape == small.shape and bool(large.isfinite().all())
    full = torch.ones_like(masks)
    torch.testing.assert_close(model(regions, full), model(regions))
