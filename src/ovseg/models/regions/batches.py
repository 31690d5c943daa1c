"""How many regions CLIP encodes at once, and which masks of an image are equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.structures import InputError

BYTES_AT_ONCE = 2**22  # of a batch's tokens: on a CPU, larger batches leave the cache and are slower
LEAST, MOST = 4, 256  # smaller batches waste a CPU's matrix units; larger ones are no faster on a GPU
COPIES = 16  # memory that a region needs in a tower, in multiples of its tokens


def regions_at_once(clip: CLIPAdapter, dtype: torch.dtype | None = None) -> int:
    """Return a number of regions that CLIP encodes fast at once: by cache on a CPU, by free memory on a GPU.

    Args:
        clip: encodes the regions.
        dtype: type of the activations; by default, that of the weights.
    """
    try:
        tower = clip.visual.tower
        values = (tower.prefix + (clip.image_size // tower.patch_size) ** 2) * tower.width
    except InputError:  # no patch tokens; a ResNet's activations are about as large
        values = (clip.image_size // 16) ** 2 * 768
    device, bytes_of_value = clip.mean.device, (dtype or clip.mean.dtype).itemsize
    if device.type == "cpu":
        return max(BYTES_AT_ONCE // max(values * bytes_of_value, 1), LEAST)
    if device.type != "cuda" or not torch.cuda.is_available():
        return MOST
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(max(free // 2 // (values * COPIES * bytes_of_value), 1), MOST)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a GPU's or the CPU's memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def first_equals(masks: Tensor, boxes: Sequence[Sequence[int]]) -> list[int]:
    """Return, for each mask, the index of the first mask that equals it, or its own.

    Only masks with equal boxes and fingerprints are compared, each with the first of them.

    Args:
        masks: (N, H, W) bool.
        boxes: (N, 4) tight bounding boxes: x0, y0, x1, y1, ends exclusive.
    """
    same_box: dict[tuple[int, ...], list[int]] = {}
    for index, box in enumerate(boxes):
        same_box.setdefault(tuple(box), []).append(index)
    candidates = [index for group in same_box.values() if len(group) > 1 for index in group]
    firsts = list(range(len(masks)))
    if not candidates:
        return firsts

    def inside(index: int) -> Tensor:
        x0, y0, x1, y1 = boxes[index]
        return masks[index, y0:y1, x0:x1]

    prints: list[float] = torch.stack([_fingerprint(inside(index)) for index in candidates]).tolist()
    leaders: dict[tuple[float, ...], int] = {}
    pairs = []
    for index, fingerprint in zip(candidates, prints, strict=True):
        first = leaders.setdefault((*boxes[index], fingerprint), index)
        if first != index:
            pairs.append((index, first))
    if pairs:
        equal: list[bool] = torch.stack([(inside(index) == inside(first)).all() for index, first in pairs]).tolist()
        for (index, first), is_equal in zip(pairs, equal, strict=True):
            firsts[index] = first if is_equal else index
    return firsts


def _fingerprint(mask: Tensor) -> Tensor:
    """Return a number that differs for most masks (h, w) of the same box."""
    rows, columns = (
        (torch.arange(1, side + 1, device=mask.device) * factor % 32749).double()
        for side, factor in zip(mask.shape, (7919, 104729), strict=True)
    )
    return rows @ (mask.double() @ columns)
