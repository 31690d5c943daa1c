"""What the stages of all vision transformers share: grids of patches and types of blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]  # patches per column and per row
Block = Callable[[Tensor], Tensor]  # (N, prefix + L, C) → the same shape

# tokens (B, T, C) and a bias (B, 1 or heads, R, T) → (B, T, C). The last R tokens attend to all T, with the bias added
# to their logits; the others attend to one another only. With a third argument `last` true, only those R are returned.
BiasedBlock = Callable[..., Tensor]


def resize_grid(tokens: Tensor, grid: Grid, target: Grid, prefix: int = 0) -> Tensor:
    """Interpolate tokens from one grid to another (bicubic, antialiased).

    Args:
        tokens: (prefix + rows · columns, C); the first `prefix` are not changed.
        grid: rows and columns of `tokens`.
        target: rows and columns of the result.

    Returns:
        (prefix + target rows · target columns, C); `tokens` itself if the grids are equal.
    """
    if grid == target:
        return tokens
    cells = tokens[prefix:].reshape(1, *grid, -1).permute(0, 3, 1, 2).float()  # (1, C, rows, columns)
    cells = F.interpolate(cells, target, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([tokens[:prefix], cells[0].flatten(1).T.to(tokens.dtype)])


def weighted_mean(weights: Tensor, tokens: Tensor) -> Tensor:
    """Return the weighted means (B, Q, C) of tokens (B, L, C); weights (B, Q, L) of which all are zero give zero."""
    total = weights.sum(dim=2, keepdim=True)
    return (weights / total.clamp(min=torch.finfo(weights.dtype).tiny)).to(tokens.dtype) @ tokens
