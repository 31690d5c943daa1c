"""An uncompressed copy of the pairs, which all processes of a machine share through one memory map.

    pairs.0f3a….arrow      next to the shards of a store, or in the user's cache if the store is read-only

Parquet is compressed and cannot be mapped. The first reader writes the copy. Its name contains a hash of the sizes and
times of its sources, so a changed source leads to a new copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from ovseg.cache import cache_folder
from ovseg.data.pairs.table import SCHEMA
from ovseg.structures import InputError

# a `binary` column is limited to 2 GiB
MAPPED_SCHEMA = SCHEMA.set(SCHEMA.get_field_index("counts"), pa.field("counts", pa.large_binary()))
VERSION = 1  # of the copy's format
LEFTOVER_SECONDS = 3600.0  # age from which a partial copy is taken to belong to a killed process


def map_tables(sources: Sequence[Path], name: str, tables: Callable[[], Iterable[pa.Table]]) -> Path:
    """Return the path of the copy; write it first unless there is one of these sources already.

    Args:
        sources: the files that the tables are read from.
        name: beginning of the copy's file name.
        tables: yields the tables with the columns of `SCHEMA`; one is in memory at a time.

    Raises:
        InputError: the copy cannot be written.
    """
    store = sources[0].parent
    identity = [VERSION, *((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sources)]
    candidates = [store / f"{name}.{_key(identity)}.arrow"]
    with contextlib.suppress(RuntimeError):  # without a home folder there is no cache
        # all stores share the cache, and their times can be equal, in a disk image for example: hash the path as well
        candidates.append(cache_folder("pairs") / f"{name}.{_key([str(store.resolve()), *identity])}.arrow")
    for path in candidates:
        if path.is_file():
            return path
    faults = []
    for path in candidates:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, tables())
        except OSError as error:
            faults.append(f"{path.parent}: {error.strerror or error}")
            continue
        _delete_partial(path.parent)
        if path == candidates[0]:  # the cache also contains copies of other stores
            _delete_outdated(path, name)
        return path
    raise InputError(
        f"the shared copy of the pairs of {store} cannot be written ({'; '.join(faults)}); "
        "free disk space there, or set OVSEG_CACHE to a folder with free space"
    )


def _key(identity: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def open_mapped(path: Path, check: bool = True) -> pa.Table:
    """Return the copy as a memory-mapped table.

    Args:
        check: validate every value; processes that reopen a copy which has been checked can skip it.

    Raises:
        InputError: the file is damaged.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if check:
            table.validate(full=True)
        if table.schema.equals(MAPPED_SCHEMA):
            return table
        fault = "unexpected columns"
    except (pa.ArrowException, OSError) as error:
        fault = str(error).splitlines()[0]
    raise InputError(f"{path} is damaged ({fault}); delete it and rerun the same command, which writes it again")


def _write(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write the file atomically; keep it if another process has written it in the meantime."""
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            with pa.ipc.new_file(file, MAPPED_SCHEMA) as writer:
                for table in tables:
                    writer.write_table(table.cast(MAPPED_SCHEMA).combine_chunks())
            file.flush()
            os.fsync(file.fileno())
        try:
            # a rename would remove the file that processes on other machines have mapped
            os.link(partial, path)
        except FileExistsError:
            pass
        except OSError:  # the file system has no hard links
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        pa.default_memory_pool().release_unused()


def _delete_outdated(path: Path, name: str) -> None:
    """Delete copies of earlier versions of the sources."""
    copies = re.compile(re.escape(name) + r"\.[0-9a-f]{16}\.arrow")
    for file in path.parent.iterdir():
        if copies.fullmatch(file.name) and file != path:
            with contextlib.suppress(OSError):
                file.unlink()


def _delete_partial(folder: Path) -> None:
    """Delete partial copies that killed processes left behind."""
    for file in folder.glob(".*.arrow.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > LEFTOVER_SECONDS:
                file.unlink()
