"""The stages of open_clip's own vision transformer."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from ovseg.models.clip.grid import BiasedBlock, Block, Grid, resize_grid, weighted_mean
from ovseg.structures import InputError


class OpenClipTower:
    """Stages of open_clip's own vision transformer: one class token, and any pooling to one feature per image."""

    prefix = 1  # number of tokens before the patch tokens

    def __init__(self, visual: VisionTransformer) -> None:
        self.visual = visual
        self.grid: Grid = visual.grid_size  # at the tower's native resolution
        self.patch_size = int(visual.patch_size[0])
        self.width = int(visual.conv1.out_channels)
        self.pools_class_token = visual.pool_type == "tok" and visual.attn_pool is None
        self.has_region_tokens = self.pools_class_token

    def patches(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Embed images (N, 3, H, W) as patch tokens (N, L, C), and return their grid as well."""
        cells: Tensor = self.visual.conv1(images)  # (N, C, rows, columns)
        return cells.flatten(2).transpose(1, 2), (cells.shape[2], cells.shape[3])

    def embed(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Turn patch tokens (N, L, C) into the input of the first block, (N, prefix + L, C)."""
        visual = self.visual
        first = visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        position = resize_grid(visual.positional_embedding, self.grid, grid, self.prefix)
        embedded: Tensor = visual.ln_pre(torch.cat([first, tokens], dim=1) + position.to(tokens.dtype))
        return embedded

    def blocks(self, grid: Grid) -> list[Block]:
        """Return the blocks in order, for tokens on this grid.

        If only the class token is pooled, the last block returns only that token, (N, 1, C).
        """
        blocks = list(self.visual.transformer.resblocks)
        if not all(type(block) is ResidualAttentionBlock for block in blocks):
            return blocks
        last = partial(_run, blocks[-1], wanted=1 if self.pools_class_token else None)
        return [*(partial(_run, block) for block in blocks[:-1]), last]

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool the output of the last block into features (N, D)."""
        pooled: Tensor = self.visual._pool(tokens)[0]
        return pooled if self.visual.proj is None else pooled @ self.visual.proj

    def check_regions(self) -> None:
        """Check that `biased_blocks` and `pool_regions` support this tower.

        Raises:
            InputError: they do not.
        """
        if self.visual.attn_pool is not None:
            raise InputError(
                "the image tower pools by open_clip's attention (CoCa), which accepts no masks, so it cannot encode "
                "regions in a single pass; use CropEncoder or another CLIP, such as ViT-B-16"
            )
        kinds = {type(block) for block in self.visual.transformer.resblocks}
        if kinds != {ResidualAttentionBlock}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds - {ResidualAttentionBlock}))
            raise InputError(
                f"the image tower has blocks of kind {names}, which cannot encode regions in a single pass; use "
                "CropEncoder or another CLIP, such as ViT-B-16"
            )

    def heads(self) -> int:
        """Return the number of attention heads in each block."""
        return int(self.visual.transformer.resblocks[0].attn.num_heads)

    def biased_blocks(self, grid: Grid) -> list[BiasedBlock]:
        """Return the blocks in order, see `BiasedBlock`."""
        return [partial(_biased, block) for block in self.visual.transformer.resblocks]

    def pool_regions(self, tokens: Tensor, regions: Tensor, bias: Tensor, weights: Tensor) -> Tensor:
        """Pool the output of the last block into features of regions (B, Q, D).

        Args:
            tokens: (B, prefix + L, C), those of the image.
            regions: (B, Q, C), those of the regions; Q = 0 unless `has_region_tokens`.
            bias: (B, 1, Q, prefix + L + Q) for pooling by attention.
            weights: (B, Q, L) of the patches, for pooling by the mean.
        """
        visual = self.visual
        if self.pools_class_token:
            pooled = visual.ln_post(regions)
        elif visual.final_ln_after_pool:
            pooled = visual.ln_post(weighted_mean(weights, tokens[:, self.prefix :]))
        else:
            pooled = weighted_mean(weights, visual.ln_post(tokens)[:, self.prefix :])
        features: Tensor = pooled if visual.proj is None else pooled @ visual.proj
        return features


def _run(block: ResidualAttentionBlock, tokens: Tensor, wanted: int | None = None) -> Tensor:
    """Run a block with fused attention, which `nn.MultiheadAttention` does not use in evaluation mode.

    Args:
        tokens: (B, T, C).
        wanted: return only so many tokens, the first ones; all by default.
    """
    query, key, value = _project(block, tokens, slice(wanted))
    return _finish(block, tokens[:, :wanted], F.scaled_dot_product_attention(query, key, value))


def _biased(block: ResidualAttentionBlock, tokens: Tensor, bias: Tensor, last: bool = False) -> Tensor:
    """Run a block whose last R tokens attend with a bias, see `BiasedBlock`.

    open_clip's own `forward` ignores other keys and values, and adds a boolean mask as zeros and ones.
    """
    own = tokens.shape[1] - bias.shape[2]
    query, key, value = _project(block, tokens, slice(own if last else 0, None))
    biased = F.scaled_dot_product_attention(query[:, :, -bias.shape[2] :], key, value, bias.to(query.dtype))
    if last:
        return _finish(block, tokens[:, own:], biased)
    first = F.scaled_dot_product_attention(query[:, :, :own], key[:, :, :own], value[:, :, :own])
    return _finish(block, tokens, torch.cat([first, biased], dim=2))


def _project(block: ResidualAttentionBlock, tokens: Tensor, wanted: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys and values of tokens (B, T, C), and queries of the wanted ones, each (B, heads, T, d)."""
    attention, normed = block.attn, block.ln_1(tokens)
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, tokens.shape[2]
    heads = (attention.num_heads, attention.head_dim)
    if normed[:, wanted].shape == normed.shape:
        projected = F.linear(normed, weight, bias).view(len(tokens), tokens.shape[1], 3, *heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind()
        return query, key, value
    few = F.linear(normed[:, wanted], weight[:width], bias[:width])
    query = few.view(len(tokens), few.shape[1], *heads).transpose(1, 2)
    both = F.linear(normed, weight[width:], bias[width:]).view(len(tokens), tokens.shape[1], 2, *heads)
    key, value = both.permute(2, 0, 3, 1, 4).unbind()
    return query, key, value


def _finish(block: ResidualAttentionBlock, tokens: Tensor, mixed: Tensor) -> Tensor:
    """Return the output (B, T, C) of a block from its input and the attended values (B, heads, T, d)."""
    tokens = tokens + block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))
    result: Tensor = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
    return result
