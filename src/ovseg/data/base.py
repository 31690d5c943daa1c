"""What datamodules share: labels in small integer types, and evaluation loaders that read each image exactly once."""

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
    """Transfers labels to the device as small integers and converts them to int64, which torch needs for indexing."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert the labels of a batch on the device to int64."""
        if isinstance(batch, EvalBatch):
            return batch._replace(labels=[labels.long() for labels in batch.labels])
        if isinstance(batch, SegmentationBatch):
            regions = None if batch.regions is None else batch.regions.long()
            return batch._replace(labels=batch.labels.long(), regions=regions)
        return batch


class ShardSampler(DistributedSampler[int]):
    """Assigns every sample to exactly one process: rank r takes r, r + world, …

    Torch's own sampler repeats samples until all processes have the same number, so a metric would count some twice.
    This one is a `DistributedSampler` because Lightning would replace any other.
    """

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


def eval_loader(dataset: Dataset[EvalBatch], num_workers: int, may_idle: bool = False) -> DataLoader[EvalBatch]:
    """Make a loader with one image per batch, in order, sharded over the processes without padding.

    Args:
        dataset: the images, as batches of one.
        num_workers: processes that read images.
        may_idle: whether a process may have no images. Metrics are reduced over all processes and need at least one
            image in each.

    Raises:
        InputError: there are fewer images than processes, and no process may idle.
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
        collate_fn=_single,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=outlive_signals,
    )


def _single(batches: list[EvalBatch]) -> EvalBatch:
    return batches[0]
