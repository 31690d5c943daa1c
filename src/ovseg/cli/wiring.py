"""The loggers and callbacks that each verb adds to the Trainer."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ovseg.callbacks import BestCheckpoint, LastCheckpoint, ReportWriter, StepSeed, StopAfterStep


def add_loggers(trainer: MutableMapping[str, Any], folder: Path, enabled: bool) -> None:
    """Log as CSV and for TensorBoard, unless the user configured loggers or the verb logs nothing.

    Args:
        trainer: arguments of the Trainer; changed in place.
        folder: the run folder.
        enabled: whether the verb logs.
    """
    if trainer["logger"] is None:
        trainer["logger"] = [CSVLogger(folder, "csv"), TensorBoardLogger(folder, "tensorboard")] if enabled else False


def add_callbacks(
    trainer: MutableMapping[str, Any], verb: str, folder: Path, ckpt_path: str | None, command: str
) -> None:
    """Add the verb's callbacks to those of the user.

    Args:
        trainer: arguments of the Trainer; changed in place.
        verb: the verb that runs.
        folder: the run folder.
        ckpt_path: checkpoint that the run starts from.
        command: the command line, for the report.
    """
    configured = trainer["callbacks"] or []
    callbacks = trainer["callbacks"] = [configured] if isinstance(configured, Callback) else list(configured)
    if verb == "fit":
        if trainer["enable_checkpointing"] is not False:
            has_last = any(isinstance(callback, LastCheckpoint) for callback in callbacks)
            callbacks[:0] = [BestCheckpoint(folder)]
            callbacks += [] if has_last else [LastCheckpoint(folder, ckpt_path)]
        callbacks.append(StepSeed())
        if trainer["logger"]:
            callbacks.append(LearningRateMonitor("step"))
    callbacks.append(StopAfterStep())
    if verb == "test":
        callbacks.append(ReportWriter(folder, command))
