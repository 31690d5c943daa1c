"""Cut masked regions out of an image and resize them, many at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

TABLE_VALUES = 2**20  # pixels times channels of the boxes that are resized at once: on a CPU, they fit its cache
TABLE_VALUES_OF_GPU = 2**24


class RegionCutter:
    """Cut the regions of an image, a range of them at a time, so that memory does not grow with their number.

    A region is the fill colour plus the resized product of its mask and the image's difference from that colour. This
    equals the resized filled image, since the weights of the pixels sum to 1.

    Args:
        image: (3, H, W).
        masks: (N, H, W) bool.
        boxes: (N, 4) int64, x0, y0, x1, y1, ends exclusive.
        corners: `boxes` as a list, because reading them from a GPU again would wait for it.
        colour: (3, 1, 1), outside the masks.
        rows: indices of the masks to cut; all by default.
    """

    def __init__(
        self,
        image: Tensor,
        masks: Tensor,
        boxes: Tensor,
        corners: list[list[int]],
        colour: Tensor,
        rows: list[int] | None = None,
    ) -> None:
        self.colour, self.masks, self.boxes, self.corners = colour, masks, boxes, corners
        self.turned = (image - colour).transpose(1, 2).contiguous()  # (3, W, H)
        self.rows = list(range(len(corners))) if rows is None else rows
        self.indices = torch.arange(len(corners), device=masks.device)
        if rows is not None:
            self.indices = torch.tensor(rows, dtype=torch.int64, device=masks.device)

    def __len__(self) -> int:
        return len(self.rows)

    def cut(self, first: int, last: int, size: int) -> tuple[Tensor, Tensor]:
        """Cut regions `first` to `last` (exclusive) and resize them to squares.

        Returns:
            regions (R, 3, size, size) and region_masks (R, size, size) bool. A box without pixels gives a region of
            plain colour and an empty mask.
        """
        count, (channels, width, height) = last - first, self.turned.shape
        regions = self.turned.new_empty((count, channels, size, size))
        region_masks = self.masks.new_empty((count, size, size))
        for start, stop in self._parts(first, last):
            target, indices = slice(start - first, stop - first), self.indices[start:stop]
            boxes = self.boxes[indices]
            torch.add(self._resized(self.rows[start:stop], boxes, size), self.colour, out=regions[target])
            rows = boxes[:, 1, None] + _nearest(boxes[:, 3] - boxes[:, 1], size)
            columns = boxes[:, 0, None] + _nearest(boxes[:, 2] - boxes[:, 0], size)
            rows, columns = rows.clamp(max=height - 1), columns.clamp(max=width - 1)  # of boxes without pixels
            visible = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)[:, None, None]
            region_masks[target] = self.masks[indices[:, None, None], rows[:, :, None], columns[:, None, :]] & visible
        return regions, region_masks

    def _parts(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Divide a range of regions so that the boxes of a part fit into fast memory."""
        values = TABLE_VALUES if self.masks.device.type == "cpu" else TABLE_VALUES_OF_GPU
        limit = values // len(self.turned)  # in pixels
        start, total, height = first, 0, 0
        for region in range(first, last):
            x0, y0, x1, y1 = self.corners[self.rows[region]]
            total, height = total + x1 - x0, max(height, y1 - y0)
            if region > start and total * height > limit:
                yield start, region
                start, total, height = region, x1 - x0, y1 - y0
        if start < last:
            yield start, last

    def _resized(self, rows: list[int], boxes: Tensor, size: int) -> Tensor:
        """Return the differences inside the masks `rows`, cropped to `boxes` and resized, (R, 3, size, size)."""
        corners = [self.corners[row] for row in rows]
        widths = [max(x1 - x0, 1) for x0, _, x1, _ in corners]
        height = max(max(y1 - y0, 1) for _, y0, _, y1 in corners)
        # all boxes one below the other, turned; what lies to the right of a narrow one is not read
        table = self.turned.new_empty((len(self.turned), sum(widths), height))
        top, zero = 0, self.turned.new_zeros(())
        for row, width, (x0, y0, x1, y1) in zip(rows, widths, corners, strict=True):
            box = table[:, top : top + width, : y1 - y0]
            if x0 < x1 and y0 < y1:
                torch.where(self.masks[row, y0:y1, x0:x1].T.contiguous(), self.turned[:, x0:x1, y0:y1], zero, out=box)
            else:
                table[:, top : top + width] = 0
            top += width
        return _resize_boxes(table, boxes, size)


def _resize_boxes(table: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Resize boxes like `F.interpolate(mode="bicubic", antialias=False)`, first their columns, then their rows.

    That takes 4 + 4 terms per pixel; torch sums over both sides at once, which takes 16.

    Args:
        table: (C, M, H), the pixels of all boxes, transposed, one below the other and aligned on the left.
        boxes: (R, 4) x0, y0, x1, y1.
        size: side of the results.

    Returns:
        (R, C, size, size), not contiguous.
    """
    (channels, total, height), count = table.shape, len(boxes)
    heights, widths = ((boxes[:, end] - boxes[:, end - 2]).clamp(min=1) for end in (3, 2))
    columns, weights = _bicubic_taps(widths, size)
    columns = columns + (widths.cumsum(0) - widths)[:, None, None]
    columns = columns + total * torch.arange(channels, device=columns.device)[:, None, None, None]  # (C, R, size, 4)
    wide = _weighted_rows(table.view(channels * total, height), columns, weights.expand(columns.shape))
    # (C, R, size, H) → (R, H, C, size)
    upright = wide.view(channels, count, size, height).permute(1, 3, 0, 2).reshape(count * height, channels * size)
    rows, weights = _bicubic_taps(heights, size)
    rows = rows + height * torch.arange(count, device=rows.device)[:, None, None]
    return _weighted_rows(upright, rows, weights).view(count, size, channels, size).transpose(1, 2)


def _weighted_rows(table: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Return (…, W), each row a weighted sum of four rows of `table` (M, W); indices and weights are (…, 4)."""
    bags, weights = indices.reshape(-1, 4), weights.reshape(-1, 4).to(table.dtype)
    return F.embedding_bag(bags, table, per_sample_weights=weights, mode="sum")


def _bicubic_taps(sides: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return four source indices and their weights for each target index, both (R, size, 4), for sides (R,)."""
    target = torch.arange(size, device=sides.device, dtype=torch.float64)
    # rounds where torch rounds
    position = ((target + 0.5) * _scale(sides, size).double() - 0.5).float().double()
    first = position.floor()
    near = torch.stack([position - first, first + 1 - position], dim=2)  # distances to the two nearest pixels
    far, a = near + 1, -0.75  # Keys' cubic kernel
    near = ((a + 2) * near - (a + 3)) * near * near + 1
    far = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    weights = torch.cat([far[..., :1], near, far[..., 1:]], dim=2)
    taps = first.long()[..., None] + torch.arange(-1, 3, device=sides.device)
    return torch.minimum(taps.clamp(min=0), sides[:, None, None] - 1), weights


def _nearest(sides: Tensor, size: int) -> Tensor:
    """Return the source index of each target index, (R, size), as `F.interpolate(mode="nearest")` does."""
    target = torch.arange(size, device=sides.device, dtype=torch.float32)
    return torch.minimum((target * _scale(sides, size)).long(), (sides[:, None] - 1).clamp(min=0))


def _scale(sides: Tensor, size: int) -> Tensor:
    return (sides.float() / size)[:, None]
