"""Masked regions with the nouns that name them, cut from the original images on the fly."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2.functional import resized_crop

from ovseg import rle
from ovseg.data.loading import ResumableDataModule, ResumableLoader, run_seed, seeded, train_loader
from ovseg.data.pairs import Pairs, read_pairs
from ovseg.data.pairs.released import mask_by_colour
from ovseg.images import read_image, to_tensor
from ovseg.ops import CLIP_MEAN
from ovseg.structures import InputError, RegionTextBatch, RegionTextPair

# the paper's augmentation, of the region's box
SCALE = (0.9, 1.0)
RATIO = (3 / 4, 4 / 3)


class RegionText(NamedTuple):
    """One sample."""

    region: Tensor  # (3, s, s) in [0, 1]
    region_mask: Tensor  # (s, s) bool
    text: str


class RegionTextDataModule(ResumableDataModule):
    """Region-text pairs from a store, shuffled, with the paper's random resized crop of region and mask together.

    Args:
        pairs: the store that `ovseg mine` wrote, or the table of the published pairs (`coco_proposal_1cap.csv`).
        images: the folder its file names are relative to.
        size: side of the regions in pixels; the resolution of the CLIP that is adapted where not given.
        batch_size: pairs a batch and process.
        min_similarity: leave out pairs less similar.
        max_per_noun: of each noun use only so many pairs, the most similar.
        num_workers: processes that read images; what they read does not depend on their number.
        seed: of order and augmentation; that of the run where not given.

    Raises:
        InputError: a number is below 1.
    """

    def __init__(
        self,
        pairs: Path,
        images: Path,
        size: int | None = None,
        batch_size: int = 32,
        min_similarity: float | None = None,
        max_per_noun: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"size": size, "batch_size": batch_size, "max_per_noun": max_per_noun}.items():
            if value is not None and value < 1:
                raise InputError(f"data.{name} is {value}; give at least 1")
        self.pairs, self.images, self.size = Path(pairs), Path(images), size
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, run_seed(seed)
        self.min_similarity, self.max_per_noun = min_similarity, max_per_noun

    def prepare_data(self) -> None:
        """Find what is wrong with the files before a log or checkpoint is written."""
        self.setup("fit")

    def setup(self, stage: str) -> None:
        """Read the pairs and look for their images.

        Raises:
            InputError: there are no pairs, or images are missing.
        """
        pairs = read_pairs(self.pairs).filter(self.min_similarity, self.max_per_noun)
        if not pairs:
            raise InputError(f"no pair in {self.pairs} is as similar as {self.min_similarity}; lower min_similarity")
        pa.default_memory_pool().release_unused()  # reading took three times what the pairs take
        names = pairs.table["file_name"].unique().to_pylist()
        if missing := [name for name in names if not (self.images / name).is_file()]:
            raise InputError(
                f"{len(missing)} of {len(names)} images of {self.pairs} are not in {self.images}, "
                f"the first is {missing[0]}; give the folder that these names are relative to"
            )
        self.dataset = RegionTexts(pairs, self.images, self.size, self.seed)

    def train_dataloader(self) -> ResumableLoader:
        return self.resumable(train_loader(self.dataset, self.batch_size, self.seed, self.num_workers, join_regions))


class RegionTexts(Dataset[RegionText]):
    """The pairs of a store as samples, by the keys of `ovseg.data.loading`.

    Args:
        size: side of the regions in pixels; a task may fill in its CLIP's before the first is read.

    Raises:
        InputError: an image cannot be read, or changed its size since it was mined.
    """

    def __init__(self, pairs: Pairs, images: Path, size: int | None, seed: int) -> None:
        self.pairs, self.images, self.size, self.seed = pairs, images, size, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int) -> RegionText:
        if self.size is None:
            raise InputError("regions have no size yet; give `size` the resolution of your CLIP, for example 224")
        pair = self.pairs[key % len(self)]
        crop, mask = self._of_image(pair) if pair.counts else self._of_crop(pair)
        with seeded(self.seed, key):
            region, region_mask = augment(crop, mask, self.size)
        return RegionText(region, region_mask, pair.noun)

    def _of_image(self, pair: RegionTextPair) -> tuple[Tensor, Tensor]:
        path = self.images / pair.file_name
        image = read_image(path)
        if (image.height, image.width) != pair.size:
            raise InputError(
                f"{path} is {image.width} x {image.height} pixels but was mined at {pair.size[1]} x {pair.size[0]}; "
                "bring back the image or mine again"
            )
        x0, y0, x1, y1 = pair.box
        return to_tensor(image.crop(pair.box)), rle.decode([pair.counts], pair.size)[:, y0:y1, x0:x1]

    def _of_crop(self, pair: RegionTextPair) -> tuple[Tensor, Tensor]:
        crop = to_tensor(read_image(self.images / pair.file_name))
        return crop, mask_by_colour(crop)[None]


def augment(crop: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Fill what the mask leaves out and resize a random part of the box, as `ovseg.ops.crop_regions` does the whole.

    Args:
        crop: (3, h, w), the box of the mask.
        mask: (1, h, w) bool.

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


def join_regions(samples: list[RegionText]) -> RegionTextBatch:
    """One batch of samples."""
    regions, masks, texts = zip(*samples, strict=True)
    return RegionTextBatch(torch.stack(regions), torch.stack(masks), list(texts))
