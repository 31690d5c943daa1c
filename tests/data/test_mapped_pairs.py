"""Tests of the memory-mapped copy: all processes of a machine share it at any size, and selections do not copy it."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ovseg.data.pairs import Pairs, PairStore, mapped, read_pairs, write_pairs
from ovseg.data.pairs.mapped import MAPPED_SCHEMA, open_mapped
from ovseg.data.pairs.table import SCHEMA, to_table
from ovseg.structures import InputError
from tests.data.test_pairs import NO_FAULTS, files_of_at_most, pair

GIB = 2**30


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pairs"


@pytest.fixture
def read_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every folder but the cache read-only."""
    write = mapped._write

    def refuse(path: Path, tables: Iterable[pa.Table]) -> None:
        if path.parent != cache:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        write(path, tables)

    monkeypatch.setattr(mapped, "_write", refuse)


def table_of_run_lengths(folder: Path, kind: pa.DataType, sizes: list[int]) -> pa.Table:
    """Return pairs with run lengths of these sizes: zeros in a sparse mapped file, followed by `end`."""
    sparse = folder / "sparse"
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    with sparse.open("wb") as file:
        for end in ends:
            file.seek(end - 3)
            file.write(b"end")
    offsets = pa.array([0, *ends], pa.int64() if pa.types.is_large_binary(kind) else pa.int32()).buffers()[1]
    data = pa.memory_map(str(sparse)).read_buffer()
    counts = pa.Array.from_buffers(kind, len(sizes), [None, offsets, data])
    table = to_table([pair(index, noun=f"noun{index}") for index in range(len(sizes))])
    return table.set_column(table.column_names.index("counts"), pa.field("counts", kind), counts)


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary()], ids=["mapped", "shards"])
def test_run_lengths_can_exceed_two_gib(tmp_path: Path, kind: pa.DataType) -> None:
    if pa.types.is_large_binary(kind):  # one chunk with offsets beyond 32 bits
        table = table_of_run_lengths(tmp_path, kind, [3, 2 * GIB, 7, GIB, 9])
    else:  # like the shards of a store, each below 2 GiB
        part = table_of_run_lengths(tmp_path, kind, [3, GIB + 5, 7])
        table = pa.concat_tables([part, part.slice(0, 2), part.slice(2)])
    pairs, before = Pairs(table, {}), pa.total_allocated_bytes()
    last = len(pairs) - 1
    for selection in (pairs, pairs.take(np.array([2, last])), pairs.filter(0.2, 9), pairs[2:]):
        assert selection[-1].noun == pairs[last].noun
        assert selection[-1].counts == bytes(len(selection[-1].counts) - 3) + b"end"
    assert (len(pairs[2].counts), len(pairs[last].counts)) == (7, 9 if kind == pa.large_binary() else 7)
    assert pairs.filter(max_per_noun=1)[2].counts == pairs[2].counts == b"\0\0\0\0end"
    assert pairs.image_indices().tolist()[:3] == [0, 0, 1]
    assert pa.total_allocated_bytes() - before < 2**20


def test_the_copy_has_large_offsets_and_shards_have_small_ones(tmp_path: Path) -> None:
    write_pairs(tmp_path, [pair(index) for index in range(3)])
    read_pairs(tmp_path)
    (copy,) = tmp_path.glob("pairs.*.arrow")
    assert open_mapped(copy).schema.equals(MAPPED_SCHEMA) and MAPPED_SCHEMA.field("counts").type == pa.large_binary()
    assert SCHEMA.field("counts").type == pa.binary()  # older versions can read the shards of this one


def test_the_copy_is_written_once_and_again_when_a_shard_changes(tmp_path: Path) -> None:
    store = PairStore(tmp_path, {})
    store.begin(2)
    store.write(0, [pair(0), pair(1)], NO_FAULTS)
    store.write(1, [pair(2)], NO_FAULTS)
    assert list(read_pairs(tmp_path)) == [pair(0), pair(1), pair(2)]
    (copy,) = tmp_path.glob("*.arrow")
    made = copy.stat()
    assert list(read_pairs(tmp_path)) == [pair(0), pair(1), pair(2)]
    assert copy.stat() == made
    store.write(1, [pair(5)], NO_FAULTS)
    assert list(read_pairs(tmp_path)) == [pair(0), pair(1), pair(5)]
    (new_copy,) = tmp_path.glob("*.arrow")  # the outdated copy is deleted
    assert new_copy != copy
    assert not list(tmp_path.glob(".*"))


def test_a_new_copy_deletes_only_outdated_copies_of_its_own_source(tmp_path: Path) -> None:
    tables = [tmp_path / name for name in ("some.csv", "some.tsv", "some.csv.more")]
    for table in tables:
        table.write_text("filepath\ttitle\na.png\tdog\n", encoding="utf-8")
        read_pairs(table)
    copies = set(tmp_path.glob("*.arrow"))
    assert len(copies) == 3
    unrelated = tmp_path / "some.csv.mine.arrow"
    unrelated.touch()
    tables[0].write_text("filepath\ttitle\na.png\ta dog\n", encoding="utf-8")
    assert read_pairs(tables[0])[0].noun == "a dog"
    remaining = set(tmp_path.glob("*.arrow"))
    assert unrelated in remaining and len(copies & remaining) == 2 and len(remaining) == 4


def test_partial_copies_of_killed_processes_are_deleted_from_the_cache(
    tmp_path: Path, cache: Path, read_only: None
) -> None:
    cache.mkdir(parents=True)
    old, recent = (cache / f".pairs.0123456789abcdef.arrow.host.{pid}.tmp" for pid in (1, 2))
    for file in (old, recent):
        file.touch()
    os.utime(old, (0, 0))
    write_pairs(tmp_path / "pairs", [pair(0)])
    read_pairs(tmp_path / "pairs")
    assert not old.exists() and recent.exists() and len(list(cache.glob("*.arrow"))) == 1


def test_read_only_stores_with_equal_names_sizes_and_times_have_different_copies(
    tmp_path: Path, read_only: None
) -> None:
    for noun in ("cat", "dog"):
        table = tmp_path / noun / "pairs.csv"
        table.parent.mkdir()
        table.write_text(f"filepath\ttitle\na.png\t{noun}\n", encoding="utf-8")
        os.utime(table, (0, 0))
        assert read_pairs(table)[0].noun == noun


def test_an_existing_copy_is_not_replaced_while_processes_have_it_mapped(tmp_path: Path) -> None:
    write_pairs(tmp_path, [pair(0)])
    pairs = read_pairs(tmp_path)
    (copy,) = tmp_path.glob("*.arrow")
    made = copy.stat()
    mapped._write(copy, [to_table([pair(0)])])  # like another machine that started before this one finished
    assert copy.stat().st_ino == made.st_ino and list(pairs) == [pair(0)]
    assert not list(tmp_path.glob(".*"))


@contextmanager
def without_privileges() -> Iterator[None]:
    """Run as an unprivileged user, because root can write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_read_only_store_is_copied_to_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(tempfile.mkdtemp())  # other users cannot enter pytest's own folders
    try:
        write_pairs(folder / "pairs", [pair(0), pair(1)])
        (folder / "cache").mkdir()
        for path, mode in ((folder, 0o755), (folder / "cache", 0o777), (folder / "pairs", 0o555)):
            path.chmod(mode)
        monkeypatch.setenv("OVSEG_CACHE", str(folder / "cache"))
        with without_privileges():
            assert list(read_pairs(folder / "pairs")) == [pair(0), pair(1)]
        assert not list((folder / "pairs").glob("*.arrow"))
        (copy,) = (folder / "cache" / "pairs").iterdir()
        made = copy.stat()
        assert list(read_pairs(folder / "pairs")) == [pair(0), pair(1)]
        assert copy.stat().st_mtime_ns == made.st_mtime_ns
    finally:
        (folder / "pairs").chmod(0o755)
        shutil.rmtree(folder)


def test_a_full_disk_leaves_no_partial_copy(tmp_path: Path, cache: Path) -> None:
    write_pairs(tmp_path / "pairs", [pair(index) for index in range(100)])
    with files_of_at_most(1000), pytest.raises(InputError) as refused:
        read_pairs(tmp_path / "pairs")
    faults = f"({tmp_path}/pairs: File too large; {cache}: File too large)"
    assert f"{faults}; free disk space there, or set OVSEG_CACHE" in str(refused.value)
    remaining = [path.name for folder in (tmp_path / "pairs", cache) for path in folder.iterdir()]
    assert sorted(remaining) == ["pairs-00000.parquet", "store.json"]


def test_a_damaged_copy_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path, [pair(index) for index in range(100)])
    read_pairs(tmp_path)
    (copy,) = tmp_path.glob("*.arrow")
    intact = copy.read_bytes()
    offsets = np.cumsum([0, *(len(pair(index).counts) for index in range(100))])
    bad_offset = intact.replace(offsets.tobytes(), np.append(offsets[:-1], 2**40).tobytes())
    bad_text = intact.replace(b"train/0.jpg", b"train/\xff.jpg", 1)
    for content in (intact[: len(intact) // 2], b"", bad_offset, bad_text):
        assert content != intact
        copy.write_bytes(content)
        with pytest.raises(InputError, match=rf"{copy.name} is damaged \(.*\); delete it and rerun the same command"):
            read_pairs(tmp_path)
    copy.unlink()
    assert len(read_pairs(tmp_path)) == 100


def test_pairs_are_pickled_as_a_path(tmp_path: Path) -> None:
    write_pairs(tmp_path, [pair(index, noun=f"noun{index % 7}") for index in range(5000)])
    all_pairs = read_pairs(tmp_path)
    for pairs in (all_pairs, all_pairs.filter(max_per_noun=3)):
        pickled, before = pickle.dumps(pairs), pa.total_allocated_bytes()
        unpickled = pickle.loads(pickled)
        assert len(pickled) < 2000
        assert list(unpickled[:5]) == list(pairs[:5]) and unpickled[len(pairs) - 1] == pairs[-1]
        assert unpickled.column("noun").to_pylist()[-3:] == pairs.column("noun").to_pylist()[-3:]
        assert pa.total_allocated_bytes() - before < 2**16  # mapped, not read


def test_selections_do_not_copy_the_pairs(tmp_path: Path) -> None:
    write_pairs(tmp_path, [pair(index, similarity=index / 5000) for index in range(5000)])
    pairs, before = read_pairs(tmp_path), pa.total_allocated_bytes()
    assert pairs.filter() is pairs
    half = pairs.filter(0.5)
    assert [half[index].caption_id for index in (0, 2499)] == [pairs[index].caption_id for index in (2500, 4999)]
    assert list(half[5:7]) == list(pairs[2505:2507]) and len(half.filter(0.6)) == 2000
    assert pa.total_allocated_bytes() - before < 2**16
