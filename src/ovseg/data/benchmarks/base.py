"""What all benchmarks share: finding their files, reading their labels, and the loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

from torch.utils.data import DataLoader

from ovseg.data.base import LabelsDataModule, eval_loader
from ovseg.data.images import EvalImages
from ovseg.data.labels import LabelFiles
from ovseg.data.masks import LabelMaps, open_masks
from ovseg.data.vocabulary import read_vocabulary
from ovseg.structures import EvalBatch, InputError, Vocabulary


class Layout(NamedTuple):
    """A benchmark on disk; of alternatives the first that exists is taken."""

    classes: str  # the built-in vocabulary
    total: int  # images, as published; more may be there
    homes: tuple[str, ...]  # where it may lie, below the root
    images: tuple[str, ...]  # where these may lie, below its home
    labels: tuple[str, ...] = ()  # none where they lie beside the images
    split: tuple[str, ...] = ()  # text files that list the images; none where all count
    source: str = ""  # end of a sentence that says where the data comes from
    name: str = ""  # of the benchmark, where it is not that of its classes


class EvalDataModule(LabelsDataModule):
    """Labelled images to test on, and the vocabulary that their labels index.

    Args:
        labels: label files of the images; labels keep the images' own size.
        vocabulary: the classes.
        locations: what lies where, for messages to the user, for example `images` → its folder.
        resize: short and long side in pixels; the segmenter's own if not given.
        num_workers: processes that read images and labels.
        masks: regions in place of proposals, see `ovseg.data.masks.open_masks`.
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
        resize: short and long side in pixels; the segmenter's own if not given.
        num_workers: processes that read images and labels.
        masks: regions in place of proposals: a COCO instances file, a JSON list of results with run lengths (SAM's, for
            example), or label maps. Images are matched by file name; those without masks are left without regions.

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
        locations = self._find(Path(root))
        super().__init__(self.label_files(locations), names, locations, resize, num_workers, masks)

    @abstractmethod
    def label_files(self, locations: Mapping[str, Path]) -> LabelFiles:
        """Pair the images with their labels and say how labels are read.

        Args:
            locations: `images`, and `labels` and `split` if the layout has them → the folder or file that holds them.
        """

    def _names(self, given: str | None, synonyms: bool) -> Vocabulary:
        own = read_vocabulary(self.layout.classes, synonyms)
        if given is None:
            return own
        names = read_vocabulary(given, synonyms)
        if len(names) != len(own):
            raise InputError(
                f"{given} names {len(names)} classes but {self.layout.classes} has {len(own)}; "
                "name each of them, in its order"
            )
        return replace(names, seen=own.seen, background_from=own.background_from)

    def _find(self, root: Path) -> dict[str, Path]:
        """Where images, labels and split are: all in the home that has most of them."""
        layout, homes = self.layout, [root / home for home in self.layout.homes]
        parts = {"images": layout.images, "labels": layout.labels, "split": layout.split}
        parts = {part: places for part, places in parts.items() if places}
        found = [{part: path for part, places in parts.items() if (path := _first(home, places))} for home in homes]
        best = max(found, key=len)
        if missing := [part for part in parts if part not in best]:
            home = homes[found.index(best)]
            lacks = [f"no {part} ({' or '.join(str(home / place) for place in parts[part])})" for part in missing]
            elsewhere = f", nor in {' or '.join(str(other) for other in homes if other != home)}"
            raise InputError(
                f"{layout.classes} has {' and '.join(lacks)}{elsewhere if not best else ''}; {layout.source}"
            )
        return best


def by_name(benchmarks: Iterable[type[Benchmark]]) -> dict[str, type[Benchmark]]:
    """The benchmarks by the names that the command line knows them by.

    Raises:
        ValueError: two have one name.
    """
    found: dict[str, type[Benchmark]] = {}
    for benchmark in benchmarks:
        name = benchmark.layout.name or benchmark.layout.classes
        if (other := found.setdefault(name, benchmark)) is not benchmark:
            raise ValueError(
                f"{other.__name__} and {benchmark.__name__} are both called {name}; give one a layout.name"
            )
    return found


def _first(home: Path, places: Sequence[str]) -> Path | None:
    return next((home / place for place in places if (home / place).exists()), None)
