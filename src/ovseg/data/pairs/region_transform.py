"""Crop and augment regions for adapter training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import RandomResizedCrop

from ovseg.data.pairs.released import FILL
from ovseg.images import to_tensor
from ovseg.limits import check_at_least
from ovseg.ops import CLIP_MEAN
from ovseg.structures import InputError

# the paper's random resized crop, applied to the region's box
SCALE = (0.9, 1.0)
RATIO = (3 / 4, 4 / 3)

Resize = Literal["inference", "release"]


@dataclass(frozen=True)
class RegionTransform:
    """Apply the paper's random resized crop to a region and its mask.

    Args:
        size: side of the regions in pixels; defaults to the resolution of the CLIP that is trained. For region encoders
            that see whole images: the short side to which larger images are reduced, by default 640.
        resize: `inference` resizes like `crop_regions`: bicubic without antialiasing, with CLIP's mean colour outside
            the mask. `release` resizes bytes with Pillow's antialiased bicubic filter and fills with (124, 116, 103).
            `inference` gives training the same regions as inference and takes half the time; the toy CLIP learns
            equally well from both (docs/toy.md). Whole images have no fill, and only take `inference`.

    Raises:
        InputError: `size` is below 1, or `resize` is neither of the two.
    """

    size: int | None = None
    resize: Resize = "inference"

    def __post_init__(self) -> None:
        check_at_least(1, size=self.size)
        if self.resize not in get_args(Resize):
            raise InputError(f"transform.resize is {self.resize!r}; give {' or '.join(get_args(Resize))}")

    def augment(self, crop: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Fill the area outside the mask, and resize a random part of the box; the mask uses nearest neighbour.

        Args:
            crop: (3, h, w) in [0, 1], the box of the mask.
            mask: (1, h, w) bool.
            size: side of the result in pixels.

        Returns:
            The region, (3, size, size), and its mask, (size, size) bool.
        """
        top, left, height, width = RandomResizedCrop.get_params(crop, list(SCALE), list(RATIO))
        rows, columns = slice(top, top + height), slice(left, left + width)
        if not mask[0, rows, columns].numpy().any():  # a thin box is cropped to its centre, which can miss the mask
            rows = columns = slice(None)
        window = mask[0, rows, columns]
        if self.resize == "release":
            levels = (crop[:, rows, columns] * 255).round().byte()
            filled = torch.where(window, levels, levels.new_tensor(FILL)[:, None, None])
            image = Image.fromarray(filled.permute(1, 2, 0).numpy())
            region = to_tensor(image.resize((size, size), Image.Resampling.BICUBIC))
        else:  # the fill colour is added after resizing, which does not change a constant
            fill = torch.tensor(CLIP_MEAN)[:, None, None]
            region = resize_bicubic((crop[:, rows, columns] - fill).mul_(window), size).add_(fill)
        return region, _resize_nearest(window, size)


def resize_bicubic(image: Tensor, size: int) -> Tensor:
    """Resize like `F.interpolate(mode="bicubic", antialias=False)`, up to rounding, in a third of the time on one core.

    Resizing one side after the other takes 4 + 4 terms per pixel; torch sums over both sides at once, which takes 16.

    Args:
        image: (C, h, w) float32 on the CPU.

    Returns:
        (C, size, size), not contiguous.
    """
    channels, height, width = image.shape
    rows, weights = _bicubic_taps(height, size)
    rows = rows + height * np.arange(channels)[:, None, None]
    # an embedding bag is a weighted sum of rows: (C * h, w) → (C * size, w)
    tall = _weighted_rows(image.reshape(-1, width), rows, np.broadcast_to(weights, rows.shape))
    # (w, C * size) → (size, C * size)
    turned = _weighted_rows(tall.T.contiguous(), *_bicubic_taps(width, size))
    return turned.T.view(channels, size, size)


def _weighted_rows(table: Tensor, indices: NDArray[np.int64], weights: NDArray[np.float32]) -> Tensor:
    """Return (M, W), each row a weighted sum of four rows of `table` (N, W); indices and weights are M × 4 in total."""
    bags, weights_of_bags = (torch.from_numpy(values.reshape(-1, 4)) for values in (indices, weights))
    return F.embedding_bag(bags, table, per_sample_weights=weights_of_bags, mode="sum")


def _bicubic_taps(source: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return four source indices and their weights for each target index, both (size, 4)."""
    # rounds where torch rounds; NumPy has a fraction of torch's overhead on arrays this small
    position = ((np.arange(size) + 0.5) * _scale(source, size) - 0.5).astype(np.float32).astype(np.float64)
    first = np.floor(position)
    near = np.stack([position - first, first + 1 - position], axis=1)  # distances to the two nearest pixels
    far, a = near + 1, -0.75  # Keys' cubic kernel
    near = ((a + 2) * near - (a + 3)) * near * near + 1
    far = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    weights = np.concatenate([far[:, :1], near, far[:, 1:]], axis=1).astype(np.float32)
    taps = first.astype(np.int64)[:, None] + np.arange(-1, 3)
    return np.minimum(np.maximum(taps, 0), source - 1), weights


def _resize_nearest(mask: Tensor, size: int) -> Tensor:
    """Resize a bool mask (h, w) to (size, size) like `F.interpolate(mode="nearest")`."""
    rows, columns = (
        np.minimum((np.arange(size, dtype=np.float32) * _scale(side, size)).astype(np.int64), side - 1)
        for side in mask.shape
    )
    pixels: NDArray[np.bool_] = mask.numpy()
    return torch.from_numpy(pixels[rows][:, columns])


def _scale(source: int, size: int) -> np.float32:
    return np.float32(source) / np.float32(size)
