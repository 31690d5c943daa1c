"""How a region is cut and augmented for adapter training."""

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
from ovseg.ops import CLIP_MEAN
from ovseg.structures import InputError

# the paper's augmentation, of the region's box
SCALE = (0.9, 1.0)
RATIO = (3 / 4, 4 / 3)

Resize = Literal["inference", "release"]


@dataclass(frozen=True)
class RegionTransform:
    """The paper's random resized crop of a region and its mask together.

    Args:
        size: side of the regions in pixels; the resolution of the CLIP that is adapted where not given.
        resize: `inference`: as `crop_regions` makes the regions that CLIP is asked about, bicubic without antialiasing,
            outside the mask CLIP's mean colour. `release`: bytes by Pillow's bicubic, which antialiases, outside
            (124, 116, 103). The first is the default: regions are then the same in training and inference, in half the
            time, and the toy's CLIP learns as much from either (docs/toy.md).

    Raises:
        InputError: the size is below 1, or there is no such way to resize.
    """

    size: int | None = None
    resize: Resize = "inference"

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise InputError(f"transform.size is {self.size}; give at least 1")
        if self.resize not in get_args(Resize):
            raise InputError(f"transform.resize is {self.resize!r}; give {' or '.join(get_args(Resize))}")

    def augment(self, crop: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Fill what the mask leaves out and resize a random part of the box; the mask by nearest neighbour.

        Args:
            crop: (3, h, w), the box of the mask.
            mask: (1, h, w) bool.
            size: that of this transform, or of the CLIP.

        Returns:
            (3, size, size) and (size, size) bool.
        """
        top, left, height, width = RandomResizedCrop.get_params(crop, list(SCALE), list(RATIO))
        rows, columns = slice(top, top + height), slice(left, left + width)
        if not mask[0, rows, columns].numpy().any():  # of a long thin box the centre alone is taken
            rows = columns = slice(None)
        window = mask[0, rows, columns]
        if self.resize == "release":
            levels = (crop[:, rows, columns] * 255).round().byte()
            filled = torch.where(window, levels, levels.new_tensor(FILL)[:, None, None])
            image = Image.fromarray(filled.permute(1, 2, 0).numpy())
            region = to_tensor(image.resize((size, size), Image.Resampling.BICUBIC))
        else:  # the colour outside the mask is added at the end, since resizing leaves a colour as it is
            fill = torch.tensor(CLIP_MEAN)[:, None, None]
            region = resize_bicubic((crop[:, rows, columns] - fill).mul_(window), size).add_(fill)
        return region, _resize_nearest(window, size)


def resize_bicubic(image: Tensor, size: int) -> Tensor:
    """`F.interpolate(mode="bicubic", antialias=False)` to the last digits, in a third of the time on one core.

    Along one side after the other a pixel is a sum of four, 8 terms in all; torch sums over both sides at once, 16.

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
    """(M, W): each the sum of four rows of a table (N, W), for indices and weights (…, 4) of M rows in all."""
    bags, weights_of_bags = (torch.from_numpy(values.reshape(-1, 4)) for values in (indices, weights))
    return F.embedding_bag(bags, table, per_sample_weights=weights_of_bags, mode="sum")


def _bicubic_taps(source: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Four source indices and their weights for each target index: both (size, 4)."""
    # rounded where torch rounds; in NumPy, which has a fraction of torch's overhead on arrays as small as these
    position = ((np.arange(size) + 0.5) * _scale(source, size) - 0.5).astype(np.float32).astype(np.float64)
    first = np.floor(position)
    near = np.stack([position - first, first + 1 - position], axis=1)  # distances of the two pixels beside
    far, a = near + 1, -0.75  # Keys's kernel
    near = ((a + 2) * near - (a + 3)) * near * near + 1
    far = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    weights = np.concatenate([far[:, :1], near, far[:, 1:]], axis=1).astype(np.float32)
    taps = first.astype(np.int64)[:, None] + np.arange(-1, 3)
    return np.minimum(np.maximum(taps, 0), source - 1), weights


def _resize_nearest(mask: Tensor, size: int) -> Tensor:
    """`F.interpolate(mode="nearest")` of a bool mask (h, w) to (size, size)."""
    rows, columns = (
        np.minimum((np.arange(size, dtype=np.float32) * _scale(side, size)).astype(np.int64), side - 1)
        for side in mask.shape
    )
    pixels: NDArray[np.bool_] = mask.numpy()
    return torch.from_numpy(pixels[rows][:, columns])


def _scale(source: int, size: int) -> np.float32:
    return np.float32(source) / np.float32(size)
