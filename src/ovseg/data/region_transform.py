"""How a region is cut and augmented for adapter training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2.functional import resized_crop

from ovseg.ops import CLIP_MEAN
from ovseg.structures import InputError

# the paper's augmentation, of the region's box
SCALE = (0.9, 1.0)
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class RegionTransform:
    """The paper's random resized crop of a region and its mask together.

    Args:
        size: side of the regions in pixels; the resolution of the CLIP that is adapted where not given.

    Raises:
        InputError: the size is below 1.
    """

    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise InputError(f"transform.size is {self.size}; give at least 1")

    def augment(self, crop: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Fill what the mask leaves out and resize a random part of the box, as `crop_regions` does the whole.

        Args:
            crop: (3, h, w), the box of the mask.
            mask: (1, h, w) bool.
            size: that of this transform, or of the CLIP.

        Returns:
            (3, size, size) and (size, size) bool.
        """
        top, left, height, width = RandomResizedCrop.get_params(crop, list(SCALE), list(RATIO))
        if not mask[:, top : top + height, left : left + width].any():  # of a long thin box the centre alone is taken
            top, left, (height, width) = 0, 0, mask.shape[1:]
        filled = torch.where(mask, crop, torch.tensor(CLIP_MEAN)[:, None, None])
        window, square = (top, left, height, width), [size, size]
        # no antialiasing, so that training sees regions as inference makes them
        region = resized_crop(filled, *window, square, InterpolationMode.BICUBIC, antialias=False)
        region_mask = resized_crop(mask.float(), *window, square, InterpolationMode.NEAREST, antialias=False)[0] > 0
        return region, region_mask
