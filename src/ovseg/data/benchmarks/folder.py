"""Your own data: a folder of images, a folder of labels, and a vocabulary."""

from __future__ import annotations

from pathlib import Path

from ovseg.data.benchmarks.base import EvalDataModule
from ovseg.data.labels import LabelFiles, coding_of
from ovseg.data.partners import by_stem
from ovseg.data.vocabulary import read_vocabulary


class SegmentationBenchmark(EvalDataModule):
    """Images and labels matched by file name.

    A label file is a grey or palette image of 8 or 16 bits. 255 is unlabelled; 65535 where 255 is a class.

    Args:
        images: folder of images.
        labels: folder of label files.
        vocabulary: see `ovseg.data.vocabulary.read_vocabulary`.
        label_offset: the value of class 0 (of id 1 where the vocabulary lists `dataset_ids`); smaller values are
            unlabelled.
        label_suffix: how a label file's name goes on after the image's stem.
        resize: short and long side in pixels; what the segmenter was made for where not given.

    Raises:
        InputError: at once, if files are missing, or 50 of them spread over all cannot be read or do not fit the
            vocabulary.
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
        classes, found = read_vocabulary(vocabulary), {"images": Path(images), "labels": Path(labels)}
        files = by_stem(found["images"], found["labels"], label_suffix, _SOURCE)
        label_files = LabelFiles(files, coding_of(classes, vocabulary, label_offset), vocabulary)
        super().__init__(label_files, classes, found, resize, num_workers)


_SOURCE = "give the folder of your images and that of their label files, or make small ones by `ovseg toy --out DIR`"
