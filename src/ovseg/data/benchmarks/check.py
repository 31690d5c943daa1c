"""Check a benchmark: read every image and label file, and report the faults of each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import jsonargparse
import torch
import yaml
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ovseg.data.benchmarks import Benchmark, EvalDataModule, find_benchmarks
from ovseg.data.labels import LabelFiles
from ovseg.images import read_image
from ovseg.structures import InputError

_SHOWN = 10  # absent classes that are named


def load_benchmark(spec: str, root: Path | None = None) -> EvalDataModule:
    """Build the datamodule of a benchmark.

    Args:
        spec: its name, a YAML file such as conf/data/own.yaml, or the dotted path of its class.
        root: the folder that holds it; defaults to that of the file or class.

    Raises:
        InputError: there is no such benchmark, or its files cannot be used.
        jsonargparse.ArgumentError: the file or class is not a benchmark.
    """
    benchmarks = find_benchmarks()
    if spec in benchmarks:
        return benchmarks[spec]() if root is None else benchmarks[spec](str(root))
    is_class = all(part.isidentifier() for part in spec.split(".")) and spec.rpartition(".")[2][:1].isupper()
    if not is_class and not Path(spec).is_file():
        raise InputError(
            f"there is no benchmark {spec!r}; choose one of {', '.join(benchmarks)}, or give a YAML file or a class"
        )
    if not is_class:
        _check_class(Path(spec))
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_subclass_arguments(EvalDataModule, "data", required=True)
    words = ["--data", spec, *([] if root is None else ["--data.root", str(root)])]
    data: EvalDataModule = parser.instantiate(parser.parse_args(words)).data
    return data


def _check_class(file: Path) -> None:
    """Refuse a file that does not configure a benchmark.

    Raises:
        InputError: the file is no mapping with a `class_path`, or configures training data or a run.
    """
    example = "give the YAML file of a benchmark, such as conf/data/own.yaml, or the name of one"
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{file} is not a YAML file; {example}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is not the YAML file of a benchmark, which has a class_path; {example}")
    if {"data", "model", "trainer"} & content.keys():
        raise InputError(f"{file} configures a run, not a benchmark; {example}")
    module, _, name = str(content.get("class_path")).rpartition(".")
    configured = getattr(sys.modules.get(module), name, None)
    if isinstance(configured, type) and not issubclass(configured, EvalDataModule):
        kind = "training data" if issubclass(configured, LightningDataModule) else "part of a run"
        raise InputError(f"{file} configures {name}, which is {kind}, not a benchmark; {example}")


class FileCheck(NamedTuple):
    """The result of reading an image and its labels."""

    present: Tensor  # (K,) bool, the classes that occur
    fault: str  # what is wrong with the files; empty if nothing is


class CheckedFiles(Dataset[FileCheck]):
    """Every image with its labels, read as a test would read them."""

    def __init__(self, labels: LabelFiles) -> None:
        self.labels, self.images = labels, labels.images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> FileCheck:
        present = torch.zeros(len(self.labels.coding.values), dtype=torch.bool)
        try:
            image = read_image(self.images[index])
            classes = torch.unique(self.labels(self.images[index], (image.height, image.width))).long()
        except InputError as error:
            return FileCheck(present, str(error))
        present[classes[classes != self.labels.ignore_index]] = True
        return FileCheck(present, "")


def check(data: EvalDataModule, num_workers: int = 0) -> list[str]:
    """Read all files. A progress bar shows each fault.

    Returns:
        Lines for the user: where the files are, how many there are, and which classes are absent.

    Raises:
        InputError: an image cannot be read, its labels have another size or a value outside the vocabulary, no pixel
            has a class, or a published benchmark has fewer images than were published.
    """
    files = CheckedFiles(data.labels)
    present, faults = torch.zeros(len(data.vocabulary.scored_names), dtype=torch.bool), 0
    results: DataLoader[FileCheck] = DataLoader(files, batch_size=None, num_workers=num_workers)
    for result in tqdm(results, desc="images and labels", unit="image"):
        present |= result.present
        if result.fault:
            faults += 1
            tqdm.write(result.fault)
    if faults:
        raise InputError(
            f"{faults:,} of {len(files):,} images or their labels cannot be used, see above; "
            "replace them, or delete them together with their labels"
        )
    # more images may be there: VOC's own split list has one image more than that of Context 459
    if isinstance(data, Benchmark) and len(files) < data.layout.total:
        raise InputError(
            f"{data.layout.name} has {len(files):,} images here but {data.layout.total:,} were published; "
            f"{data.layout.source}"
        )
    if not present.any():
        raise InputError(
            f"no pixel of the {len(files):,} labels has a class, all are unlabelled; correct label_offset, or give "
            f"other labels than {data.locations.get('labels', data.locations['images'])}"
        )
    absent = [name.strip() for name, occurs in zip(data.vocabulary.scored_names, present, strict=True) if not occurs]
    more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
    return [
        *(f"{part}: {path}" for part, path in data.locations.items()),
        f"{len(files):,} images, {len(files):,} labels, {int(present.sum())} of {len(present)} classes present",
        *([f"absent: {', '.join(absent[:_SHOWN])}{more}"] if absent else []),
    ]
