"""The columns of a store, and pairs as rows of an Arrow table."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, overload

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovseg.structures import RegionTextPair

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
    """A sequence of `RegionTextPair`s over the rows of a table; selections do not copy the table.

    Args:
        table: has the columns of `SCHEMA`.
        provenance: the settings that the pairs were made with.
        indices: the selected rows, all by default.
        reopen: returns the table when the pairs are unpickled in another process; without it the table is pickled.
    """

    def __init__(
        self,
        table: pa.Table,
        provenance: Mapping[str, Any],
        indices: NDArray[np.int64] | None = None,
        reopen: Callable[[], pa.Table] | None = None,
    ) -> None:
        self.provenance = dict(provenance)
        self._table, self._indices, self._reopen = table, indices, reopen
        self._batches = table.to_batches()
        self._starts = [0, *accumulate(batch.num_rows for batch in self._batches)]

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is None:
            return Pairs, (self._table, self.provenance, self._indices)
        return _reopened, (self._reopen, self.provenance, self._indices)

    def __len__(self) -> int:
        return int(self._table.num_rows) if self._indices is None else len(self._indices)

    @overload
    def __getitem__(self, index: int) -> RegionTextPair: ...
    @overload
    def __getitem__(self, index: slice) -> Pairs: ...
    def __getitem__(self, index: int | slice) -> RegionTextPair | Pairs:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row = range(len(self))[index]
        row = row if self._indices is None else int(self._indices[row])
        # slicing the table instead would search all batches of every column
        batch = bisect_right(self._starts, row) - 1
        return to_pair(self._batches[batch].slice(row - self._starts[batch], 1).to_pylist()[0])

    def column(self, name: str) -> pa.ChunkedArray:
        """Return the values of one column."""
        column = self._table[name]
        return column if self._indices is None else column.take(pa.array(self._indices))

    def take(self, indices: NDArray[np.int64]) -> Pairs:
        """Return the pairs at these indices."""
        rows = indices if self._indices is None else self._indices[indices]
        return Pairs(self._table, self.provenance, rows, self._reopen)

    def filter(self, min_similarity: float | None = None, max_per_noun: int | None = None) -> Pairs:
        """Return the pairs of at least `min_similarity`, and of each noun the `max_per_noun` most similar, in order."""
        if min_similarity is None and max_per_noun is None:
            return self
        similarity = self.column("similarity").to_numpy()
        rows = np.arange(len(self))
        if min_similarity is not None:
            rows = rows[similarity[rows] >= min_similarity]
        if max_per_noun is not None:
            nouns = _codes(self.column("noun"))[rows]
            order = np.lexsort((-similarity[rows], nouns))
            counts = np.bincount(nouns)
            rank = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)  # of each pair within its noun
            rows = np.sort(rows[order[rank < max_per_noun]])
        return self.take(rows)

    def nouns(self) -> list[str]:
        """Return the distinct nouns, sorted."""
        return sorted(self.column("noun").unique().to_pylist())

    def image_indices(self) -> Tensor:
        """Return (N,) int64, the same index for pairs of the same image, counted from 0."""
        return torch.from_numpy(_codes(self.column("file_name")))


def _reopened(
    reopen: Callable[[], pa.Table], provenance: Mapping[str, Any], indices: NDArray[np.int64] | None
) -> Pairs:
    return Pairs(reopen(), provenance, indices, reopen)


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return an index per value: equal values share one, numbered from 0 in order of first occurrence."""
    codes: NDArray[np.int64] = column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes


def to_table(pairs: Iterable[RegionTextPair]) -> pa.Table:
    """Build a table with the columns of `SCHEMA`.

    Raises:
        ValueError: the mask of a pair is empty.
    """
    rows = []
    for pair in pairs:
        row = pair._asdict()
        x0, y0, x1, y1 = row.pop("box")
        if x0 >= x1 or y0 >= y1:
            raise ValueError(f"the region of {pair.noun!r} in {pair.file_name} is empty")
        height, width = row.pop("size")
        rows.append({**row, "height": height, "width": width, "x0": x0, "y0": y0, "x1": x1, "y1": y1})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def to_pair(row: dict[str, Any]) -> RegionTextPair:
    """Return the pair of one row of `to_table`."""
    row = dict(row)
    row["size"] = (row.pop("height"), row.pop("width"))
    row["box"] = (row.pop("x0"), row.pop("y0"), row.pop("x1"), row.pop("y1"))
    return RegionTextPair(**row)
