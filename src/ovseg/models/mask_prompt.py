"""Mask prompt tuning: learnable tokens in the blank patches of a masked region (paper §3.3).

The one file that knows how open_clip's vision transformer works inside; `tests/parity/test_mask_prompt.py` holds it
equal to the public path.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from ovseg.ops import patch_coverage
from ovseg.structures import InputError


class MaskPrompt(nn.Module):
    """Learnable tokens that take the place of patches without any visible pixel.

    Args:
        depth: number of layers that are prompted, the input being the first.
        grid: patches per column and row at the tower's own resolution.
        width: of the tokens.
        shared: one token for all positions instead of one each.
    """

    def __init__(self, depth: int, grid: tuple[int, int], width: int, shared: bool = False) -> None:
        super().__init__()
        self.grid = grid
        positions = 1 if shared else grid[0] * grid[1]
        self.mask_embedding = nn.Parameter(torch.randn(depth, positions, width) * 0.02)  # init of the release

    @property
    def depth(self) -> int:
        return self.mask_embedding.shape[0]

    def forward(self, tokens: Tensor, visible: Tensor, layer: int, grid: tuple[int, int]) -> Tensor:
        """Replace the blank patches.

        Args:
            tokens: (N, L, C) patch tokens, without the class token.
            visible: (N, L) of zeros and ones.
            layer: 0 for the input, d for the output of block d.
            grid: patches per column and row of `tokens`; prompts are interpolated to it.
        """
        prompt = self.mask_embedding[layer]
        if len(prompt) > 1:
            prompt = _resize_grid(prompt, self.grid, grid)
        return torch.where(visible[..., None] > 0, tokens, prompt.to(tokens.dtype))


class MaskPromptedViT(nn.Module):
    """An open_clip vision transformer that takes a mask beside each region.

    Without masks, with all-ones masks, or at depth 0 it computes exactly what `visual` computes. Inputs of another
    resolution than the tower's own are taken: position embeddings and prompts are interpolated bicubically.

    Args:
        visual: the image tower of an open_clip model.
        prompt_depth: 0 for none; depths beyond the number of blocks have no effect.
        shared_prompt: one token for all positions.

    Raises:
        InputError: the tower has no class token and patch tokens in the way of CLIP's ViT.
    """

    def __init__(self, visual: nn.Module, prompt_depth: int, shared_prompt: bool = False) -> None:
        super().__init__()
        if not isinstance(visual, VisionTransformer):
            raise InputError(
                f"mask prompts need a CLIP vision transformer, this image tower is a {type(visual).__name__}; "
                "choose an open_clip ViT such as ViT-B-16 or ViT-L-14"
            )
        self.visual = visual
        self.prompt: MaskPrompt | None = None
        if prompt_depth:
            self.add_prompt(prompt_depth, shared_prompt)

    def add_prompt(self, depth: int, shared: bool = False) -> None:
        """Start with new prompts, whatever was there before."""
        width: int = self.visual.conv1.out_channels
        self.prompt = MaskPrompt(depth, self.visual.grid_size, width, shared)

    @property
    def patch_size(self) -> int:
        return int(self.visual.patch_size[0])

    def forward(self, regions: Tensor, region_masks: Tensor | None = None) -> Tensor:
        """Features before normalisation.

        Args:
            regions: (N, 3, S, S), normalised as CLIP was trained.
            region_masks: (N, S, S), positive where the region is visible.

        Returns:
            (N, D).
        """
        visual, prompt = self.visual, self.prompt
        if region_masks is None or prompt is None:
            visible = None
        else:
            visible = patch_coverage(region_masks, self.patch_size)
        patches = visual.conv1(regions)  # (N, C, rows, columns)
        grid = (patches.shape[2], patches.shape[3])
        tokens = patches.flatten(2).transpose(1, 2)  # (N, L, C)
        if visible is not None and prompt is not None:
            tokens = prompt(tokens, visible, 0, grid)
        class_token = visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        position = visual.positional_embedding
        position = torch.cat([position[:1], _resize_grid(position[1:], visual.grid_size, grid)])
        tokens = torch.cat([class_token, tokens], dim=1) + position.to(tokens.dtype)
        tokens = visual.ln_pre(visual.patch_dropout(tokens))
        if visible is None or prompt is None:
            tokens = visual.transformer(tokens)
        else:
            tokens = self._prompted_blocks(tokens, visible, prompt, grid)
        features: Tensor = visual._pool(tokens)[0]
        return features if visual.proj is None else features @ visual.proj

    def _prompted_blocks(self, tokens: Tensor, visible: Tensor, prompt: MaskPrompt, grid: tuple[int, int]) -> Tensor:
        transformer = self.visual.transformer
        prompted = min(prompt.depth, len(transformer.resblocks)) - 1
        for layer, block in enumerate(transformer.resblocks, start=1):
            if transformer.grad_checkpointing and self.training:
                tokens = torch.utils.checkpoint.checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if layer <= prompted:
                tokens = torch.cat([tokens[:, :1], prompt(tokens[:, 1:], visible, layer, grid)], dim=1)
        return tokens


def _resize_grid(tokens: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Interpolate one token per grid cell, (rows · columns, C), to another grid; the same object where equal."""
    if grid == target:
        return tokens
    cells = tokens.reshape(1, *grid, -1).permute(0, 3, 1, 2).float()  # (1, C, rows, columns)
    cells = F.interpolate(cells, target, mode="bicubic", align_corners=False, antialias=True)
    return cells[0].flatten(1).T.to(tokens.dtype)
