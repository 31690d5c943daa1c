"""Read `store.json` and the logs of a store's shards, and refuse damaged ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ovseg.structures import InputError

SCHEMA_VERSION = 2
STORE = "store.json"
MAX_SHARDS = 10_000_000  # keeps readers of a damaged store.json from looping forever


class ShardLog(NamedTuple):
    """The images of a shard."""

    images: int  # including those that could not be read
    faults: list[str]  # one sentence per image that could not be read


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the content of `store.json`, None if there is no such file.

    Raises:
        InputError: the file cannot be read, or another version of ovseg wrote it.
    """
    try:
        content: dict[str, Any] = json.loads((folder / STORE).read_text(encoding="utf-8"))
        version = content["ovseg_schema"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{folder / STORE} cannot be read ({error}); delete {folder} and mine again") from error
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{folder} does not contain pairs in this version's format (schema {version}, not {SCHEMA_VERSION}); "
            "choose another folder"
        )
    if fault := _fault(folder, content):
        raise InputError(f"{folder / STORE} is damaged: {fault}; delete {folder} and mine again")
    return content


def _fault(folder: Path, content: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the content of `store.json`, or None."""
    shards, images = content.get("shards"), content.get("images")
    if type(shards) is not int or not 0 <= shards <= MAX_SHARDS:
        return f"it has an invalid number of shards, {shards!r}"
    if not isinstance(content.get("settings"), dict):
        return "its settings are missing"
    if not isinstance(images, str | None):
        return f"its image folder is {images!r}"
    names = {shard_name(shard) for shard in range(shards)} if (files := shard_files(folder)) else set()
    if surplus := [file.name for file in files if file.name not in names]:
        return f"it has {shards} shards, but {surplus[0]} is there too"
    return None


def read_logs(folder: Path) -> list[ShardLog]:
    """Return the logs of the shards in a folder, in order.

    Raises:
        InputError: a file cannot be read or is not a shard.
    """
    return [_read_log(shard) for shard in shard_files(folder)]


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"pairs-{shard:05d}.parquet"


def missing_shards(folder: Path, shards: int) -> list[int]:
    """Return the indices below `shards` whose file is missing."""
    names = {file.name for file in shard_files(folder)}
    return [shard for shard in range(shards) if shard_name(shard) not in names]


def _read_log(shard: Path) -> ShardLog:
    try:
        log = ShardLog(**json.loads(pq.read_schema(shard).metadata[b"ovseg_log"]))
        if type(log.images) is not int or not isinstance(log.faults, list) or not len(log.faults) <= log.images:
            raise ValueError("its log is damaged")
        return log
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{shard} cannot be read ({error}); delete it and rerun the same `ovseg mine` command"
        ) from error


def shard_files(folder: Path) -> list[Path]:
    """Return the shard files in a folder, in order."""
    return sorted(folder.glob("pairs-*.parquet"))
