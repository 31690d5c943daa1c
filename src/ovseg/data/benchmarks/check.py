"""Reads every image and label file of a benchmark and says what is wrong with which."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jsonargparse
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ovseg.data.benchmarks import BENCHMARKS, Benchmark, EvalDataModule
from ovseg.data.labels import LabelFiles
from ovseg.images import read_image
from ovseg.structures import InputError

_SHOWN = 10  # absent classes that are named


def load_benchmark(spec: str, root: Path | None = None) -> EvalDataModule:
    """The datamodule of a published benchmark by its name, or of a file such as conf/data/own.yaml.

    Raises:
        InputError: there is none, or its files cannot be used.
        jsonargparse.ArgumentError: the file does not say which.
    """
    if spec in BENCHMARKS:
        return BENCHMARKS[spec]() if root is None else BENCHMARKS[spec](str(root))
    if not Path(spec).is_file():
        raise InputError(
            f"there is no benchmark {spec!r}; take one of {', '.join(BENCHMARKS)}, or a file with its data"
        )
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_subclass_arguments(EvalDataModule, "data", required=True)
    words = ["--data", spec, *([] if root is None else ["--data.root", str(root)])]
    data: EvalDataModule = parser.instantiate(parser.parse_args(words)).data
    return data


class Looked(NamedTuple):
    """What an image's labels hold, or what is wrong with the two."""

    present: Tensor  # (K,) bool
    fault: str


class CheckedFiles(Dataset[Looked]):
    """Every image with its labels, as a test would read them."""

    def __init__(self, labels: LabelFiles) -> None:
        self.labels, self.images = labels, labels.images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Looked:
        present = torch.zeros(len(self.labels.coding.values), dtype=torch.bool)
        try:
            picture = read_image(self.images[index])
            found = torch.unique(self.labels(self.images[index], (picture.height, picture.width))).long()
        except InputError as error:
            return Looked(present, str(error))
        present[found[found != self.labels.ignore_index]] = True
        return Looked(present, "")


def check(data: EvalDataModule, num_workers: int = 0) -> list[str]:
    """Read all files, with a progress bar that also shows each fault.

    Returns:
        Lines for the user: where the files are, how many, and which classes are absent.

    Raises:
        InputError: an image cannot be read, its labels have another size or a value outside the vocabulary, or a
            published benchmark has fewer images than were published.
    """
    files = CheckedFiles(data.labels)
    present, faults = torch.zeros(len(data.vocabulary.scored_names), dtype=torch.bool), 0
    loader: DataLoader[Looked] = DataLoader(files, batch_size=None, num_workers=num_workers)
    for looked in tqdm(loader, desc="images and labels", unit="image"):
        present |= looked.present
        if looked.fault:
            faults += 1
            tqdm.write(looked.fault)
    if faults:
        raise InputError(
            f"{faults:,} of {len(files):,} images or their labels cannot be used, see above; "
            "replace them or delete them with their labels"
        )
    # more may be there: VOC's own split list has one image more than that of Context 459
    if isinstance(data, Benchmark) and len(files) < data.layout.total:
        raise InputError(
            f"{data.layout.classes} has {len(files):,} images here and {data.layout.total:,} as published; "
            f"{data.layout.source}"
        )
    absent = [name.strip() for name, there in zip(data.vocabulary.scored_names, present, strict=True) if not there]
    more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
    return [
        *(f"{part}: {path}" for part, path in data.locations.items()),
        f"{len(files):,} images, {len(files):,} labels, {int(present.sum())} of {len(present)} classes present",
        *([f"absent: {', '.join(absent[:_SHOWN])}{more}"] if absent else []),
    ]
