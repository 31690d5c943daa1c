"""Writes a store of pairs shard by shard, so that whoever is killed at any moment can go on.

    store.json             how many shards there will be, where the images are, and the settings; written first
    pairs-00000.parquet …  a shard each; its metadata say how many images it is of, which of them could not be read, and
                           the settings once more
    log.txt                images that could not be read, when all shards are there
    pairs.0f3a….arrow      a copy that readers share, see `ovseg.data.pairs.mapped`; may be deleted

Every file appears as a whole or not at all.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from ovseg.data.pairs.table import SCHEMA, to_table
from ovseg.structures import InputError, RegionTextPair

SCHEMA_VERSION = 2
STORE, LOG = "store.json", "log.txt"
SHARD_PAIRS = 20_000  # of `write_pairs`
MAX_SHARDS = 10_000_000  # a damaged store.json must not keep its reader busy for ever
ROW_GROUP_PAIRS = 1_000  # masks can be read in such portions
_SHOWN = 60  # characters of a setting that a message spells out

Settings = Mapping[str, str | int | float | bool | None]


class ShardLog(NamedTuple):
    """What became of the images of a shard."""

    images: int
    faults: list[str]  # a sentence for each image that could not be read


class PairStore:
    """A store that is being written, by one process or many, for the first time or once more.

    Args:
        folder: made by `begin` if missing.
        settings: all that the pairs depend on.
        images: where the images are, for those who look at the pairs; they may move.

    Raises:
        InputError: the folder holds pairs of other settings, or of another version of ovseg.
    """

    def __init__(self, folder: str | Path, settings: Settings, images: Path | None = None) -> None:
        self.folder, self.settings = Path(folder), dict(settings)
        self.images = None if images is None else str(images.resolve())
        if (begun := read_begun(self.folder)) is None:
            if _shard_files(self.folder):
                raise InputError(
                    f"{self.folder} holds pairs of an older version of ovseg; delete the folder or choose another --out"
                )
        elif differences := _differences(begun["settings"], json.loads(json.dumps(self.settings))):
            raise InputError(
                f"{self.folder} already holds pairs of other settings: {', '.join(differences)}; "
                "choose another --out, go on with the settings it was begun with, or delete the folder"
            )

    @property
    def complete(self) -> bool:
        return self.missing() == []

    def missing(self) -> list[int] | None:
        """The shards that are still to come; None before the store is begun."""
        begun = read_begun(self.folder)
        return None if begun is None else missing_shards(self.folder, begun["shards"])

    def leave_mark(self) -> str:
        """The name of a new file, by which other processes tell whether they write to the same folder."""
        name = f".{uuid4().hex}.tmp"  # a name never asked for is in no cache of a network's file system
        self._write(name, b"")
        return name

    def begin(self, shards: int) -> list[int]:
        """Say how many shards there will be; one process does, before any writes.

        Returns:
            The shards that are still to be written.

        Raises:
            InputError: the folder cannot be written, or was begun with another number.
        """
        begun = read_begun(self.folder)
        if begun is None:
            about = {"ovseg_schema": SCHEMA_VERSION, "shards": shards, "images": self.images}
            content = {**about, "settings": self.settings}
            self._write(STORE, json.dumps(content, indent=2).encode() + b"\n")
        elif begun["shards"] != shards:
            raise InputError(
                f"{self.folder} was begun with {begun['shards']} shards and would now have {shards}: the images or "
                "captions have changed; choose another --out, or delete the folder"
            )
        for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed
            leftover.unlink()
        return missing_shards(self.folder, shards)

    def write(self, shard: int, pairs: Iterable[RegionTextPair], log: ShardLog) -> None:
        """Write a shard.

        Raises:
            InputError: there is no room on the disk, or no permission.
            ValueError: the mask of a pair is empty.
        """
        about = {"ovseg_log": json.dumps(log._asdict()), "ovseg_settings": json.dumps(self.settings)}
        metadata = {"ovseg_schema": str(SCHEMA_VERSION), **about}
        table = to_table(pairs).cast(SCHEMA.with_metadata(metadata))
        content = io.BytesIO()
        pq.write_table(table, content, compression="zstd", row_group_size=ROW_GROUP_PAIRS)
        self._write(shard_name(shard), content.getbuffer())

    def finish(self) -> list[str]:
        """Write the log of a complete store and return its lines, a sentence for each image that could not be read."""
        lines = [fault for log in read_logs(self.folder) for fault in log.faults]
        if lines:
            self._write(LOG, "".join(f"{line}\n" for line in lines).encode())
        return lines

    def _write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file as a whole or not at all, whatever happens to the process or the machine."""
        partial = self.folder / f".{name}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise InputError(
                f"{self.folder / name} cannot be written ({error.strerror}); make room or correct the path, and run "
                "the same command again: it goes on after the shards that are there"
            ) from error


def write_pairs(path: str | Path, pairs: Iterable[RegionTextPair], provenance: Settings | None = None) -> None:
    """A new store of these pairs.

    Raises:
        InputError: the folder holds a store already, finished or not, or cannot be written.
        ValueError: the mask of a pair is empty.
    """
    path = Path(path)
    if (path / STORE).exists() or _shard_files(path):
        raise InputError(f"{path} already holds pairs; choose another folder or delete it")
    pairs = list(pairs)
    store = PairStore(path, provenance or {})
    for shard in store.begin(max(-(-len(pairs) // SHARD_PAIRS), 1)):
        part = pairs[shard * SHARD_PAIRS : (shard + 1) * SHARD_PAIRS]
        store.write(shard, part, ShardLog(len({pair.image_id for pair in part}), []))


def read_begun(folder: Path) -> dict[str, Any] | None:
    """What `store.json` says, None where there is none.

    Raises:
        InputError: it cannot be read, or another version of ovseg wrote it.
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
            f"{folder} does not hold pairs as this version writes them (schema {version}, not {SCHEMA_VERSION}); "
            "choose another folder"
        )
    shards = content.get("shards")
    if not isinstance(shards, int) or not 0 <= shards <= MAX_SHARDS:
        raise InputError(f"{folder / STORE} gives {shards!r} as the number of shards; delete {folder} and mine again")
    return content


def read_logs(folder: Path) -> list[ShardLog]:
    """What became of the images of each shard.

    Raises:
        InputError: a file cannot be read or is no shard.
    """
    return [_read_log(shard) for shard in _shard_files(folder)]


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"pairs-{shard:05d}.parquet"


def missing_shards(folder: Path, shards: int) -> list[int]:
    """Which of so many shards are not there."""
    there = {file.name for file in _shard_files(folder)}
    return [shard for shard in range(shards) if shard_name(shard) not in there]


def _read_log(shard: Path) -> ShardLog:
    try:
        return ShardLog(**json.loads(pq.read_schema(shard).metadata[b"ovseg_log"]))
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{shard} cannot be read ({error}); delete it and run the same `ovseg mine` again") from error


def _shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("pairs-*.parquet"))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A phrase for each setting that is not the same; hashes and lists say nothing to a reader."""
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    values = {name: (str(before.get(name)), str(now.get(name))) for name in changed}
    return [
        f"{name} is another" if max(map(len, pair)) > _SHOWN else f"{name} was {pair[0]} and is now {pair[1]}"
        for name, pair in values.items()
    ]
