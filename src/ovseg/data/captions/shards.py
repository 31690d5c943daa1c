"""Images in fixed batches, batches in fixed shards: why a long run may be stopped, and shared by processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DistributedSampler


class Shards(NamedTuple):
    """Which images are in which batch of which shard; it follows from these numbers alone."""

    images: int
    shard_images: int
    batch_size: int

    def __len__(self) -> int:
        """How many shards there are."""
        return -(-self.images // self.shard_images)

    def batches(self, shard: int) -> list[range]:
        """The indices of the images of each batch of a shard."""
        first, last = shard * self.shard_images, min((shard + 1) * self.shard_images, self.images)
        return [range(start, min(start + self.batch_size, last)) for start in range(first, last, self.batch_size)]


class Batch(NamedTuple):
    """A key of a data set whose samples are batches."""

    images: range
    shard: int
    ends_shard: bool


class ShardBatches(DistributedSampler[Any]):
    """The batches of this process's shards, one shard after the other: of `rank` every `world`-th of the pending ones.

    Being a `DistributedSampler` keeps Lightning from replacing it.
    """

    def __init__(self, shards: Shards, pending: Sequence[int], rank: int, world: int) -> None:
        super().__init__(range(shards.images), num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.batches = [
            Batch(images, shard, images.stop == batches[-1].stop)
            for shard in pending[rank::world]
            for batches in [shards.batches(shard)]
            for images in batches
        ]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
