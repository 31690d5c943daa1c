"""The store of region-text pairs that mining leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from ovseg.data.pairs import PairStore, ShardLog
from ovseg.structures import CaptionBatch, InputError, RegionTextPair

if TYPE_CHECKING:
    from ovseg.data.captions import CaptionDataModule


class PairsWriter(Callback):
    """Writes what a `MiningTask` predicts to a store of pairs, a shard when its last batch has come.

    Shards that are there already are not read again; the processes share the others. The progress is that of the first
    process, in the place of the Trainer's own.

    Args:
        store: where the pairs go.
    """

    def __init__(self, store: PairStore) -> None:
        self.store = store
        self.shown = False
        self._begin_shard()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data: CaptionDataModule = trainer.datamodule  # type: ignore[attr-defined]
        pending = self.store.begin(len(data.shards)) if trainer.is_global_zero else []
        # one process has looked, since another may be at work by the time the last would look
        self.pending: list[int] = trainer.strategy.broadcast(pending)
        data.configure(pending=self.pending)
        if bar := trainer.progress_bar_callback:
            bar.disable()
            self.shown = trainer.is_global_zero

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: CaptionDataModule = trainer.datamodule  # type: ignore[attr-defined]
        own = self.pending[trainer.global_rank :: trainer.world_size]
        images = sum(len(batch) for shard in own for batch in data.shards.batches(shard))
        many = f", process 1 of {trainer.world_size}" if trainer.world_size > 1 else ""
        self.bar = tqdm(desc=f"mining{many}", total=images, unit=" images", disable=not self.shown, dynamic_ncols=True)
        self.mined = 0

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: CaptionBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.pairs += outputs
        self.faults += batch.faults
        self.images += len(batch.images) + len(batch.faults)
        for fault in batch.faults:
            tqdm.write(f"left out: {fault}")
        if batch.ends_shard:
            self._write_shard(batch.shard)
        self.mined += len(outputs)
        self.bar.update(len(batch.images) + len(batch.faults))
        rate = self.mined / max(self.bar.format_dict["elapsed"], 1e-9)
        self.bar.set_postfix_str(f"{self.mined:,} pairs, {rate:.0f} pairs/s", refresh=False)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.close()

    def _write_shard(self, shard: int) -> None:
        if len(self.faults) == self.images:  # not a few broken files: a disk is gone, or the folder is another one
            raise InputError(
                f"none of the {self.images} images of shard {shard} can be used, the first: {self.faults[0]}; "
                "mend that and run the same command again: it goes on after the shards that are there"
            )
        self.store.write(shard, self.pairs, ShardLog(self.images, self.faults))
        self._begin_shard()

    def _begin_shard(self) -> None:
        self.pairs: list[RegionTextPair] = []
        self.faults: list[str] = []
        self.images = 0
