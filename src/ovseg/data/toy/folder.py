"""Write the toy world to disk in the layout of COCO."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from ovseg.data.toy.captions import Style, sentence
from ovseg.data.toy.nouns import NOUNS, training_label
from ovseg.data.toy.scenes import Scene, make_scene, scene_rng
from ovseg.structures import InputError
from ovseg.whole_file import unwritable

FORMAT = 1  # version of the folder; increase it whenever the same arguments give different bytes
META = "toy.json"
TRAINING_LABELS = np.array([training_label(noun) for noun in range(len(NOUNS))], dtype=np.uint8)


def write_toy(
    out: Path | str, scenes: int = 100, seed: int = 0, size: int = 128, val_scenes: int | None = None
) -> None:
    """Write training and benchmark scenes with captions, label maps and region masks to the folder `out`.

    `train2017` is labelled with the classes of the vocabulary `toy_train`, `val2017` with those of `toy`;
    `annotations/regions_*.json` contains the ground-truth masks of all nouns in both. The arguments determine every
    byte, and a smaller number of scenes gives the first scenes of a larger one. A complete folder is not written again.

    Args:
        out: the folder; it appears only when it is complete.
        scenes: number of training scenes.
        seed: seed of the scenes and captions, not negative.
        size: side of the images in pixels, 32 to 320.
        val_scenes: number of benchmark scenes; defaults to a fifth of `scenes`.

    Raises:
        InputError: a number is out of range, or `out` contains something else.
    """
    out = Path(out)
    val_scenes = max(scenes // 5, 1) if val_scenes is None else val_scenes
    if scenes < 1 or val_scenes < 1 or seed < 0 or not 32 <= size <= 320:
        raise InputError(
            f"a toy world of {scenes} training and {val_scenes} benchmark scenes of {size} pixels with seed {seed} is "
            "not possible; give at least 1 scene of each, 32 to 320 pixels and a seed of at least 0"
        )
    meta = {"format": FORMAT, "scenes": scenes, "val_scenes": val_scenes, "seed": seed, "size": size}
    if _is_complete(out, meta):
        print(f"{out} already contains these {scenes} + {val_scenes} scenes; nothing to do")
        return
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "annotations").mkdir(parents=True)
        _write_split(partial, "train2017", scenes, seed, size)
        _write_split(partial, "val2017", val_scenes, seed, size)
        _write_json(partial / META, meta)
        partial.replace(out)
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def scene_captions(scene: Scene, seed: int, index: int, split: str) -> list[str]:
    """Return the two or three captions of a scene."""
    rng = scene_rng(seed, index, split, stream=1)
    return [sentence(rng, scene.regions, Style()) for _ in range(rng.integers(2, 4))]


def _is_complete(out: Path, meta: dict[str, int]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        written_meta = json.loads((out / META).read_text())
    except (OSError, ValueError):
        raise InputError(f"{out} contains files that are not a toy world; give another folder") from None
    if written_meta != meta:
        raise InputError(
            f"{out} contains a toy world with other settings, {written_meta}; give another folder or delete that one"
        )
    return True


def _write_split(root: Path, split: str, scenes: int, seed: int, size: int) -> None:
    labels = root / "stuffthingmaps" / split
    (root / split).mkdir()
    labels.mkdir(parents=True)
    training = split == "train2017"
    images: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    regions: list[dict[str, Any]] = []
    for index in tqdm(range(scenes), desc=f"{split} scenes", unit="scene"):
        scene = make_scene(seed, index, size, split, mixed=not training)
        name = f"{index + 1:012d}"
        Image.fromarray(scene.image).save(root / split / f"{name}.jpg", quality=92)
        classes = TRAINING_LABELS[scene.labels] if training else scene.labels
        Image.fromarray(classes).save(labels / f"{name}.png")
        images.append({"id": index + 1, "file_name": f"{name}.jpg", "height": size, "width": size})
        for caption in scene_captions(scene, seed, index, split):
            captions.append({"id": len(captions) + 1, "image_id": index + 1, "caption": caption})
        for region in scene.regions:
            regions.append(
                {"id": len(regions) + 1, "image_id": index + 1, "category_id": region.noun + 1, **_rle(region.mask)}
            )
    header: dict[str, Any] = {
        "info": {"description": "ovseg toy world", "version": str(FORMAT)},
        "licenses": [],
        "images": images,
    }
    categories = [
        {"id": number, "name": noun.name, "supercategory": "stuff" if noun.stuff else "thing"}
        for number, noun in enumerate(NOUNS, start=1)
    ]
    _write_json(root / "annotations" / f"captions_{split}.json", {**header, "annotations": captions})
    _write_json(
        root / "annotations" / f"regions_{split}.json", {**header, "annotations": regions, "categories": categories}
    )


def _rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the entries of a mask in COCO's instance format."""
    run_lengths = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    area, box = int(coco_mask.area(run_lengths)), coco_mask.toBbox(run_lengths).tolist()
    segmentation = {"size": list(mask.shape), "counts": run_lengths["counts"].decode("ascii")}
    return {"segmentation": segmentation, "area": area, "bbox": box, "iscrowd": 0}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n")
