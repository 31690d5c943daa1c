"""The data set of region-text pairs: regions cut from the original images, with their masks and nouns.

Workers import this module, so it does not import Lightning.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ovseg import rle
from ovseg.data.loading import seeded
from ovseg.data.pairs.region_transform import RegionTransform
from ovseg.data.pairs.released import mask_by_colour
from ovseg.data.pairs.table import Pairs
from ovseg.images import read_image, to_tensor
from ovseg.structures import InputError, RegionTextBatch, RegionTextPair


class RegionText(NamedTuple):
    """One sample: a region, its mask and the noun that names it."""

    region: Tensor  # (3, s, s) in [0, 1]
    region_mask: Tensor  # (s, s) bool
    text: str
    text_id: int


class RegionTexts(Dataset[RegionText]):
    """The pairs of a store as samples, indexed by the keys of `ovseg.data.loading`.

    Raises:
        InputError: an image cannot be read, or its size differs from when it was mined.
    """

    def __init__(self, pairs: Pairs, images: Path, transform: RegionTransform, seed: int) -> None:
        self.pairs, self.images, self.transform, self.seed = pairs, images, transform, seed
        self.size, self.texts = transform.size, pairs.nouns()
        self._text_ids = {text: index for index, text in enumerate(self.texts)}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int) -> RegionText:
        batch = self.__getitems__([key])
        return RegionText(batch.regions[0], batch.region_masks[0], batch.texts[0], int(batch.text_ids[0]))

    def __getitems__(self, keys: list[int]) -> RegionTextBatch:
        """Return a whole batch, which torch requests in one call; each of its images is decoded once."""
        if self.size is None:
            raise InputError(
                "the size of the regions is not set; give `transform.size`, for example 224, the resolution of your "
                "CLIP"
            )
        pairs = [self.pairs[key % len(self)] for key in keys]
        positions_of_image: dict[str, list[int]] = {}
        for position, pair in enumerate(pairs):
            positions_of_image.setdefault(pair.file_name, []).append(position)
        # NumPy allocates large arrays from huge pages, which take a fifth of the time to touch first
        regions = torch.from_numpy(np.empty((len(keys), 3, self.size, self.size), np.float32))
        region_masks = torch.empty((len(keys), self.size, self.size), dtype=torch.bool)
        for name, positions in positions_of_image.items():
            image = read_image(self.images / name)  # one at a time: a batch of large photographs would fill the memory
            for position in positions:
                crop, mask = self._cut(pairs[position], image)
                with seeded(self.seed, keys[position]):
                    regions[position], region_masks[position] = self.transform.augment(crop, mask, self.size)
        texts = [pair.noun for pair in pairs]
        return RegionTextBatch(regions, region_masks, texts, torch.tensor([self._text_ids[text] for text in texts]))

    def _cut(self, pair: RegionTextPair, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Return the box of a pair, (3, h, w), and the mask inside it, (1, h, w)."""
        if not pair.counts:  # a released pair: the crop is an image file of its own
            crop = to_tensor(image)
            return crop, mask_by_colour(crop)[None]
        mask = mask_in_box(pair, image, self.images / pair.file_name, pair.box)
        return to_tensor(image.crop(pair.box)), mask[None]


def mask_in_box(pair: RegionTextPair, image: Image.Image, path: Path, box: tuple[int, int, int, int]) -> Tensor:
    """Return the mask of a pair inside a box, (h, w) bool.

    Args:
        image: the pair's image, at the size at which it was mined.
        path: the file of the image, for errors.
        box: x0, y0, x1, y1, ends exclusive.

    Raises:
        InputError: the image has another size, or the mask is damaged.
    """
    if (image.height, image.width) != pair.size:
        raise InputError(
            f"{path} is {image.width} x {image.height} pixels but was mined at {pair.size[1]} x {pair.size[0]}; "
            "restore the image or mine again"
        )
    try:
        return rle.decode_box(pair.counts, pair.size, box)
    except ValueError as error:
        raise InputError(f"the mask of {pair.noun!r} in {path} is damaged ({error}); mine again") from error
