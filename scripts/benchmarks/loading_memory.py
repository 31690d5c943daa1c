"""Measure the memory of the processes that read region-text pairs."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.loading import region
from benchmarks.report import peak_rss, seconds
from ovseg.data.loading import train_loader
from ovseg.data.pairs import Pairs, PairStore, ShardLog, read_pairs
from ovseg.data.pairs.region_transform import RegionTransform
from ovseg.data.pairs.regions import RegionTexts

SHARD_PAIRS = 20_000


def loading_memory(
    pairs: int = 1_300_000, workers: tuple[int, ...] = (1, 4), read: int = 200_000, start: str = "fork"
) -> None:
    """Measure the memory of this process and its workers after reading many pairs, mapped and as one table in memory.

    Images are not read. *Own* is the memory that a process does not share; *in all* counts shared memory once.

    Args:
        pairs: size of the store; each pair has the run lengths of a 480 x 640 mask.
        workers: numbers of workers, one line each.
        read: total number of pairs to read before memory is measured.
        start: start method of workers: `fork`, or `forkserver` as in Python 3.14.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        size = write_many(store, pairs)
        print(f"{pairs:,} pairs, {size} bytes of run lengths each; MiB; workers started by {start}\n")
        print(f"{'':22}  {'workers':>7}  {'this, own':>9}  {'peak':>6}  {'a worker, own':>13}  {'in all':>6}  seconds")
        spawn = multiprocessing.get_context("spawn")  # a fresh process for each line
        spawn.Process(target=read_pairs, args=(store,)).start()
        for child in multiprocessing.active_children():
            child.join()
        for name, open_pairs in (("before: in memory", read_whole), ("mapped", read_pairs)):
            for number in workers:
                line = spawn.Process(target=measure, args=(name, open_pairs, store, number, read, start))
                line.start()
                line.join()


def measure(name: str, open_pairs: Callable[[Path], Pairs], store: Path, workers: int, read: int, start: str) -> None:
    """Print a line of `loading_memory`."""
    opened: list[Pairs] = []
    opening = seconds(lambda: opened.append(open_pairs(store)))
    dataset = OnlyPairs(opened[0], store, RegionTransform(32), 0)
    loader = train_loader(dataset, 64, 0, workers, sum, dataset.pairs.image_indices())  # type: ignore[arg-type]
    loader.multiprocessing_context = start
    batches = iter(loader)
    for _ in range(read // 64):
        next(batches)
    own, shared = zip(*(memory(process.pid) for process in multiprocessing.active_children()), strict=True)
    mine, part = memory(os.getpid())
    print(
        f"{name:22}  {workers:7}  {mine:9.0f}  {peak_rss() / 2**20:6.0f}  {sum(own) / len(own):13.0f}  "
        f"{part + sum(shared):6.0f}  {opening:7.1f}",
        flush=True,
    )


class OnlyPairs(RegionTexts):
    """Read the pairs and return the lengths of their run lengths."""

    def __getitems__(self, keys: list[int]) -> list[Any]:
        return [len(self.pairs[key % len(self)].counts) for key in keys]


def read_whole(store: Path) -> Pairs:
    """Read all pairs as one table and copy it, as the code did before."""
    table = pa.concat_tables(pq.read_table(shard) for shard in sorted(store.glob("*.parquet"))).combine_chunks()
    table = table.take(pa.array(range(table.num_rows)))
    pa.default_memory_pool().release_unused()
    return Pairs(table, {})


def write_many(folder: Path, pairs: int) -> int:
    """Write a store of one shard under many names; return the mean length of run lengths."""
    generator = torch.Generator().manual_seed(0)
    masks = [region(generator, 0, "", "") for _ in range(200)]
    shard = [
        masks[index % 200]._replace(
            image_id=index // 11, file_name=f"{index // 11:012d}.jpg", noun=f"noun {index % 997}"
        )
        for index in range(SHARD_PAIRS)
    ]
    store = PairStore(folder, {})
    shards = pairs // SHARD_PAIRS
    store.begin(shards)
    store.write(0, shard, ShardLog(SHARD_PAIRS // 11, []))
    first = folder / "pairs-00000.parquet"
    for number in range(1, shards):
        os.link(first, folder / f"pairs-{number:05d}.parquet")
    return sum(len(mask.counts) for mask in masks) // len(masks)


def memory(pid: int | None) -> tuple[float, float]:
    """Return a process's private memory and its share of shared memory, both in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
    return (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) / 1024, kilobytes["Pss"] / 1024
