"""The store of region-text pairs that mining leaves."""

from __future__ import annotations

import sys
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from ovseg.callbacks.gather import gathered
from ovseg.data.pairs import PairStore, ShardLog
from ovseg.structures import CaptionBatch, InputError, RegionTextPair

if TYPE_CHECKING:
    from ovseg.data.captions.datamodule import CaptionDataModule


class PairsWriter(Callback):
    """Writes what a `MiningTask` predicts to a store of pairs, a shard when its last batch has come.

    Shards that are there already are not read again; the processes share the others. The progress is that of the first
    process, in the place of the Trainer's own.

    Args:
        store: where the pairs go.

    Raises:
        InputError: processes write to different folders of that name; before anything is mined.
    """

    def __init__(self, store: PairStore) -> None:
        self.store = store
        self.shown = False
        self.longest = 0.0  # seconds that a shard took
        self._begin_shard()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data: CaptionDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.world_size > 1:
            self._check_shared(trainer)
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
        self.longest = max(self.longest, monotonic() - self.begun)
        self._begin_shard()

    def _begin_shard(self) -> None:
        self.pairs: list[RegionTextPair] = []
        self.faults: list[str] = []
        self.images = 0
        self.begun = monotonic()

    def _check_shared(self, trainer: L.Trainer) -> None:
        mark = trainer.strategy.broadcast(self.store.create_marker() if trainer.is_global_zero else "")
        seen = gathered((self.store.folder / mark).is_file())
        if trainer.is_global_zero:
            (self.store.folder / mark).unlink()
        if not all(seen):
            raise InputError(
                f"process {seen.index(False) + 1} of {len(seen)} has another {self.store.folder} than the first; give "
                "--out a folder that all nodes share"
            )


def wait_for_others(store: PairStore, patience: float) -> None:
    """Until the other processes have written their shards; say how many are awaited whenever one has come.

    No barrier, since the slowest process may take longer than those wait.

    Args:
        store: that they write to.
        patience: seconds without a shard after which they are given up.

    Raises:
        InputError: they are.
    """
    known, since = -1, monotonic()
    while missing := store.missing():
        if len(missing) != known:
            known, since = len(missing), monotonic()
            tqdm.write(f"this process is done and waits for {known} shards of others", file=sys.stderr)
        elif monotonic() - since > patience:
            raise InputError(
                f"{known} shards are missing in {store.folder}, and none has come for {patience:.0f} s: another "
                "process has ended or hangs; end it and run the same command again, which mines these alone"
            )
        sleep(1)
