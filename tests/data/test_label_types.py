"""Tests that labels leave the workers as small integers and reach a step as int64 with the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from ovseg.data.base import LabelsDataModule
from ovseg.data.benchmarks import ADE20K847DataModule, SegmentationBenchmark
from ovseg.data.coco_stuff import COCOStuffDataModule
from ovseg.data.pairs import write_pairs
from ovseg.data.pairs.datamodule import RegionTextDataModule
from ovseg.data.toy.labelled import ToyScenesDataModule
from ovseg.data.transforms import SegmentationTransform
from ovseg.structures import RegionTextPair
from tests.data import layouts
from tests.data.worlds import write_coco


class Steps(L.LightningModule):
    """Records the labels of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seen: list[Tensor] = []

    def training_step(self, batch: Any, batch_index: int) -> None:
        self.seen += integers(batch)

    validation_step = test_step = training_step

    def configure_optimizers(self) -> None:
        return None


def integers(batch: Any) -> list[Tensor]:
    """Return the labels of a batch, followed by its regions if it has any."""
    labels = list(batch.labels)
    return labels if getattr(batch, "regions", None) is None else [*labels, *batch.regions]


def coco(root: Path) -> COCOStuffDataModule:
    write_coco(root)
    transform = SegmentationTransform(16, [16, 20], 64)
    return COCOStuffDataModule(str(root), transform=transform, total_batch_size=2, num_workers=0, seed=0)


def toy_scenes(root: Path) -> ToyScenesDataModule:
    return ToyScenesDataModule(4, total_batch_size=2, num_workers=0, seed=0)


def ade20k_847(root: Path) -> ADE20K847DataModule:
    wall, unknown = 2978, 0
    layouts.ade20k_847(root, [[wall, 312, unknown] * 200] * 600)  # large enough to be resized
    return ADE20K847DataModule(str(root))


def adapter(root: Path) -> RegionTextDataModule:
    """Return a pair datamodule with labelled validation data."""
    write_coco(root)
    folders = str(root / "val2017"), str(root / "stuffthingmaps" / "val2017")
    name = "000000000000.jpg"
    write_pairs(root / "pairs", [RegionTextPair(0, name, (16, 24), b"0", (0, 0, 24, 16), "sky", 0, 0.2, 0, 1)])
    return RegionTextDataModule(root / "pairs", root / "val2017", val=SegmentationBenchmark(*folders, "coco_stuff_171"))


@pytest.mark.parametrize(
    ("make", "loop", "small"),
    [
        (coco, "fit", torch.int16),
        (coco, "validate", torch.int16),
        (toy_scenes, "fit", torch.int16),
        (adapter, "validate", torch.int16),
        (ade20k_847, "test", torch.int32),
    ],
)
def test_labels_are_small_integers_in_workers_and_int64_in_steps(
    tmp_path: Path, make: Any, loop: str, small: torch.dtype
) -> None:
    data: LabelsDataModule = make(tmp_path)
    data.setup(loop)
    loader = {"fit": "train", "validate": "val"}.get(loop, loop)
    sent = [labels for batch in getattr(data, f"{loader}_dataloader")() for labels in integers(batch)]
    assert {labels.dtype for labels in sent} == {small}
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    checks: dict[str, Any] = {"enable_checkpointing": False, "limit_val_batches": 0 if loop == "fit" else None}
    trainer, steps = L.Trainer(accelerator="cpu", max_epochs=1, **checks, **quiet), Steps()
    getattr(trainer, loop)(steps, datamodule=make(tmp_path / "trainer"))
    assert {labels.dtype for labels in steps.seen} == {torch.int64}
    assert len(sent) == len(steps.seen) > 0
    for labels, received in zip(sent, steps.seen, strict=True):
        assert labels.tolist() == received.tolist()
