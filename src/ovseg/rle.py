"""Masks as compressed COCO run lengths and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from ovseg.limits import check_size


def encode(masks: Tensor) -> list[bytes]:
    """Compressed run lengths of each mask.

    Args:
        masks: (N, H, W) bool.
    """
    columns = masks.permute(1, 2, 0).to(torch.uint8).cpu().numpy()  # (H, W, N): COCO runs down the columns
    return [rle["counts"] for rle in coco_mask.encode(np.asfortranarray(columns))]


def decode(counts: Sequence[bytes], size: tuple[int, int]) -> Tensor:
    """(N, H, W) bool masks from what `encode` gave for masks of `size` (H, W)."""
    if not counts:
        return torch.zeros((0, *size), dtype=torch.bool)
    check_size(size[1], size[0], "a mask")
    columns = coco_mask.decode([{"size": list(size), "counts": runs} for runs in counts])
    return torch.from_numpy(np.ascontiguousarray(columns.transpose(2, 0, 1))).bool()


def decode_box(counts: bytes, size: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """What `decode` gives inside a box, (h, w) bool, in a quarter of its time: other columns are not filled.

    Args:
        counts: of one mask.
        size: (H, W) of the mask.
        box: x0, y0, x1, y1, ends exclusive.

    Raises:
        ValueError: the run lengths are not those of a mask of this size, or the box is not inside.
    """
    (height, width), (x0, y0, x1, y1) = size, box
    check_size(width, height, "a mask")
    lengths = _run_lengths(counts)
    fits = lengths.sum() == height * width and lengths.min() >= 0
    if not (fits and 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"run lengths do not fit a mask of {width} x {height} pixels with the box {box}")
    ends = lengths.cumsum()
    start, stop = x0 * height, x1 * height  # of the columns, down which COCO runs
    first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop)
    runs = np.diff(ends[first : last + 1].clip(start, stop), prepend=start)
    inside = np.arange(first, first + len(runs)) % 2 == 1  # runs are of zeros and ones in turn
    columns = np.repeat(inside, runs).reshape(x1 - x0, height)
    return torch.from_numpy(np.ascontiguousarray(columns[:, y0:y1].T))


def _run_lengths(counts: bytes) -> NDArray[np.int64]:
    """The numbers in COCO's compressed form.

    Each is written in groups of five bits, the lowest first, a byte a group: bit 32 says that another group follows,
    bit 16 of the last group is the sign. From the fourth on a number is the difference to the last but one.
    """
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = (groups & 32) == 0
    ends = last.nonzero()[0]
    sizes = np.diff(ends, prepend=-1)
    starts = ends - sizes + 1
    groups = groups[: sizes.sum()]  # without a number that does not end
    place = 5 * (np.arange(len(groups)) - starts.repeat(sizes))
    numbers: NDArray[np.int64] = np.add.reduceat((groups & 31) << place, starts) if len(starts) else starts
    numbers -= ((groups[ends] & 16) != 0) * (1 << 5 * sizes)
    for parity in (1, 2):
        numbers[parity::2] = numbers[parity::2].cumsum()
    return numbers


def from_coco(segmentation: Any, size: tuple[int, int] | None = None) -> tuple[bytes, tuple[int, int]]:
    """Compressed run lengths and size (H, W) of an annotation's `segmentation`: polygons, or run lengths of any kind.

    Args:
        size: of the image, which polygons do not tell.

    Raises:
        ValueError: it is none of them.
    """
    try:
        if isinstance(segmentation, list):
            if size is None:
                raise ValueError("polygons need the image's height and width")
            _check_polygons(segmentation, size)
            runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
        elif isinstance(segmentation["counts"], list):
            runs = coco_mask.frPyObjects(segmentation, *segmentation["size"])
        else:
            runs = segmentation
        height, width = runs["size"]
        check_size(width, height, "a mask")
        counts = runs["counts"]
        encoded: bytes = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
        if coco_mask.area({"size": [height, width], "counts": encoded}) > height * width:
            raise ValueError("run lengths are longer than the mask")
    except ValueError:
        raise
    except Exception as error:  # pycocotools raises the bare class, and whatever Python does on odd input
        raise ValueError(f"a segmentation is neither polygons nor run lengths ({error})") from error
    return encoded, (int(height), int(width))


def _check_polygons(polygons: list[Any], size: tuple[int, int]) -> None:
    """pycocotools walks along their edges in steps of a fifth of a pixel, also where there is no image."""
    check_size(size[1], size[0], "a mask")
    side = max(size)
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        if not ((points >= -side) & (points <= 2 * side)).all():
            raise ValueError(f"a polygon lies far outside its image of {size[1]} x {size[0]} pixels")
