"""Masks that are given and not proposed: ground truth, or what another program has made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ovseg import rle
from ovseg.data.labels import LabelFiles, coding_of
from ovseg.data.partners import by_stem
from ovseg.data.vocabulary import read_vocabulary
from ovseg.limits import check_names
from ovseg.structures import InputError

_ADVICE = "give a file such as annotations/instances_train2017.json, or a list of results with run lengths"


class ImageMasks(NamedTuple):
    """The masks of one image, M of them."""

    masks: Tensor  # (M, H, W) bool
    scores: Tensor  # (M,), 1 for ground truth
    names: list[str]  # M labels; none where the masks have no names


class GivenMasks(Protocol):
    """The masks of all images."""

    images: dict[int, str]
    """Id → file name, in the order of the ids; empty for a plain list of results."""
    named: bool
    """Whether the masks bring the names of what they show."""

    def __call__(self, image_id: int, file_name: str, size: tuple[int, int]) -> ImageMasks:
        """The masks of an image of `size` (H, W).

        Raises:
            InputError: they have another size, or cannot be read.
        """
        ...


@dataclass(frozen=True)
class LabelMaps:
    """Label maps whose classes are the regions: the whole area of a class in an image is one mask.

    Args:
        folder: an image with one class per pixel for each image, of the same name but for the suffix `.png`.
        vocabulary: the classes, see `ovseg.data.vocabulary.read_vocabulary`; values are its `dataset_ids` minus 1,
            or its indices where it has none.
    """

    folder: Path
    vocabulary: str = "coco_stuff_171"


class ClassMasks(GivenMasks):
    """The masks of label maps.

    Raises:
        InputError: an image or label file has no partner, or the labels are not of the vocabulary.
    """

    named = True

    def __init__(self, maps: LabelMaps, images: Path) -> None:
        vocabulary = read_vocabulary(maps.vocabulary)
        files = by_stem(images, Path(maps.folder))
        self.labels = LabelFiles(files, coding_of(vocabulary, maps.vocabulary), maps.vocabulary)
        self.folder, self.class_names = images, vocabulary.scored_names
        names = sorted(path.name for path in files)
        numbered = all(Path(name).stem.isdecimal() for name in names)  # as COCO names its files
        self.images = {int(Path(name).stem) if numbered else number: name for number, name in enumerate(names)}

    def __call__(self, image_id: int, file_name: str, size: tuple[int, int]) -> ImageMasks:
        values = self.labels(self.folder / file_name, size)
        present = torch.unique(values)
        present = present[present != self.labels.ignore_index]
        masks = values == present[:, None, None]
        return ImageMasks(masks, torch.ones(len(present)), [self.class_names[index] for index in present])


class CocoMasks(GivenMasks):
    """The masks of a COCO file with images and annotations (instances, stuff), or of a list of results.

    A result has `image_id` and a `segmentation`, and may have a `score`, or a `predicted_iou` as SAM calls it.
    The masks are kept as run lengths.

    Raises:
        InputError: the file is missing, is not JSON, or has something else in it.
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
            fault = f"an image or category lacks {error}"
            raise InputError(f"{path} holds no COCO instances: {fault}; {_ADVICE}") from error
        check_names(self.images.values(), path)
        self.masks: dict[int, list[_Mask]] = {}
        for number, annotation in enumerate(annotations, start=1):
            try:
                self.masks.setdefault(annotation["image_id"], []).append(_to_mask(annotation, images, names))
            except (LookupError, TypeError, ValueError) as error:
                fault = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be used ({error})"
                raise InputError(f"{path} holds no COCO instances: annotation {number} {fault}; {_ADVICE}") from error
        self.named = all(mask.name for of_image in self.masks.values() for mask in of_image)

    def __call__(self, image_id: int, file_name: str, size: tuple[int, int]) -> ImageMasks:
        found = self.masks.get(image_id, [])
        if other := next((mask.size for mask in found if mask.size != size), None):
            raise InputError(
                f"{file_name} is {size[1]} x {size[0]} pixels, its masks {other[1]} x {other[0]}; "
                "give the masks file that belongs to these images"
            )
        masks = rle.decode([mask.counts for mask in found], size)
        return ImageMasks(masks, torch.tensor([mask.score for mask in found]), [mask.name for mask in found])


class _Mask(NamedTuple):
    counts: bytes
    size: tuple[int, int]
    name: str
    score: float


def _to_mask(annotation: Any, images: Mapping[int, Any] | None, names: Mapping[int, str]) -> _Mask:
    image_id = annotation["image_id"]
    if not isinstance(image_id, int):
        raise TypeError(f"image_id {image_id!r} is no whole number")
    if images is not None and image_id not in images:
        raise ValueError(f"it is of image {image_id}, which is not listed")
    image = {} if images is None else images[image_id]
    size = (image["height"], image["width"]) if {"height", "width"} <= image.keys() else None
    counts, size = rle.from_coco(annotation["segmentation"], size)
    score = annotation.get("score", annotation.get("predicted_iou", 1.0))
    return _Mask(counts, size, names.get(annotation.get("category_id"), ""), float(score))


def read_json(path: Path, advice: str) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: it is missing or not JSON; the sentence ends with `advice`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {advice}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); {advice}") from error
