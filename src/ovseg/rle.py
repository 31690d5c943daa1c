"""Masks as compressed COCO run lengths and back."""

from __future__ import annotations

from collections.abc import Sequence

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
