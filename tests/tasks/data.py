"""Datamodules that return fixed batches, to test a task alone with the real Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from ovseg.structures import Vocabulary


class Batches(L.LightningDataModule):
    """The same batches for every loop.

    Args:
        batches: one epoch.
        vocabulary: of the labels.
        texts: that `text_ids` count, for several processes.
    """

    def __init__(self, batches: Sequence[Any], vocabulary: Vocabulary | None = None, texts: Sequence[str] = ()) -> None:
        super().__init__()
        self.batches, self.vocabulary, self.texts = batches, vocabulary, texts
        self.told: dict[str, Any] = {}

    def configure(self, **told: Any) -> None:
        self.told = told

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(self.batches, batch_size=None, collate_fn=_as_it_is)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


def _as_it_is(batch: Any) -> Any:
    return batch


class Losses(L.Callback):
    """The training loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


def trainer(steps: int = 0, *callbacks: L.Callback) -> L.Trainer:
    """For so many steps of training without validation, or for the other loops."""
    return L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0 if steps else None,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
