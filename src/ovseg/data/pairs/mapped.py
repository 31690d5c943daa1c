"""An uncompressed copy of pairs that all processes of a machine map, so that it is in memory once.

    pairs.0f3a….arrow      beside the shards of a store, or in the user's cache where those are on a read-only disk

Parquet is compressed and cannot be mapped. Whoever reads first makes the copy. Its name follows from sizes and times of
its sources, so that it is made anew when they change.
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

# a column of `binary` cannot hold 2 GiB
MAPPED_SCHEMA = SCHEMA.set(SCHEMA.get_field_index("counts"), pa.field("counts", pa.large_binary()))
VERSION = 1  # of the copy
LEFTOVER_SECONDS = 3600.0  # after which a partial copy is of a process that was killed


def map_tables(sources: Sequence[Path], name: str, tables: Callable[[], Iterable[pa.Table]]) -> Path:
    """The copy, made from the tables if there is none of these sources yet.

    Args:
        sources: the files that the tables are read from.
        name: what the copy's name begins with.
        tables: columns as in `SCHEMA`, a part in memory at a time.

    Raises:
        InputError: there is no room for it.
    """
    store = sources[0].parent
    identity = [VERSION, *((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sources)]
    places = [store / f"{name}.{_key(identity)}.arrow"]
    with contextlib.suppress(RuntimeError):  # without a home there is no cache
        # times may be equal, in an image of a file system for example, and only here stores meet
        places.append(cache_folder("pairs") / f"{name}.{_key([str(store.resolve()), *identity])}.arrow")
    for path in places:
        if path.is_file():
            return path
    faults = []
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, tables())
        except OSError as error:
            faults.append(f"{path.parent}: {error.strerror or error}")
            continue
        _delete_partial(path.parent)
        if path == places[0]:  # the cache has copies of other stores, too
            _delete_outdated(path, name)
        return path
    raise InputError(
        f"the pairs of {store} cannot be copied into a file that processes share ({'; '.join(faults)}); "
        "make room there, or set OVSEG_CACHE to a folder with room"
    )


def _key(identity: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def open_mapped(path: Path, check: bool = True) -> pa.Table:
    """The copy as a table in mapped memory.

    Args:
        check: every value, whoever wrote the file; processes that open it after this one need not.

    Raises:
        InputError: the file is damaged.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if check:
            table.validate(full=True)
        if table.schema.equals(MAPPED_SCHEMA):
            return table
        fault = "other columns"
    except (pa.ArrowException, OSError) as error:
        fault = str(error).splitlines()[0]
    raise InputError(f"{path} is damaged ({fault}); delete it and run the same command again, which makes it anew")


def _write(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write the file as a whole or not at all; one that another process has written meanwhile stays."""
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            with pa.ipc.new_file(file, MAPPED_SCHEMA) as writer:
                for table in tables:
                    writer.write_table(table.cast(MAPPED_SCHEMA).combine_chunks())
            file.flush()
            os.fsync(file.fileno())
        try:
            # not a rename, which would take the file away from processes of other machines that have it mapped
            os.link(partial, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        pa.default_memory_pool().release_unused()


def _delete_outdated(path: Path, name: str) -> None:
    """Copies of what the sources were before."""
    copies = re.compile(re.escape(name) + r"\.[0-9a-f]{16}\.arrow")
    for file in path.parent.iterdir():
        if copies.fullmatch(file.name) and file != path:
            with contextlib.suppress(OSError):
                file.unlink()


def _delete_partial(folder: Path) -> None:
    """Partial copies of processes that were killed."""
    for file in folder.glob(".*.arrow.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > LEFTOVER_SECONDS:
                file.unlink()
