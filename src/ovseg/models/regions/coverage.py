"""How much of each patch a mask covers, and which patches therefore belong to its region."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.models.clip.grid import Grid
from ovseg.ops import band_values, masks_to_boxes


def patch_coverages(masks: Tensor, grid: Grid) -> Tensor:
    """Return the share of each patch's area that each mask covers, (N, rows · columns) in [0, 1], in row-major order.

    Args:
        masks: (N, h, w) bool; `h` and `w` need not be multiples of the grid's sides.
        grid: rows and columns of the patches, which tile the whole image.
    """
    count, height, width = masks.shape
    down, across = _overlaps(height, grid[0], masks.device), _overlaps(width, grid[1], masks.device).T
    at_once = max(band_values(masks.device) // 16 // max(height * width, 1), 1)  # few floats stay in a CPU's cache
    parts = [(down @ (part.float() @ across)).flatten(1) for part in torch.split(masks, at_once)]
    return torch.cat(parts).clamp_(max=1) if count else masks.new_zeros((0, grid[0] * grid[1]), dtype=torch.float32)


def _overlaps(pixels: int, cells: int, device: torch.device) -> Tensor:
    """Return the share of each of `cells` equal cells that each of `pixels` equal pixels covers, (cells, pixels)."""
    ends = torch.arange(1, pixels + 1, device=device, dtype=torch.float64) * (cells / pixels)  # in cells
    cell = torch.arange(cells, device=device, dtype=torch.float64)[:, None]
    overlap = torch.minimum(ends, cell + 1) - torch.maximum(ends - cells / pixels, cell)
    return overlap.clamp(min=0).float()


def hard_support(coverage: Tensor) -> Tensor:
    """Return which patches belong to each region: those covered at least half as much as its most covered patch.

    A region of any area has at least one patch, one without area has none.

    Args:
        coverage: (…, L) in [0, 1].

    Returns:
        (…, L) bool.
    """
    largest = coverage.amax(dim=-1, keepdim=True)
    return (coverage >= 0.5 * largest) & (largest > 0)


def blank_patches(masks: Tensor, coverage: Tensor) -> Tensor:
    """Return the area of each mask's bounding box that the mask leaves blank, (N,) in patches.

    Args:
        masks: (N, h, w) bool.
        coverage: (N, L), their `patch_coverages`.
    """
    boxes = masks_to_boxes(masks)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    pixels = masks.shape[1] * masks.shape[2] / coverage.shape[1]  # per patch
    visible = (coverage.sum(dim=1) * pixels).round()  # a sum over the masks themselves takes far longer
    return (area - visible).clamp(min=0) / pixels


def stack_padded(parts: list[Tensor]) -> Tensor:
    """Stack tensors (N_b, …) to (B, max N_b, …), padded with zeros."""
    longest = max(len(part) for part in parts)
    return torch.stack([F.pad(part, [0, 0] * (part.ndim - 1) + [0, longest - len(part)]) for part in parts])
