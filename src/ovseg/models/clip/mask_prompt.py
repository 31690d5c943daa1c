"""Mask prompt tuning: learnable tokens in the blank patches of a masked region (paper §3.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovseg.models.clip.towers import Tower, check_pooled, resize_grid, split_tower
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
            tokens: (N, L, C) patch tokens, without class tokens.
            visible: (N, L) of zeros and ones.
            layer: 0 for the input, d for the output of block d.
            grid: patches per column and row of `tokens`; prompts are interpolated to it.
        """
        prompt = self.mask_embedding[layer]
        if len(prompt) > 1:
            prompt = resize_grid(prompt, self.grid, grid)
        return torch.where(visible[..., None] > 0, tokens, prompt.to(tokens.dtype))


class MaskPromptedViT(nn.Module):
    """An image tower of open_clip that takes a mask beside each region: a vision transformer, unless without prompts.

    Without masks, with all-ones masks, or at depth 0 it computes exactly what `visual` computes. A vision transformer
    takes inputs of another resolution than its own, too: positions and prompts are interpolated bicubically.

    Batch norms keep their statistics in training, so that the features of a region depend on no other.

    Args:
        visual: the image tower of an open_clip model.
        prompt_depth: 0 for none; depths beyond the number of blocks have no effect.
        shared_prompt: one token for all positions.

    Raises:
        InputError: the tower has no patch tokens that prompts could replace, see `towers.split_tower`.
    """

    def __init__(self, visual: nn.Module, prompt_depth: int, shared_prompt: bool = False) -> None:
        super().__init__()
        check_pooled(visual)
        self.visual: Any = visual  # open_clip and timm have no types for what is inside
        self.prompt: MaskPrompt | None = None
        if prompt_depth:
            self.add_prompt(prompt_depth, shared_prompt)

    def train(self, mode: bool = True) -> MaskPromptedViT:
        super().train(mode)
        for part in self.visual.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
        return self

    def add_prompt(self, depth: int, shared: bool = False) -> None:
        """Start with new prompts, whatever was there before."""
        tower = self.tower
        self.prompt = MaskPrompt(depth, tower.grid, tower.width, shared)

    @property
    def tower(self) -> Tower:
        """`visual`, in parts; made anew, as a copy of this module has a `visual` of its own."""
        return split_tower(self.visual)

    @property
    def patch_size(self) -> int:
        return self.tower.patch_size

    @property
    def image_size(self) -> int:
        """Side of the regions in pixels."""
        size = self.visual.image_size
        return int(size if isinstance(size, int) else size[0])

    def check(self, regions: Tensor, region_masks: Tensor | None) -> Tower | None:
        """The parts that shall work on these regions, None where the tower is taken as a whole.

        Raises:
            InputError: the shapes are others than `forward` takes.
        """
        try:
            tower = self.tower
        except InputError:
            if self.prompt is not None:
                raise
            check_regions(regions, region_masks, 1)
            side = self.image_size
            if regions.shape[2:] != (side, side):
                have = " × ".join(map(str, regions.shape[2:]))
                raise InputError(
                    f"regions of {have} pixels do not fit this image tower, which takes {side} × {side}; resize them"
                ) from None
            return None
        check_regions(regions, region_masks, tower.patch_size)
        return tower

    def forward(self, regions: Tensor, region_masks: Tensor | None = None) -> Tensor:
        """Features before normalisation.

        Args:
            regions: (N, 3, H, W), normalised as CLIP was trained.
            region_masks: (N, H, W), positive where the region is visible.

        Returns:
            (N, D).

        Raises:
            InputError: the shapes are others.
        """
        tower, prompt = self.check(regions, region_masks), self.prompt
        if tower is None:
            features: Tensor = self.visual(regions)
            return features
        tokens, grid = tower.patches(regions)
        visible = None
        if region_masks is not None and prompt is not None:
            visible = patch_coverage(region_masks, tower.patch_size)
            tokens = prompt(tokens, visible, 0, grid)
        tokens = tower.embed(tokens, grid)
        blocks = tower.blocks(grid)
        for layer, block in enumerate(blocks, start=1):
            tokens = block(tokens)
            if visible is not None and prompt is not None and layer < min(prompt.depth, len(blocks)):
                patches = prompt(tokens[:, tower.prefix :], visible, layer, grid)
                tokens = torch.cat([tokens[:, : tower.prefix], patches], dim=1)
        return tower.pool(tokens)


def check_regions(regions: Tensor, region_masks: Tensor | None, patch_size: int) -> None:
    """Refuse regions that are no RGB images, are smaller than a patch, or do not fit their masks."""
    if regions.ndim != 4:
        raise InputError(f"regions have shape {tuple(regions.shape)}; stack them to (N, 3, height, width)")
    count, channels, height, width = regions.shape
    if channels != 3:
        have = "1 channel" if channels == 1 else f"{channels} channels"
        raise InputError(f"regions have {have}; convert them to RGB, (N, 3, height, width)")
    if min(height, width) < patch_size:
        raise InputError(
            f"regions of {height} × {width} pixels are smaller than a patch of CLIP ({patch_size}); resize them"
        )
    if region_masks is not None and region_masks.shape != (count, height, width):
        raise InputError(
            f"masks of shape {tuple(region_masks.shape)} do not fit {count} regions of {height} × {width} pixels"
        )
