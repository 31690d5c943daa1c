"""Encode all regions of an image in a single pass of CLIP, with a masked class token for each region."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.clip.towers import Tower
from ovseg.models.regions.coverage import hard_support
from ovseg.models.regions.whole_image import ImageGroup, WholeImageEncoder
from ovseg.structures import InputError

MaskBias = Literal["hard", "soft", "learned"]
Keys = Literal["self", "patches"]
INITIAL_SCALE = -5.0  # logarithm; a learned mask starts as a hard one


class SinglePassEncoder(WholeImageEncoder):
    """Repeat the class token once per region, and let each copy attend to itself and to the patches of its mask.

    The image's own tokens ignore the regions, and regions ignore one another. With a mask that covers the whole image,
    a region has the feature of the image. Towers that pool by attention or by the mean pool the patches of the mask;
    without a class token, that is all they do.

    Args:
        clip: its image tower must be a vision transformer.
        clip_short_side: short side of the image as input of CLIP, in pixels; rounded to whole patches. The aspect ratio
            is kept, up to 1 : 8.
        branch_block: the block, counted from 1, before which the class token is repeated.
        mask: how a region attends to a patch, given the share of the patch that its mask covers. `hard`: to patches
            with at least half the share of its most covered patch, equally; `soft`: with the logarithm of the share
            added to the logits; `learned`: as `hard`, but less to patches covered less, by a factor that is learned
            for each layer and head.
        prompt_keys: learned tokens per layer that stand for the blank patches of a region's box, as mask prompts do for
            crops; they attract as much attention as there are blank patches.
        keys: what a region attends to besides its prompts: `self`, itself and its patches; `patches`, its patches only.
        precision: `bf16` encodes with a copy of CLIP's image tower in bf16, for inference only.

    Raises:
        InputError: the image tower is not supported, or an option is out of range.
    """

    prompts_missing = (
        "prompt keys or a learned mask, but this region encoder has neither; set region_encoder.prompt_keys, for "
        "example to 4"
    )

    def __init__(
        self,
        clip: CLIPAdapter,
        clip_short_side: int = 384,
        branch_block: int = 1,
        mask: MaskBias = "hard",
        prompt_keys: int = 0,
        keys: Keys = "self",
        precision: Literal["bf16"] | None = None,
    ) -> None:
        super().__init__(clip, clip_short_side, precision)
        for name, choice, kind in (("mask", mask, MaskBias), ("keys", keys, Keys)):
            if choice not in get_args(kind):
                raise InputError(f"{name} is {choice!r}; choose from {', '.join(get_args(kind))}")
        tower = clip.visual.tower
        depth = len(tower.blocks(tower.grid))
        if not 1 <= branch_block <= depth:
            raise InputError(f"branch_block is {branch_block}, but this CLIP has {depth} blocks; give 1 to {depth}")
        if prompt_keys < 0:
            raise InputError(f"prompt_keys is {prompt_keys}; give a number of tokens per layer, or 0 for none")
        if not tower.has_region_tokens and (prompt_keys or mask == "learned"):
            raise InputError(
                "prompt_keys and mask: learned need an image tower that pools a class token, which this CLIP's does "
                "not; use mask: hard or soft without prompt_keys"
            )
        self.branch_block, self.mask, self.keys = branch_block, mask, keys
        layers, device = depth - branch_block + 1, clip.mean.device
        self.prompt_keys: nn.Parameter | None = None
        if prompt_keys:
            self.needs_blank = True
            self.prompt_keys = nn.Parameter(0.02 * torch.randn(layers, prompt_keys, tower.width, device=device))
        self.mask_scale: nn.Parameter | None = None
        if mask == "learned":
            self.mask_scale = nn.Parameter(torch.full((layers, tower.heads()), INITIAL_SCALE, device=device))

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "branch_block": self.branch_block,
            "mask": self.mask,
            "prompt_keys": 0 if self.prompt_keys is None else self.prompt_keys.shape[1],
            "keys": self.keys,
        }

    def encode_group(self, tower: Tower, group: ImageGroup) -> Tensor:
        """Return the features (B, Q, D) of the regions of a group of images, before normalisation."""
        tokens = tower.embed(*tower.patches(group.pixels))
        blocks = tower.blocks(group.grid)
        first = self.branch_block - 1 if tower.has_region_tokens else len(blocks)
        for block in blocks[:first]:
            tokens = block(tokens)
        count = group.coverage.shape[1] if tower.has_region_tokens else 0
        regions = tokens[:, :1].expand(-1, count, -1)
        bias = self._bias(tower, group).to(tokens.dtype)
        for layer, biased in enumerate(tower.biased_blocks(group.grid)[first:]):
            last = tower.pools_class_token and layer == len(blocks) - first - 1  # the image's tokens are not needed
            tokens, regions = self._run(biased, layer, tokens, regions, bias, group, last)
        return tower.pool_regions(tokens, regions, bias, self._weights(group.coverage))

    def _run(
        self, block: Any, layer: int, tokens: Tensor, regions: Tensor, bias: Tensor, group: ImageGroup, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Run a block on the tokens of the images (B, S, C) and of their regions (B, Q, C)."""
        own, prompts = tokens.shape[1], tokens[:, :0]
        if self.mask_scale is not None:
            share = group.coverage / group.coverage.amax(dim=2, keepdim=True).clamp(min=1e-6)
            difference = self.mask_scale[layer].exp()[:, None, None] * (share - 1)[:, None]  # (B, heads, Q, L)
            patches = group.coverage.shape[2]
            bias = bias + F.pad(difference, (own - patches, bias.shape[3] - own)).to(bias.dtype)
        if self.prompt_keys is not None and group.blank is not None:
            prompts = self.prompt_keys[layer].to(tokens.dtype).expand(len(tokens), -1, -1)
            bias = _with_prompts(bias, own, group.blank, prompts.shape[1])
        sequence = block(torch.cat([tokens, prompts, regions], dim=1), bias, last)
        return sequence[:, :own], sequence[:, sequence.shape[1] - regions.shape[1] :]

    def _weights(self, coverage: Tensor) -> Tensor:
        """Return the weights of patches in the mean, (B, Q, L)."""
        return coverage if self.mask == "soft" else hard_support(coverage).to(coverage.dtype)

    def _bias(self, tower: Tower, group: ImageGroup) -> Tensor:
        """Return the bias (B, 1, Q, prefix + L + Q) with which regions attend to the image's tokens and themselves."""
        coverage, prefix = group.coverage, tower.prefix
        images, count, patches = coverage.shape
        own = prefix + patches
        bias = coverage.new_full((images, count, own + count), -torch.inf)
        if self.keys == "self":
            bias[:, :, own:].diagonal(dim1=1, dim2=2).zero_()
            bias[:, :, :prefix] = 0  # registers, if there are any
            if tower.has_region_tokens:
                bias[:, :, 0] = -torch.inf  # the class token, which the region stands for
        support = hard_support(coverage)
        bias[:, :, prefix:own] = coverage.log() if self.mask == "soft" else torch.where(support, 0.0, -torch.inf)
        # padding and empty regions attend to everything, because a softmax over nothing is not defined
        bias = torch.where(support.any(dim=2, keepdim=True), bias, 0.0)
        return bias[:, None] if tower.has_region_tokens else bias[:, None, :, :own]


def _with_prompts(bias: Tensor, own: int, blank: Tensor, prompts: int) -> Tensor:
    """Insert the columns and rows of n prompts, which together weigh as much as the blank patches.

    Args:
        bias: (B, 1 or heads, Q, own + Q).
        own: tokens of the image.
        blank: (B, Q) blank patches in the box of each region.
        prompts: n.

    Returns:
        (B, 1 or heads, n + Q, own + n + Q); the prompts' own rows are zero.
    """
    weight = (blank / prompts).log().to(bias.dtype)[:, None, :, None]
    columns = weight.expand(*bias.shape[:3], prompts)
    return F.pad(torch.cat([bias[..., :own], columns, bias[..., own:]], dim=3), (0, 0, prompts, 0))
