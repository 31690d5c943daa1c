"""The store of region-text pairs: a folder of Parquet shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ovseg.structures import InputError, RegionTextPair

SCHEMA_VERSION = "1"
COMPLETE = "complete.json"  # written last; without it a store is unfinished
SHARD_PAIRS = 20_000
ROW_GROUP_PAIRS = 2_000  # masks can be read in such portions

SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        *((side, pa.int32()) for side in ("height", "width")),
        ("counts", pa.binary()),
        *((edge, pa.int32()) for edge in ("x0", "y0", "x1", "y1")),
        ("noun", pa.string()),
        ("caption_id", pa.int64()),
        *((score, pa.float64()) for score in ("similarity", "margin", "proposal_score")),
    ]
)


class Pairs(Sequence[RegionTextPair]):
    """Pairs in Arrow's memory, which many workers share, made into `RegionTextPair` when asked for.

    Args:
        table: columns as in `SCHEMA`.
        provenance: what the writer said of their making.
    """

    def __init__(self, table: pa.Table, provenance: Mapping[str, str]) -> None:
        self.table, self.provenance = table, dict(provenance)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> RegionTextPair: ...
    @overload
    def __getitem__(self, index: slice) -> Pairs: ...
    def __getitem__(self, index: int | slice) -> RegionTextPair | Pairs:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return _to_pair(self.table.slice(range(len(self))[index], 1).to_pylist()[0])

    def take(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Pairs:
        """The pairs at these indices."""
        return Pairs(self.table.take(pa.array(indices)), self.provenance)

    def filter(self, min_similarity: float | None = None, max_per_noun: int | None = None) -> Pairs:
        """Pairs at least so similar, of each noun at most so many, the most similar; their order stays."""
        similarity = self.table["similarity"].to_numpy()
        keep = np.arange(len(self))
        if min_similarity is not None:
            keep = keep[similarity[keep] >= min_similarity]
        if max_per_noun is not None:
            nouns = np.unique(self.table["noun"].to_numpy(zero_copy_only=False)[keep].astype(str), return_inverse=True)[
                1
            ]
            order = np.lexsort((-similarity[keep], nouns))
            counts = np.bincount(nouns)
            rank = np.arange(len(keep)) - np.repeat(counts.cumsum() - counts, counts)  # of each pair within its noun
            keep = np.sort(keep[order[rank < max_per_noun]])
        return self.take(keep)


class PairStoreWriter:
    """Writes pairs shard by shard; a shard is there as a whole or not at all.

    Use as a context. An exception inside leaves an unfinished store, which `read_pairs` refuses and the next writer
    replaces.

    Args:
        folder: made if missing.
        provenance: kept in every shard.
        overwrite: delete the shards that are there.
        shard_pairs: pairs a shard.

    Raises:
        InputError: the folder has a finished store and `overwrite` is not given.
    """

    def __init__(
        self,
        folder: str | Path,
        provenance: Mapping[str, str] | None = None,
        overwrite: bool = False,
        shard_pairs: int = SHARD_PAIRS,
    ) -> None:
        self.folder, self.shard_pairs, self.overwrite = Path(folder), shard_pairs, overwrite
        if not overwrite and (self.folder / COMPLETE).is_file():
            raise InputError(f"{self.folder} already holds pairs; choose another folder or overwrite them")
        metadata = {"ovseg_schema": SCHEMA_VERSION, "ovseg_provenance": json.dumps(dict(provenance or {}))}
        self._schema = SCHEMA.with_metadata(metadata)
        self._waiting: list[RegionTextPair] = []
        self._written = 0

    def __enter__(self) -> PairStoreWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / COMPLETE).unlink(missing_ok=True)
        for old in _shards(self.folder):
            old.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        if self._waiting or not self._written:
            self._write()
        (self.folder / COMPLETE).write_text(json.dumps({"shards": self._written}) + "\n", encoding="utf-8")

    def add(self, pairs: Iterable[RegionTextPair]) -> None:
        """Append pairs; full shards go to disk.

        Raises:
            ValueError: the mask of a pair is empty.
        """
        for pair in pairs:
            x0, y0, x1, y1 = pair.box
            if x0 >= x1 or y0 >= y1:
                raise ValueError(f"the region of {pair.noun!r} in {pair.file_name} is empty")
            self._waiting.append(pair)
            if len(self._waiting) == self.shard_pairs:
                self._write()

    def _write(self) -> None:
        shard = self.folder / f"pairs-{self._written:05d}.parquet"
        partial = shard.with_name(f".{shard.name}.tmp")
        table = pa.Table.from_pylist([_to_row(pair) for pair in self._waiting], schema=self._schema)
        pq.write_table(table, partial, compression="zstd", row_group_size=ROW_GROUP_PAIRS)
        partial.replace(shard)
        self._waiting.clear()
        self._written += 1


def write_pairs(path: str | Path, pairs: Iterable[RegionTextPair], provenance: Mapping[str, str] | None = None) -> None:
    """A new store of these pairs; see `PairStoreWriter`."""
    with PairStoreWriter(path, provenance) as store:
        store.add(pairs)


def read_pairs(path: str | Path) -> Pairs:
    """The pairs of a store, in the order they were written.

    Raises:
        InputError: there is no store, it is unfinished, empty, or not one of ours.
    """
    path = Path(path)
    command = f"run `ovseg mine --config conf/mine.yaml --out {path}`"
    if not (shards := _shards(path)):
        raise InputError(f"pairs not found in {path}; {command}")
    tables = []
    for shard in shards:
        try:
            table = pq.read_table(shard)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{shard} cannot be read ({str(error).splitlines()[0]}); {command}") from error
        metadata = table.schema.metadata or {}
        if metadata.get(b"ovseg_schema") != SCHEMA_VERSION.encode() or not table.schema.equals(SCHEMA):
            raise InputError(f"{shard} does not hold pairs as this version writes them; {command}")
        tables.append(table)
    if not (path / COMPLETE).is_file():
        raise InputError(f"the pairs in {path} are unfinished: mining was interrupted; {command} again")
    provenance = json.loads(tables[0].schema.metadata[b"ovseg_provenance"])
    pairs = Pairs(pa.concat_tables(tables).combine_chunks(), provenance)
    if not pairs:
        raise InputError(f"{path} holds no pairs: no noun found a region; {command} with other captions or proposals")
    return pairs


def pair_statistics(pairs: Pairs, most_frequent: int = 20) -> dict[str, Any]:
    """The figures that the paper gives of its pairs, and the most frequent nouns with their counts."""
    nouns = Counter(pairs.table["noun"].to_pylist())
    return {
        "pairs": len(pairs),
        "unique_nouns": len(nouns),
        "images": len(pairs.table["image_id"].unique()),
        "mean_similarity": float(np.mean(pairs.table["similarity"].to_numpy())) if len(pairs) else float("nan"),
        "most_frequent": dict(nouns.most_common(most_frequent)),
    }


def _shards(path: Path) -> list[Path]:
    return sorted(path.glob("pairs-*.parquet"))


def _to_row(pair: RegionTextPair) -> dict[str, Any]:
    row = pair._asdict()
    row["height"], row["width"] = row.pop("size")
    row["x0"], row["y0"], row["x1"], row["y1"] = row.pop("box")
    return row


def _to_pair(row: dict[str, Any]) -> RegionTextPair:
    row["size"] = (row.pop("height"), row.pop("width"))
    row["box"] = (row.pop("x0"), row.pop("y0"), row.pop("x1"), row.pop("y1"))
    return RegionTextPair(**row)
