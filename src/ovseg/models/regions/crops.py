"""The paper's region encoder, which crops every region and encodes it as a separate image (§3.3)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ovseg.cropping import RegionCutter
from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.regions.base import RegionEncoder
from ovseg.models.regions.batches import first_equals, is_out_of_memory, regions_at_once
from ovseg.ops import CLIP_MEAN, expand_boxes, fill_colour, masks_to_boxes
from ovseg.structures import ImageTextBatch, InputError, RegionFeatures, RegionTextBatch

FILLS = {"mean": CLIP_MEAN, "zero": (0.0, 0.0, 0.0)}


class CropEncoder(RegionEncoder):
    """Crop each region to its bounding box, fill the pixels outside its mask, and encode the crop with CLIP.

    Args:
        clip: encodes the crops; if it has mask prompts, they replace the blank patches.
        fill: colour outside the mask: CLIP's mean, or black (`zero`).
        expand_ratio: factor on the width and height of each box.
        regions_per_batch: crops that CLIP encodes at once. By default, their number fits the device and its memory; in
            training, it is the whole batch. A number makes training recompute activations batch by batch for the
            gradients, which do not change: a step takes a third longer and needs the memory of one such batch.
        precision: `bf16` encodes with a copy of CLIP's image tower in bf16, for inference only. By default, the stored
            weights are used, in the Trainer's precision.
        regions_per_image: proposals per image that `OpenVocabSegmenter` has encoded, those of highest objectness; all
            by default. To the others, CLIP contributes nothing.
        min_objectness: objectness, in [0, 1], below which `OpenVocabSegmenter` does not have a proposal encoded.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(
        self,
        clip: CLIPAdapter,
        fill: Literal["mean", "zero"] = "mean",
        expand_ratio: float = 1.0,
        regions_per_batch: int | None = None,
        precision: Literal["bf16"] | None = None,
        regions_per_image: int | None = None,
        min_objectness: float | None = None,
    ) -> None:
        super().__init__(clip)
        if fill not in FILLS:
            raise InputError(f"fill is {fill!r}; choose from {', '.join(FILLS)}")
        if not 0 < expand_ratio < math.inf:
            raise InputError(f"expand_ratio is {expand_ratio}; give a finite number above 0")
        if regions_per_batch is not None and regions_per_batch < 1:
            raise InputError(
                f"regions_per_batch is {regions_per_batch}; give at least 1, or null for a suitable number"
            )
        if precision not in (None, "bf16"):
            raise InputError(f"precision is {precision!r}; give bf16, or null for the precision of the stored weights")
        if regions_per_image is not None and regions_per_image < 1:
            raise InputError(f"regions_per_image is {regions_per_image}; give at least 1, or null for all")
        if min_objectness is not None and not 0 <= min_objectness <= 1:
            raise InputError(f"min_objectness is {min_objectness}; give a number from 0 to 1, or null for no limit")
        self.precision, self.regions_per_image, self.min_objectness = precision, regions_per_image, min_objectness
        self._dtype = None if precision is None else torch.bfloat16
        self._most: int | None = None  # regions at once, after more have exhausted the memory
        self.fill, self.expand_ratio, self.regions_per_batch = fill, expand_ratio, regions_per_batch

    def forward(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> list[RegionFeatures]:
        """Encode the regions of each image; CLIP encodes the crops of all images together, equal masks only once.

        See `RegionEncoder.forward`.
        """
        cutters, sources, valids = [], [], []
        for image, mask in zip(images, masks, strict=True):
            tight = masks_to_boxes(mask)
            boxes = expand_boxes(tight, self.expand_ratio, *image.shape[1:])
            corners: list[list[int]] = torch.cat([tight, boxes], dim=1).tolist()  # one transfer from the device
            tight_corners, corners = [row[:4] for row in corners], [row[4:] for row in corners]
            visible = [x0 < x1 and y0 < y1 for x0, y0, x1, y1 in corners]
            firsts = first_equals(mask, tight_corners)
            rows = [row for row, first in enumerate(firsts) if row == first and visible[row]]
            cutters.append(RegionCutter(image, mask, boxes, corners, fill_colour(image, FILLS[self.fill]), rows))
            row_of = {row: index for index, row in enumerate(rows)}
            sources.append([row_of.get(first, len(rows)) for first in firsts])  # invalid ones come last, and are zero
            valids.append((boxes[:, 2:] > boxes[:, :2]).all(dim=1))
        results = []
        encoded = torch.split(self._encode_cuts(cutters), [len(cutter) for cutter in cutters]) if cutters else ()
        for features, source, valid in zip(encoded, sources, valids, strict=True):
            padded = F.pad(features, (0, 0, 0, 1))
            results.append(RegionFeatures(padded[torch.tensor(source, dtype=torch.int64, device=padded.device)], valid))
        return results

    def selects(self, objectness: Tensor) -> Tensor:
        """Return which proposals are encoded, (Q,) bool; see `RegionEncoder.selects`."""
        selected = super().selects(objectness)
        if self.regions_per_image is not None and self.regions_per_image < len(objectness):
            best = objectness.argsort(descending=True, stable=True)[: self.regions_per_image]
            selected = torch.zeros_like(selected).index_fill(0, best, True)
        return selected if self.min_objectness is None else selected & (objectness >= self.min_objectness)

    def encode_batch(self, batch: RegionTextBatch | ImageTextBatch) -> Tensor:
        """Encode the crops of a training batch, (N, D); see `RegionEncoder.encode_batch`."""
        if not isinstance(batch, RegionTextBatch):
            raise InputError(
                f"{type(self).__name__} trains on regions, but the data brings whole images; use other data"
            )
        if self.precision is not None:
            raise InputError("precision: bf16 is for inference only; train with --model.region_encoder.precision null")
        return self._encode(batch.regions, batch.region_masks)

    def settings(self) -> dict[str, Any]:
        return {
            "fill": self.fill,
            "expand_ratio": self.expand_ratio,
            "regions_per_batch": self.regions_per_batch,
            "precision": self.precision,
            "regions_per_image": self.regions_per_image,
            "min_objectness": self.min_objectness,
        }

    def _encode(self, regions: Tensor, region_masks: Tensor) -> Tensor:
        """Return the features (N, D) of regions with gradients, encoded at once or batch by batch."""
        size = self.regions_per_batch
        if size is None or size >= len(regions):
            return self.clip.encode_regions(regions, region_masks)
        parts = zip(torch.split(regions, size), torch.split(region_masks, size), strict=True)
        return torch.cat([checkpoint(self.clip.encode_regions, *part, use_reentrant=False) for part in parts])

    def _encode_cuts(self, cutters: list[RegionCutter]) -> Tensor:
        """Return the features (R, D) of the regions of all cutters, cut and encoded batch by batch."""
        total = sum(map(len, cutters))
        if torch.is_grad_enabled() and self.precision is None:
            return self._encode(*self._cut(cutters, 0, total))
        size = self.regions_per_batch or regions_at_once(self.clip, self._dtype)
        parts: list[Tensor] = []
        first = 0
        while first < total or not parts:
            size = size if self._most is None else min(size, self._most)
            features = self._attempt(cutters, first, min(first + size, total))
            if features is None:
                if self._most is None:
                    logging.getLogger(__name__).warning(
                        "%d regions at once do not fit into memory, continuing with smaller batches; set "
                        "region_encoder.regions_per_batch to a smaller number to save the attempt",
                        size,
                    )
                self._most = size // 2
            else:
                parts.append(features)
                first += size
        return torch.cat(parts)

    @torch.no_grad()
    def _attempt(self, cutters: list[RegionCutter], first: int, last: int) -> Tensor | None:
        """Return the features of regions `first` to `last` (exclusive), or None if several do not fit into memory."""
        try:
            return self.clip.encode_regions(*self._cut(cutters, first, last), self._dtype)
        except RuntimeError as error:
            if last - first < 2 or not is_out_of_memory(error):
                raise
        return None

    def _cut(self, cutters: list[RegionCutter], first: int, last: int) -> tuple[Tensor, Tensor]:
        """Cut regions `first` to `last` (exclusive), counted over all cutters; the first gives the empty ones."""
        parts: list[tuple[Tensor, Tensor]] = []
        offset = 0
        for cutter in cutters:
            start, stop = max(first - offset, 0), min(last - offset, len(cutter))
            if start < stop or not parts:
                parts.append(cutter.cut(start, max(start, stop), self.clip.image_size))
            offset += len(cutter)
        regions, region_masks = zip(*parts, strict=True)
        return torch.cat(regions), torch.cat(region_masks)
