"""SSD's colour jitter, as the release trains proposals with it.

It works on bytes and on OpenCV's 8-bit HSV, whose 180 hues and fixed-point divisions are part of what it computes;
`tests/parity/test_training.py` compares both with the original.
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
BITS, HALF = 12, 1 << 11  # behind the point in OpenCV's reciprocals, and what rounds them off
AT_ONCE = 2**14  # pixels whose intermediate results stay in the processor's cache


def _reciprocals(of_one: float) -> NDArray[np.int32]:
    """`of_one` divided by each level; by 1 for level 0, which is only asked about a difference of 0."""
    return np.rint(of_one * (1 << BITS) / np.arange(256).clip(1)).astype(np.int32)


def _falls() -> NDArray[np.float32]:
    """(3, 180): how far each hue lets red, green and blue fall from the brightest channel to the darkest."""
    places = (np.array([[5], [3], [1]]) + np.arange(HUES) / (HUES / 6)) % 6
    return np.minimum(places, 4 - places).clip(0, 1).astype(np.float32)


FALLS, HUE_RECIPROCALS, SATURATION_RECIPROCALS = _falls(), _reciprocals(HUES / 6), _reciprocals(255)


class SSDJitter(NamedTuple):
    """One draw of the jitter; None leaves a step out."""

    brightness: float | None = None  # added, of 255
    contrast: float | None = None  # factor, about 0
    saturation: float | None = None  # factor
    hue: int | None = None  # added, of 180
    contrast_first: bool = True  # before saturation and hue, else after them

    @classmethod
    def draw(cls) -> SSDJitter:
        """Each step with probability ½, by torch's default generator."""
        return cls(
            brightness=_uniform(-32, 32) if _half() else None,
            contrast=_uniform(0.5, 1.5) if _half() else None,
            saturation=_uniform(0.5, 1.5) if _half() else None,
            hue=int(torch.randint(-18, 19, ())) if _half() else None,
            contrast_first=_half(),
        )

    def __call__(self, image: Image.Image) -> Image.Image:
        """The RGB image jittered; every step clips to 0 … 255 and drops the fraction."""
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
    """To HSV and back.

    Args:
        saturations: what takes the place of each saturation.
        turn: added to hues.
    """
    planes = [np.asarray(plane).reshape(-1) for plane in image.split()]
    changed = np.empty((len(planes[0]), 3), np.uint8)
    for start in range(0, len(changed), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        hue, saturation, value = _to_hsv(*(plane[part] for plane in planes))
        saturation = saturation if saturations is None else saturations.take(saturation)
        hue = (hue + turn) % HUES if turn else hue
        deepest = value * np.float32(1 / 255) * saturation  # from the brightest channel to the darkest
        for channel, falls in enumerate(FALLS):
            changed[part, channel] = np.rint(value - deepest * falls.take(hue))
    return Image.fromarray(changed.reshape(image.height, image.width, 3))


def _to_hsv(red: Bytes, green: Bytes, blue: Bytes) -> tuple[NDArray[np.int32], Bytes, Bytes]:
    """Hue below 180, saturation and value."""
    value = np.maximum(np.maximum(red, green), blue)
    span = value - np.minimum(np.minimum(red, green), blue)
    r, g, b, d = (plane.astype(np.int16) for plane in (red, green, blue, span))
    sixths = np.where(value == red, g - b, np.where(value == green, b - r + 2 * d, r - g + 4 * d))  # times the span
    hue = (sixths * HUE_RECIPROCALS.take(span) + HALF) >> BITS
    hue += (hue < 0) * np.int32(HUES)
    saturation = (span * SATURATION_RECIPROCALS.take(value) + HALF) >> BITS
    return hue, saturation.astype(np.uint8), value
