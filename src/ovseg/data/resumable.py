"""The datamodule whose training loader resumes in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ovseg.data.base import LabelsDataModule
from ovseg.data.loading import Item, ResumableLoader, process_count, train_loader
from ovseg.limits import check_at_least
from ovseg.structures import InputError


class ResumableDataModule(LabelsDataModule):
    """Store the position of the training loader in checkpoints, and restore it.

    Lightning restores the loader's own state only if it reads the checkpoint before it builds the loader. It builds the
    loader first when a task asks for `estimated_stepping_batches`, as every task with a schedule does.

    Args:
        total_batch_size: samples per optimizer step, summed over processes and accumulated batches, so that a step is
            the same on any number of devices.
        num_workers: processes that read the samples.

    Raises:
        InputError: `total_batch_size` is below 1, or `num_workers` is negative.
    """

    _loader: ResumableLoader | None = None
    _position: tuple[int, int] | None = None

    def __init__(self, total_batch_size: int, num_workers: int = 0) -> None:
        super().__init__()
        check_at_least(1, total_batch_size=total_batch_size)
        check_at_least(0, num_workers=num_workers)
        self.total_batch_size, self.num_workers = total_batch_size, num_workers

    def prepare_data(self) -> None:
        """Check the batch size before a log or checkpoint is written."""
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self.batch_size()

    @property
    def batches_per_step(self) -> int:
        """Batches that are accumulated for one optimizer step."""
        return 1 if self.trainer is None else self.trainer.accumulate_grad_batches

    def batch_size(self) -> int:
        """Return the samples per batch and process of this run, see `divide_batch`."""
        return self.divide_batch(
            process_count() if self.trainer is None else self.trainer.world_size, self.batches_per_step
        )

    def divide_batch(self, processes: int, batches_per_step: int) -> int:
        """Return the samples per batch and process.

        Args:
            processes: number of processes that train.
            batches_per_step: batches that are accumulated for one optimizer step.

        Raises:
            InputError: `total_batch_size` cannot be divided evenly.
        """
        parts = processes * batches_per_step
        if self.total_batch_size % parts:
            nearest = max(self.total_batch_size // parts, 1) * parts
            each = f" with {batches_per_step} batches each" if batches_per_step > 1 else ""
            raise InputError(
                f"a total_batch_size of {self.total_batch_size} cannot be divided among {processes} "
                f"process{'es' if processes > 1 else ''}{each}; give --data.total_batch_size {nearest}"
            )
        return self.total_batch_size // parts

    def resumable(
        self,
        dataset: Dataset[Item],
        seed: int,
        num_workers: int,
        collate: Callable[[list[Item]], Any],
        groups: Tensor | None = None,
    ) -> ResumableLoader:
        """Build the loader for `train_dataloader` at the checkpoint's position; see `train_loader`."""
        loader = train_loader(dataset, self.batch_size(), seed, num_workers, collate, groups, self.batches_per_step)
        loader.position, self._position, self._loader = self._position, None, loader
        return loader

    def val_dataloader(self) -> Any:
        """Return no loader; datamodules with validation data override this.

        Raises:
            InputError: the run only validates.
        """
        if self.trainer is not None and self.trainer.state.fn == "validate":
            raise InputError("there is nothing to validate on; give --data.val a benchmark, if this data takes one")
        return []

    def state_dict(self) -> dict[str, tuple[int, int] | None]:
        """Return the position of the training loader, under the key `place`."""
        position = self._loader.position if self._loader else None
        if position is not None and self.trainer is not None:  # a batch whose step failed has to be served again
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
            position = position[0], position[1] - (progress.ready - progress.processed)
        return {"place": position}

    def load_state_dict(self, state: dict[str, tuple[int, int] | None]) -> None:
        """Keep the position for the loader that `resumable` builds next."""
        self._position = state["place"]
