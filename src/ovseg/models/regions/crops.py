"""The paper's region encoder: every region is cut out and becomes an image for CLIP (§3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.regions.base import RegionEncoder
from ovseg.ops import CLIP_MEAN, crop_regions
from ovseg.structures import InputError, RegionFeatures, RegionTextBatch

FILLS = {"mean": CLIP_MEAN, "zero": (0.0, 0.0, 0.0)}


class CropEncoder(RegionEncoder):
    """Crops each region to its box, fills what the mask leaves out, and encodes the crop as an image of its own.

    Args:
        clip: with mask prompts in the blank patches, if it has any.
        fill: colour outside the mask, CLIP's `mean` or `zero`.
        expand_ratio: scale of the box about its centre.
        regions_per_batch: crops that go through CLIP at once; all where not given. In training, only the features of
            each part are kept and its activations are recomputed for the gradients, which equal those of the undivided
            batch: a step takes a third longer, in the memory of one part.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(
        self,
        clip: CLIPAdapter,
        fill: Literal["mean", "zero"] = "mean",
        expand_ratio: float = 1.0,
        regions_per_batch: int | None = None,
    ) -> None:
        super().__init__(clip)
        if fill not in FILLS:
            raise InputError(f"fill is {fill!r}; choose from {', '.join(FILLS)}")
        if not 0 < expand_ratio < math.inf:
            raise InputError(f"expand_ratio is {expand_ratio}; give a finite number above 0")
        if regions_per_batch is not None and regions_per_batch < 1:
            raise InputError(f"regions_per_batch is {regions_per_batch}; give at least 1, or null for all at once")
        self.fill, self.expand_ratio, self.regions_per_batch = fill, expand_ratio, regions_per_batch

    def forward(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> list[RegionFeatures]:
        """Encode the regions of each image; the crops of all images share the passes through CLIP.

        See `RegionEncoder.forward`.
        """
        if not len(images):
            return []
        fill, size = FILLS[self.fill], self.clip.image_size
        crops, crop_masks, valids, visible = [], [], [], []
        for image, mask in zip(images, masks, strict=True):
            regions, region_masks, valid = crop_regions(image, mask, size, fill, self.expand_ratio)
            rows = valid.nonzero()[:, 0]  # once, and not at each use of a mask
            crops.append(regions[rows])
            crop_masks.append(region_masks[rows])
            valids.append(valid)
            visible.append(rows)
        encoded = torch.split(self._encode(torch.cat(crops), torch.cat(crop_masks)), [len(rows) for rows in visible])
        answer = []
        for valid, rows, of_image in zip(valids, visible, encoded, strict=True):
            features = of_image.new_zeros((len(valid), of_image.shape[1]))
            features[rows] = of_image
            answer.append(RegionFeatures(features, valid))
        return answer

    def encode_batch(self, batch: RegionTextBatch) -> Tensor:
        """Encode the crops of a training batch, (N, D); see `RegionEncoder.encode_batch`."""
        return self._encode(batch.regions, batch.region_masks)

    def settings(self) -> dict[str, Any]:
        return {
            "fill": self.fill,
            "expand_ratio": self.expand_ratio,
            "regions_per_batch": self.regions_per_batch,
        }

    def _encode(self, regions: Tensor, region_masks: Tensor) -> Tensor:
        """Features (N, D), of all regions at once or part by part."""
        size = self.regions_per_batch
        if size is None or size >= len(regions):
            return self.clip.encode_regions(regions, region_masks)
        parts = zip(torch.split(regions, size), torch.split(region_masks, size), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([self.clip.encode_regions(*part) for part in parts])
        return torch.cat([checkpoint(self.clip.encode_regions, *part, use_reentrant=False) for part in parts])
