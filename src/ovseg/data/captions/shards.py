"""A fixed division of the images into shards and batches, so that mining can resume and processes can share it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DistributedSampler


class Shards(NamedTuple):
    """Assigns images to batches and batches to shards, from three counts alone."""

    images: int
    shard_images: int
    batch_size: int

    def __len__(self) -> int:
        """Return the number of shards."""
        return -(-self.images // self.shard_images)

    def batches(self, shard: int) -> list[range]:
        """Return the image indices of each batch of a shard."""
        first, last = shard * self.shard_images, min((shard + 1) * self.shard_images, self.images)
        return [range(start, min(start + self.batch_size, last)) for start in range(first, last, self.batch_size)]


class Batch(NamedTuple):
    """The key of one batch."""

    images: range  # indices of the images
    shard: int
    ends_shard: bool


class ShardBatches(DistributedSampler[Any]):
    """Yield the batches of this process's shards, shard by shard; process `rank` takes every `world`-th pending shard.

    As a subclass of `DistributedSampler` it is not replaced by Lightning.
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
