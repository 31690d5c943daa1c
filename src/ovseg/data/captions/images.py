"""The data set of mining: batches of images with the nouns of their captions, and with masks if there are any.

Workers import this module, so it does not import Lightning.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch.utils.data import Dataset

from ovseg.data.captions.shards import Batch
from ovseg.images import read_image, resize_short_side, to_tensor
from ovseg.structures import CaptionBatch, InputError

if TYPE_CHECKING:
    from ovseg.data.mask_reader import ImageMasks, MaskReader

LONG_SIDE = 4  # limit of the long side, in short sides: 640 / 2560 and 512 / 2048 in the paper
LABEL = -1  # caption id of a noun that comes from a label


class CaptionedImage(NamedTuple):
    """An image and the nouns of its captions; with labelled masks the lists are empty."""

    image_id: int
    file_name: str
    nouns: list[str]
    caption_ids: list[int]  # per noun, the first caption that contains it


class CaptionedImages(Dataset[CaptionBatch]):
    """Whole batches, indexed by `ovseg.data.captions.shards.Batch`.

    Args:
        images: folder of the image files.
        samples: the images; `Batch.images` indexes this list.
        short_side: resize images to this short side, in pixels.
        masks: the masks of the images, None if a network proposes regions.
        labelled: whether the nouns are the labels of the masks.
    """

    def __init__(
        self,
        images: Path,
        samples: list[CaptionedImage],
        short_side: int,
        masks: MaskReader | None,
        labelled: bool = False,
    ) -> None:
        self.images, self.samples, self.short_side = images, samples, short_side
        self.masks, self.labelled = masks, labelled

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Batch) -> CaptionBatch:
        batch = CaptionBatch([], [], [], [], [], [], None if self.masks is None else [], None, self.labelled)
        image_masks: list[ImageMasks] = []
        faults = []
        for sample in (self.samples[index] for index in key.images):
            try:
                path = self.images / sample.file_name
                image = read_image(path)
                size = (image.height, image.width)
                image_masks += [self.masks(path, size, sample.image_id)] if self.masks else []
            except InputError as error:
                faults.append(str(error))
                continue
            nouns = image_masks[-1].names if self.labelled else sample.nouns
            batch.images.append(to_tensor(resize_short_side(image, self.short_side, LONG_SIDE * self.short_side)))
            batch.sizes.append(size)
            batch.names.append(sample.file_name)
            batch.image_ids.append(sample.image_id)
            batch.nouns.append(nouns)
            batch.caption_ids.append([LABEL] * len(nouns) if self.labelled else sample.caption_ids)
        return batch._replace(
            masks=[masks.masks for masks in image_masks] if self.masks else None,
            mask_scores=[masks.scores for masks in image_masks] if self.masks else None,
            shard=key.shard,
            ends_shard=key.ends_shard,
            faults=tuple(faults),
        )
