"""Write segmentations to files."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from ovseg import rle
from ovseg.callbacks.gather import gather_objects
from ovseg.callbacks.pictures import label_image, overlay, save_picture
from ovseg.checkpoint import network_digest
from ovseg.data.images import ImagesDataModule
from ovseg.images import read_image
from ovseg.models import OpenVocabSegmenter
from ovseg.ops import masks_to_boxes
from ovseg.structures import EvalBatch, InputError, Vocabulary
from ovseg.tasks import Segmentation, SegmentationTask
from ovseg.whole_file import whole_file


class Outputs(NamedTuple):
    """The output files of one image."""

    labels: Path
    overlay: Path
    segments: Path


class SegmentationWriter(BasePredictionWriter):
    """Write three files per image, the JSON file last.

    `NAME_labels.png` contains class indices, with a palette in 8 bits or without in 16 bits. `NAME_overlay.png` shows
    the image with coloured classes and a legend. `NAME_segments.json` is a COCO data set of the image with one segment
    per class, whose category ids are the class indices.

    A stopped run resumes: images are skipped if their files were written by the same network, settings and vocabulary,
    and the image has not changed since.

    Args:
        out: the output folder.

    Raises:
        InputError: the task is not a `SegmentationTask`, or an output would overwrite an image; raised before any image
            is segmented.
    """

    def __init__(self, out: str | Path) -> None:
        super().__init__("batch")
        self.out = Path(out)
        self.written = self.skipped = 0
        self.faults: list[str] = []  # one sentence per image that could not be read

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, SegmentationTask):
            raise InputError(
                f"`ovseg segment` needs a SegmentationTask, not a {type(pl_module).__name__}; see conf/segment.yaml"
            )
        data: ImagesDataModule = trainer.datamodule  # type: ignore[attr-defined]
        images = data.paths
        inputs = {path.resolve() for path in images}
        if overwritten := [path for image in images for path in self.outputs(image) if path.resolve() in inputs]:
            raise InputError(f"{overwritten[0]} is one of the images and would be overwritten; choose another --out")
        resize = data.resize or pl_module.segmenter.resize
        masks = data.masks.identity() if data.masks else None
        self.run = fingerprint(pl_module.segmenter, data.vocabulary, (resize, trainer.precision, masks))
        todo = [path for path in images if not self._is_complete(path)]
        # every process uses the first one's list, since it may write files before the others have looked
        todo = trainer.strategy.broadcast(todo)
        data.configure(paths=todo)
        self.skipped = len(images) - len(todo)

    def outputs(self, image: str | Path) -> Outputs:
        """Return the paths of an image's output files."""
        stem = Path(image).stem
        return Outputs(*(self.out / f"{stem}_{name}" for name in ("labels.png", "overlay.png", "segments.json")))

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: list[Segmentation],
        batch_indices: Sequence[int] | None,
        batch: EvalBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        names: Sequence[str] = trainer.datamodule.vocabulary.names  # type: ignore[attr-defined]
        for segmentation in prediction:
            labels, files = segmentation.labels.numpy(), self.outputs(segmentation.name)
            files.segments.unlink(missing_ok=True)  # from an earlier run; it would mark the other files as complete
            save_picture(label_image(labels, len(names)), files.labels)
            save_picture(overlay(read_image(segmentation.name), labels, names), files.overlay)
            info = {"description": "ovseg", "made_by": self._made_by(segmentation.name)}
            text = json.dumps({"info": info, **coco(segmentation, names)})
            with whole_file(files.segments) as partial:
                partial.write_text(text, encoding="utf-8")
        self.written += len(prediction)
        self.faults += batch.faults

    def conclude(self, trainer: L.Trainer) -> bool:
        """Print how many images were written, and on stderr which could not be read; every process must call this.

        Returns:
            Whether all images could be read.
        """
        parts = gather_objects((self.written, self.faults))
        faults = [fault for _, process_faults in parts for fault in process_faults]
        if trainer.is_global_zero:
            skipped = f", {self.skipped} already complete" if self.skipped else ""
            written = sum(process_written for process_written, _ in parts)
            print(f"{written} images segmented into {self.out}{skipped} ({trainer.precision})")
            if faults:
                print("\n".join([f"{len(faults)} images could not be used:", *faults]), file=sys.stderr)
        return not faults

    def _made_by(self, image: str | Path) -> str:
        """Return a string that changes whenever the segmentation of the image could change."""
        file = Path(image).stat()
        return f"{self.run} {file.st_size} {file.st_mtime_ns}"

    def _is_complete(self, image: Path) -> bool:
        files = self.outputs(image)
        if not all(file.is_file() for file in files):
            return False
        try:
            content = json.loads(files.segments.read_text(encoding="utf-8"))
            return bool(content["info"]["made_by"] == self._made_by(image))
        except (ValueError, KeyError, TypeError):
            return False  # damaged, or not written by ovseg


def fingerprint(segmenter: OpenVocabSegmenter, vocabulary: Vocabulary, *rest: object) -> str:
    """Return a hash of everything that segmentations depend on: weights, settings, vocabulary and `rest`."""
    networks = [network_digest(part, part.architecture()) for part in (segmenter.proposer, segmenter.region_encoder)]
    settings = [getattr(segmenter, name) for name in ("classifier", "ensemble_weight", "mask_threshold")]
    content = [networks, settings, asdict(segmenter.views), segmenter.text.templates, vocabulary.synonyms, rest]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def coco(segmentation: Segmentation, names: Sequence[str]) -> dict[str, Any]:
    """Return a segmentation as the parts of a COCO data set, with one segment per class."""
    height, width = segmentation.labels.shape
    classes = torch.unique(segmentation.labels).tolist()
    return {
        "images": [{"id": 1, "file_name": Path(segmentation.name).name, "height": height, "width": width}],
        "categories": [{"id": index, "name": names[index]} for index in classes],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": index, "iscrowd": 0, **_segment(segmentation.labels == index)}
            for number, index in enumerate(classes, start=1)
        ],
    }


def _segment(mask: Tensor) -> dict[str, Any]:
    """Return the run lengths, area and box of a mask (H, W)."""
    x0, y0, x1, y1 = masks_to_boxes(mask[None])[0].tolist()
    return {
        "segmentation": {"size": list(mask.shape), "counts": rle.encode(mask[None])[0].decode("ascii")},
        "area": int(mask.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
    }
