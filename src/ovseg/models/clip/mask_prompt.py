"""Mask prompt tuning: learnable tokens in the blank patches of a masked region (paper §3.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovseg.models.clip.grid import resize_grid
from ovseg.models.clip.towers import Tower, check_pooled, split_tower
from ovseg.ops import patch_coverage
from ovseg.structures import InputError


class MaskPrompt(nn.Module):
    """Learnable tokens that replace patches without any visible pixel.

    Args:
        depth: number of prompted layers; the first is the input to the transformer.
        grid: patches per column and per row at the tower's native resolution.
        width: width of the tokens.
        shared: use one token for all positions instead of one per position.
    """

    def __init__(self, depth: int, grid: tuple[int, int], width: int, shared: bool = False) -> None:
        super().__init__()
        self.grid = grid
        positions = 1 if shared else grid[0] * grid[1]
        self.mask_embedding = nn.Parameter(torch.randn(depth, positions, width) * 0.02)  # as in the release

    @property
    def depth(self) -> int:
        """Number of prompted layers."""
        return self.mask_embedding.shape[0]

    def forward(self, tokens: Tensor, visible: Tensor, layer: int, grid: tuple[int, int]) -> Tensor:
        """Replace the tokens of blank patches by the prompt of a layer.

        Args:
            tokens: (N, L, C) patch tokens, without class tokens.
            visible: (N, L) zeros and ones.
            layer: 0 for the input, d for the output of block d.
            grid: patches per column and per row of `tokens`; prompts are interpolated to it.

        Returns:
            (N, L, C).
        """
        prompt = self.mask_embedding[layer]
        if len(prompt) > 1:
            prompt = resize_grid(prompt, self.grid, grid)
        return torch.where(visible[..., None] > 0, tokens, prompt.to(tokens.dtype))


class MaskPromptedViT(nn.Module):
    """An open_clip image tower that accepts a mask with each region; prompts require a vision transformer.

    Without masks, with all-ones masks, or at depth 0, the output equals that of `visual`. A vision transformer accepts
    inputs of any resolution: position embeddings and prompts are interpolated bicubically.

    Batch norms stay in evaluation mode during training, so the features of a region do not depend on other regions.

    Args:
        visual: the image tower of an open_clip model.
        prompt_depth: number of prompted layers, 0 for none; layers beyond the number of blocks have no effect.
        shared_prompt: use one token for all positions.

    Raises:
        InputError: the tower has no patch tokens that prompts could replace, see `towers.split_tower`.
    """

    def __init__(self, visual: nn.Module, prompt_depth: int, shared_prompt: bool = False) -> None:
        super().__init__()
        check_pooled(visual)
        self.visual: Any = visual  # open_clip and timm do not type the modules inside
        self.prompt: MaskPrompt | None = None
        if prompt_depth:
            self.add_prompt(prompt_depth, shared_prompt)

    def train(self, mode: bool = True) -> MaskPromptedViT:
        """Switch between training and evaluation mode; batch norms stay in evaluation mode."""
        super().train(mode)
        for part in self.visual.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
        return self

    def add_prompt(self, depth: int, shared: bool = False) -> None:
        """Replace any existing prompts with newly initialised ones.

        Raises:
            InputError: the tower has no patch tokens that prompts could replace.
        """
        tower = self.tower
        self.prompt = MaskPrompt(depth, tower.grid, tower.width, shared)

    @property
    def tower(self) -> Tower:
        """The stages of `visual`; created on each access, because a deep copy of this module has another `visual`."""
        return split_tower(self.visual)

    @property
    def patch_size(self) -> int:
        """Side length of a patch, in pixels."""
        return self.tower.patch_size

    @property
    def image_size(self) -> int:
        """Side length of the square input regions, in pixels."""
        size = self.visual.image_size
        return int(size if isinstance(size, int) else size[0])

    def check(self, regions: Tensor, region_masks: Tensor | None) -> Tower | None:
        """Check the shapes of regions and masks.

        Returns:
            The stages of the tower, or None for a tower without patch tokens, which is called as a whole.

        Raises:
            InputError: `forward` does not accept these shapes.
        """
        try:
            tower = self.tower
        except InputError:
            if self.prompt is not None:
                raise
            check_regions(regions, region_masks, 1)
            side = self.image_size
            if regions.shape[2:] != (side, side):
                size = " × ".join(map(str, regions.shape[2:]))
                raise InputError(
                    f"regions of {size} pixels do not fit this image tower, which needs {side} × {side}; resize them"
                ) from None
            return None
        check_regions(regions, region_masks, tower.patch_size)
        return tower

    def forward(self, regions: Tensor, region_masks: Tensor | None = None) -> Tensor:
        """Return the features of regions, before L2 normalisation.

        Args:
            regions: (N, 3, H, W), with CLIP's mean and standard deviation applied.
            region_masks: (N, H, W), positive where the region is visible.

        Returns:
            (N, D).

        Raises:
            InputError: the regions or masks have other shapes.
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
    """Check that regions are RGB, no smaller than a patch, and as large as their masks.

    Args:
        regions: (N, 3, H, W).
        region_masks: (N, H, W).
        patch_size: side length of a patch, in pixels.

    Raises:
        InputError: one of these does not hold.
    """
    if regions.ndim != 4:
        raise InputError(f"regions have shape {tuple(regions.shape)}; stack them to (N, 3, height, width)")
    count, channels, height, width = regions.shape
    if channels != 3:
        actual = "1 channel" if channels == 1 else f"{channels} channels"
        raise InputError(f"regions have {actual}; convert them to RGB, (N, 3, height, width)")
    if min(height, width) < patch_size:
        raise InputError(
            f"regions of {height} × {width} pixels are smaller than CLIP's patches ({patch_size} pixels); resize them"
        )
    if region_masks is not None and region_masks.shape != (count, height, width):
        raise InputError(
            f"masks of shape {tuple(region_masks.shape)} do not match {count} regions of {height} × {width} pixels; "
            f"pass masks of shape ({count}, {height}, {width})"
        )
