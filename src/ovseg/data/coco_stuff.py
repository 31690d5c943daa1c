"""COCO-Stuff as downloaded, for training proposals."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ovseg.data.base import eval_loader
from ovseg.data.images import EvalImages
from ovseg.data.labels import LabelFiles, coding_of
from ovseg.data.loading import ResumableLoader, run_seed, seeded
from ovseg.data.partners import by_stem
from ovseg.data.resumable import ResumableDataModule
from ovseg.data.transforms import SegmentationTransform
from ovseg.data.vocabulary import read_vocabulary
from ovseg.images import MIN_SIDE, read_image
from ovseg.limits import check_at_least
from ovseg.structures import IGNORE_INDEX, EvalBatch, InputError, SegmentationBatch

_SOURCE = (
    "unpack train2017.zip and val2017.zip of COCO and stuffthingmaps_trainval2017.zip of COCO-Stuff there, "
    "or write toy data in the same layout with `ovseg toy --out DIR`"
)


class COCOStuffDataModule(ResumableDataModule):
    """Images `train2017/*.jpg` (or `images/train2017`) with labels `stuffthingmaps/train2017/*.png`.

    Label values are COCO-Stuff ids minus 1, as downloaded, or class indices if the vocabulary has no `dataset_ids`.
    Labels in a folder `stuffthingmaps_detectron2` are read as class indices. Such converted labels are refused in
    `stuffthingmaps` itself, because they contain values that COCO-Stuff does not use.

    Args:
        root: the folder `coco`.
        vocabulary: see `ovseg.data.vocabulary.read_vocabulary`.
        transform: augmentation of the training images.
        total_batch_size: images per optimizer step, over all processes and accumulated batches.
        num_workers: processes that read images.
        seed: seed of the order and augmentation; defaults to the seed of the run.
        val_split: folder of the validation images, or the number of training images to hold back, the last by name.
        val_short_side: short side of validation images in pixels; their long side is at most four times as long.

    Raises:
        InputError: the vocabulary has more classes than 8-bit labels hold, or a number is out of range.
    """

    def __init__(
        self,
        root: str,
        vocabulary: str = "coco_stuff_171",
        transform: SegmentationTransform = SegmentationTransform(),  # noqa: B008 (frozen)
        total_batch_size: int = 16,
        num_workers: int = 4,
        seed: int | None = None,
        val_split: int | str = "val2017",
        val_short_side: int = 640,
    ) -> None:
        super().__init__(total_batch_size, num_workers)
        self.root, self.vocabulary_spec, self.vocabulary = Path(root), vocabulary, read_vocabulary(vocabulary)
        if self.vocabulary.ignore_index != IGNORE_INDEX:
            raise InputError(
                f"{vocabulary} has {len(self.vocabulary)} classes; proposals train on {IGNORE_INDEX} at most"
            )
        check_at_least(MIN_SIDE, val_short_side=val_short_side)
        self.transform, self.seed = transform, run_seed(seed)
        self.val_split, self.val_short_side = val_split, val_short_side

    def prepare_data(self) -> None:
        """Check the files before any log or checkpoint is written."""
        super().prepare_data()
        stage = self.trainer.state.fn if self.trainer else None
        self.setup(stage or "fit")

    def setup(self, stage: str) -> None:
        """Match images with labels and split off the validation images.

        Raises:
            InputError: files are missing or cannot be read, or no training or validation images are left.
        """
        train = self._labels("train2017") if stage == "fit" or isinstance(self.val_split, int) else None
        if isinstance(self.val_split, str):
            val = self._labels(self.val_split)
            train_images, val_images = train.images if train else [], val.images
        else:
            assert train is not None  # it was read above, because `val_split` is a number
            val, kept = train, len(train.images) - self.val_split
            if not 0 < kept < len(train.images):
                raise InputError(
                    f"val_split holds back {self.val_split} of the {len(train.images)} images in {self.root}/train2017;"
                    " give a number that leaves images for both training and validation"
                )
            train_images, val_images = train.images[:kept], train.images[kept:]
        self.val_dataset = EvalImages(val_images, (self.val_short_side, 4 * self.val_short_side), val)
        if train:
            self.train_dataset = TrainImages(train_images, train, self.transform, self.seed)

    def _labels(self, split: str) -> LabelFiles:
        images, labels = self.root / split, self.root / "stuffthingmaps" / split
        if not images.is_dir() and (self.root / "images" / split).is_dir():
            images = self.root / "images" / split
        prepared = self.root / "stuffthingmaps_detectron2" / split
        use_ids = labels.is_dir() or not prepared.is_dir()
        files = by_stem(images, labels if use_ids else prepared, source=_SOURCE)
        coding = coding_of(self.vocabulary, self.vocabulary_spec, use_ids=use_ids)
        return LabelFiles(files, coding, self.vocabulary_spec)

    def train_dataloader(self) -> ResumableLoader:
        return self.resumable(self.train_dataset, self.seed, self.num_workers, _collate)

    def val_dataloader(self) -> DataLoader[EvalBatch]:
        return eval_loader(self.val_dataset, self.num_workers)


class TrainImages(Dataset[tuple[Tensor, Tensor]]):
    """Augmented images and labels. The keys of `ovseg.data.loading` select the image and seed its augmentation."""

    def __init__(self, images: list[Path], labels: LabelFiles, transform: SegmentationTransform, seed: int) -> None:
        self.images, self.labels, self.transform, self.seed = images, labels, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        path = self.images[key % len(self.images)]
        image = read_image(path)
        labels = self.labels(path, (image.height, image.width))
        with seeded(self.seed, key):
            return self.transform(image, labels)


def _collate(items: list[tuple[Tensor, Tensor]]) -> SegmentationBatch:
    images, labels = zip(*items, strict=True)
    return SegmentationBatch(torch.stack(images), torch.stack(labels))
