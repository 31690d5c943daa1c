"""What training leaves beside its metrics: its checkpoint, and random numbers that a resumed run draws again."""

from __future__ import annotations

import signal
import threading
import time
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

    `Trainer.save_checkpoint` ends in a barrier. Where one of several processes fails, it would wait there for the
    others, which wait for it elsewhere, and its error would not be seen: the first process then saves without one, if
    Lightning, which ends all when one has ended, leaves it the time.
    """

    _begun = False  # before, what a run goes on from is not all there, and must not be saved

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "last", save_on_exception=True, enable_version_counter=False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._begun = True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not self._begun or not self._should_save_on_exception(trainer):
            return
        if trainer.world_size == 1:
            super().on_exception(trainer, pl_module, exception)
        elif trainer.is_global_zero and type(trainer.strategy) is DDPStrategy:  # others have a part in each process
            last = Path(str(self.dirpath), "last.ckpt")
            # like the check above private of Lightning 2.x, which has no other way to a checkpoint without a barrier
            checkpoint = trainer._checkpoint_connector.dump_checkpoint()
            trainer.strategy.save_checkpoint(checkpoint, last.with_suffix(".part"))
            last.with_suffix(".part").replace(last)
        elif isinstance(exception, KeyboardInterrupt):
            time.sleep(60)  # the first process ends the others when it has saved; it is killed when one of them ends

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # the steps after the last validation would be lost otherwise
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")


class StopAfterStep(Callback):
    """Lets Ctrl-C wait for the end of the step, so that the run goes on exactly; pressed twice, it acts at once."""

    _in_step = _wanted = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # no other may
            self._before = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: Any) -> None:
        if not self._in_step or self._wanted:
            raise KeyboardInterrupt
        self._wanted = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._in_step = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._in_step = False
        if self._wanted:
            self._wanted = False
            raise KeyboardInterrupt

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._in_step = self._wanted = False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)


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
