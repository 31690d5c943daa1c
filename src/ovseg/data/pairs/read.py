"""Read a store of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ovseg.data.pairs.manifest import SCHEMA_VERSION, missing_shards, read_manifest, shard_name
from ovseg.data.pairs.mapped import map_tables, open_mapped
from ovseg.data.pairs.released import read_released
from ovseg.data.pairs.store import ROW_GROUP_PAIRS
from ovseg.data.pairs.table import SCHEMA, Pairs
from ovseg.limits import check_names, check_unpacked
from ovseg.structures import InputError

MAX_COMPRESSION = 100  # ratio of unpacked to stored bytes in an honest shard; masks hardly compress


def read_pairs(path: str | Path) -> Pairs:
    """Read the pairs of a store, in the order of its shards, or those of the released table.

    The pairs are memory-mapped, see `ovseg.data.pairs.mapped`: the processes of a machine share them, and run lengths
    are read only when they are accessed.

    Raises:
        InputError: there is no store; it is incomplete, empty or not in this version's format; it names images outside
            the image folder; or the shared copy cannot be written.
    """
    path = Path(path)
    if path.is_file():
        return _mapped(path, [path], lambda: [read_released(path)], {"released": path.name})
    shards, settings = _shards(path)
    return _mapped(path, shards, lambda: (_read_shard(shard, SCHEMA.names) for shard in shards), settings)


def read_columns(path: str | Path, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a store, which is fast unless they include `counts`, the masks.

    Raises:
        InputError: see `read_pairs`.
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
    check_names(table["file_name"].unique().to_pylist(), path)  # again, because the copy may have come with the store
    if not table.num_rows:
        raise _no_pairs(path)
    return Pairs(table, provenance, reopen=partial(open_mapped, copy, check=False))


def _shards(folder: Path) -> tuple[list[Path], Mapping[str, Any]]:
    """Return the shard files of a store, and the settings it was written with."""
    command = f"run `ovseg mine --config conf/mine.yaml --out {folder}`"
    if (manifest := read_manifest(folder)) is None:
        raise InputError(f"pairs not found in {folder}; {command}")
    if missing := missing_shards(folder, manifest["shards"]):
        raise InputError(
            f"the pairs in {folder} are incomplete: {len(missing)} of {manifest['shards']} shards are missing because "
            "mining was interrupted; rerun the same `ovseg mine` command to resume it"
        )
    return [folder / shard_name(shard) for shard in range(manifest["shards"])], manifest["settings"]


def _no_pairs(folder: Path) -> InputError:
    command = f"run `ovseg mine --config conf/mine.yaml --out {folder}` with other captions or proposals"
    return InputError(f"{folder} contains no pairs: no noun matched a region; {command}")


def _read_shard(shard: Path, columns: Sequence[str]) -> pa.Table:
    advice = f"delete {shard.name} and rerun the same `ovseg mine` command"
    try:
        schema = pq.read_schema(shard)
        if (schema.metadata or {}).get(b"ovseg_schema") == str(SCHEMA_VERSION).encode() and schema.equals(SCHEMA):
            table = _read_limited(shard, columns)
            if "file_name" in columns:
                check_names(table["file_name"].unique().to_pylist(), shard)
            return table
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{shard} cannot be read ({str(error).splitlines()[0]}); {advice}") from error
    raise InputError(f"{shard} does not contain pairs in this version's format; {advice}")


def _read_limited(shard: Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of a shard, and stop if a small file unpacks to far too many bytes."""
    with pq.ParquetFile(shard) as file:
        packed, groups = shard.stat().st_size, [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        check_unpacked(sum(group.total_byte_size for group in groups), packed, MAX_COMPRESSION)
        batches, unpacked = [], 0
        # batch by batch, because the metadata counts a repeated value once
        for batch in file.iter_batches(ROW_GROUP_PAIRS, columns=list(columns)):
            check_unpacked(unpacked := unpacked + batch.nbytes, packed, MAX_COMPRESSION)
            batches.append(batch)
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        return pa.Table.from_batches([batch.select(columns) for batch in batches], schema)
