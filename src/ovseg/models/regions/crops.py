"""The paper's region encoder, which crops every region and encodes it as a separate image (§3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.regions.base import RegionEncoder
from ovseg.ops import CLIP_MEAN, crop_regions
from ovseg.structures import ImageTextBatch, InputError, RegionFeatures, RegionTextBatch

FILLS = {"mean": CLIP_MEAN, "zero": (0.0, 0.0, 0.0)}


class CropEncoder(RegionEncoder):
    """Crop each region to its bounding box, fill the pixels outside its mask, and encode the crop with CLIP.

    Args:
        clip: encodes the crops; if it has mask prompts, they replace the blank patches.
        fill: colour outside the mask: CLIP's mean, or black (`zero`).
        expand_ratio: factor on the width and height of each box.
        regions_per_batch: crops that CLIP encodes at once; all by default. In training, activations are recomputed
            batch by batch for the gradients, which do not change: a step takes a third longer and needs the memory of
            one such batch.

    Raises:
        InputError: an option is out of range.
    """

    prompts_missing = "mask prompts, but this CLIP has none; set prompt_depth, for example to 3"

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
        """Encode the regions of each image; CLIP encodes the crops of all images together.

        See `RegionEncoder.forward`.
        """
        if not len(images):
            return []
        fill, size = FILLS[self.fill], self.clip.image_size
        crops, crop_masks, valids, visible = [], [], [], []
        for image, mask in zip(images, masks, strict=True):
            regions, region_masks, valid = crop_regions(image, mask, size, fill, self.expand_ratio)
            rows = valid.nonzero()[:, 0]  # once, since every use of a boolean mask waits for the device
            crops.append(regions[rows])
            crop_masks.append(region_masks[rows])
            valids.append(valid)
            visible.append(rows)
        encoded = torch.split(self._encode(torch.cat(crops), torch.cat(crop_masks)), [len(rows) for rows in visible])
        results = []
        for valid, rows, visible_features in zip(valids, visible, encoded, strict=True):
            features = visible_features.new_zeros((len(valid), visible_features.shape[1]))
            features[rows] = visible_features
            results.append(RegionFeatures(features, valid))
        return results

    def encode_batch(self, batch: RegionTextBatch | ImageTextBatch) -> Tensor:
        """Encode the crops of a training batch, (N, D); see `RegionEncoder.encode_batch`."""
        if not isinstance(batch, RegionTextBatch):
            raise InputError(
                f"{type(self).__name__} trains on regions, but the data brings whole images; use other data"
            )
        return self._encode(batch.regions, batch.region_masks)

    def prompt_parameters(self) -> list[nn.Parameter]:
        """Return CLIP's mask prompts."""
        prompt = self.clip.visual.prompt
        return super().prompt_parameters() + ([] if prompt is None else list(prompt.parameters()))

    def settings(self) -> dict[str, Any]:
        return {
            "fill": self.fill,
            "expand_ratio": self.expand_ratio,
            "regions_per_batch": self.regions_per_batch,
        }

    def _encode(self, regions: Tensor, region_masks: Tensor) -> Tensor:
        """Return the features (N, D) of all regions, encoded at once or batch by batch."""
        size = self.regions_per_batch
        if size is None or size >= len(regions):
            return self.clip.encode_regions(regions, region_masks)
        parts = zip(torch.split(regions, size), torch.split(region_masks, size), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([self.clip.encode_regions(*part) for part in parts])
        return torch.cat([checkpoint(self.clip.encode_regions, *part, use_reentrant=False) for part in parts])
