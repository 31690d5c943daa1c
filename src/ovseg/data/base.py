"""What datamodules share: labels that travel small, and loaders for evaluation, which read each image once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningDataModule
from torch import distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ovseg.stopping import outlive_signals
from ovseg.structures import EvalBatch, InputError, SegmentationBatch


class LabelsDataModule(LightningDataModule):
    """Sends labels to the device as the small integers that they are read as; torch indexes with int64 there."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """The batch, now on the device, with labels in int64."""
        if isinstance(batch, EvalBatch):
            return batch._replace(labels=[labels.long() for labels in batch.labels])
        if isinstance(batch, SegmentationBatch):
            regions = None if batch.regions is None else batch.regions.long()
            return batch._replace(labels=batch.labels.long(), regions=regions)
        return batch


class ShardSampler(DistributedSampler[int]):
    """Every sample in exactly one process: rank r takes r, r + world, …

    Torch's own sampler repeats samples until all processes have equally many, and a metric would count them twice.
    Being a `DistributedSampler` keeps Lightning from replacing it.
    """

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


def eval_loader(dataset: Dataset[EvalBatch], num_workers: int, may_idle: bool = False) -> DataLoader[EvalBatch]:
    """A loader of one image a batch, in order, sharded over the processes without padding.

    Args:
        dataset: the images.
        num_workers: that read them.
        may_idle: whether a process may have no image; one that should help to sum up a metric may not.

    Raises:
        InputError: there are fewer images than processes.
    """
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    if not may_idle and (images := len(dataset)) < processes:  # type: ignore[arg-type]
        raise InputError(f"{images} images are too few for {processes} processes; give --trainer.devices {images}")
    return DataLoader(
        dataset,
        batch_size=1,
        sampler=ShardSampler(dataset, num_replicas=processes, rank=rank, shuffle=False),
        num_workers=num_workers,
        collate_fn=_only,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=outlive_signals,
    )


def _only(batches: list[EvalBatch]) -> EvalBatch:
    return batches[0]
