"""The store of region-text pairs that mining leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from ovseg.data.pairs import PairStoreWriter
from ovseg.structures import InputError, RegionTextPair


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
