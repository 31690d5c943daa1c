"""COCO's captions files."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from ovseg.data.masks import read_json
from ovseg.limits import check_names
from ovseg.structures import InputError


def read_coco_captions(path: Path) -> tuple[dict[int, str], list[dict[str, Any]]]:
    """Of a COCO captions file the file names of its images by their ids, and the annotations in the order of theirs.

    Raises:
        InputError: the file is missing, is not JSON, has something else in it, or names files elsewhere.
    """
    advice = "give a file such as annotations/captions_train2017.json"
    content = read_json(path, advice)
    if fault := _fault(content):
        raise InputError(f"{path} holds no COCO captions: {fault}; {advice}")
    with contextlib.redirect_stdout(io.StringIO()):  # COCO prints its progress
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
    names = {image_id: image["file_name"] for image_id, image in coco.imgs.items()}
    check_names(names.values(), path)
    return names, [coco.anns[annotation_id] for annotation_id in sorted(coco.anns)]


def check_images(folder: Path, names: list[str]) -> None:
    """Raise an `InputError` if images are not in their folder."""
    missing = [name for name in dict.fromkeys(names) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} images of the captions or masks are not in {folder}, the first is {missing[0]}; "
            "give the folder that holds them"
        )


def _fault(content: Any) -> str | None:
    """What keeps parsed JSON from being COCO captions."""
    if not isinstance(content, dict) or not content.get("images") or not content.get("annotations"):
        return "it has no images or no annotations"
    if not all(isinstance(image, dict) and isinstance(image.get("file_name"), str) for image in content["images"]):
        return "an image lacks file_name"
    known = {image.get("id") for image in content["images"] if isinstance(image.get("id"), int)}
    ids = set()
    for annotation in content["annotations"]:
        if not isinstance(annotation, dict) or not {"id", "image_id", "caption"} <= annotation.keys():
            return "an annotation lacks id, image_id or caption"
        if not isinstance(annotation["id"], int) or annotation["id"] in ids:
            return f"the id {annotation['id']!r} of an annotation is taken already, or no whole number"
        ids.add(annotation["id"])
        if not isinstance(annotation["image_id"], int) or annotation["image_id"] not in known:
            return f"annotation {annotation['id']} is of image {annotation['image_id']}, which is not listed"
        if not isinstance(annotation["caption"], str):
            return f"the caption {annotation['id']} is not a text"
    return None
