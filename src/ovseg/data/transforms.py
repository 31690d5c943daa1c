"""Random views of labelled images for training, by torch's default generator: run them inside `seeded`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ovseg.data.ssd_jitter import SSDJitter
from ovseg.images import resize_short_side, to_tensor
from ovseg.structures import IGNORE_INDEX

IMAGE_FILL = 128 / 255  # what the release pads images with


@dataclass(frozen=True)
class SegmentationTransform:
    """Resize, crop, colour jitter and mirroring, in this order, as the paper trains proposals; defaults for its Swin-B.

    Args:
        crop_size: side of the square crop; smaller images are padded on the right and bottom.
        short_sides: the image's short side becomes one of these.
        long_side: what its long side may not exceed.
    """

    crop_size: int = 640
    short_sides: Sequence[int] = (320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1088, 1152, 1216, 1280)
    long_side: int = 2560

    def __call__(self, image: Image.Image, labels: Tensor) -> tuple[Tensor, Tensor]:
        """An RGB image and its (H, W) labels → (3, c, c) in [0, 1] and (c, c) labels of the same type."""
        short_side = self.short_sides[int(torch.randint(len(self.short_sides), ()))]
        image = resize_short_side(image, short_side, self.long_side)
        # torch's nearest takes the first pixel of those that become one, as the release does, and not the middle one
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
