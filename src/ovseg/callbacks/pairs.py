"""Write the region-text pairs of mining to a store."""

from __future__ import annotations

import sys
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from ovseg.callbacks.gather import gather_objects
from ovseg.data.pairs import PairStore, ShardLog
from ovseg.structures import CaptionBatch, InputError, RegionTextPair

if TYPE_CHECKING:
    from ovseg.data.captions.datamodule import CaptionDataModule


class PairsWriter(Callback):
    """Write the predictions of a `MiningTask` to a store of pairs, one shard at a time.

    Complete shards are skipped, and the processes share the others. A progress bar for the first process replaces the
    Trainer's.

    Args:
        store: the store to write.

    Raises:
        InputError: the processes see different folders at the store's path; raised before anything is mined.
    """

    def __init__(self, store: PairStore) -> None:
        self.store = store
        self.show_progress = False
        self.longest = 0.0  # seconds of the slowest shard so far
        self._begin_shard()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data: CaptionDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.world_size > 1:
            self._check_shared(trainer)
        pending = self.store.begin(len(data.shards)) if trainer.is_global_zero else []
        # one process decides, since others may have written shards by the time the last one looks
        self.pending: list[int] = trainer.strategy.broadcast(pending)
        data.configure(pending=self.pending)
        if bar := trainer.progress_bar_callback:
            bar.disable()
            self.show_progress = trainer.is_global_zero

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: CaptionDataModule = trainer.datamodule  # type: ignore[attr-defined]
        own = self.pending[trainer.global_rank :: trainer.world_size]
        images = sum(len(batch) for shard in own for batch in data.shards.batches(shard))
        process = f", process 1 of {trainer.world_size}" if trainer.world_size > 1 else ""
        self.bar = tqdm(
            desc=f"mining{process}", total=images, unit=" images", disable=not self.show_progress, dynamic_ncols=True
        )
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
            tqdm.write(f"skipped: {fault}")
        if batch.ends_shard:
            self._write_shard(batch.shard)
        self.mined += len(outputs)
        self.bar.update(len(batch.images) + len(batch.faults))
        rate = self.mined / max(self.bar.format_dict["elapsed"], 1e-9)
        self.bar.set_postfix_str(f"{self.mined:,} pairs, {rate:.0f} pairs/s", refresh=False)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.close()

    def _write_shard(self, shard: int) -> None:
        if len(self.faults) == self.images:  # more than a few broken files: the disk or the folder is wrong
            raise InputError(
                f"none of the {self.images} images of shard {shard} can be used, the first: {self.faults[0]}; "
                "fix this and rerun the same command to write the missing shards"
            )
        self.store.write(shard, self.pairs, ShardLog(self.images, self.faults))
        self.longest = max(self.longest, monotonic() - self.started)
        self._begin_shard()

    def _begin_shard(self) -> None:
        self.pairs: list[RegionTextPair] = []
        self.faults: list[str] = []
        self.images = 0
        self.started = monotonic()

    def _check_shared(self, trainer: L.Trainer) -> None:
        marker = trainer.strategy.broadcast(self.store.create_marker() if trainer.is_global_zero else "")
        visible = gather_objects((self.store.folder / marker).is_file())
        if trainer.is_global_zero:
            (self.store.folder / marker).unlink()
        if not all(visible):
            raise InputError(
                f"process {visible.index(False) + 1} of {len(visible)} does not see the first process's "
                f"{self.store.folder}; give --out a folder that all nodes share"
            )


def wait_for_others(store: PairStore, patience: float) -> None:
    """Wait until the other processes have written their shards, and print how many are missing whenever that changes.

    This polls instead of using a barrier, because the slowest process may take longer than a barrier's timeout.

    Args:
        store: the store that the processes write to.
        patience: seconds without a new shard after which to give up.

    Raises:
        InputError: no shard was written for `patience` seconds.
    """
    remaining, since = -1, monotonic()
    while missing := store.missing():
        if len(missing) != remaining:
            remaining, since = len(missing), monotonic()
            tqdm.write(f"this process has finished; waiting for {remaining} shards of other processes", file=sys.stderr)
        elif monotonic() - since > patience:
            raise InputError(
                f"{remaining} shards are missing in {store.folder}, and none was written for {patience:.0f} s: another "
                "process has ended or hangs; end it and rerun the same command, which mines only these shards"
            )
        sleep(1)
