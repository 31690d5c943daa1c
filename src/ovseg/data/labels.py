"""Label files: one class per pixel, as data sets store them."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor

from ovseg.data.vocabulary import read_dataset_ids
from ovseg.images import open_image, read_image
from ovseg.limits import check_size
from ovseg.structures import IGNORE_INDEX, WIDE_IGNORE_INDEX, InputError, Vocabulary

_INVALID = 2**16  # index into the lookup table for values outside 0 to 65535
_SAMPLE = 50  # pairs of files that are read before work starts
_THREADS = 8  # threads that read the sample, because network folders are slow to respond
_SHOWN = 3  # faults that one message spells out


def read_png(path: Path) -> NDArray[Any]:
    """Read an image with one channel: (H, W) values. A palette image gives its indices, not its colours."""
    with open_image(path) as image:
        values: NDArray[Any] = np.asarray(image)
    return values


def read_ade20k_full(path: Path) -> NDArray[Any]:
    """Read a `*_seg.png` of the full ADE20K: (H, W) object ids. ⌊red / 10⌋ is the upper byte, green the lower."""
    with open_image(path) as image:
        if image.mode != "RGB":
            raise InputError(f"{path} is not an RGB image; use the *_seg.png files as downloaded")
        pixels = np.asarray(image)
    ids: NDArray[np.uint16] = pixels[..., 0].astype(np.uint16) // 10 * 256 + pixels[..., 1]
    return ids


def read_label_map(path: Path) -> NDArray[Any]:
    """Read the (H, W) `LabelMap` of a MATLAB file of PASCAL Context."""
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    # scipy raises NotImplementedError for files of MATLAB 7.3
    broken = (OSError, ValueError, TypeError, KeyError, NotImplementedError, MatReadError, zlib.error, struct.error)
    try:
        height, *others = {name: shape for name, shape, _ in whosmat(path)}["LabelMap"]
        check_size(math.prod(others), height, str(path))
        values: NDArray[Any] = loadmat(path, variable_names=["LabelMap"])["LabelMap"]
    except InputError:
        raise
    except broken as error:
        raise InputError(f"{path} has no readable LabelMap ({error}); unpack trainval.tar.gz again") from error
    return values


@dataclass(frozen=True)
class Coding:
    """How the pixel values of label files stand for classes.

    Args:
        values: the value of each class.
        unlabelled: values that are ignored. All other values are refused.
        read: label file → (H, W) values from 0 to 65535.
    """

    values: Sequence[int]
    unlabelled: Collection[int]
    read: Callable[[Path], NDArray[Any]] = read_png


def coding_of(vocabulary: Vocabulary, spec: str, offset: int = 0, use_ids: bool = True) -> Coding:
    """Return the coding of greyscale or palette images: values are class indices plus `offset`.

    If the vocabulary has `dataset_ids`, values are these ids minus 1, plus `offset`. Smaller values mean unlabelled,
    and so does 255 (65535 if 255 is a class).

    Args:
        vocabulary: the classes.
        spec: what `vocabulary` was read from, to look for `dataset_ids`.
        offset: the value of class 0, or of id 1.
        use_ids: whether to use `dataset_ids` if there are any.
    """
    ids = read_dataset_ids(spec) if use_ids else None
    indices = [i - 1 for i in ids] if ids else range(len(vocabulary.scored_names))
    return Coding([i + offset for i in indices], {*range(max(offset, 0)), vocabulary.ignore_index})


class LabelFiles:
    """Label files of images, read as class indices.

    Args:
        files: image → label file, all of which exist.
        coding: how to read the label files; its classes are those of the vocabulary.
        vocabulary: name of the vocabulary in error messages.

    Raises:
        InputError: some of 50 pairs, spread over all files, cannot be used. Only the first process checks them.
    """

    def __init__(self, files: Mapping[Path, Path], coding: Coding, vocabulary: str) -> None:
        self.files, self.coding, self.vocabulary = dict(files), coding, vocabulary
        classes = len(coding.values)
        if min(coding.values) < 0 or max(coding.values) >= WIDE_IGNORE_INDEX:
            raise InputError(
                f"classes of {vocabulary} have the values {min(coding.values):,} to {max(coding.values):,} but labels "
                f"hold 0 to {WIDE_IGNORE_INDEX - 1:,}; correct label_offset or take fewer classes"
            )
        self.ignore_index = IGNORE_INDEX if classes <= IGNORE_INDEX else WIDE_IGNORE_INDEX
        small = np.int16 if self.ignore_index == IGNORE_INDEX else np.int32
        # value → class index; -1 for invalid values
        self.table: NDArray[np.signedinteger[Any]] = np.full(_INVALID + 1, -1, small)
        self.table[list(coding.unlabelled)] = self.ignore_index
        self.table[list(coding.values)] = np.arange(classes)
        self._check_sample()

    @rank_zero_only
    def _check_sample(self) -> None:
        sample = self.images[:: -(-len(self.files) // _SAMPLE) or 1]
        with ThreadPoolExecutor(_THREADS) as threads:
            faults = [fault for fault in threads.map(self.fault, sample) if fault]
        if faults:
            more = f"; and {len(faults) - _SHOWN} more of the {len(sample)} checked" if len(faults) > _SHOWN else ""
            raise InputError(f"{'; '.join(faults[:_SHOWN])}{more}")

    @property
    def images(self) -> list[Path]:
        """The image files, in order."""
        return list(self.files)

    def __call__(self, image: Path, size: tuple[int, int]) -> Tensor:
        """Read the labels of an image.

        Args:
            image: a key of `files`.
            size: (H, W) of the image.

        Returns:
            (H, W) class indices with `ignore_index`, int16, or int32 if 255 is a class.

        Raises:
            InputError: the label file is not a label map, has another size, or has a value that is not a class.
        """
        path = self.files[image]
        values = self.coding.read(path)
        if values.ndim != 2 or values.dtype.kind not in "bui":
            channels = values.shape[2] if values.ndim == 3 else 1
            raise InputError(
                f"{path} has {channels} channels of {values.dtype}; give labels with one channel of integers"
            )
        keys = np.where(values < 0, _INVALID, values) if values.dtype.kind == "i" else values
        indices: NDArray[np.signedinteger[Any]] = self.table.take(keys, mode="clip")
        if (indices < 0).any():
            raise InputError(
                f"{path} has the value {values[indices < 0][0]}, which is not a class of {self.vocabulary}; use the "
                "label files as downloaded, with the vocabulary and label_offset that they were made for"
            )
        if indices.shape != size:
            height, width = indices.shape
            raise InputError(
                f"{path} is {width} x {height} pixels but {image} is {size[1]} x {size[0]}; give the labels of this "
                "image"
            )
        return torch.from_numpy(indices)

    def fault(self, image: Path) -> str | None:
        """Return what is wrong with an image and its labels, or None if nothing is."""
        try:
            pixels = read_image(image)
            self(image, (pixels.height, pixels.width))
        except InputError as error:
            return str(error)
        return None
