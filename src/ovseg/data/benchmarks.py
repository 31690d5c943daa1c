"""Benchmarks: images and label maps in two folders, and the vocabulary that the labels index."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from ovseg.data.base import eval_loader
from ovseg.data.images import EvalImages
from ovseg.data.labels import LabelFiles
from ovseg.data.vocabulary import read_vocabulary
from ovseg.structures import EvalBatch

_SOURCE = (
    "unpack the benchmark there (ADE20K-150 is ADEChallengeData2016.zip of the MIT scene parsing benchmark), "
    "or make a small one by `ovseg toy --out DIR`"
)


class SegmentationBenchmark(LightningDataModule):
    """Images and labels matched by file name; labels stay at the image's own size.

    Args:
        images: folder of images.
        labels: folder of label files.
        vocabulary: see `ovseg.data.vocabulary.read_vocabulary`.
        label_offset: the value of class 0 (of id 1 where the vocabulary lists `dataset_ids`); smaller values are
            unlabelled. ADE20K-150 has 1, COCO-Stuff and the toy world 0.
        label_suffix: how a label file's name goes on after the image's stem.
        resize: short and long side in pixels; what the segmenter was made for where not given.

    Raises:
        InputError: in `setup`, if files are missing or labels do not fit the vocabulary.
    """

    def __init__(
        self,
        images: str,
        labels: str,
        vocabulary: str,
        label_offset: int = 0,
        label_suffix: str = ".png",
        resize: tuple[int, int] | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.images, self.labels, self.vocabulary_spec = Path(images), Path(labels), vocabulary
        self.vocabulary = read_vocabulary(vocabulary)
        self.label_offset, self.label_suffix = label_offset, label_suffix
        self.resize, self.num_workers = resize, num_workers

    def prepare_data(self) -> None:
        """Find what is wrong with the files before a log or checkpoint is written."""
        self.setup("test")

    def setup(self, stage: str) -> None:
        labels = LabelFiles(
            self.images, self.labels, self.vocabulary_spec, self.label_offset, self.label_suffix, source=_SOURCE
        )
        self.dataset = EvalImages(labels.images, self.resize, labels)

    def val_dataloader(self) -> DataLoader[EvalBatch]:
        return eval_loader(self.dataset, self.num_workers)

    def test_dataloader(self) -> DataLoader[EvalBatch]:
        return eval_loader(self.dataset, self.num_workers)
