"""Statistics of a store: the figures that the paper reports, and quantiles of the scores to judge the pairs by."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ovseg.data.pairs.manifest import read_logs
from ovseg.data.pairs.read import read_columns

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Statistics(NamedTuple):
    """Statistics of a whole store; the lists hold the quantiles of `QUANTILES`."""

    pairs: int
    unique_nouns: int
    images: int  # with at least one pair
    images_without_pairs: int  # images that were read but had no region or noun
    images_unreadable: int
    most_frequent: dict[str, int]  # noun → number of pairs
    pairs_per_image: list[float]
    similarity: list[float]
    margin: list[float]


def pair_statistics(path: str | Path, most_frequent: int = 20) -> Statistics:
    """Compute the statistics of a store without reading its masks.

    Args:
        path: the folder of the store, or the released table.
        most_frequent: number of nouns to list.

    Raises:
        InputError: see `read_pairs`.
    """
    table = read_columns(path, ["image_id", "noun", "similarity", "margin"])
    pairs_of_noun, pairs_of_image = (Counter(table[name].to_pylist()) for name in ("noun", "image_id"))
    logs = read_logs(Path(path))
    unreadable = sum(len(log.faults) for log in logs)
    without_pairs = sum(log.images for log in logs) - unreadable - len(pairs_of_image)
    return Statistics(
        pairs=table.num_rows,
        unique_nouns=len(pairs_of_noun),
        images=len(pairs_of_image),
        images_without_pairs=without_pairs if logs else 0,  # the released table has no logs
        images_unreadable=unreadable,
        most_frequent=dict(pairs_of_noun.most_common(most_frequent)),
        pairs_per_image=_quantiles(pa.array(pairs_of_image.values())),
        similarity=_quantiles(table["similarity"]),
        margin=_quantiles(table["margin"]),
    )


def describe(path: str | Path, most_frequent: int = 20) -> list[str]:
    """Return the lines that `ovseg pairs stats` prints; arguments and errors are those of `pair_statistics`."""
    stats = pair_statistics(path, most_frequent)
    nouns = ", ".join(f"{noun} {count:,}" for noun, count in stats.most_frequent.items())
    header = "  ".join(f"{quantile:>6.0%}" for quantile in QUANTILES)
    scores = {"similarity": stats.similarity, "margin": stats.margin}
    known = {name: values for name, values in scores.items() if not math.isnan(values[0])}  # released pairs have none
    return [
        f"{stats.pairs:,} pairs of {stats.unique_nouns:,} unique nouns in {stats.images:,} images "
        f"({stats.pairs / stats.images:.1f} per image)",
        f"{stats.images_without_pairs:,} images without pairs, {stats.images_unreadable:,} unreadable images",
        f"most frequent: {nouns}",
        f"{'quantile':16}{header}",
        *(f"{name:16}" + "  ".join(f"{value:6.3f}" for value in values) for name, values in known.items()),
        f"{'pairs per image':16}" + "  ".join(f"{value:6.0f}" for value in stats.pairs_per_image),
    ]


def _quantiles(column: pa.Array | pa.ChunkedArray) -> list[float]:
    values: list[float] = np.quantile(column.to_numpy(), QUANTILES).tolist()
    return values
