"""Label files: one class per pixel, as data sets store them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovseg.data.vocabulary import read_dataset_ids, read_vocabulary
from ovseg.images import IMAGE_SUFFIXES, open_image
from ovseg.structures import IGNORE_INDEX, InputError

_CHECKED = 50  # files that are read before work starts


class LabelFiles:
    """Label files of images, read as class indices of a vocabulary.

    A pixel's value minus `offset` is its class index or, for a vocabulary that lists `dataset_ids`, its id there
    minus 1. Values below `offset`, and 255 where no class has it, are ignored; any other value is refused.

    Args:
        images: folder of images.
        labels: folder of label files, called as the images are, with `suffix` in place of theirs.
        vocabulary: see `read_vocabulary`.
        use_ids: whether the values may be `dataset_ids`.
        source: a sentence's end that says where the data comes from, for the error message.

    Raises:
        InputError: a folder or partner is missing, or one of 50 files spread over the folder cannot be read.
    """

    def __init__(
        self,
        images: Path,
        labels: Path,
        vocabulary: str,
        offset: int = 0,
        suffix: str = ".png",
        use_ids: bool = True,
        source: str = "",
    ) -> None:
        self.vocabulary = vocabulary
        self.ids = read_dataset_ids(vocabulary) if use_ids else None
        values = [i - 1 for i in self.ids] if self.ids else list(range(len(read_vocabulary(vocabulary))))
        self.table = _table(values, offset, vocabulary)
        self.files = _pairs(images, labels, suffix, source)  # image → label file
        paths = list(self.files.values())
        for path in paths[:: -(-len(paths) // _CHECKED)]:
            self._read(path)

    @property
    def images(self) -> list[Path]:
        return list(self.files)

    def __call__(self, image: Path, size: tuple[int, int]) -> Tensor:
        """(H, W) int64 with IGNORE_INDEX, for an image of `size` (H, W)."""
        indices = self._read(self.files[image])
        if indices.shape != size:
            (height, width), path = indices.shape, self.files[image]
            raise InputError(
                f"{path} is {width} x {height} pixels but {image} is {size[1]} x {size[0]}; give its own labels"
            )
        return torch.from_numpy(indices)

    def _read(self, path: Path) -> NDArray[np.int64]:
        with open_image(path) as image:
            values: NDArray[Any] = np.asarray(image)
        if values.ndim != 2:
            raise InputError(f"{path} has {values.shape[2]} channels; labels have one, with a class index per pixel")
        indices: NDArray[np.int64] = self.table[np.clip(values, 0, len(self.table) - 1)]
        if (indices < 0).any():
            advice = (
                "use the label files as downloaded, not a copy that another project prepared"
                if self.ids
                else "use the vocabulary that these labels were made for, and their label_offset"
            )
            raise InputError(f"{path} has the value {values[indices < 0][0]}, no class of {self.vocabulary}; {advice}")
        return indices


def _table(values: list[int], offset: int, vocabulary: str) -> NDArray[np.int64]:
    """Pixel value → class index; -1 for values that are none."""
    if len(values) > IGNORE_INDEX:
        raise InputError(
            f"{vocabulary} has {len(values)} classes but index {IGNORE_INDEX} means unlabelled; "
            f"use a vocabulary of at most {IGNORE_INDEX}"
        )
    table = np.full(2**16, -1)
    table[: max(offset, 0)] = IGNORE_INDEX
    table[IGNORE_INDEX] = IGNORE_INDEX
    table[np.array(values) + offset] = np.arange(len(values))
    return table


def _pairs(images: Path, labels: Path, suffix: str, source: str) -> dict[Path, Path]:
    if absent := [str(folder) for folder in (images, labels) if not folder.is_dir()]:
        raise InputError(f"there is no folder {' and no '.join(absent)}; {source or 'correct the path'}")
    image_of = {path.stem: path for path in sorted(images.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
    label_of = {path.name.removesuffix(suffix): path for path in labels.iterdir() if path.name.endswith(suffix)}
    for kind, have, other in (("label", image_of, label_of), ("image", label_of, image_of)):
        if alone := sorted(have.keys() - other.keys()):
            folder = labels if kind == "label" else images
            raise InputError(
                f"{len(alone)} of {len(have)} files have no {kind} in {folder}, the first is {have[alone[0]]}; "
                f"{source or 'add the missing files'}"
            )
    if not image_of:
        raise InputError(f"{images} has no image; {source or 'correct the path'}")
    return {path: label_of[stem] for stem, path in image_of.items()}
