"""Find the best class of every pixel in bands of rows, without the scores of all classes and pixels in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BAND_VALUES = 2**24  # 64 MiB of floats: on a CPU larger bands are no faster, and smaller ones overlap more
BAND_VALUES_OF_GPU = 2**27  # 512 MiB: every band waits for the device, and most images fit into one


def band_values(device: torch.device) -> int:
    """Return how many floats to hold in memory at once on a device, where the whole would be too large."""
    return BAND_VALUES if device.type == "cpu" else BAND_VALUES_OF_GPU


def labels_in_bands(
    band: Callable[[int, int], Tensor], shape: tuple[int, ...], size: tuple[int, int], values: int = BAND_VALUES
) -> Tensor:
    """Return the argmax over classes of scores that are computed in bands of rows and resized bilinearly.

    Interpolation is convex: if the four neighbours of a pixel share their best class, the pixel has that class too.
    Only the other pixels, along the borders of segments, are interpolated.

    Args:
        band: computes the scores of rows first to last (exclusive), (rows, w, K).
        shape: (h, w, K) of all scores.
        size: (H, W) of the result.
        values: approximate number of scores in memory at once.

    Returns:
        (H, W) int64.
    """
    tile = max(values // shape[2], 4)  # pixels
    band_rows = max(tile // shape[1], 2)
    if size == shape[:2]:
        starts = range(0, size[0], band_rows)
        return torch.cat([band(start, min(start + band_rows, size[0])).argmax(dim=2) for start in starts])
    label_rows = max((band_rows - 1) * size[0] // shape[0], 1)
    (upper, lower, down), (left, right, across) = map(_bilinear_taps, shape[:2], size)
    parts = [slice(start, start + label_rows) for start in range(0, size[0], label_rows)]
    bounds = [(int(upper[part][0]), int(lower[part][-1]) + 1) for part in parts]  # while the indices are on the host
    labels = []
    for part, (first, last) in zip(parts, bounds, strict=True):
        scores = band(first, last)
        # move the taps to the device of the scores; a no-op after the first band
        upper, lower, left, right = (index.to(scores.device) for index in (upper, lower, left, right))
        down, across = down.to(scores), across.to(scores)
        top, bottom = upper[part] - first, lower[part] - first
        best = scores.argmax(dim=2)
        part_labels = best[top][:, left]
        y, x = (~_neighbours_agree(best)[top][:, left]).nonzero(as_tuple=True)
        for rows, columns in zip(torch.split(y, tile // 4), torch.split(x, tile // 4), strict=True):
            above, below = (
                scores[line, left[columns]].lerp(scores[line, right[columns]], across[columns, None])
                for line in (top[rows], bottom[rows])
            )
            part_labels[rows, columns] = above.lerp(below, down[part][rows, None]).argmax(dim=1)
        labels.append(part_labels)
    return torch.cat(labels)


def _neighbours_agree(labels: Tensor) -> Tensor:
    """Return whether each pixel has the label of its right, lower and lower right neighbours, (h, w) bool."""
    below, beside = (torch.arange(1, side + 1, device=labels.device).clamp(max=side - 1) for side in labels.shape)
    level = labels == labels[:, beside]
    return level & level[below] & (labels == labels[below])


def _bilinear_taps(source: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return both source indices of each target index and the weight of the second, as `align_corners=False` does."""
    position = ((torch.arange(target) + 0.5) * (source / target) - 0.5).clamp(min=0)
    low = position.long().clamp(max=source - 1)
    return low, (low + 1).clamp(max=source - 1), position - low
