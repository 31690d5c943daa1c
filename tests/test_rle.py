"""Masks survive their run lengths, and the run lengths are COCO's."""

from __future__ import annotations

import torch

from ovseg import rle


def test_decode_inverts_encode() -> None:
    masks = torch.rand(5, 13, 29, generator=torch.Generator().manual_seed(0)) > 0.6
    masks[1], masks[2] = False, True
    counts = rle.encode(masks)
    assert all(isinstance(runs, bytes) for runs in counts)
    assert torch.equal(rle.decode(counts, (13, 29)), masks)


def test_no_mask_has_no_run_lengths() -> None:
    assert rle.encode(torch.zeros((0, 4, 6), dtype=torch.bool)) == []
    assert rle.decode([], (4, 6)).shape == (0, 4, 6)


def test_runs_go_down_the_columns() -> None:
    mask = torch.tensor([[[0, 1], [0, 1], [1, 0]]], dtype=torch.bool)
    # uncompressed 2 0s, 3 1s, 1 0; each below 16, so one character, 48 + value; the third and on as they are
    assert rle.encode(mask) == [b"231"]


def test_non_contiguous_masks() -> None:
    masks = (torch.arange(24).reshape(4, 3, 2) % 3 == 0).permute(2, 0, 1)
    assert torch.equal(rle.decode(rle.encode(masks), (4, 3)), masks)
