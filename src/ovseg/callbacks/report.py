"""Write the report of a test: a table on the terminal, and files in the run folder."""

from __future__ import annotations

import csv
import json
import math
import platform
import resource
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor

from ovseg import __version__
from ovseg.callbacks.findings import ClassRow, Findings, ImageScore, choose, confusions, image_iou, table
from ovseg.callbacks.gather import gather_objects
from ovseg.callbacks.pictures import overlay
from ovseg.callbacks.report_page import Example, page
from ovseg.images import read_image
from ovseg.structures import EvalBatch, InputError
from ovseg.tasks import Segmentation, SegmentationTask

LIBRARIES = ("torch", "lightning", "transformers", "open_clip_torch", "torchmetrics")
CONFIG = "test.yaml"  # the configuration that the command line saves in the run folder


class ReportWriter(Callback):
    """Print the results of a `SegmentationTask`, and write `report.json`, `per_class.csv` and `report.html`.

    Args:
        folder: the run folder; a `test.yaml` in it becomes part of the report.
        command: the command line, for the report.

    Raises:
        InputError: the task is not a `SegmentationTask`; raised before anything is tested.
    """

    def __init__(self, folder: str | Path, command: str = "") -> None:
        self.folder, self.command = Path(folder), command

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, SegmentationTask):
            raise InputError(
                f"`ovseg test` needs a SegmentationTask, not a {type(pl_module).__name__}; see conf/test.yaml"
            )

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.names: list[str] = []
        self.ious: list[Tensor] = []  # kept on the device
        self.started = self.ended = perf_counter()
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: EvalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        vocabulary = _task(pl_module).vocabulary
        predictions: list[Segmentation] = outputs["answers"]
        for prediction, labels in zip(predictions, batch.labels, strict=True):
            self.names.append(prediction.name)
            iou = image_iou(prediction.labels, labels, len(vocabulary.scored_names), vocabulary.ignore_index)
            self.ious.append(iou)
        self.ended = perf_counter()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        task = _task(pl_module)
        findings = self._findings(trainer, task)  # gathers from every process
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "report.json").write_text(json.dumps(_plain(findings), indent=1), encoding="utf-8")
        with (self.folder / "per_class.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(ClassRow._fields)
            writer.writerows(["" if _undefined(cell) else cell for cell in row] for row in findings.classes)
        config = self.folder / CONFIG
        settings = config.read_text(encoding="utf-8") if config.is_file() else ""
        examples = list(_examples(trainer, task, findings))
        (self.folder / "report.html").write_text(page(findings, examples, settings), encoding="utf-8")
        print(f"{table(findings)}\n{self.folder / 'report.html'}, report.json and per_class.csv beside it")

    def _findings(self, trainer: L.Trainer, task: SegmentationTask) -> Findings:
        names, seen = task.vocabulary.scored_names, task.vocabulary.seen
        per_class, regions, counts = task.miou.per_class(), task.mask_accuracy.per_class(), task.miou.counts()
        ious: list[float] = torch.stack(self.ious).tolist() if self.ious else []
        own_scores = list(map(ImageScore, self.names, ious))
        parts = gather_objects((own_scores, self.ended - self.started, _peak_memory(task.device)))
        scores = [score for process_scores, _, _ in parts for score in process_scores]
        columns = {name: column.tolist() for name, column in {**per_class, **regions}.items()}
        classes = [
            ClassRow(name, None if seen is None else seen[index], **{key: columns[key][index] for key in columns})
            for index, name in enumerate(names)
        ]
        present = per_class["pixels"] > 0
        segmenter = task.segmenter
        return Findings(
            data=type(trainer.datamodule).__name__,  # type: ignore[attr-defined]
            metrics={name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()},
            images=len(scores),
            classes_in_labels=int(present.sum()),
            classes_in_labels_or_predictions=int((present | (per_class["predicted"] > 0)).sum()),
            classes=classes,
            confusions=confusions(counts, names),
            chosen=choose(scores),
            images_per_second=len(scores) / max(seconds for _, seconds, _ in parts),
            peak_memory_mib=max(peak for _, _, peak in parts) / 2**20,
            device=torch.cuda.get_device_name(task.device) if task.device.type == "cuda" else task.device.type.upper(),
            processes=len(parts),
            settings={
                "oracle": task.oracle,
                "classifier": segmenter.classifier,
                "ensemble_weight": segmenter.ensemble_weight,
                "mask_threshold": segmenter.mask_threshold,
                "views": asdict(segmenter.views),
                "precision": str(trainer.precision),
            },
            command=self.command,
            versions={"ovseg": __version__, "python": platform.python_version()}
            | {name: version(name) for name in LIBRARIES},
        )


def _examples(trainer: L.Trainer, task: SegmentationTask, findings: Findings) -> Iterator[Example]:
    """Segment the chosen images again, since keeping the predictions of all images would fill the memory."""
    dataset = trainer.datamodule.dataset  # type: ignore[attr-defined]
    indices = {str(path): index for index, path in enumerate(dataset.paths)}
    names = task.vocabulary.scored_names
    for group, scores in findings.chosen.items():
        for score in scores:
            batch: EvalBatch = dataset[indices[score.name]]
            labels = batch.labels[0].long()
            with trainer.precision_plugin.test_step_context():
                prediction = task.answer(batch.images[0].to(task.device), labels.to(task.device)).labels.cpu()
            # some benchmarks score reduced images
            image = read_image(score.name).resize((labels.shape[1], labels.shape[0]))
            pictures = [_picture(image, label_map, names) for label_map in (labels, prediction)]
            yield Example(f"{group}: {Path(score.name).name}", score.iou, pictures)


def _picture(image: Image.Image, labels: Tensor, names: tuple[str, ...]) -> Image.Image:
    return overlay(image, labels.numpy(), names)


def _task(module: L.LightningModule) -> SegmentationTask:
    assert isinstance(module, SegmentationTask)  # checked in setup
    return module


def _peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: of the GPU, or of the process without a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _undefined(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> Any:
    """Convert to JSON's types: NamedTuples become objects, and NaN, which JSON lacks, becomes null."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if _undefined(value) else value
