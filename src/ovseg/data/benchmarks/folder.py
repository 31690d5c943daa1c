"""A benchmark of your own data: a folder of images, a folder of labels, and a vocabulary."""

from __future__ import annotations

from pathlib import Path

from ovseg.data.benchmarks.base import EvalDataModule
from ovseg.data.labels import LabelFiles, coding_of
from ovseg.data.masks import LabelMaps
from ovseg.data.partners import by_stem
from ovseg.data.vocabulary import read_vocabulary


class SegmentationBenchmark(EvalDataModule):
    """Images and labels matched by file name.

    A label file is a greyscale or palette image of 8 or 16 bits. Pixels of value 255 are unlabelled, or 65535 if the
    vocabulary has more than 255 classes.

    Args:
        images: folder of images.
        labels: folder of label files.
        vocabulary: see `ovseg.data.vocabulary.read_vocabulary`.
        label_offset: the value of class 0 (of id 1 if the vocabulary lists `dataset_ids`); smaller values are
            unlabelled.
        label_suffix: what follows the image's stem in the name of its label file.
        resize: short and long side in pixels; defaults to the segmenter's.
        num_workers: processes that read images and labels.
        masks: regions in place of proposals: a COCO instances file, a JSON list of results with run lengths (SAM's, for
            example), or label maps; for ground truth give the folder of `labels` and its vocabulary.

    Raises:
        InputError: at once, if files are missing, any of 50 files spread over the folder cannot be read or does not fit
            the vocabulary, or the masks cannot be used.
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
        masks: Path | LabelMaps | None = None,
    ) -> None:
        classes, locations = read_vocabulary(vocabulary), {"images": Path(images), "labels": Path(labels)}
        files = by_stem(locations["images"], locations["labels"], label_suffix, _SOURCE)
        label_files = LabelFiles(files, coding_of(classes, vocabulary, label_offset), vocabulary)
        super().__init__(label_files, classes, locations, resize, num_workers, masks)


_SOURCE = "give the folder of your images and that of their label files, or write toy data with `ovseg toy --out DIR`"
