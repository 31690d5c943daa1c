"""Region encoders that pass each image through CLIP's image tower once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.clip.grid import Grid
from ovseg.models.clip.towers import Tower
from ovseg.models.regions.base import RegionEncoder
from ovseg.models.regions.coverage import blank_patches, patch_coverages, stack_padded
from ovseg.structures import ImageTextBatch, InputError, RegionFeatures, RegionTextBatch

MAX_ASPECT = 8  # of a grid; a wider image is squeezed, because one line of pixels could have millions of patches
TOKENS_AT_ONCE = {"cpu": 2048}  # of all images in a batch: larger batches are slower on a CPU
TOKENS_AT_ONCE_OF_GPU = 65536


class ImageGroup(NamedTuple):
    """Images of the same grid, with the coverages of their regions; Q is the largest number of regions."""

    pixels: Tensor  # (B, 3, rows · patch size, columns · patch size), normalised for CLIP
    grid: Grid
    coverage: Tensor  # (B, Q, L) in [0, 1], zero for padding
    blank: Tensor | None  # (B, Q) blank patches in the box of each region, if the encoder needs them


class WholeImageEncoder(RegionEncoder):
    """Base of encoders that see whole images, at a resolution that is independent of the proposals'.

    Args:
        clip: its image tower must be a vision transformer.
        clip_short_side: short side of the image as input of CLIP, in pixels; rounded to whole patches. The aspect ratio
            is kept, up to 1 : 8.
        precision: `bf16` encodes with a copy of CLIP's image tower in bf16, for inference only. By default, the stored
            weights are used, in the Trainer's precision.

    Raises:
        InputError: the image tower is not supported, or `clip_short_side` is less than a patch.
    """

    whole_images = True
    prompts_missing = "parameters of the region encoder, but it has none; use train: visual"
    needs_blank = False  # whether to measure the blank patches of regions

    def __init__(self, clip: CLIPAdapter, clip_short_side: int = 384, precision: Literal["bf16"] | None = None) -> None:
        super().__init__(clip)
        if precision not in (None, "bf16"):
            raise InputError(f"precision is {precision!r}; give bf16, or null for the precision of the stored weights")
        tower = clip.visual.tower
        tower.check_regions()
        if clip_short_side < tower.patch_size:
            raise InputError(
                f"clip_short_side is {clip_short_side}, less than one patch of this CLIP; give at least "
                f"{tower.patch_size} pixels, for example {clip.image_size}"
            )
        self.clip_short_side, self.precision = clip_short_side, precision

    @abstractmethod
    def encode_group(self, tower: Tower, group: ImageGroup) -> Tensor:
        """Return the features (B, Q, D) of the regions of a group of images, before normalisation."""

    def forward(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> list[RegionFeatures]:
        """Encode the regions of each image; images of the same shape pass through CLIP together.

        See `RegionEncoder.forward`.
        """
        results: list[RegionFeatures] = [self._empty(image) for image in images]
        tower = self.clip.visual_in(None if self.precision is None else torch.bfloat16).tower
        grids = [self.grid_of(image) for image in images]
        for indices in self._groups(grids, [len(part) for part in masks]):
            grid = grids[indices[0]]
            pixels = torch.stack([self._pixels(images[index], grid, tower.patch_size) for index in indices])
            pixels = pixels if self.precision is None else pixels.bfloat16()
            coverages = [patch_coverages(masks[index], grid) for index in indices]
            coverage, blank = stack_padded(coverages), None
            if self.needs_blank:
                blanks = [blank_patches(masks[index], own) for index, own in zip(indices, coverages, strict=True)]
                blank = stack_padded(blanks)
            device = pixels.device.type
            with torch.autocast(device, enabled=self.precision is None and torch.is_autocast_enabled(device)):
                features = self.encode_group(tower, ImageGroup(pixels, grid, coverage, blank))
            features = F.normalize(features.float(), dim=-1)
            valid = coverage.amax(dim=2) > 0
            features = torch.where(valid[..., None], features, 0.0)
            for row, index in enumerate(indices):
                count = len(masks[index])
                results[index] = RegionFeatures(features[row, :count], valid[row, :count])
        return results

    def encode_batch(self, batch: RegionTextBatch | ImageTextBatch) -> Tensor:
        """Encode the regions of a training batch, (N, D); see `RegionEncoder.encode_batch`."""
        if not isinstance(batch, ImageTextBatch):
            raise InputError(
                f"{type(self).__name__} trains on whole images, but the data brings regions; use RegionTextDataModule"
            )
        if self.precision is not None:
            raise InputError("precision: bf16 is for inference only; train with --model.region_encoder.precision null")
        return torch.cat([regions.features for regions in self(batch.images, batch.masks)])

    def settings(self) -> dict[str, Any]:
        return {"clip_short_side": self.clip_short_side, "precision": self.precision}

    def _empty(self, image: Tensor) -> RegionFeatures:
        return RegionFeatures(image.new_zeros((0, self.clip.dim)), image.new_zeros(0, dtype=torch.bool))

    def grid_of(self, image: Tensor) -> Grid:
        """Return the rows and columns of patches for an image (3, h, w)."""
        height, width = image.shape[1:]
        short = round(self.clip_short_side / self.clip.visual.patch_size)
        long = min(round(short * max(height, width) / min(height, width)), MAX_ASPECT * short)
        return (short, long) if height < width else (long, short)

    def _groups(self, grids: list[Grid], counts: list[int]) -> Iterator[list[int]]:
        """Yield the indices of images that have regions, grouped by grid into batches of limited size."""
        for grid in dict.fromkeys(grids):
            indices = [index for index, other in enumerate(grids) if other == grid and counts[index]]
            limit = TOKENS_AT_ONCE.get(self.clip.mean.device.type, TOKENS_AT_ONCE_OF_GPU)
            at_once = max(limit // (grid[0] * grid[1]), 1)
            yield from (indices[first : first + at_once] for first in range(0, len(indices), at_once))

    def _pixels(self, image: Tensor, grid: Grid, patch_size: int) -> Tensor:
        """Resize an image to whole patches and normalise it for CLIP."""
        size = (grid[0] * patch_size, grid[1] * patch_size)
        if image.shape[1:] != size:
            image = F.interpolate(image[None], size, mode="bicubic", align_corners=False, antialias=True)[0]
        return ((image - self.clip.mean) / self.clip.std).to(self.clip.mean.dtype)
