"""Random augmentation of labelled images for training. It draws from torch's default generator; use it in `seeded`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ovseg.data.ssd_jitter import SSDJitter
from ovseg.images import MIN_SIDE, resize_short_side, to_tensor
from ovseg.limits import check_at_least
from ovseg.structures import IGNORE_INDEX, InputError

IMAGE_FILL = 128 / 255  # the value with which the release pads images


@dataclass(frozen=True)
class SegmentationTransform:
    """Resizing, cropping, colour jitter and mirroring, in this order. The defaults train the paper's Swin-B proposals.

    Args:
        crop_size: side of the square crop in pixels; smaller images are padded on the right and at the bottom.
        short_sides: lengths in pixels from which the short side of the resized image is drawn.
        long_side: upper limit in pixels of its long side.

    Raises:
        InputError: a number is below `ovseg.images.MIN_SIDE`, or `short_sides` is empty.
    """

    crop_size: int = 640
    short_sides: Sequence[int] = (320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1088, 1152, 1216, 1280)
    long_side: int = 2560

    def __post_init__(self) -> None:
        check_at_least(MIN_SIDE, crop_size=self.crop_size, short_sides=self.short_sides, long_side=self.long_side)
        if not self.short_sides:
            raise InputError("short_sides is empty; give at least one length in pixels")

    def __call__(self, image: Image.Image, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augment an RGB image and its (H, W) labels to (3, c, c) in [0, 1] and (c, c) labels of the same type."""
        short_side = self.short_sides[int(torch.randint(len(self.short_sides), ()))]
        image = resize_short_side(image, short_side, self.long_side)
        # like the release, torch's "nearest" takes the first of the pixels that are merged, not the middle one
        resized = F.interpolate(labels[None, None].float(), image.size[::-1], mode="nearest")[0, 0]

        left, top = (int(torch.randint(max(side - self.crop_size, 0) + 1, ())) for side in image.size)
        right, bottom = min(left + self.crop_size, image.width), min(top + self.crop_size, image.height)
        image = SSDJitter.draw()(image.crop((left, top, right, bottom)))
        pixels = to_tensor(image)
        target = resized[top:bottom, left:right].to(labels.dtype)

        if torch.rand(()) < 0.5:
            pixels, target = pixels.flip(-1), target.flip(-1)
        padding = (0, self.crop_size - image.width, 0, self.crop_size - image.height)
        return F.pad(pixels, padding, value=IMAGE_FILL), F.pad(target, padding, value=IGNORE_INDEX)
