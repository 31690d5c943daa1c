"""Masks from files in place of proposals: ground truth, or the results of another program."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only

from ovseg import rle
from ovseg.data.json_files import read_json
from ovseg.data.labels import LabelFiles, coding_of
from ovseg.data.mask_reader import ImageMasks, MaskReader
from ovseg.data.partners import by_stem
from ovseg.data.vocabulary import read_vocabulary
from ovseg.limits import check_names
from ovseg.structures import InputError

_LOG = logging.getLogger(__name__)
_ADVICE = "give a file such as annotations/instances_train2017.json, or a list of results with run lengths"


@dataclass(frozen=True)
class LabelMaps:
    """Label maps as masks: each class that occurs in an image gives one mask, its whole area.

    Args:
        folder: label maps as PNG files with one class per pixel, named like the images.
        vocabulary: the classes, see `ovseg.data.vocabulary.read_vocabulary`. Pixel values are the vocabulary's
            `dataset_ids` minus 1, or class indices if it has none.
    """

    folder: Path
    vocabulary: str = "coco_stuff_171"


def open_masks(masks: Path | LabelMaps, images: Path | Sequence[Path]) -> MaskReader:
    """Open a file of COCO's instances or results, or a folder of label maps.

    Args:
        masks: the file or the label maps.
        images: a folder of images, each of which needs its label map; or image files, some of which may have no masks.
            How many have none is logged as a warning.

    Raises:
        InputError: the masks cannot be used, none of the image files has masks, or two image files share theirs.
    """
    if not isinstance(masks, LabelMaps):
        reader: MaskReader = CocoMasks(Path(masks))
    elif isinstance(images, Path):
        reader = ClassMasks(by_stem(images, Path(masks.folder)), masks.vocabulary)
    elif not Path(masks.folder).is_dir():
        raise InputError(f"there is no folder {masks.folder}; give the folder of the label maps")
    else:
        maps = {path.stem: path for path in Path(masks.folder).glob("*.png")}
        reader = ClassMasks({image: maps[image.stem] for image in images if image.stem in maps}, masks.vocabulary)
    if not isinstance(images, Path):
        _check_matches(reader, images, masks.folder if isinstance(masks, LabelMaps) else masks)
    return reader


def _check_matches(reader: MaskReader, images: Sequence[Path], source: Path) -> None:
    """Refuse masks that belong to none of the images, or to two of them; warn about images without masks."""
    owners: dict[Hashable, Path] = {}
    for image in images:
        key = reader.find(image)
        if key is not None and (other := owners.setdefault(key, image)) != image:
            raise InputError(f"{other} and {image} would get the same masks from {source}; rename one of them")
    if not owners:
        raise InputError(
            f"{source} has masks for none of the {len(images):,} images (the first is {images[0]}); "
            "give the masks of these images under their file names"
        )
    if missing := len(images) - len(owners):
        rank_zero_only(_LOG.warning)("%s has no masks for %s of the %s images", source, missing, len(images))


class ClassMasks(MaskReader):
    """The masks of label maps: one for each class that occurs in an image.

    Args:
        files: image → label map.
        vocabulary: see `LabelMaps`.

    Raises:
        InputError: label maps cannot be read or have values outside the vocabulary.
    """

    named = True

    def __init__(self, files: Mapping[Path, Path], vocabulary: str) -> None:
        classes = read_vocabulary(vocabulary)
        self.labels = LabelFiles(files, coding_of(classes, vocabulary), vocabulary)
        self.class_names = classes.scored_names
        names = sorted(path.name for path in files)
        numbered = all(Path(name).stem.isdecimal() for name in names)  # as COCO names its files
        self.images = {int(Path(name).stem) if numbered else number: name for number, name in enumerate(names)}

    def identity(self) -> str:
        """Return a hash of the label maps' names, sizes and times; hashing their contents takes too long."""
        files = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in self.labels.files.values()]
        return hashlib.sha256(json.dumps([self.class_names, sorted(files)]).encode()).hexdigest()

    def find(self, image: Path) -> Path | None:
        return self.labels.files.get(image)

    def __call__(self, image: Path, size: tuple[int, int], image_id: int | None = None) -> ImageMasks:
        if image not in self.labels.files:
            return ImageMasks(torch.zeros((0, *size), dtype=torch.bool), torch.ones(0), [])
        values = self.labels(image, size)
        present = torch.unique(values)
        present = present[present != self.labels.ignore_index]
        masks = values == present[:, None, None]
        return ImageMasks(masks, torch.ones(len(present)), [self.class_names[index] for index in present])


class CocoMasks(MaskReader):
    """The masks of a COCO file with images and annotations (instances, stuff), or of a list of results.

    A result has `image_id`, `segmentation`, and optionally `score`, which SAM calls `predicted_iou`. The masks are kept
    as run lengths.

    Raises:
        InputError: the file is missing, is not JSON, or is not in one of these formats.
    """

    def __init__(self, path: Path) -> None:
        content = read_json(path, _ADVICE)
        results = isinstance(content, list)
        annotations = content if results else content.get("annotations") if isinstance(content, dict) else None
        if not annotations or not (results or content.get("images")):
            raise InputError(f"{path} holds no COCO instances: it has no images or no annotations; {_ADVICE}")
        try:
            images = None if results else {image["id"]: image for image in content["images"]}
            names = {} if results else {entry["id"]: entry["name"] for entry in content.get("categories", [])}
            self.images = {image_id: str(image["file_name"]) for image_id, image in sorted((images or {}).items())}
        except (LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} holds no COCO instances: an image or category lacks {error}; {_ADVICE}"
            ) from error
        check_names(self.images.values(), path)
        self.path = path
        self.ids: dict[str, list[int]] = {}  # file name without folders → ids
        for image_id, file_name in self.images.items():
            self.ids.setdefault(Path(file_name).name, []).append(image_id)
        self.masks: dict[int, list[_Mask]] = {}
        for number, annotation in enumerate(annotations, start=1):
            try:
                self.masks.setdefault(annotation["image_id"], []).append(_to_mask(annotation, images, names))
            except (LookupError, TypeError, ValueError) as error:
                fault = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be used ({error})"
                raise InputError(f"{path} holds no COCO instances: annotation {number} {fault}; {_ADVICE}") from error
        self.named = all(mask.name for of_image in self.masks.values() for mask in of_image)

    def identity(self) -> str:
        """Return a hash of the file's content."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def find(self, image: Path) -> int | None:
        """Return the id of the listed image of this name; without a list of images, the number that is the stem."""
        if self.images:
            ids = self.ids.get(image.name, [])
            if len(ids) > 1:
                raise InputError(f"{self.path} lists {len(ids)} images called {image.name}; give them different names")
        elif image.stem.isdecimal():
            ids = [int(image.stem)]
        else:
            raise InputError(
                f"{image} cannot be matched with {self.path}, a list of results that knows images by number; name "
                "images by their ids as COCO does (000000000139.jpg), or give a file that also lists images"
            )
        return next((image_id for image_id in ids if image_id in self.masks), None)

    def __call__(self, image: Path, size: tuple[int, int], image_id: int | None = None) -> ImageMasks:
        key = self.find(image) if image_id is None else image_id
        masks = [] if key is None else self.masks.get(key, [])
        if other := next((mask.size for mask in masks if mask.size != size), None):
            raise InputError(
                f"{image} is {size[1]} x {size[0]} pixels but its masks are {other[1]} x {other[0]}; "
                "give the masks file that belongs to these images"
            )
        scores = torch.tensor([mask.score for mask in masks])
        return ImageMasks(rle.decode([mask.counts for mask in masks], size), scores, [mask.name for mask in masks])


class _Mask(NamedTuple):
    """A mask in memory."""

    counts: bytes  # compressed run lengths
    size: tuple[int, int]  # (H, W)
    name: str  # of its class; "" if unknown
    score: float


def _to_mask(annotation: Any, images: Mapping[int, Any] | None, names: Mapping[int, str]) -> _Mask:
    """Convert a COCO annotation; `images` are the listed images by id, `names` the categories' names by id."""
    image_id = annotation["image_id"]
    if not isinstance(image_id, int):
        raise TypeError(f"image_id {image_id!r} is not an integer")
    if images is not None and image_id not in images:
        raise ValueError(f"it belongs to image {image_id}, which is not listed")
    image = {} if images is None else images[image_id]
    size = (image["height"], image["width"]) if {"height", "width"} <= image.keys() else None
    counts, size = rle.from_coco(annotation["segmentation"], size)
    score = float(annotation.get("score", annotation.get("predicted_iou", 1.0)))
    if not 0 <= score < math.inf:
        raise ValueError(f"its score is {score}, not a number from 0 to 1")
    return _Mask(counts, size, names.get(annotation.get("category_id"), ""), score)
