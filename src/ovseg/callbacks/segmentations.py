"""Segmentations as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from ovseg.callbacks.pictures import label_image, overlay, save_picture
from ovseg.images import read_image
from ovseg.structures import InputError
from ovseg.tasks import Segmentation


class SegmentationWriter(BasePredictionWriter):
    """Writes for each image `NAME_labels.png`, class indices with a palette, and `NAME_overlay.png` with a legend.

    Raises:
        InputError: an output would replace one of the images; before any is segmented.
    """

    def __init__(self, out: str | Path) -> None:
        super().__init__("batch")
        self.out = Path(out)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        images: Sequence[Path] = trainer.datamodule.dataset.paths  # type: ignore[attr-defined]
        inputs = {path.resolve() for path in images}
        if lost := [path for image in images for path in self._outputs(image) if path.resolve() in inputs]:
            raise InputError(f"{lost[0]} is one of the images and would be replaced; choose another --out")

    def _outputs(self, image: str | Path) -> tuple[Path, Path]:
        stem = Path(image).stem
        return self.out / f"{stem}_labels.png", self.out / f"{stem}_overlay.png"

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: list[Segmentation],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        names: Sequence[str] = trainer.datamodule.vocabulary.names  # type: ignore[attr-defined]
        self.out.mkdir(parents=True, exist_ok=True)
        for answer in prediction:
            labels, (label_file, overlay_file) = answer.labels.numpy(), self._outputs(answer.name)
            save_picture(label_image(labels, len(names)), label_file)
            save_picture(overlay(read_image(answer.name), labels, names), overlay_file)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            print(f"label images and overlays in {self.out}")
