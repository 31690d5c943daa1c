"""The figures that the paper gives of its pairs, and those that tell whether they are any good."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ovseg.data.pairs.read import read_columns
from ovseg.data.pairs.store import read_logs

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Statistics(NamedTuple):
    """Of a whole store; quantiles are those of `QUANTILES`."""

    pairs: int
    unique_nouns: int
    images: int  # that have a pair
    images_without: int  # without a region or noun
    images_unread: int
    most_frequent: dict[str, int]  # noun → pairs
    pairs_an_image: list[float]
    similarity: list[float]
    margin: list[float]


def pair_statistics(path: str | Path, most_frequent: int = 20) -> Statistics:
    """Figures of a store, from its small columns."""
    table = read_columns(path, ["image_id", "noun", "similarity", "margin"])
    nouns, an_image = (Counter(table[name].to_pylist()) for name in ("noun", "image_id"))
    logs = read_logs(Path(path))
    unread = sum(len(log.faults) for log in logs)
    return Statistics(
        pairs=table.num_rows,
        unique_nouns=len(nouns),
        images=len(an_image),
        images_without=sum(log.images for log in logs) - unread - len(an_image) if logs else 0,  # a table has none
        images_unread=unread,
        most_frequent=dict(nouns.most_common(most_frequent)),
        pairs_an_image=_quantiles(pa.array(an_image.values())),
        similarity=_quantiles(table["similarity"]),
        margin=_quantiles(table["margin"]),
    )


def describe(path: str | Path, most_frequent: int = 20) -> list[str]:
    """The same as lines to print."""
    found = pair_statistics(path, most_frequent)
    nouns = ", ".join(f"{noun} {count:,}" for noun, count in found.most_frequent.items())
    share = "  ".join(f"{quantile:>6.0%}" for quantile in QUANTILES)
    scores = {"similarity": found.similarity, "margin": found.margin}
    known = {name: values for name, values in scores.items() if not math.isnan(values[0])}  # published pairs have none
    return [
        f"{found.pairs:,} pairs of {found.unique_nouns:,} unique nouns in {found.images:,} images "
        f"({found.pairs / found.images:.1f} an image)",
        f"{found.images_without:,} images without a pair, {found.images_unread:,} that could not be read",
        f"most frequent: {nouns}",
        f"{'quantile':16}{share}",
        *(f"{name:16}" + "  ".join(f"{value:6.3f}" for value in values) for name, values in known.items()),
        f"{'pairs an image':16}" + "  ".join(f"{value:6.0f}" for value in found.pairs_an_image),
    ]


def _quantiles(column: pa.Array | pa.ChunkedArray) -> list[float]:
    values: list[float] = np.quantile(column.to_numpy(), QUANTILES).tolist()
    return values
