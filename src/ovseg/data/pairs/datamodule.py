"""Masked regions with the nouns that name them, cut from the original images on the fly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ovseg import rle
from ovseg.data.benchmarks.base import EvalDataModule
from ovseg.data.loading import ResumableDataModule, ResumableLoader, run_seed, seeded
from ovseg.data.pairs import Pairs, read_pairs
from ovseg.data.pairs.region_transform import RegionTransform
from ovseg.data.pairs.released import mask_by_colour
from ovseg.images import read_image, to_tensor
from ovseg.structures import EvalBatch, InputError, RegionTextBatch, RegionTextPair, Vocabulary


@dataclass(frozen=True)
class PairSampling:
    """Which pairs of a store are trained on, and which come together.

    Args:
        min_similarity: leave out pairs less similar.
        max_per_noun: of each noun use only so many pairs, the most similar.
        by_image: pairs of an image are in one batch, or in successive ones where they do not fit, and each batch
            decodes it once; otherwise every pair is drawn on its own, which takes longer to read.

    Raises:
        InputError: `max_per_noun` is below 1.
    """

    min_similarity: float | None = None
    max_per_noun: int | None = None
    by_image: bool = True

    def __post_init__(self) -> None:
        if self.max_per_noun is not None and self.max_per_noun < 1:
            raise InputError(f"sampling.max_per_noun is {self.max_per_noun}; give at least 1")


class RegionText(NamedTuple):
    """One sample."""

    region: Tensor  # (3, s, s) in [0, 1]
    region_mask: Tensor  # (s, s) bool
    text: str
    text_id: int


class RegionTextDataModule(ResumableDataModule):
    """Region-text pairs from a store, shuffled, their regions cut from the images and augmented.

    Args:
        pairs: the store that `ovseg mine` wrote, or the table of the published pairs (`coco_proposal_1cap.csv`).
        images: the folder its file names are relative to.
        transform: how regions are cut and augmented.
        sampling: which pairs are used, and which come together.
        total_batch_size: pairs of a step, in all processes and accumulated batches.
        num_workers: processes that read images; what they read does not depend on their number.
        seed: of order and augmentation; that of the run where not given.
        val: a benchmark whose true segments CLIP is to name, after each epoch or `val_check_interval`; its images come
            at their own size, from which the regions of the training are cut, too, unless it has a `resize`.

    Raises:
        InputError: `total_batch_size` is below 1.
    """

    def __init__(
        self,
        pairs: Path,
        images: Path,
        transform: RegionTransform = RegionTransform(),  # noqa: B008 (frozen)
        sampling: PairSampling = PairSampling(),
        total_batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
        val: EvalDataModule | None = None,
    ) -> None:
        super().__init__(total_batch_size)
        self.val = val
        self.pairs, self.images, self.transform, self.sampling = Path(pairs), Path(images), transform, sampling
        self.num_workers, self.seed = num_workers, run_seed(seed)

    def prepare_data(self) -> None:
        """Find what is wrong before a log or checkpoint is written, once on each machine.

        Raises:
            InputError: there are no pairs, or images are missing.
        """
        super().prepare_data()
        names = self._read().column("file_name").unique().to_pylist()
        if missing := [name for name in names if not (self.images / name).is_file()]:
            raise InputError(
                f"{len(missing)} of {len(names)} images of {self.pairs} are not in {self.images}, "
                f"the first is {missing[0]}; give the folder that these names are relative to"
            )

    def setup(self, stage: str) -> None:
        """Map the pairs.

        Raises:
            InputError: there are none.
        """
        self.dataset = RegionTexts(self._read(), self.images, self.transform, self.seed)
        if self.val is not None:
            self.val.setup(stage)

    def _read(self) -> Pairs:
        least = self.sampling.min_similarity
        pairs = read_pairs(self.pairs).filter(least, self.sampling.max_per_noun)
        if not pairs:
            raise InputError(f"no pair in {self.pairs} is as similar as {least}; lower sampling.min_similarity")
        return pairs

    @property
    def texts(self) -> list[str]:
        """All nouns of the pairs, in the order of their ids, after `setup`."""
        return self.dataset.texts

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The words of the validation's labels."""
        return None if self.val is None else self.val.vocabulary

    def configure(self, size: int) -> None:
        """Tell, after `setup`, the resolution of the CLIP of this run; a `transform.size` goes before it."""
        if self.transform.size is None:
            self.dataset.size = size

    def train_dataloader(self) -> ResumableLoader:
        images = self.dataset.pairs.image_indices() if self.sampling.by_image else None
        return self.resumable(self.dataset, self.seed, self.num_workers, _as_it_is, images)

    def val_dataloader(self) -> DataLoader[EvalBatch] | list[DataLoader[EvalBatch]]:
        return super().val_dataloader() if self.val is None else self.val.val_dataloader()


class RegionTexts(Dataset[RegionText]):
    """The pairs of a store as samples, by the keys of `ovseg.data.loading`.

    Raises:
        InputError: an image cannot be read, or changed its size since it was mined.
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
        """A batch, for which torch asks at once; each of its images is decoded once."""
        if self.size is None:
            raise InputError(
                "regions have no size yet; give `transform.size`, for example 224, the resolution of your CLIP"
            )
        pairs = [self.pairs[key % len(self)] for key in keys]
        of_image: dict[str, list[int]] = {}
        for position, pair in enumerate(pairs):
            of_image.setdefault(pair.file_name, []).append(position)
        # NumPy takes large arrays from huge pages, whose first touch costs a fifth
        regions = torch.from_numpy(np.empty((len(keys), 3, self.size, self.size), np.float32))
        region_masks = torch.empty((len(keys), self.size, self.size), dtype=torch.bool)
        for name, positions in of_image.items():
            image = read_image(self.images / name)  # one at a time: a batch of large photographs would fill the memory
            for position in positions:
                crop, mask = self._cut(pairs[position], image)
                with seeded(self.seed, keys[position]):
                    regions[position], region_masks[position] = self.transform.augment(crop, mask, self.size)
        texts = [pair.noun for pair in pairs]
        return RegionTextBatch(regions, region_masks, texts, torch.tensor([self._text_ids[text] for text in texts]))

    def _cut(self, pair: RegionTextPair, image: Image.Image) -> tuple[Tensor, Tensor]:
        """The box of a pair and its mask in it: (3, h, w) and (1, h, w)."""
        if not pair.counts:  # published as an image of its own
            crop = to_tensor(image)
            return crop, mask_by_colour(crop)[None]
        path = self.images / pair.file_name
        if (image.height, image.width) != pair.size:
            raise InputError(
                f"{path} is {image.width} x {image.height} pixels but was mined at {pair.size[1]} x {pair.size[0]}; "
                "bring back the image or mine again"
            )
        try:
            mask = rle.decode_box(pair.counts, pair.size, pair.box)
        except ValueError as error:
            raise InputError(f"the mask of {pair.noun!r} in {path} is damaged ({error}); mine again") from error
        return to_tensor(image.crop(pair.box)), mask[None]


def _as_it_is(batch: Any) -> Any:
    return batch
