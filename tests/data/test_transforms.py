"""Tests of the augmentation of proposal training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg.data.loading import seeded
from ovseg.data.ssd_jitter import SSDJitter
from ovseg.data.transforms import IMAGE_FILL, SegmentationTransform
from ovseg.structures import IGNORE_INDEX


def scene() -> tuple[Image.Image, torch.Tensor]:
    """Return an image with labels 0-9 in columns, each in a different grey."""
    labels = torch.arange(10).repeat_interleave(6)[None].repeat(40, 1)
    return Image.fromarray((labels * 25).numpy().astype(np.uint8)).convert("RGB"), labels


def test_labels_stay_aligned_with_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SSDJitter, "draw", SSDJitter)
    image, labels = scene()
    for key in range(20):
        with seeded(0, key):
            pixels, target = SegmentationTransform(32, [40, 60], 1000)(image, labels)
        assert pixels.shape == (3, 32, 32)
        assert target.shape == (32, 32)
        inner = (target[:, 1:-1] == target[:, :-2]) & (target[:, 1:-1] == target[:, 2:])  # away from blended borders
        error = (pixels[0, :, 1:-1] * 255 - target[:, 1:-1] * 25).abs()[inner]
        # resizing can still blend pixels next to a border, but not to more than half of the way to another grey
        assert error.max() < 12.5


def test_labels_are_downsampled_like_the_release() -> None:
    labels = torch.arange(64).view(8, 8)
    with seeded(0):
        _, target = SegmentationTransform(4, [4], 1000)(Image.new("RGB", (8, 8)), labels)
    first = labels[::2, ::2]  # the first of every two rows and columns
    assert torch.equal(target, first) or torch.equal(target, first.flip(-1))


def test_small_images_are_padded_right_and_bottom_with_ignored_labels() -> None:
    image, labels = scene()
    for key in range(10):
        with seeded(0, key):
            pixels, target = SegmentationTransform(64, [20], 1000)(image, labels)  # 20 x 30
        assert (target[:20, :30] != IGNORE_INDEX).all()
        assert (target[20:] == IGNORE_INDEX).all()
        assert (target[:, 30:] == IGNORE_INDEX).all()
        assert (pixels[:, 20:] == IMAGE_FILL).all()
        assert (pixels[:, :, 30:] == IMAGE_FILL).all()


def test_half_of_the_crops_are_mirrored_and_they_reach_both_edges() -> None:
    image, labels = scene()
    labels_seen, mirrored = set(), 0
    for key in range(200):
        with seeded(1, key):
            _, target = SegmentationTransform(20, [40], 1000)(image, labels)
        mirrored += bool(target[0, 0] > target[0, -1])
        labels_seen |= set(target.unique().tolist())
    assert 70 < mirrored < 130  # 100 ± 4 standard deviations
    assert labels_seen == set(range(10))


def test_the_seed_alone_determines_a_crop() -> None:
    image, labels = scene()
    transform = SegmentationTransform(24, [30, 40, 50], 1000)

    def crop(key: int) -> torch.Tensor:
        with seeded(3, key):
            return transform(image, labels)[0]

    torch.manual_seed(0)
    before = crop(5)
    torch.rand(100)
    assert torch.equal(crop(5), before)
    assert not torch.equal(crop(6), before)


def test_the_long_side_is_limited() -> None:
    image, labels = Image.new("RGB", (100, 10)), torch.zeros(10, 100, dtype=torch.long)
    _, target = SegmentationTransform(64, [40], 60)(image, labels)
    assert (target == 0).sum() == 60 * 6


def test_jitter_is_drawn_from_the_ranges_of_ssd() -> None:
    with seeded(0):
        draws = [SSDJitter.draw() for _ in range(3000)]
    for step, low, high in (("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5)):
        drawn = np.array([value for draw in draws if (value := getattr(draw, step)) is not None])
        assert 1360 < len(drawn) < 1640  # one half ± 5 standard deviations
        assert low <= drawn.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < drawn.max() <= high
        assert abs(drawn.mean() - (low + high) / 2) < 0.05 * (high - low)  # 6 standard deviations
    hues = [draw.hue for draw in draws if draw.hue is not None]
    assert 1360 < len(hues) < 1640 and set(hues) == set(range(-18, 19))
    assert 1360 < sum(draw.contrast_first for draw in draws) < 1640
