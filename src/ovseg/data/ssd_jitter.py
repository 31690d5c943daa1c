"""SSD's colour jitter, with which the release trains proposals.

It works on bytes and on OpenCV's 8-bit HSV. To give the same results, it reproduces OpenCV's 180 hues and fixed-point
divisions; `tests/parity/test_training.py` compares it with the original.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]

LEVELS = np.arange(256, dtype=np.float32)
HUES = 180
BITS, HALF = 12, 1 << 11  # fractional bits of OpenCV's reciprocals, and one half for rounding
CHUNK = 2**14  # pixels per step, so that intermediate results fit into the processor's cache


def _reciprocals(numerator: float) -> NDArray[np.int32]:
    """Return `numerator` divided by each level, in fixed point. Level 0 counts as 1; it only multiplies a 0."""
    return np.rint(numerator * (1 << BITS) / np.arange(256).clip(1)).astype(np.int32)


def _falls() -> NDArray[np.float32]:
    """Return (3, 180): where red, green and blue of each hue lie between brightest (0) and darkest channel (1)."""
    places = (np.array([[5], [3], [1]]) + np.arange(HUES) / (HUES / 6)) % 6
    return np.minimum(places, 4 - places).clip(0, 1).astype(np.float32)


FALLS, HUE_RECIPROCALS, SATURATION_RECIPROCALS = _falls(), _reciprocals(HUES / 6), _reciprocals(255)


class SSDJitter(NamedTuple):
    """The parameters of one random jitter. A step whose parameter is None is skipped."""

    brightness: float | None = None  # added to levels of 0 … 255
    contrast: float | None = None  # factor of the levels
    saturation: float | None = None  # factor of the saturation
    hue: int | None = None  # added to hues of 0 … 179
    contrast_first: bool = True  # contrast is changed before saturation and hue rather than after

    @classmethod
    def draw(cls) -> SSDJitter:
        """Draw parameters from torch's default generator, each step with probability ½."""
        return cls(
            brightness=_uniform(-32, 32) if _half() else None,
            contrast=_uniform(0.5, 1.5) if _half() else None,
            saturation=_uniform(0.5, 1.5) if _half() else None,
            hue=int(torch.randint(-18, 19, ())) if _half() else None,
            contrast_first=_half(),
        )

    def __call__(self, image: Image.Image) -> Image.Image:
        """Jitter an RGB image. Every step clips to 0 … 255 and truncates to integers."""
        if self.brightness is not None:
            image = image.point(_bytes(LEVELS + self.brightness).tolist() * 3)
        if self.contrast is not None and self.contrast_first:
            image = image.point(_bytes(LEVELS * self.contrast).tolist() * 3)
        if self.saturation is not None:
            image = _change_hsv(image, saturations=_bytes(LEVELS * self.saturation))
        if self.hue is not None:
            image = _change_hsv(image, turn=self.hue)
        if self.contrast is not None and not self.contrast_first:
            image = image.point(_bytes(LEVELS * self.contrast).tolist() * 3)
        return image


def _half() -> bool:
    return bool(torch.rand(()) < 0.5)


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def _bytes(values: NDArray[np.float32]) -> Bytes:
    return values.clip(0, 255).astype(np.uint8)


def _change_hsv(image: Image.Image, saturations: Bytes | None = None, turn: int = 0) -> Image.Image:
    """Change saturation or hue in HSV.

    Args:
        image: an RGB image.
        saturations: (256,) the new saturation for each old one.
        turn: number of hue steps to add.
    """
    planes = [np.asarray(plane).reshape(-1) for plane in image.split()]
    changed = np.empty((len(planes[0]), 3), np.uint8)
    for start in range(0, len(changed), CHUNK):
        part = slice(start, start + CHUNK)
        hue, saturation, value = _to_hsv(*(plane[part] for plane in planes))
        saturation = saturation if saturations is None else saturations.take(saturation)
        hue = (hue + turn) % HUES if turn else hue
        span = value * np.float32(1 / 255) * saturation  # difference of the brightest and the darkest channel
        for channel, falls in enumerate(FALLS):
            changed[part, channel] = np.rint(value - span * falls.take(hue))
    return Image.fromarray(changed.reshape(image.height, image.width, 3))


def _to_hsv(red: Bytes, green: Bytes, blue: Bytes) -> tuple[NDArray[np.int32], Bytes, Bytes]:
    """Convert to hue (0 … 179), saturation and value, like OpenCV."""
    value = np.maximum(np.maximum(red, green), blue)
    span = value - np.minimum(np.minimum(red, green), blue)
    r, g, b, d = (plane.astype(np.int16) for plane in (red, green, blue, span))
    sixths = np.where(value == red, g - b, np.where(value == green, b - r + 2 * d, r - g + 4 * d))  # times the span
    hue = (sixths * HUE_RECIPROCALS.take(span) + HALF) >> BITS
    hue += (hue < 0) * np.int32(HUES)
    saturation = (span * SATURATION_RECIPROCALS.take(value) + HALF) >> BITS
    return hue, saturation.astype(np.uint8), value
