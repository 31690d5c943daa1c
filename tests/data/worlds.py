"""Write a few images and labels in the layouts of real data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_pair(images: Path, labels: Path, stem: str, values: np.ndarray) -> None:
    """Write a noise image of the size of `values`, (H, W), and its label map."""
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*values.shape, 3), np.uint8)
    Image.fromarray(noise).save(images / f"{stem}.jpg")
    Image.fromarray(values.astype(np.uint8)).save(labels / f"{stem}.png")


def write_coco(root: Path, train: int = 6, val: int = 2, values: tuple[int, ...] = (0, 12, 181, 255)) -> None:
    """Write images of 24 x 16 pixels in COCO-Stuff's layout, with the label values in columns."""
    columns = np.repeat(np.array(values), 24 // len(values))[None].repeat(16, 0)
    for split, count in (("train2017", train), ("val2017", val)):
        for number in range(count):
            write_pair(root / split, root / "stuffthingmaps" / split, f"{number:012}", columns)
