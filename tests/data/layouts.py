"""Miniature copies of benchmarks, in the layouts in which they are downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = (2, 3)  # H, W of all images
Values = list[list[int]]


def photo(path: Path, size: tuple[int, ...] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)


def grey(path: Path, values: Values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)


def palette(path: Path, values: Values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, np.uint8), mode="P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    image.save(path)


def ade20k_150(root: Path, *labels: Values) -> None:
    for number, values in enumerate(labels, start=1):
        name = f"validation/ADE_val_{number:08}"
        photo(root / "ADEChallengeData2016" / "images" / f"{name}.jpg")
        grey(root / "ADEChallengeData2016" / "annotations" / f"{name}.png", values)


def ade20k_847(root: Path, *labels: Values) -> None:
    """`labels` are object ids; every image lies in a folder of its own, among the masks of its instances."""
    folder = root / "ADE20K_2021_17_01" / "images" / "ADE" / "validation"
    for number, values in enumerate(labels, start=1):
        scene = folder / ("urban/street" if number % 2 else "home_or_hotel/bedroom")
        stem = f"ADE_val_{number:08}"
        ids = np.array(values)
        photo(scene / f"{stem}.jpg", ids.shape)
        instances = np.arange(ids.size).reshape(ids.shape)
        colours = np.stack([ids // 256 * 10 + instances % 10, ids % 256, instances], axis=-1)
        Image.fromarray(colours.astype(np.uint8)).save(scene / f"{stem}_seg.png")
        Image.fromarray(colours.astype(np.uint8)).save(scene / f"{stem}_parts_1.png")
        grey(scene / stem / f"instance_000_{stem}.png", [[255]])


def pascal_voc(root: Path, *labels: Values, folder: str = "SegmentationClass") -> None:
    voc = root / "VOCdevkit" / "VOC2012"
    stems = [f"2007_{number:06}" for number in range(len(labels))]
    for stem, values in zip(stems, labels, strict=True):
        photo(voc / "JPEGImages" / f"{stem}.jpg")
        palette(voc / folder / f"{stem}.png", values)
    photo(voc / "JPEGImages" / "2007_999999.jpg")  # of the training split
    palette(voc / folder / "2007_999999.png", [[99]])
    write_list(voc / "ImageSets" / "Segmentation" / "val.txt", stems)


def pascal_context(root: Path, *labels: Values, split: str = "pascalcontext_val.txt") -> None:
    voc = root / "VOCdevkit" / "VOC2010"
    stems = [f"2008_{number:06}" for number in range(len(labels))]
    (voc / "trainval").mkdir(parents=True, exist_ok=True)
    for stem, values in zip([*stems, "2008_999999"], [*labels, [[459]]], strict=True):
        photo(voc / "JPEGImages" / f"{stem}.jpg")
        savemat(voc / "trainval" / f"{stem}.mat", {"LabelMap": np.array(values, np.uint16)}, do_compression=True)
    write_list(voc / split, stems)


def coco_stuff(root: Path, *labels: Values, folder: str = "stuffthingmaps", images: str = "val2017") -> None:
    for number, values in enumerate(labels):
        photo(root / "coco" / images / f"{number:012}.jpg")
        grey(root / "coco" / folder / "val2017" / f"{number:012}.png", values)


def write_list(path: Path, stems: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{stem}\n" for stem in stems))
