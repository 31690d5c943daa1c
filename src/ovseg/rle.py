"""Masks as compressed COCO run lengths and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor


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
    columns = coco_mask.decode([{"size": list(size), "counts": runs} for runs in counts])
    return torch.from_numpy(np.ascontiguousarray(columns.transpose(2, 0, 1))).bool()


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
            runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
        elif isinstance(segmentation["counts"], list):
            runs = coco_mask.frPyObjects(segmentation, *segmentation["size"])
        else:
            runs = segmentation
        height, width = runs["size"]
        counts = runs["counts"]
        encoded: bytes = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
        if coco_mask.area({"size": [height, width], "counts": encoded}) > height * width:
            raise ValueError("run lengths are longer than the mask")
    except ValueError:
        raise
    except Exception as error:  # pycocotools raises the bare class, and whatever Python does on odd input
        raise ValueError(f"a segmentation is neither polygons nor run lengths ({error})") from error
    return encoded, (int(height), int(width))
