"""Read COCO caption files."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from ovseg.data.json_files import read_json
from ovseg.limits import check_names
from ovseg.structures import InputError


def read_coco_captions(path: Path) -> tuple[dict[int, str], list[dict[str, Any]]]:
    """Read a COCO captions file.

    Returns:
        The file name of each image by image id, and the annotations sorted by id.

    Raises:
        InputError: the file is missing, is not JSON, is not a captions file, or names images outside the image folder.
    """
    advice = "give a file such as annotations/captions_train2017.json"
    content = read_json(path, advice)
    if fault := _fault(content):
        raise InputError(f"{path} is not a COCO captions file: {fault}; {advice}")
    with contextlib.redirect_stdout(io.StringIO()):  # COCO prints progress
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
    names = {image_id: image["file_name"] for image_id, image in coco.imgs.items()}
    check_names(names.values(), path)
    return names, [coco.anns[annotation_id] for annotation_id in sorted(coco.anns)]


def check_images(folder: Path, names: list[str]) -> None:
    """Check that the images named are in the folder.

    Raises:
        InputError: an image is missing.
    """
    missing = [name for name in dict.fromkeys(names) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} images of the captions or masks are missing from {folder}, the first is {missing[0]}; "
            "give the folder that contains them"
        )


def _fault(content: Any) -> str | None:
    """Return why parsed JSON is not a COCO captions file, or None if it is one."""
    if not isinstance(content, dict) or not content.get("images") or not content.get("annotations"):
        return "it has no images or no annotations"
    if not all(isinstance(image, dict) and isinstance(image.get("file_name"), str) for image in content["images"]):
        return "an image lacks file_name"
    names: dict[int, str] = {}
    ids: dict[str, int] = {}
    for image in content["images"]:
        name, number = image["file_name"], image.get("id")
        if not name:
            return f"the file_name of image {number!r} is empty"
        if type(number) is not int:
            return f"the id of image {name!r} is {number!r}, not an integer"
        if names.setdefault(number, name) != name:
            return f"images {names[number]!r} and {name!r} have the same id {number}"
        if ids.setdefault(name, number) != number:
            return f"image {name!r} is listed with the ids {ids[name]} and {number}"
    annotation_ids = set()
    for annotation in content["annotations"]:
        if not isinstance(annotation, dict) or not {"id", "image_id", "caption"} <= annotation.keys():
            return "an annotation lacks id, image_id or caption"
        if not isinstance(annotation["id"], int) or annotation["id"] in annotation_ids:
            return f"the annotation id {annotation['id']!r} is a duplicate or not an integer"
        annotation_ids.add(annotation["id"])
        if not isinstance(annotation["image_id"], int) or annotation["image_id"] not in names:
            return f"annotation {annotation['id']} refers to image {annotation['image_id']}, which is not listed"
        if not isinstance(annotation["caption"], str):
            return f"the caption of annotation {annotation['id']} is not a string"
    return None
