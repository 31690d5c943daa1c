"""Pairs as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    """Pairs in Arrow's memory, which many workers share, made into `RegionTextPair` when asked for.

    Args:
        table: columns as in `SCHEMA`.
        provenance: what the writer said of their making.
    """

    def __init__(self, table: pa.Table, provenance: Mapping[str, Any]) -> None:
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
        return to_pair(self.table.slice(range(len(self))[index], 1).to_pylist()[0])

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
            nouns = _codes(self.table["noun"])[keep]
            order = np.lexsort((-similarity[keep], nouns))
            counts = np.bincount(nouns)
            rank = np.arange(len(keep)) - np.repeat(counts.cumsum() - counts, counts)  # of each pair within its noun
            keep = np.sort(keep[order[rank < max_per_noun]])
        return self.take(keep)

    def image_indices(self) -> Tensor:
        """(N,) int64: pairs of the same image have the same number, from 0."""
        return torch.from_numpy(_codes(self.table["file_name"]))


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Equal words have equal numbers, from 0 in the order of their first place."""
    codes: NDArray[np.int64] = column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes


def to_table(pairs: Iterable[RegionTextPair]) -> pa.Table:
    """Columns of `SCHEMA`.

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
    """The pair of a row of `to_table`."""
    row = dict(row)
    row["size"] = (row.pop("height"), row.pop("width"))
    row["box"] = (row.pop("x0"), row.pop("y0"), row.pop("x1"), row.pop("y1"))
    return RegionTextPair(**row)
