"""Average CLIP's dense features over each mask, without training (MaskCLIP, Zhou et al., ECCV 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from ovseg.models.clip.towers import Tower
from ovseg.models.regions.whole_image import ImageGroup, WholeImageEncoder


class MeanPoolEncoder(WholeImageEncoder):
    """Average the features of the patches of each mask, weighted by the area that the mask covers.

    In the last block each patch attends to itself only, so that its feature describes that place. See
    `WholeImageEncoder` for the arguments.
    """

    def encode_group(self, tower: Tower, group: ImageGroup) -> Tensor:
        """Return the features (B, Q, D) of the regions of a group of images, before normalisation."""
        tokens = tower.embed(*tower.patches(group.pixels))
        for block in tower.blocks(group.grid)[:-1]:
            tokens = block(tokens)
        same = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        alone = tokens.new_zeros(same.shape).masked_fill(~same, -torch.inf)[None, None]
        tokens = tower.biased_blocks(group.grid)[-1](tokens, alone.expand(len(tokens), -1, -1, -1))
        patches = tokens[:, tower.prefix :]
        regions = patches if tower.pools_class_token else patches[:, :0]
        rows = alone[:, :, tower.prefix :].expand(len(tokens), -1, -1, -1)
        weights = torch.eye(patches.shape[1], dtype=tokens.dtype, device=tokens.device).expand(len(tokens), -1, -1)
        features = tower.pool_regions(tokens, regions, rows, weights)  # (B, L, D), of single patches
        total = group.coverage.sum(dim=2, keepdim=True).clamp(min=1e-6)
        return (group.coverage / total).to(features.dtype) @ features
