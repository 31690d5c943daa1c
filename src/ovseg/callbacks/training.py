"""What training leaves beside its metrics: its checkpoint, and random numbers that a resumed run draws again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt` of a run: after each validation or epoch, when it is stopped, and at its end.

    One file, replaced in place: a run that was stopped goes on with `--ckpt_path runs/…/last.ckpt`.

    Where one of several processes fails, `Trainer.save_checkpoint` would wait in it for the others, which wait for it,
    and the error would not be seen: the first process then saves without waiting.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "last", save_on_exception=True, enable_version_counter=False)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.world_size == 1:
            super().on_exception(trainer, pl_module, exception)
        elif isinstance(trainer.strategy, DDPStrategy) and trainer.is_global_zero and trainer.global_step:
            # private of Lightning 2.x; there is no other way to a whole checkpoint without a barrier
            checkpoint = trainer._checkpoint_connector.dump_checkpoint()
            trainer.strategy.save_checkpoint(checkpoint, Path(str(self.dirpath)) / "last.ckpt")

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
