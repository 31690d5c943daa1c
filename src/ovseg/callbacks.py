"""What leaves a run beside its metrics: its checkpoint, the store of pairs, and segmentations as pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, ModelCheckpoint
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ovseg.data.pairs import PairStoreWriter
from ovseg.images import read_image
from ovseg.structures import InputError, RegionTextPair
from ovseg.tasks import Segmentation

OVERLAY_SIDES = (512, 1600)  # shortest and longest long side of an overlay, for people to look at
OPACITY = 0.55


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt` of a run: after each validation or epoch, when it is stopped, and at its end.

    One file, replaced in place: a run that was stopped goes on with `--ckpt_path runs/…/last.ckpt`.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "last", save_on_exception=True, enable_version_counter=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # the steps after the last validation would be lost otherwise
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")


class StepSeed(Callback):
    """Lets what a training step draws (points of the mask loss, paths to drop) follow from seed, process and step.

    A resumed run then draws what the uninterrupted one would have drawn.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seed = torch.initial_seed()  # of `seed_everything`

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        entropy = (self.seed, trainer.global_rank, trainer.global_step, batch_idx)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


class PairsWriter(BasePredictionWriter):
    """Writes what a `MiningTask` predicts to a store of pairs.

    Args:
        out: folder of the store.
        provenance: kept in the store.

    Raises:
        InputError: the folder holds pairs already; at once, before captions are read and anything is mined.
    """

    def __init__(self, out: str | Path, provenance: Mapping[str, str] | None = None) -> None:
        super().__init__("batch")
        self.out = Path(out)
        self.store = PairStoreWriter(self.out, provenance)
        self.pairs = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            raise InputError("mining runs in one process for now; give --trainer.devices 1")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.store.__enter__()

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: list[RegionTextPair],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self.store.add(prediction)
        self.pairs += len(prediction)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.store.__exit__(None, None, None)
        print(f"{self.pairs} pairs in {self.out}")


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
            _save(label_image(labels, len(names)), label_file)
            _save(overlay(read_image(answer.name), labels, names), overlay_file)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            print(f"label images and overlays in {self.out}")


def label_image(labels: NDArray[np.int64], classes: int) -> Image.Image:
    """Class indices as a picture: 8 bits with a palette, or 16 bits for more than 256 classes."""
    if classes > 256:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8), mode="P")
    picture.putpalette(palette(classes).tobytes())
    return picture


def overlay(image: Image.Image, labels: NDArray[np.int64], names: Sequence[str]) -> Image.Image:
    """The image under the colours of its classes, with a legend of those that occur, the largest first."""
    scale = np.clip(1, OVERLAY_SIDES[0] / max(image.size), OVERLAY_SIDES[1] / max(image.size))
    width, height = (max(round(side * scale), 1) for side in image.size)
    colours = palette(len(names))
    shown = Image.fromarray(labels.astype(np.int32), mode="I").resize((width, height), Image.Resampling.NEAREST)
    painted = Image.fromarray(colours[np.asarray(shown)])
    blended = Image.blend(image.resize((width, height)), painted, OPACITY)
    counts = np.bincount(labels.ravel(), minlength=len(names))
    present = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    return _with_legend(blended, [(names[index], counts[index] / labels.size, colours[index]) for index in present])


@cache
def palette(classes: int) -> NDArray[np.uint8]:
    """(K, 3) colours whose hues lie as far apart as the golden ratio puts them."""
    rows = [
        colorsys.hsv_to_rgb(0.618034 * index % 1, (0.85, 0.55, 0.7)[index // 3 % 3], (1.0, 0.8, 0.6)[index % 3])
        for index in range(classes)
    ]
    return (255 * np.array(rows)).round().astype(np.uint8)


def _with_legend(picture: Image.Image, rows: list[tuple[str, float, NDArray[np.uint8]]]) -> Image.Image:
    """The picture beside a column of colours, names and shares of the area."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 16)
    line, texts = 26, [f"{name}  {share:.1%}" for name, share, _ in rows]
    column = 44 + max(int(font.getlength(text)) for text in texts)
    height = max(picture.height, line * len(rows) + 12)
    canvas = Image.new("RGB", (picture.width + column, height), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for row, (text, (_, _, colour)) in enumerate(zip(texts, rows, strict=True)):
        left, top = picture.width + 10, 8 + row * line
        draw.rectangle((left, top, left + 18, top + 18), fill=tuple(map(int, colour)), outline="black")
        draw.text((left + 26, top), text, fill="black", font=font)
    return canvas


def _save(picture: Image.Image, path: Path) -> None:
    """Write as a whole or not at all."""
    partial = path.with_name(f".{path.name}.tmp")
    picture.save(partial, format="PNG")
    partial.replace(path)
