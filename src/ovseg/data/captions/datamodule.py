"""The datamodule of mining: images with the nouns of their captions, read from COCO's formats."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import distributed
from torch.utils.data import DataLoader

from ovseg.cache import cache_folder
from ovseg.data.captions.coco import check_images, read_coco_captions
from ovseg.data.captions.images import CaptionedImage, CaptionedImages
from ovseg.data.captions.nouns import SpacyNounExtractor
from ovseg.data.captions.shards import ShardBatches, Shards
from ovseg.data.loading import no_collate
from ovseg.data.mask_reader import MaskReader
from ovseg.data.masks import LabelMaps, open_masks
from ovseg.images import MIN_SIDE
from ovseg.limits import check_at_least
from ovseg.stopping import outlive_signals
from ovseg.structures import CaptionBatch, InputError
from ovseg.whole_file import whole_file

SHARD_IMAGES = 512


class CaptionDataModule(LightningDataModule):
    """Images with the nouns of their captions, or with labelled masks, for mining with `trainer.predict`.

    Nouns are extracted once and cached (see `ovseg.cache`) under a hash of the captions and the extractor. Images whose
    captions have no noun are skipped. An image that cannot be read is reported in its batch. Each process reads the
    batches of its own shards, see `ovseg.data.captions.shards`.

    The Trainer and the writer of pairs tell it the shard size and the remaining shards through `configure`.

    Args:
        images: folder of the images that the captions or masks refer to.
        captions: a COCO captions file. Without it, masks are paired with their own labels.
        masks: regions that replace proposals: a COCO instances or stuff file, a JSON list of results with run lengths
            (from SAM, for example), or label maps.
        captions_per_image: use only this many captions per image, the first by id; null uses all.
        nouns: the noun extractor.
        short_side: resize images to this short side, in pixels, as the proposal network expects; the long side is
            limited to four times as much.
        batch_size: images per batch.
        num_workers: processes that read images.

    Raises:
        InputError: neither captions nor masks are given, or a number is out of range.
    """

    allow_zero_length_dataloader_with_multiple_devices = True  # there can be fewer shards than processes
    shard_images = SHARD_IMAGES

    def __init__(
        self,
        images: Path,
        captions: Path | None = None,
        masks: Path | LabelMaps | None = None,
        captions_per_image: int | None = 1,
        nouns: SpacyNounExtractor | None = None,
        short_side: int = 640,
        batch_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if captions is None and masks is None:
            raise InputError("mining needs nouns or labels: give --data.captions a COCO captions file, or --data.masks")
        check_at_least(1, captions_per_image=captions_per_image, batch_size=batch_size)
        check_at_least(MIN_SIDE, short_side=short_side)
        check_at_least(0, num_workers=num_workers)
        self.images, self.captions = Path(images), None if captions is None else Path(captions)
        self.masks = masks if masks is None or isinstance(masks, LabelMaps) else Path(masks)
        self.captions_per_image, self.short_side = captions_per_image, short_side
        self.nouns = nouns or SpacyNounExtractor()
        self.batch_size, self.num_workers = batch_size, num_workers
        self.images_without_noun = 0
        self._pending: Sequence[int] | None = None

    def configure(self, shard_images: int | None = None, pending: Sequence[int] | None = None) -> None:
        """Set what depends on the run.

        Args:
            shard_images: images per shard; set it before `setup`.
            pending: indices of the shards to read, all of them by default; set it after `setup`.
        """
        if shard_images is not None:
            self.shard_images = shard_images
        self._pending = pending

    def settings(self) -> dict[str, str | int | None]:
        """Return everything that batches depend on except the images; files are hashed, so they may be moved.

        Raises:
            InputError: a file cannot be read.
        """
        settings: dict[str, str | int | None] = {
            "masks": None,
            "short_side": self.short_side,
            "batch_size": self.batch_size,
            "shard_images": self.shard_images,
        }
        if self.captions is not None:
            identity = json.loads(self.nouns.identity)
            settings |= {"captions": _digest(self.captions), "captions_per_image": self.captions_per_image}
            settings |= {f"nouns.{name}": json.dumps(value) for name, value in identity.items()}
        if isinstance(self.masks, LabelMaps):
            names = sorted(path.name for path in Path(self.masks.folder).glob("*"))  # hashing contents takes too long
            digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
            settings["masks"] = f"label maps of {self.masks.vocabulary}, files {digest[:12]}"
        elif self.masks is not None:
            settings["masks"] = _digest(self.masks)
        return settings

    def prepare_data(self) -> None:
        """Check the files, and extract the nouns unless they are cached.

        Raises:
            InputError: a file or image is missing, or the captions are not in COCO's format.
        """
        if self.captions is None:
            return  # `setup` reads the masks and thereby checks them
        names, annotations = self._read_captions(self.captions)
        check_images(self.images, [names[annotation["image_id"]] for annotation in annotations])
        if not (cache := self._cache_file(annotations)).exists():
            nouns = self.nouns.extract([annotation["caption"] for annotation in annotations])
            with whole_file(cache) as partial:
                partial.write_text(json.dumps(nouns), encoding="utf-8")

    def setup(self, stage: str) -> None:
        """Read the cached nouns and the masks.

        Raises:
            InputError: no caption has a noun, or the masks cannot be used.
        """
        self._pending = None  # an earlier run may have set its shards
        masks = None if self.masks is None else open_masks(self.masks, self.images)
        samples = self._labelled_images(masks) if self.captions is None else self._captioned_images(self.captions)
        self.dataset = CaptionedImages(self.images, samples, self.short_side, masks, labelled=self.captions is None)
        self.shards = Shards(len(samples), self.shard_images, self.batch_size)
        counts = self.statistics()
        rank_zero_info(
            f"Mining {counts['images']:,} images with {counts['candidates']:,} nouns, "
            f"{counts['unique_nouns']:,} unique; skipping {counts['without_noun']:,} images whose captions have no noun"
        )

    def predict_dataloader(self) -> DataLoader[CaptionBatch]:
        """Return the loader of this process's pending shards."""
        initialized = distributed.is_initialized()
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if initialized else (0, 1)
        pending = range(len(self.shards)) if self._pending is None else self._pending
        return DataLoader(
            self.dataset,
            batch_size=None,  # samples are batches already
            sampler=ShardBatches(self.shards, pending, rank, world),
            num_workers=self.num_workers,
            collate_fn=no_collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=outlive_signals,
        )

    def statistics(self) -> dict[str, int]:
        """Return the counts of images, unique nouns and candidate (image, noun) pairs; available after `setup`.

        `without_noun` counts the images that are skipped because none of their captions has a noun.
        """
        counts = Counter(noun for sample in self.dataset.samples for noun in sample.nouns)
        return {
            "images": len(self.dataset.samples),
            "unique_nouns": len(counts),
            "candidates": counts.total(),
            "without_noun": self.images_without_noun,
        }

    def _captioned_images(self, captions: Path) -> list[CaptionedImage]:
        """Return the images whose captions have a noun, sorted by id."""
        names, annotations = self._read_captions(captions)
        nouns_of_captions = json.loads(self._cache_file(annotations).read_text(encoding="utf-8"))
        first_caption: dict[int, dict[str, int]] = {}  # image → noun → caption
        for annotation, nouns in zip(annotations, nouns_of_captions, strict=True):
            for noun in nouns:
                first_caption.setdefault(annotation["image_id"], {}).setdefault(noun, annotation["id"])
        self.images_without_noun = len({annotation["image_id"] for annotation in annotations}) - len(first_caption)
        if not first_caption:
            raise InputError(
                f"no caption in {captions} contains a noun; give English captions, or another extractor as --data.nouns"
            )
        return [
            CaptionedImage(image_id, names[image_id], list(nouns), list(nouns.values()))
            for image_id, nouns in sorted(first_caption.items())
        ]

    def _labelled_images(self, masks: MaskReader | None) -> list[CaptionedImage]:
        """Return the images of labelled masks."""
        if masks is None or not masks.named or not masks.images:
            raise InputError(
                f"the masks in {self.masks} have no images with named categories; give --data.captions a COCO captions "
                "file, from which their nouns can be taken"
            )
        check_images(self.images, list(masks.images.values()))
        return [CaptionedImage(image_id, file_name, [], []) for image_id, file_name in masks.images.items()]

    def _read_captions(self, captions: Path) -> tuple[dict[int, str], list[dict[str, Any]]]:
        """Return the file names by image id, and the first `captions_per_image` annotations of each image."""
        names, annotations = read_coco_captions(captions)
        counts: Counter[int] = Counter()
        selected = []
        for annotation in annotations:
            counts[annotation["image_id"]] += 1
            if self.captions_per_image is None or counts[annotation["image_id"]] <= self.captions_per_image:
                selected.append(annotation)
        return names, selected

    def _cache_file(self, annotations: list[dict[str, Any]]) -> Path:
        content = json.dumps([self.nouns.identity, [annotation["caption"] for annotation in annotations]])
        return cache_folder("nouns") / f"{hashlib.sha256(content.encode()).hexdigest()}.json"


def _digest(path: Path) -> str:
    """Return the hash of a file's content."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); correct the path") from error
