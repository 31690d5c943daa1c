"""Training loaders that shuffle by (seed, epoch) and resume inside an epoch.

The contract for a data set that is read through `train_loader`: it is map-style, and `dataset[key]` gets one integer
that names the epoch as well as the sample,

    epoch, index = divmod(key, len(dataset))

so that random augmentation can depend on (seed, epoch, index) and on nothing else: run it inside
`with seeded(seed, key):`. The same sample then looks the same whichever worker or process reads it, and whenever the
run was interrupted. Plain indices (Lightning's `overfit_batches`) are keys of epoch 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler

Item = TypeVar("Item")


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Torch's CPU generator follows from these non-negative integers inside the block and is put back after it."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: it would also reseed the accelerators, whose state nothing puts back
        torch.default_generator.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
        yield


class EpochSampler(DistributedSampler[int]):
    """This process's share of a permutation drawn from (seed, epoch), as keys, without the samples already served.

    Being a `DistributedSampler` keeps Lightning from wrapping it in one of its own, which would not pass the epoch on.
    """

    skipped = 0  # samples of this epoch that the next pass leaves out

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.skipped = 0
        super().set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        first_key = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        skipped, self.skipped = self.skipped, 0
        return (first_key + index for index in list(super().__iter__())[skipped:])


class ResumableLoader(DataLoader[Any]):
    """A `DataLoader` whose state is the epoch and the number of batches served in it.

    Lightning stores and restores it with every checkpoint. The state is the same in every process: resuming is exact
    with the same batch size, seed and number of processes.
    """

    epoch = 0
    served = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, because Lightning asks for the iterator before it tells the epoch: nothing runs until `next`.
        if isinstance(self.sampler, EpochSampler):
            self.epoch, self.served = self.sampler.epoch, self.sampler.skipped // self._batch
        for batch in super().__iter__():
            self.served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "served": self.served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.served = state["epoch"], state["served"]
        if isinstance(self.sampler, EpochSampler):
            self.sampler.set_epoch(self.epoch)
            self.sampler.skipped = self.served * self._batch

    @property
    def _batch(self) -> int:
        assert self.batch_size is not None  # only a batch_sampler would leave it out
        return self.batch_size


def train_loader(
    dataset: Dataset[Item], batch_size: int, seed: int, num_workers: int, collate: Callable[[list[Item]], Any]
) -> ResumableLoader:
    """A shuffled, sharded, resumable loader; see the module for what `dataset` is asked for.

    The last, smaller batch is dropped, unless there is no other.
    """
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    drop_last = len(dataset) >= batch_size * processes  # type: ignore[arg-type]
    return ResumableLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(dataset, num_replicas=processes, rank=rank, seed=seed, drop_last=drop_last),
        num_workers=num_workers,
        collate_fn=collate,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )
