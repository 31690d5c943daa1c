"""Write the checkpoints of a training run."""

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

from ovseg.callbacks.gather import gather_objects
from ovseg.stopping import Stopped
from ovseg.structures import InputError


class WholeCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint atomically: next to the one it replaces, then renamed.

    Lightning writes to the temporary folder and moves the file. Across file systems the move is a copy that overwrites
    the only checkpoint. Here the previous checkpoint stays until the new one is complete, so the disk needs space for
    both.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint.

        Raises:
            InputError: the disk is full, or the folder cannot be written; the previous checkpoint is unchanged.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        # one fixed name, so that killed processes leave at most one file; it avoids `ckpt_`, since Lightning reads
        # numbers from such names
        partial = path.with_name(".checkpoint.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, RuntimeError) as error:  # torch can raise a RuntimeError while it handles the OSError
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise InputError(
                f"{path} cannot be written ({reason.strerror}), and the previous checkpoint is unchanged; free disk "
                "space or correct the path, and rerun the same command with --ckpt_path last"
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


class LastCheckpoint(ModelCheckpoint):
    """Keep `last.ckpt`, the latest state of a run: after each validation or epoch, when it is stopped, and at its end.

    There is one file, which is replaced atomically. A stopped run resumes with `--ckpt_path last`.

    `Trainer.save_checkpoint` ends in a barrier. If one of several processes fails, it would wait there for the others,
    which wait for it elsewhere, and its error would stay hidden. In that case the first process saves without a
    barrier, provided that Lightning, which kills all processes when one has ended, leaves it enough time.

    Args:
        folder: the run folder.
        start: the checkpoint from which this process resumes.

    Raises:
        InputError: processes would resume from different checkpoints.
    """

    _started = False  # before training starts the restored state is incomplete and must not be saved

    def __init__(self, folder: str | Path, start: str | None = None) -> None:
        super().__init__(folder, "last", save_on_exception=True, enable_version_counter=False)
        self.start = start

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if len(starts := set(gather_objects(self.start))) > 1:  # some would resume, and others start from scratch
            raise InputError(
                f"not every process sees the checkpoint to resume from ({' or '.join(map(str, starts))}); give a "
                "--trainer.default_root_dir that all nodes share"
            )
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # unless the user chose another
            trainer.strategy.checkpoint_io = WholeCheckpointIO()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._started = True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not self._started or not self._should_save_on_exception(trainer):
            return
        try:
            if trainer.world_size == 1 or (isinstance(exception, Stopped) and exception.together):
                super().on_exception(trainer, pl_module, exception)
                if not trainer.is_global_zero:
                    time.sleep(5)  # Lightning kills the first process within this time after another has ended
            elif trainer.is_global_zero and type(trainer.strategy) is DDPStrategy:  # other strategies shard the state
                # private in Lightning 2.x, like the check above: every public way to save has a barrier
                checkpoint = trainer._checkpoint_connector.dump_checkpoint()
                trainer.strategy.save_checkpoint(checkpoint, Path(str(self.dirpath), "last.ckpt"))
            elif isinstance(exception, KeyboardInterrupt):
                # the first process ends the others once it has saved, and is killed if one of them ends earlier
                time.sleep(60)
        except InputError as error:  # only warn, so as not to hide the exception that ended the run
            if str(error) != str(exception):
                rank_zero_warn(str(error))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # otherwise the steps after the last validation would be lost
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt", weights_only=False)


class BestCheckpoint(ModelCheckpoint):
    """Keep `best.ckpt`, the validated state with the highest score.

    The task names the score in its attribute `monitor`. Without it, or without validation, no file is written. This
    callback has to precede `LastCheckpoint`, which stores the best score for a resumed run.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "best", mode="max", save_on_train_epoch_end=False, enable_version_counter=False)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.monitor = getattr(pl_module, "monitor", None)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)
