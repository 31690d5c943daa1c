"""Render label maps as images: indexed for programs, overlays for people."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ovseg.whole_file import whole_file

OVERLAY_SIDES = (512, 1600)  # smallest and largest long side of an overlay, in pixels
OPACITY = 0.55


def label_image(labels: NDArray[np.int64], classes: int) -> Image.Image:
    """Return (H, W) class indices as an image: 8 bits with a palette, or 16 bits for more than 256 classes."""
    if classes > 256:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8), mode="P")
    picture.putpalette(palette(classes).tobytes())
    return picture


def overlay(image: Image.Image, labels: NDArray[np.int64], names: Sequence[str]) -> Image.Image:
    """Blend the image with the colours of its classes, and add a legend of the classes present, the largest first.

    Args:
        labels: (H, W) class indices; values of at least K are left unpainted. The size may differ from the image's.
        names: K class names.
    """
    scale = np.clip(1, OVERLAY_SIDES[0] / max(image.size), OVERLAY_SIDES[1] / max(image.size))
    width, height = (max(round(side * scale), 1) for side in image.size)
    colours = palette(len(names))
    resized = Image.fromarray(labels.astype(np.int32), mode="I").resize((width, height), Image.Resampling.NEAREST)
    pixels = np.asarray(image.resize((width, height)))
    labelled = np.asarray(resized) < len(names)
    painted = pixels.copy()
    painted[labelled] = colours[np.asarray(resized)[labelled]]
    blended = Image.blend(Image.fromarray(pixels), Image.fromarray(painted), OPACITY)
    counts = np.bincount(labels[labels < len(names)], minlength=len(names))
    present = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    return _with_legend(blended, [(names[index], counts[index] / labels.size, colours[index]) for index in present])


@cache
def palette(classes: int) -> NDArray[np.uint8]:
    """Return (K, 3) colours whose hues are spaced by the golden ratio."""
    rows = [
        colorsys.hsv_to_rgb(0.618034 * index % 1, (0.85, 0.55, 0.7)[index // 3 % 3], (1.0, 0.8, 0.6)[index % 3])
        for index in range(classes)
    ]
    return (255 * np.array(rows)).round().astype(np.uint8)


def _with_legend(picture: Image.Image, rows: list[tuple[str, float, NDArray[np.uint8]]]) -> Image.Image:
    """Append a column with colours, names and shares of the area to the picture."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 16)
    line, texts = 26, [f"{name}  {share:.1%}" for name, share, _ in rows]
    column = 44 + max((int(font.getlength(text)) for text in texts), default=0)
    height = max(picture.height, line * len(rows) + 12)
    canvas = Image.new("RGB", (picture.width + column, height), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for row, (text, (_, _, colour)) in enumerate(zip(texts, rows, strict=True)):
        left, top = picture.width + 10, 8 + row * line
        draw.rectangle((left, top, left + 18, top + 18), fill=tuple(map(int, colour)), outline="black")
        draw.text((left + 26, top), text, fill="black", font=font)
    return canvas


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG file atomically; errors are those of `whole_file`."""
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")
