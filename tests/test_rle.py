"""Masks survive their round trip through run lengths, and the run lengths are COCO's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ovseg import rle
from ovseg.ops import masks_to_boxes


def test_decode_inverts_encode() -> None:
    masks = torch.rand(5, 13, 29, generator=torch.Generator().manual_seed(0)) > 0.6
    masks[1], masks[2] = False, True
    counts = rle.encode(masks)
    assert all(isinstance(runs, bytes) for runs in counts)
    assert torch.equal(rle.decode(counts, (13, 29)), masks)


def test_zero_masks_survive_a_round_trip() -> None:
    assert rle.encode(torch.zeros((0, 4, 6), dtype=torch.bool)) == []
    assert rle.decode([], (4, 6)).shape == (0, 4, 6)


def test_runs_go_down_the_columns() -> None:
    mask = torch.tensor([[[0, 1], [0, 1], [1, 0]]], dtype=torch.bool)
    # runs of 2 zeros, 3 ones and 1 zero; each is below 16 and becomes the character 48 + value
    assert rle.encode(mask) == [b"231"]


def test_non_contiguous_masks_survive_a_round_trip() -> None:
    masks = (torch.arange(24).reshape(4, 3, 2) % 3 == 0).permute(2, 0, 1)
    assert torch.equal(rle.decode(rle.encode(masks), (4, 3)), masks)


def boxes_of(mask: Tensor) -> list[tuple[int, int, int, int]]:
    """Return the whole image, boxes that cut through the mask, and the mask's bounding box."""
    height, width = mask.shape
    tight = masks_to_boxes(mask[None])[0].tolist()
    boxes = [
        (0, 0, width, height),
        (width // 3, height // 4, width // 3 + 1, height // 4 + 1),
        (width // 2, 0, width, 1),
    ]
    return [*boxes, tuple(tight)] if mask.any() else boxes


def test_decode_box_equals_pycocotools_inside_the_box() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(37, 53, generator=generator) < share for share in (0, 0.003, 0.1, 0.5, 0.97, 2)]
    single, corner, border = (torch.zeros(37, 53, dtype=torch.bool) for _ in range(3))
    single[17, 31] = corner[0, 0] = corner[36, 52] = True  # `corner` starts with an empty run of zeros
    border[:, :2] = border[35:] = True
    y, x = torch.meshgrid(torch.arange(480), torch.arange(640), indexing="ij")
    disc = (y - 200) ** 2 + (x - 320) ** 2 < 150**2  # its runs are numbers of two and three groups
    for mask in (*masks, single, corner, border, disc, torch.ones(1, 1, dtype=torch.bool), disc[:1], disc[:, :1]):
        size, (counts,) = (mask.shape[0], mask.shape[1]), rle.encode(mask[None])
        decoded = rle.decode([counts], size)[0]
        assert torch.equal(decoded, mask)
        for x0, y0, x1, y1 in boxes_of(mask):
            assert torch.equal(rle.decode_box(counts, size, (x0, y0, x1, y1)), decoded[y0:y1, x0:x1])


def test_run_lengths_that_do_not_fit_the_size_are_refused() -> None:
    (counts,) = rle.encode(torch.rand(1, 37, 53, generator=torch.Generator().manual_seed(0)) < 0.3)
    assert rle.decode_box(counts, (37, 53), (0, 0, 53, 37)).any()
    for broken in (b"", b"o", counts[:-1], counts + b"3", counts[: len(counts) // 2], bytes(255 - c for c in counts)):
        with pytest.raises(ValueError, match="run lengths do not fit a mask of 53 x 37"):
            rle.decode_box(broken, (37, 53), (0, 0, 53, 37))
    for box in ((0, 0, 54, 37), (5, 5, 5, 6), (-1, 0, 4, 4)):
        with pytest.raises(ValueError, match="run lengths do not fit"):
            rle.decode_box(counts, (37, 53), box)
