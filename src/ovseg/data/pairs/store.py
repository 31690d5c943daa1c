"""Write a store of pairs shard by shard, so that a run killed at any moment can resume.

    store.json             the number of shards, the image folder and the settings; written first
    pairs-00000.parquet …  one file per shard; its metadata repeat the settings and record how many images the shard has
                           and which of them could not be read
    log.txt                the images that could not be read; written when all shards are complete
    pairs.0f3a….arrow      a copy that readers share, see `ovseg.data.pairs.mapped`; can be deleted

Every file is written atomically.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.parquet as pq

from ovseg.data.pairs.manifest import (
    SCHEMA_VERSION,
    STORE,
    ShardLog,
    missing_shards,
    read_logs,
    read_manifest,
    shard_files,
    shard_name,
)
from ovseg.data.pairs.table import SCHEMA, to_table
from ovseg.structures import InputError, RegionTextPair

LOG = "log.txt"
SHARD_PAIRS = 20_000  # pairs per shard of `write_pairs`
ROW_GROUP_PAIRS = 1_000  # pairs whose masks are read together
_MAX_VALUE = 60  # characters; longer values of settings are left out of messages

Settings = Mapping[str, str | int | float | bool | None]


class PairStore:
    """Write a new store or resume an incomplete one, from one process or several.

    Args:
        folder: the store; `begin` creates it.
        settings: everything that the pairs depend on.
        images: the image folder, recorded for `ovseg pairs show`.

    Raises:
        InputError: the folder contains pairs with different settings, or of another version of ovseg.
    """

    def __init__(self, folder: str | Path, settings: Settings, images: Path | None = None) -> None:
        self.folder, self.settings = Path(folder), dict(settings)
        self.images = None if images is None else str(images.resolve())
        if not shard_files(self.folder):
            return  # a run that was refused may have left its store.json, which `begin` replaces
        if (manifest := read_manifest(self.folder)) is None:
            raise InputError(
                f"{self.folder} contains pairs of an older version of ovseg; delete the folder or choose another --out"
            )
        if "region_encoder" in self.settings and "region_encoder" not in manifest["settings"]:
            raise InputError(
                f"{self.folder} was begun by an older version of ovseg, which records other settings; choose another "
                "--out, or delete the folder"
            )
        if differences := _differences(manifest["settings"], json.loads(json.dumps(self.settings))):
            raise InputError(
                f"{self.folder} already contains pairs with different settings: {', '.join(differences)}; "
                "choose another --out, resume with the original settings, or delete the folder"
            )

    @property
    def complete(self) -> bool:
        """Whether all shards are written."""
        return self.missing() == []

    def missing(self) -> list[int] | None:
        """Return the indices of the shards not yet written, None before `begin`."""
        manifest = read_manifest(self.folder)
        return None if manifest is None else missing_shards(self.folder, manifest["shards"])

    def create_marker(self) -> str:
        """Create a file by which other processes check that they see the same folder, and return its name."""
        name = f".{uuid4().hex}.tmp"  # a new name, which no network file system has cached as missing
        self._write(name, b"")
        return name

    def begin(self, shards: int) -> list[int]:
        """Record the number of shards; one process calls this before any process writes.

        Returns:
            The indices of the shards not yet written.

        Raises:
            InputError: the folder cannot be written, or its store has another number of shards.
        """
        manifest = read_manifest(self.folder)
        if manifest is None or not shard_files(self.folder):
            content = {
                "ovseg_schema": SCHEMA_VERSION,
                "shards": shards,
                "images": self.images,
                "settings": self.settings,
            }
            self._write(STORE, json.dumps(content, indent=2).encode() + b"\n")
        elif manifest["shards"] != shards:
            raise InputError(
                f"{self.folder} was begun with {manifest['shards']} shards and would now have {shards}: the images or "
                "captions have changed; choose another --out, or delete the folder"
            )
        for leftover in self.folder.glob(".*.tmp"):  # of killed processes
            leftover.unlink()
        return missing_shards(self.folder, shards)

    def write(self, shard: int, pairs: Iterable[RegionTextPair], log: ShardLog) -> None:
        """Write a shard.

        Raises:
            InputError: the disk is full, or the folder is not writable.
            ValueError: the mask of a pair is empty.
        """
        metadata = {
            "ovseg_schema": str(SCHEMA_VERSION),
            "ovseg_log": json.dumps(log._asdict()),
            "ovseg_settings": json.dumps(self.settings),
        }
        table = to_table(pairs).cast(SCHEMA.with_metadata(metadata))
        content = io.BytesIO()
        pq.write_table(table, content, compression="zstd", row_group_size=ROW_GROUP_PAIRS)
        self._write(shard_name(shard), content.getbuffer())

    def finish(self) -> list[str]:
        """Write the log of a complete store, and return its lines: one sentence per image that could not be read."""
        lines = [fault for log in read_logs(self.folder) for fault in log.faults]
        if lines:
            self._write(LOG, "".join(f"{line}\n" for line in lines).encode())
        return lines

    def _write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file atomically, even if the process is killed or the machine fails."""
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
                f"{self.folder / name} cannot be written ({error.strerror}); free disk space or correct the path, and "
                "rerun the same command to write the missing shards"
            ) from error


def write_pairs(path: str | Path, pairs: Iterable[RegionTextPair], provenance: Settings | None = None) -> None:
    """Write pairs to a new store.

    Args:
        path: the folder of the store.
        provenance: settings to record, available as `Pairs.provenance`.

    Raises:
        InputError: the folder already contains a complete or incomplete store, or cannot be written.
        ValueError: the mask of a pair is empty.
    """
    path = Path(path)
    if (path / STORE).exists() or shard_files(path):
        raise InputError(f"{path} already contains pairs; choose another folder or delete it")
    pairs = list(pairs)
    store = PairStore(path, provenance or {})
    for shard in store.begin(max(-(-len(pairs) // SHARD_PAIRS), 1)):
        part = pairs[shard * SHARD_PAIRS : (shard + 1) * SHARD_PAIRS]
        store.write(shard, part, ShardLog(len({pair.image_id for pair in part}), []))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a phrase per changed setting; long values such as hashes and lists are left out."""
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    values = {name: (str(before.get(name)), str(now.get(name))) for name in changed}
    return [
        f"{name} has changed" if max(map(len, pair)) > _MAX_VALUE else f"{name} was {pair[0]} and is now {pair[1]}"
        for name, pair in values.items()
    ]
