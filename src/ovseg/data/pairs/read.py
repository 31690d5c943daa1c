"""Reads a store of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ovseg.data.pairs.released import read_released
from ovseg.data.pairs.store import SCHEMA_VERSION, missing_shards, read_begun, shard_name
from ovseg.data.pairs.table import SCHEMA, Pairs
from ovseg.structures import InputError


def read_pairs(path: str | Path) -> Pairs:
    """The pairs of a store, in the order of its shards, or of the table that OVSeg's authors published.

    Raises:
        InputError: there is no store, it is unfinished, empty, or not one of ours.
    """
    return _read(Path(path), SCHEMA.names)


def read_columns(path: str | Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of a store; without `counts`, the masks, hundreds of thousands of pairs take no time.

    Raises:
        InputError: as `read_pairs`.
    """
    return _read(Path(path), columns).table


def _read(path: Path, columns: Sequence[str]) -> Pairs:
    if path.is_file():
        released = read_released(path)
        return Pairs(released.table.select(columns), released.provenance)
    command = f"run `ovseg mine --config conf/mine.yaml --out {path}`"
    if (begun := read_begun(path)) is None:
        raise InputError(f"pairs not found in {path}; {command}")
    if pending := missing_shards(path, begun["shards"]):
        raise InputError(
            f"the pairs in {path} are unfinished: {len(pending)} of {begun['shards']} shards are not there, mining was "
            "interrupted; run the same `ovseg mine` again to go on"
        )
    table = pa.concat_tables(_read_shard(path / shard_name(shard), columns) for shard in range(begun["shards"]))
    if not table.num_rows:
        raise InputError(f"{path} holds no pairs: no noun found a region; {command} with other captions or proposals")
    return Pairs(table.combine_chunks(), begun["settings"])


def _read_shard(shard: Path, columns: Sequence[str]) -> pa.Table:
    advice = f"delete {shard.name} and run the same `ovseg mine` again"
    try:
        schema = pq.read_schema(shard)
        if (schema.metadata or {}).get(b"ovseg_schema") == str(SCHEMA_VERSION).encode() and schema.equals(SCHEMA):
            return pq.read_table(shard, columns=list(columns)).replace_schema_metadata(None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{shard} cannot be read ({str(error).splitlines()[0]}); {advice}") from error
    raise InputError(f"{shard} does not hold pairs as this version writes them; {advice}")
