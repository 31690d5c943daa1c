"""The stages of timm's vision transformers."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.hybrid_embed import HybridEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor

from ovseg.models.clip.grid import BiasedBlock, Block, Grid, resize_grid, weighted_mean
from ovseg.structures import InputError


class TimmTower:
    """Stages of timm's vision transformer (SigLIP, MobileCLIP-B, ViTamin) or Eva (EVA-CLIP, Perception Encoder)."""

    def __init__(self, visual: TimmModel) -> None:
        self.visual = visual
        self.trunk: TimmViT | Eva = visual.trunk
        self.prefix = int(self.trunk.num_prefix_tokens)
        self.grid: Grid = self.trunk.patch_embed.grid_size
        self.patch_size = int(self.trunk.patch_embed.feat_ratio())
        self.width = int(self.trunk.embed_dim)
        self.pools_class_token = self.trunk.attn_pool is None and self.trunk.global_pool == "token"
        self.has_region_tokens = self.pools_class_token or (
            self.trunk.attn_pool is not None and self.trunk.cls_token is not None and self._pools_prefix
        )

    def patches(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Embed images (N, 3, H, W) as patch tokens (N, L, C), and return their grid as well."""
        embed: Any = self.trunk.patch_embed  # its `forward` only accepts the native resolution
        convolutional = isinstance(embed, HybridEmbed)
        cells: Tensor = embed.proj(embed.backbone(images) if convolutional else images)  # (N, C, rows, columns)
        tokens = cells.flatten(2).transpose(1, 2)
        return tokens if convolutional else embed.norm(tokens), (cells.shape[2], cells.shape[3])

    def embed(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Turn patch tokens (N, L, C) into the input of the first block, (N, prefix + L, C)."""
        trunk, position = self.trunk, self.trunk.pos_embed
        if position is not None and trunk.no_embed_class:
            tokens = tokens + resize_grid(position[0], self.grid, grid)
        first = [token.expand(len(tokens), -1, -1) for token in (trunk.cls_token, trunk.reg_token) if token is not None]
        tokens = torch.cat([*first, tokens], dim=1)
        if position is not None and not trunk.no_embed_class:
            tokens = tokens + resize_grid(position[0], self.grid, grid, self.prefix)
        embedded: Tensor = trunk.norm_pre(trunk.pos_drop(tokens))
        return embedded

    def blocks(self, grid: Grid) -> list[Block]:
        """Return the blocks in order, for tokens on this grid."""
        rope = self._rope(grid)
        return list(self.trunk.blocks) if rope is None else [partial(block, rope=rope) for block in self.trunk.blocks]

    def _rope(self, grid: Grid) -> Tensor | None:
        """Return the rotary embeddings of the patches, (L, 2 · head width): sines, then cosines."""
        rope = getattr(self.trunk, "rope", None)
        if rope is None:
            return None
        if grid != self.grid:  # the module stores the angles of one grid, so change a copy
            rope = copy.deepcopy(rope)
            rope.update_feat_shape(list(grid))
        angles: Tensor = rope.get_embed()
        return angles

    @property
    def _pools_prefix(self) -> bool:
        return bool(getattr(self.trunk, "pool_include_prefix", True))

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool the output of the last block into features (N, D)."""
        pooled: Tensor = self.visual.head(self.trunk.forward_head(self.trunk.norm(tokens)))
        return pooled

    def check_regions(self) -> None:
        """Check that `biased_blocks` and `pool_regions` support this tower.

        Raises:
            InputError: they do not.
        """
        trunk, pool = self.trunk, self.trunk.attn_pool
        if pool is None:
            supported = self.pools_class_token or trunk.global_pool == "avg"
            kind = trunk.global_pool
        else:
            supported = type(pool) is AttentionPoolLatent and pool.pos_embed is None and pool.latent_len == 1
            kind = type(pool).__name__
        if not supported:
            raise InputError(
                f"the image tower pools its tokens in a way ({kind}) that cannot encode regions in a single pass; use "
                "CropEncoder or another CLIP, such as ViT-B-16"
            )

    def heads(self) -> int:
        """Return the number of attention heads in each block."""
        attention: Any = self.trunk.blocks[0].attn
        return int(attention.num_heads)

    def biased_blocks(self, grid: Grid) -> list[BiasedBlock]:
        """Return the blocks in order, see `BiasedBlock`."""
        rope = self._rope(grid)
        return [partial(_biased, block, rope, self.prefix) for block in self.trunk.blocks]

    def pool_regions(self, tokens: Tensor, regions: Tensor, bias: Tensor, weights: Tensor) -> Tensor:
        """Pool the output of the last block into features of regions, see `OpenClipTower.pool_regions`."""
        trunk = self.trunk
        if trunk.attn_pool is not None:
            tokens = torch.cat([tokens, regions], dim=1)
            tokens, bias = (
                (tokens, bias) if self._pools_prefix else (tokens[:, self.prefix :], bias[..., self.prefix :])
            )
            pooled = _pool_latent(trunk.attn_pool, trunk.norm(tokens), bias[..., : tokens.shape[1]])
        elif self.pools_class_token:
            pooled = trunk.norm(regions)
        else:
            pooled = weighted_mean(weights, trunk.norm(tokens)[:, self.prefix :])
        features: Tensor = self.visual.head(trunk.head(trunk.head_drop(trunk.fc_norm(pooled))))
        return features


def _biased(block: Any, rope: Tensor | None, prefix: int, tokens: Tensor, bias: Tensor, last: bool = False) -> Tensor:
    """Run a block whose last R tokens attend with a bias, see `BiasedBlock`; region tokens are not rotated."""
    count, biased = tokens.shape[1], bias.shape[2]
    mask = bias.new_zeros((*bias.shape[:2], count, count))
    mask[..., : count - biased, count - biased :] = -torch.inf
    mask[..., count - biased :, :] = bias
    options = {}
    if rope is not None:
        still = rope.new_zeros((count - prefix - len(rope), rope.shape[1]))
        still[:, rope.shape[1] // 2 :] = 1  # cosine 1, sine 0
        options["rope"] = torch.cat([rope, still])
    result: Tensor = block(tokens, attn_mask=mask, **options)
    return result[:, count - biased :] if last else result


def _pool_latent(pool: AttentionPoolLatent, tokens: Tensor, bias: Tensor) -> Tensor:
    """Pool tokens (B, T, C) by attention, once for each row of a bias (B, 1, Q, T), to (B, Q, C).

    Equals `pool.forward(tokens, attn_mask)` for every row, but computes the keys and values only once.
    """
    heads, rows = pool.num_heads, bias.shape[2]
    query = pool.q_norm(pool.q(pool.latent).reshape(1, heads, 1, -1))  # (1, heads, 1, d)
    key, value = (
        pool.kv(tokens).reshape(*tokens.shape[:2], 2, heads, pool.head_dim).permute(2, 0, 3, 1, 4)
    )  # (B, heads, T, d)
    mixed = F.scaled_dot_product_attention(
        query.expand(len(tokens), -1, rows, -1), pool.k_norm(key), value, bias.to(value.dtype)
    )
    pooled: Tensor = pool.proj_drop(pool.proj(mixed.transpose(1, 2).flatten(2)))
    if pool.mlp is not None:
        pooled = pooled + pool.mlp(pool.norm(pooled))
    return pooled
