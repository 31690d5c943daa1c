"""Split open_clip's image towers into stages, so that tokens can be replaced between transformer blocks.

Only this file depends on the internals of open_clip's and timm's vision transformers. `tests/models/test_towers.py`
checks that the stages together compute what the public `forward` computes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from ovseg.structures import InputError

Grid = tuple[int, int]  # patches per column and per row
Block = Callable[[Tensor], Tensor]  # (N, prefix + L, C) → the same shape


class OpenClipTower:
    """Stages of open_clip's own vision transformer: one class token, and any pooling to one feature per image."""

    prefix = 1  # number of tokens before the patch tokens

    def __init__(self, visual: VisionTransformer) -> None:
        self.visual = visual
        self.grid: Grid = visual.grid_size  # at the tower's native resolution
        self.patch_size = int(visual.patch_size[0])
        self.width = int(visual.conv1.out_channels)

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
        """Return the blocks in order, for tokens on this grid."""
        return list(self.visual.transformer.resblocks)

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool the output of the last block into features (N, D)."""
        pooled: Tensor = self.visual._pool(tokens)[0]
        return pooled if self.visual.proj is None else pooled @ self.visual.proj


class TimmTower:
    """Stages of timm's vision transformer (SigLIP, MobileCLIP-B, ViTamin) or Eva (EVA-CLIP, Perception Encoder)."""

    def __init__(self, visual: TimmModel) -> None:
        self.visual = visual
        self.trunk: TimmViT | Eva = visual.trunk
        self.prefix = int(self.trunk.num_prefix_tokens)
        self.grid: Grid = self.trunk.patch_embed.grid_size
        self.patch_size = int(self.trunk.patch_embed.feat_ratio())
        self.width = int(self.trunk.embed_dim)

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
        rope = getattr(self.trunk, "rope", None)
        if rope is None:
            return list(self.trunk.blocks)
        if grid != self.grid:  # the module stores the angles of one grid, so change a copy
            rope = copy.deepcopy(rope)
            rope.update_feat_shape(list(grid))
        return [partial(block, rope=rope.get_embed()) for block in self.trunk.blocks]

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool the output of the last block into features (N, D)."""
        pooled: Tensor = self.visual.head(self.trunk.forward_head(self.trunk.norm(tokens)))
        return pooled


Tower = OpenClipTower | TimmTower
PLAIN = (VisionTransformer, TimmViT, Eva)  # exact types, because subclasses may compute something else


def split_tower(visual: nn.Module) -> Tower:
    """Split an image tower into its stages.

    Raises:
        InputError: the tower has no patch tokens, drops some of them, or does not pool them into one feature.
    """
    trunk, kind = _trunk(visual)
    if type(trunk) not in PLAIN:
        raise InputError(
            f"the image tower is a {kind}, which has no patch tokens that mask prompts could replace; choose a plain "
            "vision transformer from open_clip, such as ViT-B-16, ViT-B-16-SigLIP or EVA02-B-16"
        )
    check_pooled(visual)
    if not isinstance(getattr(trunk, "rope", None), RotaryEmbeddingCat | None):
        raise InputError(
            f"the image tower, a {kind}, has rotary position embeddings of an unsupported kind; choose another CLIP"
        )
    dropout = getattr(trunk, "patch_dropout", getattr(trunk, "patch_drop", None))
    if not isinstance(dropout, nn.Identity | None):
        raise InputError("the image tower drops patches in training, but mask prompts need all; set patch_dropout: 0")
    return TimmTower(visual) if isinstance(visual, TimmModel) else OpenClipTower(visual)


def check_pooled(visual: nn.Module) -> None:
    """Check that a vision transformer pools its tokens into one feature.

    Raises:
        InputError: it returns the tokens.
    """
    trunk, kind = _trunk(visual)
    pools = (getattr(trunk, "pool_type", None), getattr(trunk, "global_pool", None))
    if type(trunk) in PLAIN and (pools[0] == "none" or pools[1] == ""):
        raise InputError(f"the image tower, a {kind}, does not pool its tokens into one feature; choose one that does")


def _trunk(visual: nn.Module) -> tuple[Any, str]:
    """Return the network inside an image tower and the name of its class."""
    trunk = visual.trunk if isinstance(visual, TimmModel) else visual
    return trunk, type(trunk).__name__


def resize_grid(tokens: Tensor, grid: Grid, target: Grid, prefix: int = 0) -> Tensor:
    """Interpolate tokens from one grid to another (bicubic, antialiased).

    Args:
        tokens: (prefix + rows · columns, C); the first `prefix` are not changed.
        grid: rows and columns of `tokens`.
        target: rows and columns of the result.

    Returns:
        (prefix + target rows · target columns, C); `tokens` itself if the grids are equal.
    """
    if grid == target:
        return tokens
    cells = tokens[prefix:].reshape(1, *grid, -1).permute(0, 3, 1, 2).float()  # (1, C, rows, columns)
    cells = F.interpolate(cells, target, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([tokens[:prefix], cells[0].flatten(1).T.to(tokens.dtype)])
