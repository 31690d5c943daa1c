"""Training loaders that shuffle by (seed, epoch) and resume inside an epoch.

The contract for a data set that is read through `train_loader`: it is map-style, and `dataset[key]` gets one integer
that names the epoch as well as the sample,

    epoch, index = divmod(key, len(dataset))

so that random augmentation can depend on (seed, epoch, index) and on nothing else: run it inside
`with seeded(seed, key):`. The same sample then looks the same whichever worker or process reads it, and whenever the
run was interrupted. Plain indices (Lightning's `overfit_batches`) are keys of epoch 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ovseg.data.base import LabelsDataModule
from ovseg.stopping import outlive_signals
from ovseg.structures import InputError

Item = TypeVar("Item")


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Torch's CPU generator follows from these non-negative integers inside the block and is put back after it."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: it would also reseed the accelerators, whose state nothing puts back
        torch.default_generator.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
        yield


class EpochSampler(DistributedSampler[int]):
    """This process's share of a permutation drawn from (seed, epoch), as keys, without the first `skipped` of it.

    Being a `DistributedSampler` keeps Lightning from wrapping it in one of its own, which would not pass the epoch on.
    """

    skipped = 0

    def __iter__(self) -> Iterator[int]:
        first_key = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        return (first_key + index for index in self._order()[self.skipped :])

    def _order(self) -> list[int]:
        return list(super().__iter__())


class GroupSampler(EpochSampler):
    """The same with the samples of a group side by side: the groups are shuffled, not what is in them.

    The whole is cut into the batches of all processes, and of each batch every process has one piece, so that a group
    is divided by the edge of a piece only.

    Args:
        groups: (N,) int64, the group of each sample, from 0.
        batch_size: samples a batch and process.
        options: those of a `DistributedSampler`.
    """

    def __init__(self, dataset: Dataset[Any], groups: Tensor, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.groups, self.batch_size = groups, batch_size

    def _order(self) -> list[int]:
        with seeded(self.seed, self.epoch):
            place = torch.randperm(int(self.groups.max()) + 1)
        order = place[self.groups].argsort(stable=True)
        order = order.repeat(-(-self.total_size // len(order)))[: self.total_size]  # even, where nothing is dropped
        batches = torch.split(order, self.batch_size * self.num_replicas)  # the last may be smaller
        chosen: list[int] = torch.cat([batch.view(self.num_replicas, -1)[self.rank] for batch in batches]).tolist()
        return chosen


class ResumableLoader(DataLoader[Any]):
    """A `DataLoader` that knows its place, an epoch and the batches served in it, and goes on from there.

    Each pass starts where the one before stopped: in the next epoch if that one was complete, in the middle if it was
    not. The place is in every checkpoint of Lightning's. It is kept here, and Lightning's count of epochs only starts a
    new loader, because that count runs ahead in a `max_steps` run resumed from a checkpoint at an epoch's end.

    Resuming is exact with the same total batch size, accumulation and seed, on any number of processes; not so where
    `limit_train_batches` cuts epochs short in a run limited by `max_epochs`, for which Lightning restores no place at
    an epoch's end.
    """

    place: tuple[int, int] | None = None  # epoch, batches served; None before the first pass

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, because Lightning asks for the iterator before it tells the epoch: nothing runs until `next`.
        sampler = self.sampler
        if not isinstance(sampler, EpochSampler):  # `overfit_batches` puts in a plain one
            yield from super().__iter__()
            return
        epoch, served = self.place or (sampler.epoch, 0)
        if served >= len(self):
            epoch, served = epoch + 1, 0
        sampler.set_epoch(epoch)
        sampler.skipped = served * (self.batch_size or 1)
        for batch in super().__iter__():
            served += 1
            self.place = epoch, served
            yield batch

    def state_dict(self) -> dict[str, tuple[int, int] | None]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, tuple[int, int] | None]) -> None:
        self.place = state["place"]


class ResumableDataModule(LabelsDataModule):
    """Has the place of its training loader in checkpoints.

    Lightning restores the place that a loader keeps itself only if it has not built the loader before it reads the
    checkpoint; it has where a task asks for `estimated_stepping_batches`, as all with a schedule do.

    Args:
        total_batch_size: samples of a step, in all processes and in all batches that are accumulated for it, so that a
            step is the same on any number of devices.

    Raises:
        InputError: `total_batch_size` is below 1.
    """

    _loader: ResumableLoader | None = None
    _place: tuple[int, int] | None = None

    def __init__(self, total_batch_size: int) -> None:
        super().__init__()
        if total_batch_size < 1:
            raise InputError(f"data.total_batch_size is {total_batch_size}; give at least 1")
        self.total_batch_size = total_batch_size

    def prepare_data(self) -> None:
        """Find what is wrong before a log or checkpoint is written."""
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self.batch_size()

    @property
    def accumulated(self) -> int:
        """Batches of a step."""
        return 1 if self.trainer is None else self.trainer.accumulate_grad_batches

    def batch_size(self) -> int:
        """Samples of a batch in each process.

        Raises:
            InputError: they would not all have equally many.
        """
        processes = _processes() if self.trainer is None else self.trainer.world_size
        parts = processes * self.accumulated
        if self.total_batch_size % parts:
            nearest = max(self.total_batch_size // parts, 1) * parts
            each = f" with {self.accumulated} batches each" if self.accumulated > 1 else ""
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
        """The loader to return from `train_dataloader`, put where the checkpoint was; see `train_loader`."""
        loader = train_loader(dataset, self.batch_size(), seed, num_workers, collate, groups, self.accumulated)
        loader.place, self._place, self._loader = self._place, None, loader
        return loader

    def val_dataloader(self) -> Any:
        """Nothing to validate on, where there is no other.

        Raises:
            InputError: that is all that was to be done.
        """
        if self.trainer is not None and self.trainer.state.fn == "validate":
            raise InputError("there is nothing to validate on; give --data.val a benchmark, if this data takes one")
        return []

    def state_dict(self) -> dict[str, tuple[int, int] | None]:
        place = self._loader.place if self._loader else None
        if place is not None and self.trainer is not None:  # a batch whose step has failed is to be served again
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
            place = place[0], place[1] - (progress.ready - progress.processed)
        return {"place": place}

    def load_state_dict(self, state: dict[str, tuple[int, int] | None]) -> None:
        self._place = state["place"]


def run_seed(seed: int | None) -> int:
    """The seed given, or that of the run (`--seed_everything`), by which Lightning's own samplers go, too; else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed


def train_loader(
    dataset: Dataset[Item],
    batch_size: int,
    seed: int,
    num_workers: int,
    collate: Callable[[list[Item]], Any],
    groups: Tensor | None = None,
    accumulated: int = 1,
) -> ResumableLoader:
    """A shuffled, sharded, resumable loader; see the module for what `dataset` is asked for.

    Step by step it serves the same samples whatever the number of processes and of batches in a step. The last, smaller
    step of an epoch is dropped, unless there is no other.

    Args:
        batch_size: samples of a batch in each process.
        groups: (N,) int64; where given, samples of the same number stay together, see `GroupSampler`.
        accumulated: batches of a step.
    """
    processes, step = _processes(), batch_size * _processes() * accumulated
    whole = len(dataset) // step * step  # type: ignore[arg-type]
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    options: dict[str, Any] = {"num_replicas": processes, "rank": rank, "seed": seed, "drop_last": whole > 0}
    sampler = (
        EpochSampler(dataset, **options) if groups is None else GroupSampler(dataset, groups, batch_size, **options)
    )
    if whole:
        sampler.num_samples, sampler.total_size = whole // processes, whole
    return ResumableLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        drop_last=whole > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=outlive_signals,
        persistent_workers=num_workers > 0,
    )


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1
