"""The checkpoints of a training run, and how they get onto the disk."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn

from ovseg.callbacks.gather import gathered
from ovseg.stopping import Stopped
from ovseg.structures import InputError


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the one it replaces, and renames it when all of it is on the disk.

    Lightning writes to the temporary folder and moves the file, which across file systems is a copy over the only
    checkpoint. Here the earlier one stays until the new one is whole, so the disk needs room for both.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint.

        Raises:
            InputError: the disk is full, or the folder cannot be written; the earlier checkpoint is as it was.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        # one name for all, so that a process that was killed leaves one file at most; Lightning reads numbers from the
        # names of files that contain `ckpt_`
        partial = path.with_name(".checkpoint.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, RuntimeError) as error:  # torch raises its own on the way out, after the system's
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise InputError(
                f"{path} cannot be written ({reason.strerror}); what was there before is as it was; make room or "
                "correct the path, and run the same command with --ckpt_path last"
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt` of a run: after each validation or epoch, when it is stopped, and at its end.

    One file, replaced when the next one is whole: a run that was stopped goes on with `--ckpt_path last`.

    `Trainer.save_checkpoint` ends in a barrier. Where one of several processes fails, it would wait there for the
    others, which wait for it elsewhere, and its error would not be seen: the first process then saves without one, if
    Lightning, which ends all when one has ended, leaves it the time.

    Args:
        folder: of the run.
        start: checkpoint that this process goes on from.

    Raises:
        InputError: processes go on from different ones.
    """

    _begun = False  # before, what a run goes on from is not all there, and must not be saved

    def __init__(self, folder: str | Path, start: str | None = None) -> None:
        super().__init__(folder, "last", save_on_exception=True, enable_version_counter=False)
        self.start = start

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if len(starts := set(gathered(self.start))) > 1:  # some would go on, with their own moments, and some begin
            raise InputError(
                f"not every process sees the checkpoint to go on from ({' or '.join(map(str, starts))}); give a "
                "--trainer.default_root_dir that all nodes share"
            )
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not another that the user has chosen
            trainer.strategy.checkpoint_io = WholeCheckpointIO()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._begun = True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not self._begun or not self._should_save_on_exception(trainer):
            return
        try:
            if trainer.world_size == 1 or (isinstance(exception, Stopped) and exception.together):
                super().on_exception(trainer, pl_module, exception)
                if not trainer.is_global_zero:
                    time.sleep(5)  # as long as Lightning takes to kill the first process when another has ended
            elif trainer.is_global_zero and type(trainer.strategy) is DDPStrategy:  # others have a part in each process
                # private of Lightning 2.x, as is the check above: no other way to a checkpoint has no barrier
                checkpoint = trainer._checkpoint_connector.dump_checkpoint()
                trainer.strategy.save_checkpoint(checkpoint, Path(str(self.dirpath), "last.ckpt"))
            elif isinstance(exception, KeyboardInterrupt):
                # the first process ends the others when it has saved; it is killed when one of them ends
                time.sleep(60)
        except InputError as error:  # must not hide what ended the run, unless the same ended it
            if str(error) != str(exception):
                rank_zero_warn(str(error))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # the steps after the last validation would be lost otherwise
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt", weights_only=False)


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt` of a run: the state with the highest score, of those that were validated.

    The task names the score in its attribute `monitor`; without one, or where nothing is validated, there is no file.
    Comes before `LastCheckpoint`, in which the best score is to be found when the run goes on.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "best", mode="max", save_on_train_epoch_end=False, enable_version_counter=False)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.monitor = getattr(pl_module, "monitor", None)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)
