"""Training loaders that shuffle by (seed, epoch) and resume in the middle of an epoch.

`train_loader` takes a map-style data set and calls `dataset[key]` with one integer that encodes both the epoch and the
sample:

    epoch, index = divmod(key, len(dataset))

Random augmentation must depend on (seed, epoch, index) and nothing else: wrap it in `with seeded(seed, key):`. A sample
then looks the same in every worker and process, and after every resume. Plain indices, which Lightning's
`overfit_batches` passes, are keys of epoch 0.

Workers import this module, so it does not import Lightning.
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

from ovseg.stopping import outlive_signals

Item = TypeVar("Item")


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed torch's CPU generator from non-negative integers inside the block, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: it also reseeds the accelerators, whose state would not be restored
        torch.default_generator.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
        yield


def run_seed(seed: int | None) -> int:
    """Return `seed` if given, else the run's (`--seed_everything`), which Lightning's samplers use as well, else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed


def process_count() -> int:
    """Return the number of distributed processes, 1 without a process group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def no_collate(batch: Any) -> Any:
    """Return `batch` unchanged: the `collate_fn` of data sets that return whole batches."""
    return batch


class EpochSampler(DistributedSampler[int]):
    """Yield this process's share of a permutation drawn from (seed, epoch), as keys, minus the first `skipped`.

    As a subclass of `DistributedSampler` it is not wrapped by Lightning, whose wrapper would not pass on the epoch.
    """

    skipped = 0

    def __iter__(self) -> Iterator[int]:
        first_key = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        return (first_key + index for index in self._order()[self.skipped :])

    def _order(self) -> list[int]:
        return list(super().__iter__())


class GroupSampler(EpochSampler):
    """Shuffle groups of samples and keep the samples of a group next to each other.

    The order is cut into batches that span all processes, and each batch into one piece per process. Only the edge of
    a piece can split a group.

    Args:
        groups: (N,) int64, the group of each sample, counted from 0.
        batch_size: samples per batch and process.
        options: arguments of `DistributedSampler`.
    """

    def __init__(self, dataset: Dataset[Any], groups: Tensor, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.groups, self.batch_size = groups, batch_size

    def _order(self) -> list[int]:
        with seeded(self.seed, self.epoch):
            rank_of_group = torch.randperm(int(self.groups.max()) + 1)
        order = rank_of_group[self.groups].argsort(stable=True)
        order = order.repeat(-(-self.total_size // len(order)))[: self.total_size]  # pads the only, short batch
        batches = torch.split(order, self.batch_size * self.num_replicas)  # the last may be smaller
        own: list[int] = torch.cat([batch.view(self.num_replicas, -1)[self.rank] for batch in batches]).tolist()
        return own


class ResumableLoader(DataLoader[Any]):
    """A `DataLoader` that tracks its position (the epoch and the batches served in it) and resumes there.

    Each pass starts where the previous one stopped: in the next epoch after a complete pass, else in the middle of the
    same epoch. Lightning stores the position in every checkpoint. Lightning's own epoch count is used only by a new
    loader, because that count runs ahead when a `max_steps` run resumes from a checkpoint at the end of an epoch.

    Resuming is exact on any number of processes, given the same total batch size, accumulation and seed. The exception
    is a run limited by `max_epochs` whose epochs `limit_train_batches` cuts short: at the end of an epoch Lightning
    restores no position there.
    """

    position: tuple[int, int] | None = None  # epoch, batches served; None before the first pass

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, because Lightning asks for the iterator before it sets the epoch; nothing runs until `next`.
        sampler = self.sampler
        if not isinstance(sampler, EpochSampler):  # `overfit_batches` substitutes a plain sampler
            yield from super().__iter__()
            return
        epoch, served = self.position or (sampler.epoch, 0)
        if served >= len(self):
            epoch, served = epoch + 1, 0
        sampler.set_epoch(epoch)
        sampler.skipped = served * (self.batch_size or 1)
        for batch in super().__iter__():
            served += 1
            self.position = epoch, served
            yield batch

    def state_dict(self) -> dict[str, tuple[int, int] | None]:
        """Return the position, under the key `place`."""
        return {"place": self.position}

    def load_state_dict(self, state: dict[str, tuple[int, int] | None]) -> None:
        """Restore the position that `state_dict` returned."""
        self.position = state["place"]


def train_loader(
    dataset: Dataset[Item],
    batch_size: int,
    seed: int,
    num_workers: int,
    collate: Callable[[list[Item]], Any],
    groups: Tensor | None = None,
    batches_per_step: int = 1,
) -> ResumableLoader:
    """Build a shuffled, sharded, resumable loader; the module docstring says what `dataset` must provide.

    Each optimizer step gets the same samples whatever the number of processes and of batches per step. The last,
    smaller step of an epoch is dropped unless it is the only one.

    Args:
        batch_size: samples per batch and process.
        groups: (N,) int64; samples with the same number stay together, see `GroupSampler`.
        batches_per_step: batches accumulated for one optimizer step.
    """
    processes, step = process_count(), batch_size * process_count() * batches_per_step
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
