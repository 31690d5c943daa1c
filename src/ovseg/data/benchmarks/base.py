"""What benchmarks share: locating their files, reading labels and masks, and the loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

from torch.utils.data import DataLoader

from ovseg.data.base import LabelsDataModule, eval_loader
from ovseg.data.images import EvalImages
from ovseg.data.labels import LabelFiles
from ovseg.data.masks import LabelMaps, open_masks
from ovseg.data.vocabulary import read_vocabulary
from ovseg.limits import check_at_least
from ovseg.structures import EvalBatch, InputError, Vocabulary


class Layout(NamedTuple):
    """The files of a benchmark. If several places are possible, the first that exists is used."""

    name: str  # on the command line, and in conf/data/<name>.yaml
    total: int  # published number of images; there may be more
    homes: tuple[str, ...]  # folders below the root that may hold the benchmark
    images: tuple[str, ...]  # places of the images, below the home
    labels: tuple[str, ...] = ()  # places of the labels; none if they lie beside the images
    split: tuple[str, ...] = ()  # text files that list the images; none if all images count
    source: str = ""  # how to get the files, as the end of a sentence
    classes: str = ""  # the vocabulary, see `read_vocabulary`; if empty, the built-in one called `name`

    @property
    def vocabulary(self) -> str:
        """What `read_vocabulary` reads the class names from."""
        return self.classes or self.name


class EvalDataModule(LabelsDataModule):
    """Labelled images to test on, and the vocabulary that their labels index.

    A task tells it the network's resolution through `configure`.

    Args:
        labels: label files of the images; labels keep the images' own size.
        vocabulary: the classes.
        locations: part → folder or file, for messages to the user; for example `images` → the folder of the images.
        resize: short and long side in pixels; defaults to the segmenter's.
        num_workers: processes that read images and labels.
        masks: regions in place of proposals, see `ovseg.data.masks.open_masks`.

    Raises:
        InputError: the masks cannot be used, or a number is out of range.
    """

    def __init__(
        self,
        labels: LabelFiles,
        vocabulary: Vocabulary,
        locations: Mapping[str, Path],
        resize: tuple[int, int] | None,
        num_workers: int,
        masks: Path | LabelMaps | None = None,
    ) -> None:
        super().__init__()
        check_at_least(0, num_workers=num_workers)
        self.labels, self.vocabulary, self.locations = labels, vocabulary, dict(locations)
        self.resize, self.num_workers = resize, num_workers
        self.masks = None if masks is None else open_masks(masks, labels.images)
        self.dataset = EvalImages(labels.images, resize, labels, self.masks)

    def setup(self, stage: str) -> None:
        self.dataset.resize = self.resize  # undoes an earlier `configure`

    def configure(self, resize: tuple[int, int]) -> None:
        """Adapt to the network of this run, after `setup`.

        Args:
            resize: short and long side that the network was made for; the datamodule's own `resize` takes precedence.
        """
        if self.resize is None:
            self.dataset.resize = resize

    def val_dataloader(self) -> DataLoader[EvalBatch]:
        return eval_loader(self.dataset, self.num_workers)

    def test_dataloader(self) -> DataLoader[EvalBatch]:
        return eval_loader(self.dataset, self.num_workers)


class Benchmark(EvalDataModule, ABC):
    """A published benchmark, read from the files as they are downloaded.

    Nothing is converted or cached: a `LabelMap` is read faster than a PNG of the same labels, and the colour-coded
    labels of the full ADE20K take 50 ms, twice as long as converted ones, for an image that takes seconds to segment.

    Args:
        root: the folder that holds the data sets, or this benchmark's folder.
        vocabulary: other names of the same classes in the same order, see `ovseg.data.vocabulary.read_vocabulary`.
        synonyms: whether to use the built-in list's synonyms as well.
        resize: short and long side in pixels; defaults to the segmenter's.
        num_workers: processes that read images and labels.
        masks: regions in place of proposals: a COCO instances file, a JSON list of results with run lengths (SAM's, for
            example), or label maps. Images are matched by file name; those without masks get no regions.

    Raises:
        InputError: at once, if files are missing, any of 50 files spread over the benchmark cannot be read, the names
            do not fit, or the masks cannot be used.
    """

    layout: ClassVar[Layout]

    def __init__(
        self,
        root: str = "datasets",
        vocabulary: str | None = None,
        synonyms: bool = False,
        resize: tuple[int, int] | None = None,
        num_workers: int = 0,
        masks: Path | LabelMaps | None = None,
    ) -> None:
        names = self._names(vocabulary, synonyms)
        locations = self._locate(Path(root))
        super().__init__(self.label_files(locations), names, locations, resize, num_workers, masks)

    @abstractmethod
    def label_files(self, locations: Mapping[str, Path]) -> LabelFiles:
        """Pair the images with their labels and say how labels are read.

        Args:
            locations: `images`, and `labels` and `split` if the layout has them → the folder or file that holds them.
        """

    def _names(self, vocabulary: str | None, synonyms: bool) -> Vocabulary:
        """Read the class names: those of `vocabulary` if given, else the benchmark's own."""
        own = read_vocabulary(self.layout.vocabulary, synonyms)
        if vocabulary is None:
            return own
        names = read_vocabulary(vocabulary, synonyms)
        if len(names) != len(own):
            raise InputError(
                f"{vocabulary} names {len(names)} classes but {self.layout.name} has {len(own)}; "
                "name each of them, in the same order"
            )
        return replace(names, seen=own.seen, background_from=own.background_from)

    def _locate(self, root: Path) -> dict[str, Path]:
        """Find images, labels and split in the home that has most of them."""
        layout, homes = self.layout, [root / home for home in self.layout.homes]
        parts = {"images": layout.images, "labels": layout.labels, "split": layout.split}
        parts = {part: places for part, places in parts.items() if places}
        candidates = [
            {part: path for part, places in parts.items() if (path := _first_existing(home, places))} for home in homes
        ]
        best = max(candidates, key=len)
        if missing := [part for part in parts if part not in best]:
            home = homes[candidates.index(best)]
            lacks = [f"no {part} ({' or '.join(str(home / place) for place in parts[part])})" for part in missing]
            others = [] if best else [str(other) for other in homes if other != home]
            elsewhere = f", nor in {' or '.join(others)}" if others else ""
            raise InputError(f"{layout.name} has {' and '.join(lacks)}{elsewhere}; {layout.source}")
        return best


def _first_existing(home: Path, places: Sequence[str]) -> Path | None:
    return next((home / place for place in places if (home / place).exists()), None)
