"""Images with the nouns of their captions, from files as COCO has them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ovseg.data.nouns import SpacyNounExtractor
from ovseg.images import read_image, resize_short_side, to_tensor
from ovseg.structures import CaptionBatch, InputError

LONG_SIDE = 4  # longest side allowed, in short sides: 640 / 2560 and 512 / 2048 in the paper


class CaptionedImage(NamedTuple):
    """An image and what its captions name."""

    image_id: int
    file_name: str
    nouns: list[str]
    caption_ids: list[int]  # per noun, the first caption that has it


class CaptionDataModule(LightningDataModule):
    """Images with the nouns of their captions, to be mined by `trainer.predict`.

    Nouns are extracted once and kept in the user's cache (`$OVSEG_CACHE`, else `~/.cache/ovseg`) under a hash of the
    captions and the extractor. Images whose captions have no noun are left out.

    Args:
        images: folder of the images that the captions file names.
        captions: a COCO captions file.
        masks: a COCO instances file (polygons or run lengths) whose masks take the place of proposals.
        captions_per_image: the first so many captions of each image; all without it.
        nouns: how nouns are found.
        short_side: images are resized to it, as the proposal network expects them; the long side is cut at four times.
        batch_size: images a batch.
        num_workers: processes that read images.
    """

    def __init__(
        self,
        images: Path,
        captions: Path,
        masks: Path | None = None,
        captions_per_image: int | None = 1,
        nouns: SpacyNounExtractor | None = None,
        short_side: int = 640,
        batch_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.images, self.captions, self.masks = Path(images), Path(captions), Path(masks) if masks else None
        self.captions_per_image, self.short_side = captions_per_image, short_side
        self.nouns = nouns or SpacyNounExtractor()
        self.batch_size, self.num_workers = batch_size, num_workers

    def prepare_data(self) -> None:
        """Check the files and extract the nouns, unless the cache has them.

        Raises:
            InputError: a file or image is missing, or is not what COCO has.
        """
        coco, chosen = self._read_captions()
        if self.masks:
            _read_coco(self.masks, "segmentation")
        _check_images(self.images, [coco.imgs[annotation["image_id"]]["file_name"] for annotation in chosen])
        if not (cache := self._cache(chosen)).exists():
            nouns = self.nouns.extract([annotation["caption"] for annotation in chosen])
            cache.parent.mkdir(parents=True, exist_ok=True)
            partial = cache.with_suffix(f".{os.getpid()}.tmp")
            partial.write_text(json.dumps(nouns), encoding="utf-8")
            partial.replace(cache)

    def setup(self, stage: str) -> None:
        """Read what `prepare_data` left.

        Raises:
            InputError: no caption has a noun.
        """
        coco, chosen = self._read_captions()
        per_caption = json.loads(self._cache(chosen).read_text(encoding="utf-8"))
        first_caption: dict[int, dict[str, int]] = {}  # image → noun → caption
        for annotation, nouns in zip(chosen, per_caption, strict=True):
            for noun in nouns:
                first_caption.setdefault(annotation["image_id"], {}).setdefault(noun, annotation["id"])
        if not first_caption:
            raise InputError(f"no caption in {self.captions} has a noun; give English captions or another extractor")
        samples = [
            CaptionedImage(image_id, coco.imgs[image_id]["file_name"], list(nouns), list(nouns.values()))
            for image_id, nouns in first_caption.items()
        ]
        masks = _read_coco(self.masks, "segmentation") if self.masks else None
        self.dataset = CaptionedImages(self.images, samples, self.short_side, masks)

    def predict_dataloader(self) -> DataLoader[CaptionBatch]:
        return DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=join_captions,
            pin_memory=torch.cuda.is_available(),
        )

    def statistics(self) -> dict[str, int]:
        """How many images, unique nouns and candidate pairs of image and noun there are, after `setup`."""
        counts = Counter(noun for sample in self.dataset.samples for noun in sample.nouns)
        return {"images": len(self.dataset), "unique_nouns": len(counts), "candidates": counts.total()}

    def _read_captions(self) -> tuple[COCO, list[dict[str, Any]]]:
        """The file and the annotations to use: of each image the first few, in the order of their ids."""
        coco = _read_coco(self.captions, "caption")
        taken: Counter[int] = Counter()
        chosen = []
        for annotation in sorted(coco.dataset["annotations"], key=lambda annotation: annotation["id"]):
            taken[annotation["image_id"]] += 1
            if self.captions_per_image is None or taken[annotation["image_id"]] <= self.captions_per_image:
                chosen.append(annotation)
        return coco, chosen

    def _cache(self, chosen: list[dict[str, Any]]) -> Path:
        folder = Path(os.environ.get("OVSEG_CACHE") or Path.home() / ".cache" / "ovseg")
        content = json.dumps([self.nouns.identity, [annotation["caption"] for annotation in chosen]])
        return folder / "nouns" / f"{hashlib.sha256(content.encode()).hexdigest()}.json"


class CaptionedImages(Dataset[CaptionBatch]):
    """Batches of one image."""

    def __init__(self, images: Path, samples: list[CaptionedImage], short_side: int, masks: COCO | None) -> None:
        self.images, self.samples, self.short_side, self.masks = images, samples, short_side, masks

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> CaptionBatch:
        sample = self.samples[index]
        image = read_image(self.images / sample.file_name)
        size = (image.height, image.width)
        resized = to_tensor(resize_short_side(image, self.short_side, LONG_SIDE * self.short_side))
        return CaptionBatch(
            images=[resized],
            sizes=[size],
            names=[sample.file_name],
            image_ids=[sample.image_id],
            nouns=[sample.nouns],
            caption_ids=[sample.caption_ids],
            masks=[self._masks(sample, size)] if self.masks else None,
        )

    def _masks(self, sample: CaptionedImage, size: tuple[int, int]) -> Tensor:
        """(M, H, W) bool, none where the masks file does not know the image."""
        assert self.masks is not None
        if not (annotations := self.masks.imgToAnns.get(sample.image_id)):
            return torch.zeros((0, *size), dtype=torch.bool)
        masks = torch.from_numpy(np.stack([self.masks.annToMask(annotation) for annotation in annotations])).bool()
        if tuple(masks.shape[1:]) != size:
            raise InputError(
                f"{sample.file_name} is {size[1]} x {size[0]} pixels, its masks {masks.shape[2]} x {masks.shape[1]}; "
                "give the masks file that belongs to these images"
            )
        return masks


def join_captions(batches: list[CaptionBatch]) -> CaptionBatch:
    """One batch of several."""
    return CaptionBatch(
        images=[image for batch in batches for image in batch.images],
        sizes=[size for batch in batches for size in batch.sizes],
        names=[name for batch in batches for name in batch.names],
        image_ids=[image_id for batch in batches for image_id in batch.image_ids],
        nouns=[nouns for batch in batches for nouns in batch.nouns],
        caption_ids=[caption_ids for batch in batches for caption_ids in batch.caption_ids],
        masks=None if batches[0].masks is None else [masks for batch in batches for masks in batch.masks or ()],
    )


def _read_coco(path: Path, field: str) -> COCO:
    """A COCO annotations file whose annotations have `field`.

    Raises:
        InputError: the file is missing, is not JSON, or has something else in it.
    """
    kind = {"caption": "captions", "segmentation": "instances"}[field]
    advice = f"give a file such as annotations/{kind}_train2017.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {advice}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); {advice}") from error
    if fault := _fault(content, field):
        raise InputError(f"{path} holds no COCO {kind}: {fault}; {advice}")
    with contextlib.redirect_stdout(io.StringIO()):  # COCO prints its progress
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
    return coco


def _fault(content: Any, field: str) -> str | None:
    """What keeps parsed JSON from being COCO annotations that have `field`."""
    if not isinstance(content, dict) or not content.get("images") or not content.get("annotations"):
        return "it has no images or no annotations"
    known = {image.get("id") for image in content["images"] if isinstance(image.get("file_name"), str)}
    for annotation in content["annotations"]:
        if not isinstance(annotation, dict) or not {"id", "image_id", field} <= annotation.keys():
            return f"an annotation lacks id, image_id or {field}"
        if annotation["image_id"] not in known:
            return f"annotation {annotation['id']} is of image {annotation['image_id']}, which is not listed"
        if field == "caption" and not isinstance(annotation["caption"], str):
            return f"the caption {annotation['id']} is not a text"
    return None


def _check_images(folder: Path, names: list[str]) -> None:
    missing = [name for name in dict.fromkeys(names) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} images of the captions are not in {folder}, the first is {missing[0]}; "
            "give the folder that holds them"
        )
