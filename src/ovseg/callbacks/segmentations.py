"""Segmentations as files."""

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
from ovseg.callbacks.gather import gathered
from ovseg.callbacks.pictures import label_image, overlay, save_picture
from ovseg.checkpoint import network_digest
from ovseg.data.images import ImagesDataModule
from ovseg.images import read_image
from ovseg.models import OpenVocabSegmenter
from ovseg.ops import masks_to_boxes
from ovseg.structures import EvalBatch, InputError, Vocabulary
from ovseg.tasks import Segmentation, SegmentationTask


class Outputs(NamedTuple):
    """The files of one image."""

    labels: Path
    overlay: Path
    segments: Path


class SegmentationWriter(BasePredictionWriter):
    """Writes for each image three files, the last one when the others are there.

    `NAME_labels.png` has class indices with a palette, in 8 bits or 16; `NAME_overlay.png` a legend, for people;
    `NAME_segments.json` is a COCO data set of this image, a segment a class, whose ids are the class indices.

    A run that was stopped goes on: images whose files were written by the same network, settings and words, and that
    have not changed since, are left out of it.

    Args:
        out: folder to write.

    Raises:
        InputError: the task is no segmentation, or an output would replace one of the images; before any is segmented.
    """

    def __init__(self, out: str | Path) -> None:
        super().__init__("batch")
        self.out = Path(out)
        self.written = self.kept = 0
        self.faults: list[str] = []  # of images that could not be read

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, SegmentationTask):
            raise InputError(f"a SegmentationTask segments, not a {type(pl_module).__name__}; see conf/segment.yaml")
        data: ImagesDataModule = trainer.datamodule  # type: ignore[attr-defined]
        images = data.paths
        inputs = {path.resolve() for path in images}
        if lost := [path for image in images for path in self.outputs(image) if path.resolve() in inputs]:
            raise InputError(f"{lost[0]} is one of the images and would be replaced; choose another --out")
        resize = data.resize or pl_module.segmenter.resize
        self.run = fingerprint(pl_module.segmenter, data.vocabulary, (resize, trainer.precision))
        todo = [path for path in images if not self._is_complete(path)]
        # the first process's list for all, since it could have written something before others have looked
        todo = trainer.strategy.broadcast(todo)
        data.configure(paths=todo)
        self.kept = len(images) - len(todo)

    def outputs(self, image: str | Path) -> Outputs:
        """Where the answer to an image goes."""
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
        self.out.mkdir(parents=True, exist_ok=True)
        for answer in prediction:
            labels, files = answer.labels.numpy(), self.outputs(answer.name)
            files.segments.unlink(missing_ok=True)  # of another run; with it the files count as complete
            save_picture(label_image(labels, len(names)), files.labels)
            save_picture(overlay(read_image(answer.name), labels, names), files.overlay)
            made_by = {"description": "ovseg", "made_by": self._made_by(answer.name)}
            text = json.dumps({"info": made_by, **coco(answer, names)})
            partial = files.segments.with_suffix(".tmp")
            partial.write_text(text, encoding="utf-8")
            partial.replace(files.segments)
        self.written += len(prediction)
        self.faults += batch.faults

    def conclude(self, trainer: L.Trainer) -> bool:
        """Say what was written, and on stderr which images could not be read; whether there were none of these.

        Every process has to ask.
        """
        parts = gathered((self.written, self.faults))
        faults = [fault for _, found in parts for fault in found]
        if trainer.is_global_zero:
            before = f", {self.kept} were there already" if self.kept else ""
            print(
                f"{sum(written for written, _ in parts)} images segmented into {self.out}{before} ({trainer.precision})"
            )
            if faults:
                print("\n".join([f"{len(faults)} images could not be used:", *faults]), file=sys.stderr)
        return not faults

    def _made_by(self, image: str | Path) -> str:
        """What an answer depends on."""
        file = Path(image).stat()
        return f"{self.run} {file.st_size} {file.st_mtime_ns}"

    def _is_complete(self, image: Path) -> bool:
        files = self.outputs(image)
        if not all(file.is_file() for file in files):
            return False
        try:
            found = json.loads(files.segments.read_text(encoding="utf-8"))
            return bool(found["info"]["made_by"] == self._made_by(image))
        except (ValueError, KeyError, TypeError):
            return False  # of somebody else, or damaged


def fingerprint(segmenter: OpenVocabSegmenter, vocabulary: Vocabulary, *rest: object) -> str:
    """A word that differs where an answer could: by the weights, the settings, the words, or what else is given."""
    networks = [network_digest(part, part.architecture()) for part in (segmenter.proposer, segmenter.clip)]
    settings = [getattr(segmenter, name) for name in ("classifier", "ensemble_weight", "mask_threshold", "fill")]
    content = [networks, settings, asdict(segmenter.views), segmenter.text.templates, vocabulary.synonyms, rest]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def coco(answer: Segmentation, names: Sequence[str]) -> dict[str, Any]:
    """An answer as the parts of a COCO data set; every class that occurs is one segment."""
    height, width = answer.labels.shape
    classes = torch.unique(answer.labels).tolist()
    return {
        "images": [{"id": 1, "file_name": Path(answer.name).name, "height": height, "width": width}],
        "categories": [{"id": index, "name": names[index]} for index in classes],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": index, "iscrowd": 0, **_segment(answer.labels == index)}
            for number, index in enumerate(classes, start=1)
        ],
    }


def _segment(mask: Tensor) -> dict[str, Any]:
    """Run lengths, area and box of a mask (H, W)."""
    x0, y0, x1, y1 = masks_to_boxes(mask[None])[0].tolist()
    return {
        "segmentation": {"size": list(mask.shape), "counts": rle.encode(mask[None])[0].decode("ascii")},
        "area": int(mask.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
    }
