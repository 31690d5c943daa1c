"""Reads a store of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ovseg.data.pairs.mapped import map_tables, open_mapped
from ovseg.data.pairs.released import read_released
from ovseg.data.pairs.store import ROW_GROUP_PAIRS, SCHEMA_VERSION, missing_shards, read_begun, shard_name
from ovseg.data.pairs.table import SCHEMA, Pairs
from ovseg.limits import check_names, check_unpacked
from ovseg.structures import InputError

PACKED = 100  # times that a shard may be smaller than its pairs; masks hardly get smaller by packing


def read_pairs(path: str | Path) -> Pairs:
    """The pairs of a store, in the order of its shards, or of the table that OVSeg's authors published.

    They are in mapped memory, see `ovseg.data.pairs.mapped`: processes of a machine share them, and of the run lengths
    only what is asked for is read.

    Raises:
        InputError: there is no store, it is unfinished, empty, or not one of ours, or names files elsewhere; there is
            no room for the copy.
    """
    path = Path(path)
    if path.is_file():
        return _mapped(path, [path], lambda: [read_released(path)], {"released": path.name})
    shards, settings = _shards(path)
    return _mapped(path, shards, lambda: (_read_shard(shard, SCHEMA.names) for shard in shards), settings)


def read_columns(path: str | Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of a store; without `counts`, the masks, hundreds of thousands of pairs take no time.

    Raises:
        InputError: as `read_pairs`.
    """
    path = Path(path)
    if path.is_file():
        return read_released(path).select(columns)
    shards, _ = _shards(path)
    table = pa.concat_tables(_read_shard(shard, columns) for shard in shards)
    if not table.num_rows:
        raise _no_pairs(path)
    return table


def _mapped(
    path: Path, sources: Sequence[Path], tables: Callable[[], Iterable[pa.Table]], provenance: Mapping[str, Any]
) -> Pairs:
    copy = map_tables(sources, path.name if path.is_file() else "pairs", tables)
    table = open_mapped(copy)
    check_names(table["file_name"].unique().to_pylist(), path)  # once more: the copy may have come with the store
    if not table.num_rows:
        raise _no_pairs(path)
    return Pairs(table, provenance, reopen=partial(open_mapped, copy, check=False))


def _shards(folder: Path) -> tuple[list[Path], Mapping[str, Any]]:
    """The files of a store, and the settings it was written with."""
    command = f"run `ovseg mine --config conf/mine.yaml --out {folder}`"
    if (begun := read_begun(folder)) is None:
        raise InputError(f"pairs not found in {folder}; {command}")
    if pending := missing_shards(folder, begun["shards"]):
        raise InputError(
            f"the pairs in {folder} are unfinished: {len(pending)} of {begun['shards']} shards are not there, mining "
            "was interrupted; run the same `ovseg mine` again to go on"
        )
    return [folder / shard_name(shard) for shard in range(begun["shards"])], begun["settings"]


def _no_pairs(folder: Path) -> InputError:
    command = f"run `ovseg mine --config conf/mine.yaml --out {folder}` with other captions or proposals"
    return InputError(f"{folder} holds no pairs: no noun found a region; {command}")


def _read_shard(shard: Path, columns: Sequence[str]) -> pa.Table:
    advice = f"delete {shard.name} and run the same `ovseg mine` again"
    try:
        schema = pq.read_schema(shard)
        if (schema.metadata or {}).get(b"ovseg_schema") == str(SCHEMA_VERSION).encode() and schema.equals(SCHEMA):
            table = _unpacked(shard, columns)
            if "file_name" in columns:
                check_names(table["file_name"].unique().to_pylist(), shard)
            return table
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{shard} cannot be read ({str(error).splitlines()[0]}); {advice}") from error
    raise InputError(f"{shard} does not hold pairs as this version writes them; {advice}")


def _unpacked(shard: Path, columns: Sequence[str]) -> pa.Table:
    """The columns of a shard, unless a small file holds very much."""
    with pq.ParquetFile(shard) as file:
        packed, groups = shard.stat().st_size, [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        check_unpacked(sum(group.total_byte_size for group in groups), packed, PACKED)
        batches, unpacked = [], 0
        # in portions, since a value that repeats is stored once
        for batch in file.iter_batches(ROW_GROUP_PAIRS, columns=list(columns)):
            check_unpacked(unpacked := unpacked + batch.nbytes, packed, PACKED)
            batches.append(batch)
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        return pa.Table.from_batches([batch.select(columns) for batch in batches], schema)
