"""ADE20K, validation: 150 classes of the scene parsing benchmark, 847 of the full data set."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F

from ovseg.data.benchmarks.base import Benchmark, Layout
from ovseg.data.images import EvalImages
from ovseg.data.labels import Coding, LabelFiles, read_ade20k_full
from ovseg.data.partners import by_stem, require_labels
from ovseg.data.vocabulary import read_dataset_ids
from ovseg.images import short_side_size
from ovseg.structures import EvalBatch, InputError


class ADE20K150DataModule(Benchmark):
    """ADE20K SceneParsing 150, 2,000 images: value 0 is unlabelled, 1 the first class."""

    layout = Layout(
        classes="ade20k_150",
        total=2000,
        homes=("ADEChallengeData2016", "."),
        images=("images/validation",),
        labels=("annotations/validation",),
        source="unpack ADEChallengeData2016.zip there, from sceneparsing.csail.mit.edu",
    )

    def label_files(self, found: Mapping[str, Path]) -> LabelFiles:
        files = by_stem(found["images"], found["labels"], source=self.layout.source)
        return LabelFiles(files, Coding(range(1, 151), {0}), self.layout.classes)


class ResizedLabels(EvalImages):
    """Images that are answered at a short side of so many pixels, where the nearest labels are taken."""

    def __init__(self, labels: LabelFiles, resize: tuple[int, int] | None, short_side: int) -> None:
        super().__init__(labels.images, resize, labels)
        self.short_side = short_side

    def __getitem__(self, index: int) -> EvalBatch:
        batch = super().__getitem__(index)
        size = short_side_size(batch.sizes[0], self.short_side, sys.maxsize)
        # as floats, which hold every label exactly: integers cannot be interpolated
        labels = F.interpolate(batch.labels[0][None, None].float(), size, mode="nearest-exact")[0, 0].long()
        return batch._replace(sizes=[size], labels=[labels])


class ADE20K847DataModule(Benchmark):
    """Full ADE20K of 2021, 2,000 images in nested folders: object ids in the colours of `*_seg.png`.

    The 847 objects of the vocabulary count, all others are unlabelled. `index_ade20k.pkl` is not read: a pickle from
    the web can run any code.

    Args:
        root: the folder that holds the data sets, or this one.
        vocabulary: other names of the same classes in the same order, see `ovseg.data.vocabulary.read_vocabulary`.
        synonyms: whether the built-in list's synonyms count, too.
        resize: short and long side in pixels; what the segmenter was made for where not given.
        label_short_side: images are scored at this short side in pixels, as in the release; null for their own size.
    """

    layout = Layout(
        classes="ade20k_847",
        total=2000,
        homes=("ADE20K_2021_17_01", "."),
        images=("images/ADE/validation",),
        source="unpack ADE20K_2021_17_01.zip there, which groups.csail.mit.edu/vision/datasets/ADE20K gives "
        "after registration",
    )

    def __init__(
        self,
        root: str = "datasets",
        vocabulary: str | None = None,
        synonyms: bool = False,
        resize: tuple[int, int] | None = None,
        num_workers: int = 0,
        label_short_side: int | None = 512,
    ) -> None:
        super().__init__(root, vocabulary, synonyms, resize, num_workers)
        if label_short_side is not None:
            self.dataset = ResizedLabels(self.labels, resize, label_short_side)

    def label_files(self, found: Mapping[str, Path]) -> LabelFiles:
        folder = found["images"]
        files = {image: image.with_name(f"{image.stem}_seg.png") for image in sorted(folder.rglob("*.jpg"))}
        if not files:
            raise InputError(f"{folder} has no image; {self.layout.source}")
        require_labels(files, folder, self.layout.source)
        ids = read_dataset_ids(self.layout.classes)
        assert ids is not None  # it is ours
        return LabelFiles(files, Coding(ids, range(26 * 256), read_ade20k_full), self.layout.classes)
