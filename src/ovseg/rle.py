"""Convert masks to COCO's compressed run lengths and back."""

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
    """Return the compressed run lengths of each mask.

    Args:
        masks: (N, H, W) bool.
    """
    columns = masks.permute(1, 2, 0).to(torch.uint8).cpu().numpy()  # (H, W, N); COCO's runs go down the columns
    return [rle["counts"] for rle in coco_mask.encode(np.asfortranarray(columns))]


def decode(counts: Sequence[bytes], size: tuple[int, int]) -> Tensor:
    """Return the (N, H, W) bool masks of run lengths that `encode` returned for masks of `size` (H, W).

    Raises:
        InputError: the masks are larger than `ovseg.limits.check_size` allows.
    """
    if not counts:
        return torch.zeros((0, *size), dtype=torch.bool)
    check_size(size[1], size[0], "a mask")
    columns = coco_mask.decode([{"size": list(size), "counts": runs} for runs in counts])
    return torch.from_numpy(np.ascontiguousarray(columns.transpose(2, 0, 1))).bool()


def decode_box(counts: bytes, size: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """Decode one mask inside a box only, (h, w) bool, in a quarter of the time of `decode`.

    Args:
        counts: run lengths of the mask.
        size: (H, W) of the mask.
        box: x0, y0, x1, y1, ends exclusive.

    Raises:
        InputError: the mask is larger than `ovseg.limits.check_size` allows.
        ValueError: the run lengths do not fit the size, or the box is not inside the mask.
    """
    (height, width), (x0, y0, x1, y1) = size, box
    check_size(width, height, "a mask")
    lengths = _run_lengths(counts)
    fits = lengths.sum() == height * width and lengths.min() >= 0
    if not (fits and 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"run lengths do not fit a mask of {width} x {height} pixels with the box {box}")
    ends = lengths.cumsum()
    start, stop = x0 * height, x1 * height  # pixel range of the box's columns; COCO's runs go down the columns
    first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop)
    runs = np.diff(ends[first : last + 1].clip(start, stop), prepend=start)
    inside = np.arange(first, first + len(runs)) % 2 == 1  # runs of zeros and ones alternate
    columns = np.repeat(inside, runs).reshape(x1 - x0, height)
    return torch.from_numpy(np.ascontiguousarray(columns[:, y0:y1].T))


def _run_lengths(counts: bytes) -> NDArray[np.int64]:
    """Decode the numbers of COCO's compressed form.

    Each number consists of groups of five bits, the lowest first, one byte per group. Bit 32 means that another group
    follows; bit 16 of the last group is the sign. From the fourth number on, the difference to the second-last number
    is stored.
    """
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = (groups & 32) == 0
    ends = last.nonzero()[0]
    sizes = np.diff(ends, prepend=-1)
    starts = ends - sizes + 1
    groups = groups[: sizes.sum()]  # drops an incomplete last number
    shifts = 5 * (np.arange(len(groups)) - starts.repeat(sizes))
    numbers: NDArray[np.int64] = np.add.reduceat((groups & 31) << shifts, starts) if len(starts) else starts
    numbers -= ((groups[ends] & 16) != 0) * (1 << 5 * sizes)
    for parity in (1, 2):
        numbers[parity::2] = numbers[parity::2].cumsum()
    return numbers


def from_coco(segmentation: Any, size: tuple[int, int] | None = None) -> tuple[bytes, tuple[int, int]]:
    """Return compressed run lengths and size (H, W) of an annotation's `segmentation`.

    Args:
        segmentation: polygons, or compressed or uncompressed run lengths.
        size: (H, W) of the image, required for polygons.

    Raises:
        InputError: the mask is larger than `ovseg.limits.check_size` allows.
        ValueError: the segmentation is malformed, or does not fit the size.
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
    except Exception as error:  # pycocotools raises plain `Exception`s, and any other error for malformed input
        raise ValueError(f"a segmentation is neither polygons nor run lengths ({error})") from error
    return encoded, (int(height), int(width))


def _check_polygons(polygons: list[Any], size: tuple[int, int]) -> None:
    """Refuse polygons far outside the image: pycocotools traces their edges in steps of a fifth of a pixel."""
    check_size(size[1], size[0], "a mask")
    side = max(size)
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        if not ((points >= -side) & (points <= 2 * side)).all():
            raise ValueError(f"a polygon lies far outside its image of {size[1]} x {size[0]} pixels")
