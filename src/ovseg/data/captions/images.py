"""Images as mining sees them: batches with the nouns of captions, and masks."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch.utils.data import Dataset

from ovseg.data.captions.shards import Batch
from ovseg.data.masks import ImageMasks, MaskReader
from ovseg.images import read_image, resize_short_side, to_tensor
from ovseg.structures import CaptionBatch, InputError

LONG_SIDE = 4  # longest side allowed, in short sides: 640 / 2560 and 512 / 2048 in the paper
LABEL = -1  # in the place of a caption's id


class CaptionedImage(NamedTuple):
    """An image and what its captions name; nothing where its masks are labelled."""

    image_id: int
    file_name: str
    nouns: list[str]
    caption_ids: list[int]  # per noun, the first caption that has it


class CaptionedImages(Dataset[CaptionBatch]):
    """Whole batches, by the keys of `ovseg.data.captions.shards`.

    Args:
        images: the folder of the files.
        samples: in the order of the keys' indices.
        short_side: images are resized to it.
        masks: of the images, where no network proposes regions.
        labelled: whether nouns are the labels of the masks.
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
        given: list[ImageMasks] = []
        faults = []
        for sample in (self.samples[index] for index in key.images):
            try:
                path = self.images / sample.file_name
                image = read_image(path)
                size = (image.height, image.width)
                given += [self.masks(path, size, sample.image_id)] if self.masks else []
            except InputError as error:
                faults.append(str(error))
                continue
            nouns = given[-1].names if self.labelled else sample.nouns
            batch.images.append(to_tensor(resize_short_side(image, self.short_side, LONG_SIDE * self.short_side)))
            batch.sizes.append(size)
            batch.names.append(sample.file_name)
            batch.image_ids.append(sample.image_id)
            batch.nouns.append(nouns)
            batch.caption_ids.append([LABEL] * len(nouns) if self.labelled else sample.caption_ids)
        return batch._replace(
            masks=[masks.masks for masks in given] if self.masks else None,
            mask_scores=[masks.scores for masks in given] if self.masks else None,
            shard=key.shard,
            ends_shard=key.ends_shard,
            faults=tuple(faults),
        )
